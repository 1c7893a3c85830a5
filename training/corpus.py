"""Pictures to train on: a folder of rasters read into memory, and random crops of decorrelated planes drawn from them.

Works on the project's corpus (a folder with manifest.json, whose splits and integer types are honoured) and on any
folder of GeoTIFFs. Pictures of other than 8/16-bit integers are skipped by name. A crop never leaves its picture:
small pictures are extended by reflection.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from downlink.context import level_of
from training.config import ConfigError, Corpus, Run

Pixels = NDArray[np.float32]
INTEGER_TYPES = ("uint8", "uint16", "int16")


@dataclass(frozen=True)
class Picture:
    """One raster in memory: pixels (bands, height, width) in their own integer type, statistics over its valid
    pixels."""

    name: str
    source: str
    pixels: NDArray[np.generic]
    peak: float
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def bands(self) -> int:
        return self.pixels.shape[0]


def _valid(pixels: NDArray[np.generic], nodata: float | None) -> NDArray[np.bool_]:
    if nodata is None:
        return np.ones(pixels.shape[1:], dtype=bool)
    return (pixels != nodata).all(axis=0)


def read_picture(path: Path) -> Picture | None:
    """Read one raster; None if its type is not an 8/16-bit integer or nothing in it is valid."""
    import rasterio

    with rasterio.open(path) as dataset:
        if dataset.dtypes[0] not in INTEGER_TYPES:
            return None
        pixels = dataset.read()
        nodata = dataset.nodata
    valid = _valid(pixels, nodata)
    if valid.sum() < 1024:
        return None
    samples = pixels[:, valid].astype(np.float64)
    mean = samples.mean(axis=1)
    if not valid.all():  # invalid pixels become the mean: they must not teach edges that the codec never sees
        pixels = np.where(valid, pixels, np.round(mean).astype(pixels.dtype)[:, None, None])
    covariance = np.atleast_2d(np.cov(samples))
    peak = 255.0 if pixels.dtype == np.uint8 else 10000.0
    return Picture(path.name, path.name.split("__")[0], pixels, peak, mean, covariance)


def read_corpus(folder: Path, config: Corpus) -> tuple[list[Picture], list[Picture]]:
    """Pictures for training and for validation: whole sources (or every n-th file, if no source is named) are held
    out."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        rows = json.loads(manifest.read_text())
        paths = [folder / row["file"] for row in rows if row["suggested_split"] in config.splits]
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".tif", ".tiff", ".jp2"))
    pictures = [picture for path in paths if (picture := read_picture(path)) is not None]
    if not pictures:
        raise ConfigError(
            f"{folder}: no 8/16-bit integer raster among {len(paths)} files; point --data at a folder of GeoTIFFs"
        )
    if config.validation_sources:
        held = [p for p in pictures if p.source in config.validation_sources]
    else:
        held = pictures[:: max(2, round(1 / max(config.validation_share, 1e-6)))]
    names = {p.name for p in held}
    return [p for p in pictures if p.name not in names], held


def spectral_basis(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """KLT of a covariance: rows are planes by falling variance; the variances beside it."""
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1]
    return vectors[:, order].T.astype(np.float32), np.maximum(variances[order], 0.0)


@dataclass(frozen=True)
class Batch:
    """Planes in units of the step: pixels (crops, planes, side + 2 halo, ...), levels (crops, planes) as the side
    chunk has them."""

    pixels: torch.Tensor
    levels: torch.Tensor


class Sampler:
    """Draws batches. One generator per sampler; the same seed draws the same batches."""

    def __init__(self, pictures: list[Picture], run: Run, halo: int, seed: int) -> None:
        self.pictures, self.corpus, self.augment, self.run, self.halo = pictures, run.corpus, run.augment, run, halo
        self.random = np.random.default_rng(seed)
        by_source: dict[tuple[str, int], list[int]] = defaultdict(list)
        for i, picture in enumerate(pictures):
            by_source[picture.source, picture.bands].append(i)
        self.members = list(by_source.values())
        area = [sum(pictures[i].pixels[0].size for i in group) for group in self.members]
        self.weight = np.array(area, dtype=np.float64) ** self.corpus.balance
        self.most_bands = np.array([pictures[group[0]].bands for group in self.members])

    def _plane_count(self) -> int:
        kind = self.random.random()
        most = int(self.most_bands.max())
        if kind < 0.55:
            return min(12, most)
        if kind < 0.85:
            return min(int(self.random.choice([3, 4, 6, 7, 10])), most)
        return int(self.random.integers(1, min(13, most) + 1))

    def _step(self, peak: float) -> float:
        low, high = self.run.quality_tail if self.random.random() < self.run.tail_share else self.run.quality_range
        return float(peak * 2.0 ** (-self.random.uniform(low, high) / 8))

    def _crop(self, picture: Picture, bands: NDArray[np.int64]) -> Pixels:
        side = self.corpus.crop + 2 * self.halo
        height, width = picture.pixels.shape[1:]
        top = int(self.random.integers(0, max(0, height - side) + 1))
        left = int(self.random.integers(0, max(0, width - side) + 1))
        crop = picture.pixels[bands, top : top + side, left : left + side].astype(np.float32)
        short = [(0, 0), (0, side - crop.shape[1]), (0, side - crop.shape[2])]
        return np.pad(crop, short, mode="symmetric") if any(b for _, b in short) else crop

    def _turn(self, crop: Pixels) -> Pixels:
        crop = np.rot90(crop, int(self.random.integers(4)), axes=(1, 2))
        return crop[:, ::-1] if self.random.random() < 0.5 else crop

    def _resample(self, crop: Pixels) -> Pixels:
        """Some bands become what a coarser detector would have seen, brought back by the kernels that chains use."""
        chosen = self.random.random(crop.shape[0]) < 0.5
        if not chosen.any():
            return crop
        factor = int(self.random.choice([2, 2, 3, 6]))
        kernel = str(self.random.choice(["nearest", "bilinear", "bicubic"]))
        bands = torch.from_numpy(np.ascontiguousarray(crop[chosen]))[None]
        phase = int(self.random.integers(factor))
        bands = torch.roll(bands, (phase, phase), dims=(2, 3))
        coarse = torch.nn.functional.avg_pool2d(bands, factor, ceil_mode=True, count_include_pad=False)
        up = torch.nn.functional.interpolate(
            coarse, scale_factor=factor, mode=kernel, **({} if kernel == "nearest" else {"align_corners": False})
        )
        out = crop.copy()
        out[chosen] = np.round(up[0, :, : crop.shape[1], : crop.shape[2]].numpy())
        return out

    def _example(self, count: int) -> tuple[Pixels, list[int]]:
        weight = self.weight * (self.most_bands >= count)
        group = self.members[int(self.random.choice(len(self.members), p=weight / weight.sum()))]
        picture = self.pictures[int(self.random.choice(group))]
        bands = np.sort(self.random.permutation(picture.bands)[:count])
        crop = self._turn(self._crop(picture, bands))
        mean, covariance = picture.mean[bands], picture.covariance[np.ix_(bands, bands)]
        own = self.random.random() < self.augment.own_basis
        if self.random.random() < self.augment.radiometry:
            gain = np.exp2(self.random.uniform(-1.0, 1.0, count))
            crop = crop * gain.astype(np.float32)[:, None, None]
            mean, covariance = mean * gain, covariance * np.outer(gain, gain)
        if count > 1 and self.random.random() < self.augment.resample:
            crop, own = self._resample(crop), True
        if own:
            flat = crop.reshape(count, -1).astype(np.float64)
            mean, covariance = flat.mean(axis=1), np.atleast_2d(np.cov(flat))
        basis, variances = spectral_basis(covariance)
        step = self._step(picture.peak)
        centred = (crop - mean.astype(np.float32)[:, None, None]).reshape(count, -1)
        planes = (basis @ centred).reshape(crop.shape) / np.float32(step)
        return planes, [level_of(float(np.sqrt(v)), step) for v in variances]

    def draw(self) -> Batch:
        """One batch: crops of one plane count, each with a step of its own."""
        count = self._plane_count()
        crops = max(1, self.corpus.planes_per_step // count)
        examples = [self._example(count) for _ in range(crops)]
        pixels = torch.from_numpy(np.stack([planes for planes, _ in examples]))
        return Batch(pixels, torch.tensor([levels for _, levels in examples], dtype=torch.float32))
