"""Nodata on the ground: the mask of a tile from its chunks, and its pixels written and kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink import mask
from downlink.chunk import GridCoding, Layout
from downlink.scene import Grid

_ALL = b"\x01"


def tile_mask(
    layout: Layout, coding: GridCoding, grid: Grid, number: int, tile: int, chunk: Callable[[int], bytes | None]
) -> NDArray[np.bool_] | None:
    """Where a tile of grid `number` is nodata, (bands or 1, height, width); None if the grid has no masks. Where the
    mask has not arrived, everything is."""
    if coding.mask == "none":
        return None
    window, bands = layout.tiles(number).tile(tile).window, len(grid.bands)
    planes = []
    for block, index in enumerate(layout.masks_of(number, tile)):
        payload = chunk(index)
        count = len(mask.block_bands(coding.mask, bands, block))
        planes.append(mask.decode_mask(_ALL if payload is None else payload, (count, window.height, window.width)))
    return np.concatenate(planes)


def restore_nodata(pixels: NDArray[Any], hole: NDArray[np.bool_] | None, nodata: int | None) -> NDArray[Any]:
    """Write `nodata` where the mask says so, and nowhere else: a valid pixel that came out as that value moves by one.
    Works on `pixels` (bands, height, width) in place."""
    if nodata is None:
        return pixels
    beside = nodata + 1 if nodata < np.iinfo(pixels.dtype).max else nodata - 1
    pixels[pixels == nodata] = beside
    if hole is not None:
        pixels[np.broadcast_to(hole, pixels.shape)] = nodata
    return pixels
