"""A scene to be sent, read by windows. `open_source` finds the reader for a path; nothing here needs GDAL by itself.

Without rasterio: `.npy` (2-D, or 3-D as (bands, height, width)) and raw band-sequential files with a JSON side-car
(`encoder_node.source_array`). With it: GeoTIFF, JPEG 2000, ENVI and a few more (`encoder_node.source_raster`), and
Sentinel-2 products and folders of band files (`encoder_node.source_product`).

Pixels are uint8, uint16 or int16 and come back unchanged: no scaling, no offset, no resampling. Bands of different
pixel size become grids of their own. What a source holds beside that and cannot be carried is named in `notes`.
Refused, with a sentence that says what to do: floats, 32 and 64 bit, bool, complex, bands of mixed types.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from downlink.errors import SceneError
from downlink.scene import Scene
from downlink.tile import Window
from encoder_node.durable import shown, utf8

Pixels = npt.NDArray[Any]

NEEDS_RASTERIO = "pip install 'latent-downlink[edge-gdal]'"


class Source(Protocol):
    """An open scene. Not for several threads at once."""

    @property
    def scene(self) -> Scene:
        """What is known about the scene; valid under `downlink.scene.validate`."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the source holds and the scene does not: sentences for a person."""
        ...

    def read(self, grid: int, window: Window) -> Pixels:
        """The pixels of `window`, (bands, height, width), in the grid's dtype and the machine's byte order."""
        ...

    def close(self) -> None: ...


def open_source(path: str | Path) -> Source:
    """Open the scene at `path`, a file or a folder; raise `SceneError` if it cannot be taken."""
    path = Path(path)
    if not path.exists():
        raise SceneError(f"{path}: no such file or folder")
    if not utf8(path):
        raise SceneError(f"{shown(path)}: its name is not UTF-8, so no stream can carry it; rename it")
    from encoder_node import source_array

    if path.suffix.lower() == ".npy":
        return source_array.open_npy(path)
    if path.is_file() and (side_car := source_array.side_car_of(path)) is not None:
        return source_array.open_raw(path, side_car)
    if importlib.util.find_spec("rasterio") is None:
        raise SceneError(
            f"{path}: only .npy, and raw files with a side-car {path.name}.json, can be read without rasterio; "
            f"{NEEDS_RASTERIO} brings it"
        )
    from encoder_node import source_product, source_raster

    if source_product.is_product(path):
        return source_product.open_product(path)
    return source_raster.open_raster(path)


def check_window(window: Window, height: int, width: int) -> None:
    """A window outside the grid is a caller's bug: GDAL would clip it and numpy would wrap it round."""
    row, col, rows, cols = window
    if row < 0 or col < 0 or rows < 1 or cols < 1 or row + rows > height or col + cols > width:
        raise ValueError(f"{window} does not lie inside a grid of {height} x {width} px")


def native(pixels: Pixels) -> Pixels:
    """The same pixels, contiguous and in the machine's byte order."""
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
