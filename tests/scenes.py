"""Seeded synthetic scenes, small and quick: a smooth field and sharp parcels under a gain per band, noise and nodata."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from downlink.scene import Band, Grid, Scene


def pixels(
    seed: int = 0, bands: int = 12, height: int = 120, width: int = 120, dtype: str = "uint16", nodata: int | None = 0
) -> NDArray[np.generic]:
    """(bands, height, width) of reflectance-like numbers; a slanted corner of all bands is nodata unless that is None."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = random.uniform(5, 60, (4, 2)) * random.choice([-1, 1], (4, 2))
    field = sum(np.sin(y / a + x / b + phase) for (a, b), phase in zip(waves, random.uniform(0, 6, 4), strict=True))
    parcels = random.normal(size=(height // 16 + 1, width // 16 + 1)).repeat(16, 0).repeat(16, 1)[:height, :width]
    gains = random.uniform(0.4, 1.6, (bands, 2, 1, 1))
    mixed = 1500 * gains[:, :1] + 300 * gains[:, :1] * field + 400 * gains[:, 1:] * parcels
    mixed += random.normal(scale=12, size=(bands, height, width))
    limit = np.iinfo(dtype)
    scale = 0.05 if limit.max < 256 else 1.0
    out = np.clip(np.rint(mixed * scale), max(1, limit.min), limit.max).astype(dtype)
    if nodata is not None:
        out[:, y + 2 * x < (height + width) // 3] = nodata
    return out


def scene(array: NDArray[np.generic], nodata: int | None = 0, name: str = "synthetic", grids: int = 1) -> Scene:
    """A scene of `grids` equal grids that `array` fits."""
    bands, height, width = array.shape
    named = tuple(Band(f"B{number:02d}", 440.0 + 120 * number) for number in range(1, bands + 1))
    place = (10.0, 0.0, 453620.0, 0.0, -10.0, 5800020.0)
    grid = Grid(height, width, array.dtype.name, named, nodata, "EPSG:32633", place)  # type: ignore[arg-type]
    return Scene(name, (grid,) * grids, "2026-11-20T09:30:31Z", {"made_by": "tests/scenes.py"})
