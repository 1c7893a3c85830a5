"""Where a scene's bits went: `bits_per_tile`, and `write_bits`, the same as a small GeoTIFF.

The encoder spends its bits where the scene is hard to foretell: smoke, fire, a ship on the sea, a coast, a cloud's
edge. So the bits of a tile are an anomaly signal, made on board and free. A pixel of the raster is a tile of the
scene's finest lattice (256 px a side, less at the right and bottom edge), its value the bits per sample that were spent
within it, masks included, over all grids. What has not arrived yet counts as well: the chunk list says its size.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from decoder_node.durable import write_whole
from decoder_node.raster import crs_of
from downlink.chunk import ChunkKey, Kind
from downlink.manifest import Manifest

Numbers = npt.NDArray[np.float64]


def bits_per_tile(manifest: Manifest, lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """(rows, columns) of tiles of the finest lattice: bits per sample. `lengths`: bytes of every chunk, by index.

    Coarser lattices, whose tiles cover more ground, are spread evenly over the tiles that they cover.
    """
    layout, lattices = manifest.layout(), manifest.lattices()
    finest = max(range(len(lattices)), key=lambda number: lattices[number].height)
    core = layout.tiles(finest).core
    height, width = lattices[finest].height, lattices[finest].width
    down, across = _edges(height, core), _edges(width, core)
    spent = np.zeros((len(down) - 1, len(across) - 1))
    for number, (lattice, coding) in enumerate(zip(lattices, manifest.codings, strict=True)):
        tiles = layout.tiles(number)
        each = np.zeros(len(tiles))
        masks = layout.masks_of(number, 0)
        runs = [(masks.start, len(masks))] if len(masks) else []
        for group in range(coding.groups):
            runs.append((layout.index(ChunkKey(Kind.LATENT, number, 0, group, 0)), coding.blocks))
        for start, blocks in runs:
            part = lengths[start : start + blocks * len(tiles)].astype(np.float64)
            each += part.reshape(len(tiles), blocks).sum(axis=1)
        rows = _overlap(down, _edges(lattice.height, tiles.core))
        columns = _overlap(across, _edges(lattice.width, tiles.core))
        spent += rows @ each.reshape(tiles.rows, tiles.cols) @ columns.T
    area = np.outer(np.diff(down), np.diff(across))
    return np.asarray(8 * spent / np.maximum(area * manifest.scene.samples, 1), np.float32)


def _edges(length: int, core: int) -> Numbers:
    """Where tiles of `core` pixels begin, and where the last one ends, as shares of the length."""
    return np.append(np.arange(0, length, core), length) / length


def _overlap(cells: Numbers, tiles: Numbers) -> Numbers:
    """(cells, tiles): which share of each tile lies within each cell, along one axis."""
    first = np.maximum(cells[:-1, None], tiles[None, :-1])
    last = np.minimum(cells[1:, None], tiles[None, 1:])
    return np.asarray(np.clip(last - first, 0, None) / np.diff(tiles)[None])


def write_bits(path: Path, manifest: Manifest, lengths: npt.NDArray[np.integer]) -> Path:
    """`bits_per_tile` as a GeoTIFF of float32 in the place of the scene's finest grid. It appears whole or not at
    all."""
    lattices = manifest.lattices()
    finest = max(range(len(lattices)), key=lambda number: lattices[number].height)
    return write_tiles(path, manifest, finest, bits_per_tile(manifest, lengths)[None], {"bits per sample": "bit"})


def write_tiles(
    path: Path, manifest: Manifest, number: int, tiles: npt.NDArray[np.generic], bands: dict[str, str], **more: Any
) -> Path:
    """A GeoTIFF of (bands, rows, columns), a pixel for each tile of a lattice, in the place of the scene's finest grid.
    `bands`: their names, and units or nothing; `more` of the profile. It appears whole or not at all."""
    grid = max(manifest.scene.grids, key=lambda one: one.height)
    core = manifest.layout().tiles(number).core * grid.height / manifest.lattices()[number].height  # px of the grid
    profile = {"driver": "GTiff", "count": len(tiles), "height": tiles.shape[1], "width": tiles.shape[2], **more}
    crs, _ = crs_of(grid.crs)
    place = (
        {} if grid.transform is None else {"transform": rasterio.Affine(*grid.transform) @ rasterio.Affine.scale(core)}
    )
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(crs=crs, compress="deflate", dtype=tiles.dtype, **place, **profile) as dataset:
            dataset.write(tiles)
            dataset.descriptions = tuple(bands)
            dataset.units = tuple(bands.values())
        write_whole(path, memory.read())
    return path
