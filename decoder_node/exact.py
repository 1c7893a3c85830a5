"""Chunks of an exact grid -> pixels, row of tiles by row of tiles: no bundle, no network, the same on every machine.

Memory holds one row of tiles. A chunk that is not there leaves its tile as coarse as the chunks before it; bands of
which nothing has arrived are nodata (or the band's mean where the grid defines no nodata value), and so are tiles
whose mask has not. A missing chunk changes no pixel outside its tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from decoder_node.nodata import restore_nodata, tile_mask
from downlink.chunk import Layout
from downlink.exact import ExactCode, decode_tile
from downlink.exact_model import Model
from downlink.exact_predictor import Predictor
from downlink.manifest import Manifest


class ExactRow(NamedTuple):
    """A row of tiles: `pixels` (bands, rows, width) from pixel row `row`, and the share of its chunks that lack."""

    row: int
    pixels: NDArray[Any]
    missing: float


def exact_rows(
    manifest: Manifest, layout: Layout, number: int, chunk: Callable[[int], bytes | None]
) -> Iterator[ExactRow]:
    """Decode grid `number`, top to bottom. `chunk(i)` gives chunk i's checked payload, None where it has not arrived.

    Raises a `StreamError` for payloads that cannot be what the manifest says.
    """
    grid, coding, tiles = manifest.scene.grids[number], manifest.codings[number], layout.tiles(number)
    bands, _, width = grid.shape
    side = chunk(layout.side_of(number))
    code = None
    if side is not None:
        predictor = Predictor(Model.unpack(side, bands))
        code = ExactCode(grid, predictor, coding.max_error, coding.groups, coding.planes_per_chunk)
    for row in range(tiles.rows):
        strip = tiles.row_window(row)
        out = np.empty((bands, strip.height, width), grid.dtype)
        absent = total = 0
        for tile in tiles.row_tiles(row):
            window = tiles.tile(tile).window
            chunks = {}
            for index in layout.latents_of(number, tile):
                payload, key = chunk(index), layout.key(index)
                total += 1
                if payload is None:
                    absent += 1
                else:
                    chunks[key.group, key.block] = payload
            hole = tile_mask(layout, coding, grid, number, tile, chunk)
            target = out[:, :, window.col : window.col + window.width]
            target[...] = _tile(code, (bands, window.height, window.width), hole, chunks, grid.dtype, grid.nodata)
        yield ExactRow(strip.row, out, absent / max(1, total))


def _tile(
    code: ExactCode | None,
    shape: tuple[int, int, int],
    hole: NDArray[np.bool_] | None,
    chunks: dict[tuple[int, int], bytes],
    dtype: str,
    nodata: int | None,
) -> NDArray[Any]:
    if code is None or (hole is not None and hole.all()):
        return np.full(shape, 0 if nodata is None else nodata, dtype)
    wide = None if hole is None or not hole.any() else np.broadcast_to(hole, shape)
    pixels, unknown = decode_tile(code, shape, wide, chunks)
    restore_nodata(pixels, hole, nodata)
    if nodata is not None:
        pixels[list(unknown)] = nodata
    return pixels
