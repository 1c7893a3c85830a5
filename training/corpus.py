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

from downlink import dct, lap
from downlink.context import ROTATION_SHIFT, level_of
from downlink.moments import QUIET
from downlink.repeat import ONCE, Repetition
from training.config import ConfigError, Corpus, Run

Pixels = NDArray[np.float32]
INTEGER_TYPES = ("uint8", "uint16", "int16")


@dataclass(frozen=True)
class Picture:
    """One raster in memory: pixels (bands, height, width) in their own integer type, statistics over its valid
    pixels.

    `factors` (bands) is 2 for a band of half resolution (repeated 2 x 2, blocks beginning at the first pixel), else 1.
    `covariances` (4, bands, bands) are of the transform's coefficients, summed over each subband's channels.
    """

    name: str
    source: str
    pixels: NDArray[np.generic]
    peak: float
    mean: NDArray[np.float64]
    factors: NDArray[np.int64]
    covariances: NDArray[np.float64]

    @property
    def bands(self) -> int:
        return self.pixels.shape[0]


def _valid(pixels: NDArray[np.generic], nodata: float | None) -> NDArray[np.bool_]:
    if nodata is None:
        return np.ones(pixels.shape[1:], dtype=bool)
    return (pixels != nodata).all(axis=0)


def read_raster(path: Path, bands: tuple[int, ...] = ()) -> tuple[NDArray[np.generic], float | None]:
    """Pixels (bands, height, width) of a raster, or of some of its bands (numbered from 1), and its nodata value."""
    import rasterio

    with rasterio.open(path) as dataset:
        return dataset.read(list(bands) or None), dataset.nodata


def read_picture(path: Path, bands: tuple[int, ...] = ()) -> Picture | None:
    """Read one raster, or some of its bands, numbered from 1; None if its type is not an 8/16-bit integer, a band is
    not there or nothing in it is valid."""
    import rasterio

    with rasterio.open(path) as dataset:
        if dataset.dtypes[0] not in INTEGER_TYPES or max(bands, default=0) > dataset.count:
            return None
    pixels, nodata = read_raster(path, bands)
    valid = _valid(pixels, nodata)
    if valid.sum() < 1024:
        return None
    mean = pixels[:, valid].astype(np.float64).mean(axis=1)
    if not valid.all():  # invalid pixels become the mean: they must not teach edges that the codec never sees
        pixels = np.where(valid, pixels, np.round(mean).astype(pixels.dtype)[:, None, None])
    peak = 255.0 if pixels.dtype == np.uint8 else 10000.0
    pixels, mean, factors = _on_lattice(pixels, mean)
    if min(pixels.shape[1:]) < 2 * dct.BLOCK:
        return None
    covariances = subband_covariances(coefficients(pixels.astype(np.float32), mean, factors))
    return Picture(path.name, path.name.split("__")[0], pixels, peak, mean, factors, covariances)


def _on_lattice(
    pixels: NDArray[np.generic], mean: NDArray[np.float64]
) -> tuple[NDArray[np.generic], NDArray[np.float64], NDArray[np.int64]]:
    """Find bands repeated 2 x 2 and cut the picture so that their blocks begin at its first pixel. Bands repeated
    otherwise are left out: the encoder codes them on a lattice of their own."""
    repetition = Repetition(len(pixels))
    repetition.add(pixels, 0, 0)
    repeats = [repetition.found(band) for band in range(len(pixels))]
    doubled = [repeat for repeat in repeats if repeat.factor == 2]
    if doubled:
        _, row, col = max(set(doubled), key=doubled.count)
        height, width = (pixels.shape[1] - row) // 2 * 2, (pixels.shape[2] - col) // 2 * 2
        pixels = pixels[:, row : row + height, col : col + width]
        repeats = [ONCE if r.factor == 2 and r[1:] != (row, col) else r for r in repeats]
    kept = [band for band, repeat in enumerate(repeats) if repeat.factor <= 2] or list(range(len(repeats)))
    factors = np.array([repeats[band].factor if repeats[band].factor <= 2 else 1 for band in kept])
    return np.ascontiguousarray(pixels[kept]), mean[kept], factors


def coefficients(pixels: Pixels, mean: NDArray[np.float64], factors: NDArray[np.int64]) -> Pixels:
    """Transform of whole blocks of a crop (bands, height, width): (bands, 64, height / 8, width / 8). The crop's own
    border is not lapped."""
    height, width = (side // dct.BLOCK * dct.BLOCK for side in pixels.shape[1:])
    centred = pixels[:, :height, :width] - mean.astype(np.float32)[:, None, None]
    out = np.zeros((len(pixels), dct.CHANNELS, height // dct.BLOCK, width // dct.BLOCK), np.float32)
    once = factors == 1
    for half, chosen in ((False, once), (True, ~once)):
        if chosen.any():
            size = dct.BLOCK // 2 if half else dct.BLOCK
            own = np.ascontiguousarray(centred[chosen, ::2, ::2] if half else centred[chosen])
            out[chosen, : size * size] = dct.forward(lap.mix(own, size, (size, size)), half)
    return out


def subband_covariances(values: Pixels) -> NDArray[np.float64]:
    """(4, bands, bands): mean product of bands' coefficients, summed over each subband's channels."""
    out = []
    for number in range(len(dct.SUBBANDS)):
        flat = values[:, dct.subband(number)].reshape(len(values), -1).astype(np.float64)
        out.append(flat @ flat.T / (values.shape[2] * values.shape[3]))
    return np.stack(out)


def read_corpus(folder: Path, config: Corpus) -> tuple[list[Picture], list[Picture]]:
    """Pictures for training and for validation: whole sources (or every n-th file, if no source is named) are held
    out."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        rows = json.loads(manifest.read_text())
        paths = [folder / row["file"] for row in rows if row["suggested_split"] in config.splits]
    else:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".tif", ".tiff", ".jp2"))
    found = len(paths)
    if config.sources:
        paths = [path for path in paths if path.name.startswith(config.sources)]
    pictures = [picture for path in paths if (picture := read_picture(path, config.bands)) is not None]
    if not pictures:
        wanted = f" of {', '.join(config.sources)}" if config.sources else ""
        wanted += f" with bands {', '.join(map(str, config.bands))}" if config.bands else ""
        raise ConfigError(
            f"{folder}: no 8/16-bit integer raster{wanted} among {found} files; point --data at a folder of GeoTIFFs"
        )
    if config.validation_sources:
        held = [p for p in pictures if p.name.startswith(config.validation_sources)]
    else:
        held = pictures[:: max(2, round(1 / max(config.validation_share, 1e-6)))]
    names = {p.name for p in held}
    return [p for p in pictures if p.name not in names], held


def spectral_basis(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """KLT of a covariance: rows are planes by falling variance; the variances beside it."""
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(variances)[::-1]
    return vectors[:, order].T.astype(np.float32), np.maximum(variances[order], 0.0)


PARTITIONS = ((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 2, 3))
"""Which basis each subband has: from one KLT for all to one for each."""
PARTITION_SHARES = (0.1, 0.1, 0.15, 0.65)


@dataclass(frozen=True)
class Batch:
    """Coefficients of planes in units of the step: (crops, planes, 64, h, w); levels (crops, planes, 4) as the
    side chunk has them; turn (crops, planes, planes): subband 0's planes seen from subband 1's, in 1/64."""

    coefficients: torch.Tensor
    levels: torch.Tensor
    turn: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.coefficients.to(device), self.levels.to(device), self.turn.to(device))


Planes = tuple[Pixels, NDArray[np.float32], NDArray[np.float32]]


def planes_of(
    values: Pixels,
    covariances: NDArray[np.float64],
    factors: NDArray[np.int64],
    partition: tuple[int, ...],
    step: float,
) -> Planes:
    """Bands' coefficients -> planes' in steps, levels (planes, 4) and turn (planes, planes): what the front end does
    on board."""
    bands = len(values)
    out, levels = np.zeros_like(values), np.zeros((bands, len(dct.SUBBANDS)), np.float32)
    if (factors == 2).any() and partition[3] == partition[2]:  # the high subband has fewer bands: a basis of its own
        partition = (*partition[:3], partition[2] + 1)
    rows = []
    for number, (start, end) in enumerate(zip((0, *dct.SUBBANDS), dct.SUBBANDS, strict=False)):
        members = [i for i, basis in enumerate(partition) if basis == partition[number]]
        basis, _ = spectral_basis(covariances[members].sum(axis=0))
        variances = np.einsum("pb,bc,pc->p", basis, covariances[number], basis) / (end - start)
        for plane, variance in enumerate(variances):
            deviation = float(np.sqrt(max(variance, 0.0)))
            levels[plane, number] = level_of(deviation, step) if deviation > QUIET * step else 0
        turned = np.tensordot(basis / np.float32(step), values[:, start:end], axes=1)
        turned[levels[:, number] == 0] = 0
        out[:, start:end] = turned
        rows.append(basis * (levels[:, number] > 0)[:, None])
    turn = np.round(rows[1] @ rows[0].T * (1 << ROTATION_SHIFT)).astype(np.float32)
    return out, levels, turn


class Sampler:
    """Draws batches. One generator per sampler; the same seed draws the same batches."""

    def __init__(self, pictures: list[Picture], run: Run, seed: int) -> None:
        self.pictures, self.corpus, self.augment, self.run = pictures, run.corpus, run.augment, run
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
        side = self.corpus.crop + 2 * dct.BLOCK  # blocks of the border are cut off again: they are not lapped
        height, width = picture.pixels.shape[1:]
        top = int(self.random.integers(0, max(0, height - side) + 1)) // 2 * 2  # bands of half resolution stay whole
        left = int(self.random.integers(0, max(0, width - side) + 1)) // 2 * 2
        crop = picture.pixels[bands, top : top + side, left : left + side].astype(np.float32)
        short = [(0, 0), (0, side - crop.shape[1]), (0, side - crop.shape[2])]
        return np.pad(crop, short, mode="symmetric") if any(b for _, b in short) else crop

    def _turn(self, crop: Pixels) -> Pixels:
        crop = np.rot90(crop, int(self.random.integers(4)), axes=(1, 2))
        return crop[:, ::-1] if self.random.random() < 0.5 else crop

    def _resample(self, crop: Pixels, factors: NDArray[np.int64]) -> tuple[Pixels, NDArray[np.int64]]:
        """Some bands become what a coarser detector would have seen, brought back by the kernels that chains use."""
        chosen = self.random.random(crop.shape[0]) < 0.5
        if not chosen.any():
            return crop, factors
        factor = int(self.random.choice([2, 2, 3, 6]))
        kernel = str(self.random.choice(["nearest", "bilinear", "bicubic"]))
        bands = torch.from_numpy(np.ascontiguousarray(crop[chosen]))[None]
        phase = int(self.random.integers(factor)) if self.random.random() < 0.5 else 0
        bands = torch.roll(bands, (phase, phase), dims=(2, 3))
        coarse = torch.nn.functional.avg_pool2d(bands, factor, ceil_mode=True, count_include_pad=False)
        up = torch.nn.functional.interpolate(
            coarse, scale_factor=factor, mode=kernel, **({} if kernel == "nearest" else {"align_corners": False})
        )
        back = torch.roll(up[0, :, : crop.shape[1], : crop.shape[2]], (-phase, -phase), dims=(1, 2))
        out = crop.copy()
        out[chosen] = np.round(back.numpy())
        doubled = kernel == "nearest" and factor == 2 and phase == 0
        return out, np.where(chosen, 2 if doubled else 1, factors)

    def _example(self, count: int) -> Planes:
        weight = self.weight * (self.most_bands >= count)
        group = self.members[int(self.random.choice(len(self.members), p=weight / weight.sum()))]
        picture = self.pictures[int(self.random.choice(group))]
        bands = np.sort(self.random.permutation(picture.bands)[:count])
        crop = self._turn(self._crop(picture, bands))
        mean, factors = picture.mean[bands], picture.factors[bands]
        covariances = picture.covariances[:, bands][:, :, bands]
        own = self.random.random() < self.augment.own_basis
        if self.random.random() < self.augment.radiometry:
            gain = np.exp2(self.random.uniform(-1.0, 1.0, count))
            crop = crop * gain.astype(np.float32)[:, None, None]
            mean, covariances = mean * gain, covariances * np.outer(gain, gain)
        if count > 1 and self.random.random() < self.augment.resample:
            (crop, factors), own = self._resample(crop, factors), True
        if own:
            mean = crop.reshape(count, -1).astype(np.float64).mean(axis=1)
        values = coefficients(crop, mean, factors)[..., 1:-1, 1:-1]
        if own:
            covariances = subband_covariances(values)
        partition = PARTITIONS[int(self.random.choice(len(PARTITIONS), p=PARTITION_SHARES))]
        return planes_of(values, covariances, factors, partition, self._step(picture.peak))

    def draw(self) -> Batch:
        """One batch: crops of one plane count, each with a step of its own."""
        count = self._plane_count()
        crops = max(1, self.corpus.planes_per_step // count)
        examples = [self._example(count) for _ in range(crops)]
        return Batch(*(torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True)))
