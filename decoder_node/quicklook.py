"""A small picture of a received scene: `write_quicklook`, RGB with transparency, as PNG.

For eyes only. Red, green and blue are the bands nearest to 665, 560 and 490 nm; failing wavelengths, the bands called
B04, B03, B02 or red, green, blue; failing those, the first three, or the first alone in grey. Each is stretched from
its 2nd to its 98th percentile of valid pixels. Nodata is transparent. Read from overviews, so that memory follows the
picture's size.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.io import MemoryFile

from decoder_node.durable import write_whole
from downlink.scene import Grid, Scene

_RGB_NM: Final = (665.0, 560.0, 490.0)
_RGB_NAMES: Final = (("b04", "b4", "red"), ("b03", "b3", "green"), ("b02", "b2", "blue"))
_NEAR_NM: Final = 60.0  # further away than this, a band is not that colour


def write_quicklook(path: Path, scene: Scene, cogs: Sequence[Path], side_px: int = 1024) -> Path:
    """Write a PNG of at most `side_px` a side from the first grid that has red, green and blue, else from the first.

    `cogs`: one file per grid, as `decoder_node.raster.output_paths` orders them. The file appears whole or not at all.
    """
    number, bands = choose_bands(scene)
    grid = scene.grids[number]
    shrink = max(1.0, max(grid.height, grid.width) / side_px)
    height, width = max(1, round(grid.height / shrink)), max(1, round(grid.width / shrink))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(cogs[number]) as dataset:
            indexes = [band + 1 for band in bands]
            pixels = dataset.read(indexes, out_shape=(len(bands), height, width), resampling=Resampling.average)
            valid = dataset.read_masks(indexes, out_shape=(len(bands), height, width)) > 0
    write_whole(path, png(paint(pixels, valid)))
    return path


def choose_bands(scene: Scene) -> tuple[int, tuple[int, ...]]:
    """(grid, bands of it): three for red, green and blue, or one for grey."""
    for number, grid in enumerate(scene.grids):
        found = _by_wavelength(grid) or _by_name(grid)
        if found:
            return number, found
    return 0, (0, 1, 2) if len(scene.grids[0].bands) >= 3 else (0,)


def paint(pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """(1 or 3 bands, height, width) as RGBA; a pixel is shown if it is valid in every band."""
    shown = valid.all(axis=0)
    painted = np.zeros((4, *shown.shape), np.uint8)
    for channel in range(3):
        band = pixels[channel % len(pixels)].astype(np.float32)
        if shown.any():
            low, high = np.percentile(band[shown], (2, 98))
            scaled = (band - low) / max(high - low, 1.0) * 255
            painted[channel] = np.where(shown, scaled.clip(0, 255), 0).astype(np.uint8)
    painted[3] = np.where(shown, 255, 0)
    return painted


def png(picture: npt.NDArray[np.uint8]) -> bytes:
    """(1, 3 or 4 bands, height, width) as a PNG file."""
    bands, height, width = picture.shape
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        profile = {"driver": "PNG", "count": bands, "height": height, "width": width, "dtype": "uint8"}
        with memory.open(**profile, ZLEVEL=2) as dataset:  # the default takes three times as long for a tenth less
            dataset.write(picture)
        content: bytes = memory.read()
    return content


def _by_wavelength(grid: Grid) -> tuple[int, ...] | None:
    known = [(band.wavelength_nm, index) for index, band in enumerate(grid.bands) if band.wavelength_nm]
    nearest = [min(((abs(nm - wanted), index) for nm, index in known), default=(1e9, 0)) for wanted in _RGB_NM]
    chosen = tuple(index for distance, index in nearest if distance <= _NEAR_NM)
    return chosen if len(set(chosen)) == 3 else None


def _by_name(grid: Grid) -> tuple[int, ...] | None:
    names = [band.name.lower() for band in grid.bands]
    chosen = tuple(next((names.index(name) for name in wanted if name in names), -1) for wanted in _RGB_NAMES)
    return None if -1 in chosen else chosen
