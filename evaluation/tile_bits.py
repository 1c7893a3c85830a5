"""Where a stream's bits went: bits per pixel of a scene's ground, tile by tile, from the chunks of a `.dl` file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink.stream import StreamReader

CELL: Final = 32
"""Pixels of the finest grid that a cell of the map stands for: tiles of all lattices are multiples of it."""


@dataclass(frozen=True)
class TileBits:
    """`cells` (rows, columns) hold bits per pixel of the finest grid, all bands together, over cells of `CELL` pixels.
    `tiles` counts the tiles of all lattices; `common_bits` are those of no tile: manifest, chunk list, side
    information."""

    cells: NDArray[np.float64]
    tiles: int
    common_bits: int

    @property
    def per_tile(self) -> NDArray[np.float64]:
        """One number per tile of the finest lattice, 256 px a side."""
        size = 256 // CELL
        rows, cols = (-(-side // size) for side in self.cells.shape)
        means = [
            [self.cells[size * r : size * (r + 1), size * c : size * (c + 1)].mean() for c in range(cols)]
            for r in range(rows)
        ]
        return np.array(means)


def tile_bits(payload: bytes) -> TileBits:
    """Of a whole file's bytes."""
    reader = StreamReader(io.BytesIO(payload))
    manifest, layout = reader.manifest, reader.manifest.layout()
    lattices = manifest.lattices()
    height = max(lattice.unit * lattice.height + lattice.row for lattice in lattices)
    width = max(lattice.unit * lattice.width + lattice.col for lattice in lattices)
    cells = np.zeros((-(-height // CELL), -(-width // CELL)))
    spent = tiles = 0
    for number, lattice in enumerate(lattices):
        grid = layout.tiles(number)
        for tile in grid:
            index = grid.number(tile.row, tile.col)
            chunks = [*layout.masks_of(number, index), *layout.latents_of(number, index)]
            bits = 8 * sum(reader.chunk_list.length(chunk) for chunk in chunks)
            spent += bits
            tiles += 1
            top, left = (max(0, lattice.unit * at) for at in (tile.window.row, tile.window.col))
            rows = slice(top // CELL, -(-min(height, top + lattice.unit * tile.window.height) // CELL))
            cols = slice(left // CELL, -(-min(width, left + lattice.unit * tile.window.width) // CELL))
            cells[rows, cols] += bits / (lattice.unit**2 * tile.window.height * tile.window.width)
    return TileBits(cells, tiles, 8 * len(payload) - spent)
