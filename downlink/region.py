"""The chunks of a region: what to ask for when only a part of a scene is wanted finer, or is to go first.

Chunks are per tile and group of latents (docs/format.md), so a region becomes runs of chunk indexes: for each lattice
and each group the tiles that the region touches, row by row of tiles. The chunk list, side information and masks are
not among them: they are in the first layer, which is sent in any case. Pure. Refused, with `LinkError`: regions that
lie outside of the scene.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from downlink.chunk import ChunkKey, Kind
from downlink.errors import LinkError
from downlink.frame import FRAME_RANGES_MAX
from downlink.manifest import Manifest
from downlink.ranges import Range, cover
from downlink.tile import Window


def region_chunks(manifest: Manifest, window: Window, grid: int = 0, layers: int | None = None) -> tuple[Range, ...]:
    """The latent chunks, up to so many `layers`, of all tiles that `window` (pixels of grid `grid`) touches, on every
    lattice of the scene. At most `FRAME_RANGES_MAX` ranges: of a region of more, the last one swallows the rest."""
    if not 0 <= grid < len(manifest.scene.grids):
        raise LinkError(f"there is no grid {grid}; the scene has {len(manifest.scene.grids)}")
    whole = manifest.scene.grids[grid]
    row, col, height, width = window
    if height < 1 or width < 1 or not (0 <= row <= whole.height - height and 0 <= col <= whole.width - width):
        raise LinkError(
            f"the region of {width} x {height} px from column {col}, row {row} is not within grid {grid}, which has "
            f"{whole.width} x {whole.height} px"
        )
    layout, wanted = manifest.layout(), np.zeros(manifest.chunk_count, bool)
    for number, (lattice, coding) in enumerate(zip(manifest.lattices(), manifest.codings, strict=True)):
        tiles = layout.tiles(number)
        down = _tiles(row, height, whole.height, lattice.height, tiles.core)
        across = _tiles(col, width, whole.width, lattice.width, tiles.core)
        for group in range(coding.groups if layers is None else min(layers, coding.groups)):
            for tile_row in down:
                first = layout.index(_key(number, tiles.number(tile_row, across[0]), group))
                last = layout.index(_key(number, tiles.number(tile_row, across[-1]), group))
                wanted[first : last + coding.blocks] = True
    return cover(wanted, FRAME_RANGES_MAX)


AHEAD_RANGES_MAX: Final = FRAME_RANGES_MAX // 2
"""So few that what is missing meanwhile can be said in one frame, exactly: then nothing is sent twice after a cut."""


def tile_chunks(manifest: Manifest, tiles: Iterable[int]) -> tuple[Range, ...]:
    """The latent chunks of these tiles of the first lattice, and of those of the other lattices that they touch: layer
    by layer, and in each in the order of the tiles. Of more than `AHEAD_RANGES_MAX` ranges, the last tiles are left
    out."""
    layout, lattices = manifest.layout(), manifest.lattices()
    most = max(coding.groups for coding in manifest.codings)
    layers: list[dict[Range, None]] = [{} for _ in range(most)]
    for tile in tiles:
        row, col, height, width = layout.tiles(0).tile(tile).window
        new: list[tuple[int, Range]] = []
        for number, (lattice, coding) in enumerate(zip(lattices, manifest.codings, strict=True)):
            own = layout.tiles(number)
            for down in _tiles(row, height, lattices[0].height, lattice.height, own.core):
                for across in _tiles(col, width, lattices[0].width, lattice.width, own.core):
                    for group in range(coding.groups):
                        first = layout.index(_key(number, own.number(down, across), group))
                        if (found := Range(first, coding.blocks)) not in layers[group]:
                            new.append((group, found))
        if sum(map(len, layers)) + len(new) > AHEAD_RANGES_MAX:
            break
        for group, found in new:
            layers[group][found] = None
    return tuple(found for layer in layers for found in layer)


def _tiles(first: int, length: int, whole: int, size: int, core: int) -> range:
    """The rows (or columns) of tiles of `core` pixels on a lattice of `size` that `length` of `whole` pixels touch."""
    begin = first * size // whole
    end = -(-(first + length) * size // whole)
    return range(begin // core, -(-min(end, size) // core))


def _key(lattice: int, tile: int, group: int) -> ChunkKey:
    return ChunkKey(Kind.LATENT, lattice, tile, group, 0)
