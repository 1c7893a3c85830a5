"""Chunks of a stream -> pixels, row of tiles by row of tiles: the ground half of a plane codec, run by onnxruntime.

Memory is bounded by two rows of tiles and a halo, whatever the scene's height. A chunk that is not there leaves its
tile at the layers that are; a tile without any layer is nodata (or the mean colour where the grid defines no nodata
value). A missing tile changes no pixel beyond its neighbours' halo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from downlink import dct, selftest
from downlink import mask as masks
from downlink.bundle import Bundle
from downlink.chunk import ChunkKey, GridCoding, Kind, Layout
from downlink.errors import Malformed, Unsupported
from downlink.latent import GROUPS, ReceivedTile, TileCode, decode_tiles
from downlink.lattice import Lattice
from downlink.manifest import Manifest
from downlink.plane import FrontEnd, unpack_front_end
from downlink.prior import FEATURES, GRAPHS, Prior
from downlink.spec import plane_spec
from downlink.table import Tables
from downlink.tile import Tile, TileGrid

Values = NDArray[np.float32]
PLANES_AT_ONCE = 8
"""Planes of a tile that pass the synthesis together: bounds memory for hundreds of bands."""
TILES_AT_ONCE = 4
"""Tiles of a row that are entropy-decoded together, so that they share the prior's calls …"""
PLANE_TILES_AT_ONCE = 64
"""… but no more than so many planes in all, so that hundreds of bands stay in bounded memory."""


class PlaneDecoder:
    """A decoder bundle, loaded and checked. Not for several threads at once."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self.spec = plane_spec(bundle.parameters)
        self.tables = Tables.unpack(bundle.file("tables.bin"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3

        def session(name: str) -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(bundle.file(name), options, providers=["CPUExecutionProvider"])

        self._synthesis = session("decoder.onnx")
        self._sessions = {name: session(name) for name in (FEATURES, *GRAPHS)}
        self.prior = Prior(lambda name, inputs: self._sessions[name].run(None, inputs))
        selftest.check(self.spec, self.tables, self.prior, bundle.file("selftest.json"), bundle.name)

    def synthesise(self, values: Values, levels: NDArray[np.uint8]) -> Values:
        """Latent values (planes, 64, h, w) -> coefficients (planes, 64, h, w) in steps; levels (planes, 4)."""
        before = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
        out = np.zeros_like(values)
        # A plane of zeros that follows a plane of zeros is its mean, exactly: constant scenes come back as they were.
        alive = np.flatnonzero(values.any(axis=(1, 2, 3)) | before.any(axis=(1, 2, 3)))
        for first in range(0, len(alive), PLANES_AT_ONCE):
            part = alive[first : first + PLANES_AT_ONCE]
            level = levels[part].astype(np.float32)[:, :, None, None]
            inputs = {"symbols": values[part], "before": before[part], "level": level}
            out[part] = self._synthesis.run(None, inputs)[0]
        return out


@dataclass(frozen=True)
class LatticeRow:
    """One row of tiles of a lattice, decoded, from lattice row `row`: `full` (bands of its resolution, rows, width) and
    `half` (bands of half of it, half as many rows and columns, rounded up) in the grid's dtype. `missing` is the share
    of the row's latent chunks that were not there."""

    row: int
    full: NDArray[Any]
    half: NDArray[Any]
    missing: float


@dataclass
class _DecodedTile:
    """A tile between entropy decoding and synthesis. `values` is None where nothing of the tile has arrived."""

    tile: Tile
    values: Values | None
    nodata: NDArray[np.bool_] | None


class LatticeDecoder:
    """Decodes one lattice of a stream."""

    def __init__(
        self,
        manifest: Manifest,
        lattice: Lattice,
        layout: Layout,
        number: int,
        chunk: Callable[[int], bytes | None],
        decoder: PlaneDecoder,
    ) -> None:
        self.lattice, self.grid = lattice, lattice.grid
        self.coding: GridCoding = manifest.codings[number]
        self.layout, self.number, self.chunk, self.decoder = layout, number, chunk, decoder
        self.tiles: TileGrid = layout.tiles(number)
        spec = decoder.spec
        if self.coding.method != "planes" or self.coding.groups != GROUPS:
            raise Unsupported(
                f"lattice {number}: coded by {self.coding.method!r} in {self.coding.groups} groups, bundle "
                f"{decoder.bundle.name} decodes 'planes' in {GROUPS}; the manifest and its bundle disagree"
            )
        if self.coding.tile % spec.tile_multiple:
            raise Malformed(
                f"lattice {number}: tiles of {self.coding.tile} px are not whole multiples of {spec.tile_multiple} px"
            )
        side = chunk(layout.index(ChunkKey(Kind.SIDE, grid=number)))
        self.front_end: FrontEnd | None = None
        self.code: TileCode | None = None
        if side is not None:
            self.front_end = unpack_front_end(side, lattice.half, lattice.weights, self.coding.planes)
            levels, turn = self.front_end.levels, self.front_end.turn
            self.code = TileCode(spec, decoder.tables, levels, turn, self.coding.planes_per_chunk)

    def rows(self) -> Iterator[LatticeRow]:
        """All rows, top to bottom."""
        above: list[_DecodedTile] = []
        here, missing = self._entropy_decode(0)
        for row in range(self.tiles.rows):
            below, missing_below = self._entropy_decode(row + 1) if row + 1 < self.tiles.rows else ([], 0.0)
            yield LatticeRow(self.tiles.row_window(row).row, *self._pixels(above, here, below), missing)
            for decoded in here:  # of the row above, only the halo is needed again
                if decoded.values is not None:
                    decoded.values = decoded.values[:, :, -self.decoder.spec.decoder_halo :].copy()
            above, here, missing = here, below, missing_below

    def _mask(self, tile: int, height: int, width: int) -> NDArray[np.bool_] | None:
        mode, bands = self.coding.mask, len(self.grid.bands)
        if mode == "none":
            return None
        planes = []
        for block, index in enumerate(self.layout.masks_of(self.number, tile)):
            count = len(masks.block_bands(mode, bands, block))
            payload = self.chunk(index)
            planes.append(masks.decode_mask(b"\x01" if payload is None else payload, (count, height, width)))
        return np.concatenate(planes)

    def _entropy_decode(self, row: int) -> tuple[list[_DecodedTile], float]:
        """Symbols of a row of tiles, and the share of its latent chunks that is missing."""
        numbers = list(self.tiles.row_tiles(row))
        out: list[_DecodedTile] = []
        absent = total = 0
        at_once = max(1, min(TILES_AT_ONCE, PLANE_TILES_AT_ONCE // self.coding.planes))
        for first in range(0, len(numbers), at_once):
            by_size: dict[tuple[int, int], list[ReceivedTile]] = {}
            for number in numbers[first : first + at_once]:
                tile = self.tiles.tile(number)
                decoded = _DecodedTile(tile, None, self._mask(number, tile.window.height, tile.window.width))
                out.append(decoded)
                chunks = {}
                for index in self.layout.latents_of(self.number, number):
                    key, total = self.layout.key(index), total + 1
                    payload = self.chunk(index)
                    if payload is None:
                        absent += 1
                    else:
                        chunks[key.group, key.block] = payload
                if self.code is None or (0, 0) not in chunks:
                    continue
                height, width = (side // dct.BLOCK for side in tile.coded)
                symbols = ReceivedTile(self.code, height, width, chunks)
                decoded.values = symbols.value
                by_size.setdefault((height, width), []).append(symbols)
            for group in by_size.values():
                decode_tiles(group, self.decoder.prior)
        return out, absent / max(1, total)

    def _pixels(
        self, above: list[_DecodedTile], here: list[_DecodedTile], below: list[_DecodedTile]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        half = self.lattice.half
        _, _, width = self.grid.shape
        height = here[0].tile.window.height
        out = (
            np.empty((int((~half).sum()), height, width), self.grid.dtype),
            np.empty((int(half.sum()), -(-height // 2), -(-width // 2)), self.grid.dtype),
        )
        for column, decoded in enumerate(here):
            first, last = decoded.tile.window.col, decoded.tile.window.col + decoded.tile.window.width
            full, coarse = self._tile_pixels(above, here, below, column)
            out[0][:, :, first:last] = full
            out[1][:, :, first // 2 : -(-last // 2)] = coarse
        return out

    def _tile_pixels(
        self, above: list[_DecodedTile], here: list[_DecodedTile], below: list[_DecodedTile], column: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Full and half bands of one tile's window."""
        decoded = here[column]
        window, half = decoded.tile.window, self.lattice.half
        if decoded.values is None or self.front_end is None:
            return self._absent(~half, window.height, window.width), self._absent(
                half, -(-window.height // 2), -(-window.width // 2)
            )
        values, top, left = self._with_halo([above, here, below], column)
        planes = self.decoder.synthesise(values, self.front_end.levels)
        high, wide = -(-window.height // dct.BLOCK), -(-window.width // dct.BLOCK)
        core = np.ascontiguousarray(planes[:, :, top : top + high, left : left + wide])
        coefficients = self.front_end.inverse(core, self.coding.step)
        nodata = decoded.nodata
        if nodata is not None:
            nodata = np.broadcast_to(nodata, (half.size, window.height, window.width))
        full = self._whole(dct.inverse(coefficients[~half])[:, : window.height, : window.width])
        full = self._restore_nodata(full, None if nodata is None else nodata[~half])
        if not half.any():
            return full, np.empty((0, -(-window.height // 2), -(-window.width // 2)), full.dtype)
        coarse = self._whole(dct.inverse(coefficients[half, : dct.HALF_CHANNELS], half=True))
        coarse = coarse[:, : -(-window.height // 2), : -(-window.width // 2)]
        return full, self._restore_nodata(coarse, None if nodata is None else nodata[half, ::2, ::2])

    def _whole(self, pixels: Values) -> NDArray[Any]:
        limits = np.iinfo(self.grid.dtype)
        return np.clip(np.rint(pixels), limits.min, limits.max).astype(self.grid.dtype)

    def _absent(self, chosen: NDArray[np.bool_], height: int, width: int) -> NDArray[Any]:
        """Pixels of bands of which nothing has arrived: nodata, or the mean colour where there is no such value."""
        count = int(chosen.sum())
        if self.grid.nodata is not None:
            return np.full((count, height, width), self.grid.nodata, self.grid.dtype)
        mean = np.zeros(count) if self.front_end is None else self.front_end.mean[chosen]
        flat = self._whole(np.asarray(mean, np.float32))
        return np.broadcast_to(flat[:, None, None], (count, height, width))

    def _restore_nodata(self, pixels: NDArray[Any], nodata: NDArray[np.bool_] | None) -> NDArray[Any]:
        """Write nodata where the mask says so, and nowhere else: a valid pixel that came out as the nodata value
        moves by one."""
        value = self.grid.nodata
        if value is None:
            return pixels
        beside = value + 1 if value < np.iinfo(self.grid.dtype).max else value - 1
        pixels[pixels == value] = beside
        if nodata is not None:
            pixels[nodata] = value
        return pixels

    def _with_halo(self, rows: list[list[_DecodedTile]], column: int) -> tuple[Values, int, int]:
        """A tile's latents with those of its neighbours around it, clipped at the grid's edges, and its offset in them.

        A neighbour of which nothing has arrived counts as zeros: every plane at its mean.
        """
        core = rows[1][column].values
        assert core is not None
        halo = self.decoder.spec.decoder_halo
        planes, latents, height, width = core.shape
        top = halo if rows[0] else 0
        bottom = halo if rows[2] else 0
        left = halo if column else 0
        right = halo if column + 1 < len(rows[1]) else 0
        out = np.zeros((planes, latents, top + height + bottom, left + width + right), np.float32)
        for down, row in enumerate(rows):
            for across in (-1, 0, 1):
                if not row or not 0 <= column + across < len(row):
                    continue
                values = row[column + across].values
                if values is None:
                    continue
                source_rows, target_rows = _overlap(down - 1, values.shape[2], top, height, bottom)
                source_cols, target_cols = _overlap(across, values.shape[3], left, width, right)
                out[:, :, target_rows, target_cols] = values[:, :, source_rows, source_cols]
        return out, top, left


def _overlap(side: int, have: int, before: int, core: int, after: int) -> tuple[slice, slice]:
    """Slices (in the neighbour, in the output) of a neighbour before (-1), at (0) or after (1) the core along one
    axis."""
    if side < 0:
        return slice(have - before, have), slice(0, before)
    if side == 0:
        return slice(0, core), slice(before, before + core)
    count = min(after, have)
    return slice(0, count), slice(before + core, before + core + count)
