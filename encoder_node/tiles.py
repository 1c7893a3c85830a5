"""Windows of a scene -> what the encoder network sees: strips read once, tiles cut with halo, nodata filled, bands
made planes.

Everything beyond the grid's edge is the edge pixel repeated. Only one strip (a row of tiles with its halo) is in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink.fill import fill_holes
from downlink.plane import FrontEnd, Moments, Statistics
from downlink.scene import Grid
from downlink.tile import Tile, TileGrid, Window
from encoder_node.source import Source

SAMPLE_WINDOWS = 16
"""Windows that statistics are taken from: 16 x 256 x 256 pixels settle a covariance of hundreds of bands."""
SAMPLE_VALUES = 1 << 20
"""Values (pixels x bands) taken from one window."""


@dataclass(frozen=True)
class TilePixels:
    """One tile as read: `pixels` (bands, coded height + 2 halo, coded width + 2 halo) in the grid's dtype."""

    number: int
    tile: Tile
    pixels: NDArray[Any]
    halo: int

    def nodata(self, value: int | None) -> NDArray[np.bool_] | None:
        """Where each band is nodata, with halo; None where the grid defines no such value or nothing is."""
        if value is None:
            return None
        hole = self.pixels == value
        return hole if hole.any() else None

    def core(self, array: NDArray[Any]) -> NDArray[Any]:
        """The tile's own window of an array that has the halo."""
        window = self.tile.window
        return array[:, self.halo : self.halo + window.height, self.halo : self.halo + window.width]


class GridReader:
    """Reads one grid of a source by rows of tiles, and windows of it for statistics."""

    def __init__(self, source: Source, grid: int, core: int, halo: int) -> None:
        self.source, self.number, self.halo = source, grid, halo
        self.grid: Grid = source.scene.grids[grid]
        self.tiles = TileGrid(self.grid.height, self.grid.width, core)

    def _read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Pixels of a rectangle that may reach beyond the grid: edge pixels repeat."""
        bottom, right = min(top + height, self.grid.height), min(left + width, self.grid.width)
        window = Window(max(0, top), max(0, left), bottom - max(0, top), right - max(0, left))
        pixels = self.source.read(self.number, window)
        around = [
            (0, 0),
            (window.row - top, top + height - bottom),
            (window.col - left, left + width - right),
        ]
        return np.pad(pixels, around, mode="edge") if any(a or b for a, b in around) else pixels

    def row(self, row: int) -> Iterator[TilePixels]:
        """The tiles of one row of tiles, from one strip read."""
        first = self.tiles.tile(self.tiles.number(row, 0))
        last = self.tiles.tile(self.tiles.number(row, self.tiles.cols - 1))
        height = first.coded[0] + 2 * self.halo
        width = last.window.col + last.coded[1] + 2 * self.halo
        strip = self._read(first.window.row - self.halo, -self.halo, height, width)
        for number in self.tiles.row_tiles(row):
            tile = self.tiles.tile(number)
            columns = slice(tile.window.col, tile.window.col + tile.coded[1] + 2 * self.halo)
            yield TilePixels(number, tile, strip[:, :, columns], self.halo)

    def one(self, number: int) -> TilePixels:
        """A single tile."""
        tile = self.tiles.tile(number)
        size = (tile.coded[0] + 2 * self.halo, tile.coded[1] + 2 * self.halo)
        pixels = self._read(tile.window.row - self.halo, tile.window.col - self.halo, *size)
        return TilePixels(number, tile, pixels, self.halo)

    def sample_tiles(self, most: int) -> list[int]:
        """Numbers of up to `most` tiles spread evenly over the grid."""
        count = len(self.tiles)
        chosen = min(most, count)
        return sorted({round((i + 0.5) * count / chosen - 0.5) for i in range(chosen)})

    def statistics(self) -> Statistics:
        """Moments over sample tiles; pixels without any valid band are left out."""
        bands = len(self.grid.bands)
        moments = Moments(bands)
        every = -(-bands * self.tiles.core**2 // SAMPLE_VALUES)  # of many bands, fewer pixels: memory stays bounded
        for number in self.sample_tiles(SAMPLE_WINDOWS):
            tile = self.one(number)
            flat = tile.core(tile.pixels).reshape(bands, -1)[:, ::every]
            if self.grid.nodata is None:
                moments.add(flat)
                continue
            hole = flat == self.grid.nodata
            some = ~hole.all(axis=0)
            moments.add(flat[:, some], hole[:, some])
        return moments.statistics()

    def planes(self, tile: TilePixels, front_end: FrontEnd, step: float) -> NDArray[np.float32]:
        """A tile's planes in steps, (planes, coded height + 2 halo, coded width + 2 halo), nodata filled."""
        pixels = tile.pixels.astype(np.float32)
        hole = tile.nodata(self.grid.nodata)
        if hole is not None:
            pixels = fill_holes(pixels, hole, front_end.mean.astype(np.float32))
        return front_end.forward(pixels, step)
