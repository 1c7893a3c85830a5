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

from downlink import accelerator, dct, lap, selftest, synthesis
from downlink import mask as masks
from downlink.accelerator import accelerator_of, corrector_of
from downlink.bundle import Bundle
from downlink.chunk import ChunkKey, GridCoding, Kind, Layout
from downlink.errors import Malformed, Unsupported
from downlink.latent import GROUPS, ReceivedTile, TileCode, decode_tiles
from downlink.lattice import Lattice
from downlink.manifest import Manifest
from downlink.plane import GAINS_PER_OCTAVE, FrontEnd, unpack_front_end
from downlink.prediction import Prediction
from downlink.prior import FEATURES, GRAPHS, Prior
from downlink.reference import Codec, ReferenceLattice, conditioned
from downlink.spec import plane_spec
from downlink.table import Tables
from downlink.tile import Tile, TileGrid

Values = NDArray[np.float32]
PLANES_AT_ONCE = 4
"""Planes of neighbouring tiles that pass the synthesis together: bounds memory for hundreds of bands."""
TILES_AT_ONCE = 48
"""Tiles that are entropy-decoded side by side, of several rows where rows are short …"""
PLANE_TILES_AT_ONCE = 400
"""… but no more than so many planes in all, so that hundreds of bands stay in bounded memory."""
ALWAYS_CORRECTED = 6
LOUD_LEVEL = 30
"""The first planes, and later ones that are as loud in subband 1, pass the synthesis: of twelve planes of Sentinel-2
the other six would gain 0.006 dB, and take half of the time."""
LAP = 1
"""Blocks of neighbouring tiles whose pixels are unmixed with a tile's own."""
TILES_PER_STRIP = 4
"""Neighbouring tiles that are synthesised together: what lies between them is computed once."""


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
        self._corrector = corrector_of(bundle.file("decoder.onnx"))
        native = accelerator_of(bundle.file, self.spec, self.tables)
        self.prior = Prior(lambda name, inputs: self._sessions[name].run(None, inputs), native)
        selftest.check(self.spec, self.tables, self.prior, bundle.file("selftest.json"), bundle.name)

    @property
    def codec(self) -> Codec:
        """What decodes references."""
        return Codec(self.bundle.id, self.spec, self.tables, self.prior)

    def synthesise(self, values: Values, levels: NDArray[np.uint8], some: NDArray[np.bool_]) -> Values:
        """Latent values (planes, 64, h, w) -> coefficients (planes, 64, h, w) in steps; levels (planes, 4); `some`
        (planes) says which planes are not all zero."""
        worth = (np.arange(len(levels)) < ALWAYS_CORRECTED) | (levels[:, 1] >= LOUD_LEVEL)
        alive = np.flatnonzero(_alive(some) & worth)
        if self._corrector is not None:
            return self._corrector.correct(values, levels, alive)
        before = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
        out = values.copy()
        for first in range(0, len(alive), PLANES_AT_ONCE):
            part = alive[first : first + PLANES_AT_ONCE]
            shown = synthesis.seen(values[part], before[part], levels[part])
            out[part] += self._synthesis.run(None, {"seen": shown})[0] * synthesis.sent(levels[part])
        return out


def _alive(some: Any) -> NDArray[np.bool_]:
    """Planes that the synthesis may change, of those that hold something: a plane of zeros that follows a plane of
    zeros is its mean, exactly, so that constant scenes come back as they were."""
    before = np.concatenate([[False], some[:-1]])
    return np.asarray(some | before)


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
    gain: int = 0


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
        reference: ReferenceLattice | None = None,
    ) -> None:
        self.lattice, self.grid = lattice, lattice.grid
        self.coding: GridCoding = manifest.codings[number]
        self.layout, self.number, self.chunk, self.decoder = layout, number, chunk, decoder
        self.tiles: TileGrid = layout.tiles(number)
        spec = decoder.spec
        self.halo = spec.decoder_halo + LAP
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
        self.prediction: Prediction | None = None
        self._codes: dict[int, TileCode] = {}
        if side is not None and reference is not None:
            self.prediction, side = conditioned(side, lattice, reference)
        if side is not None:
            tiles = len(self.tiles)
            self.front_end = unpack_front_end(side, lattice.half, lattice.weights, self.coding.planes, tiles)

    def _code(self, front_end: FrontEnd, gain: int) -> TileCode:
        """How tiles of this gain are coded."""
        found = self._codes.get(gain)
        if found is None:
            levels, decoder = front_end.levels_at(gain), self.decoder
            found = TileCode(decoder.spec, decoder.tables, levels, front_end.turn, self.coding.planes_per_chunk)
            self._codes[gain] = found
        return found

    def rows(self) -> Iterator[LatticeRow]:
        """All rows, top to bottom."""
        decoded = self._entropy_decode()
        above: list[_DecodedTile] = []
        here, missing = next(decoded)
        for row in range(self.tiles.rows):
            below, missing_below = next(decoded, ([], 0.0))
            yield LatticeRow(self.tiles.row_window(row).row, *self._pixels(above, here, below), missing)
            for tile in here:  # of the row above, only the halo is needed again
                if tile.values is not None:
                    tile.values = tile.values[:, :, -self.halo :].copy()
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

    def _entropy_decode(self) -> Iterator[tuple[list[_DecodedTile], float]]:
        """Symbols of each row of tiles, and the share of its latent chunks that is missing."""
        most = max(1, min(TILES_AT_ONCE, PLANE_TILES_AT_ONCE // self.coding.planes))
        rows_at_once = max(1, most // self.tiles.cols)
        for first in range(0, self.tiles.rows, rows_at_once):
            rows, waiting = [], []
            for row in range(first, min(first + rows_at_once, self.tiles.rows)):
                tiles, absent, total = [], 0, 0
                for number in self.tiles.row_tiles(row):
                    tile, received, lost, chunks = self._receive(number)
                    tiles.append(tile)
                    absent, total = absent + lost, total + chunks
                    if received is not None:
                        waiting.append(received)
                rows.append((tiles, absent / max(1, total)))
            self._decode(waiting, most)
            yield from rows

    def _receive(self, number: int) -> tuple[_DecodedTile, ReceivedTile | None, int, int]:
        """A tile to be decoded, and how many of its latent chunks are not there, of how many."""
        tile = self.tiles.tile(number)
        decoded = _DecodedTile(tile, None, self._mask(number, tile.window.height, tile.window.width))
        chunks = {}
        indexes = self.layout.latents_of(self.number, number)
        for index in indexes:
            payload = self.chunk(index)
            if payload is not None:
                key = self.layout.key(index)
                chunks[key.group, key.block] = payload
        received = None
        if self.front_end is not None:
            decoded.gain = self.front_end.gain(number)
        if self.front_end is not None and (0, 0) in chunks:
            height, width = (side // dct.BLOCK for side in tile.coded)
            received = ReceivedTile(self._code(self.front_end, decoded.gain), height, width, chunks)
            decoded.values = received.value
        return decoded, received, len(indexes) - len(chunks), len(indexes)

    def _decode(self, tiles: list[ReceivedTile], most: int) -> None:
        """Tiles of one size and code together, in parts of about equal numbers."""
        alike: dict[tuple[int, ...], list[ReceivedTile]] = {}
        for tile in tiles:
            alike.setdefault((id(tile.code), *tile.value.shape), []).append(tile)
        for group in alike.values():
            parts = -(-len(group) // most)
            for part in range(parts):
                decode_tiles(group[part * len(group) // parts : (part + 1) * len(group) // parts], self.decoder.prior)

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
        for columns in _strips(here):
            start = columns.start
            strip = self._strip([above, here, below], columns)
            offset = here[start].tile.window.col
            for column in columns:
                tile = here[column]
                first, last = tile.tile.window.col, tile.tile.window.col + tile.tile.window.width
                whole, coarse = np.s_[:, :, first:last], np.s_[:, :, first // 2 : -(-last // 2)]
                if strip is None or tile.values is None:
                    out[0][whole] = self._absent(~half, height, last - first)
                    out[1][coarse] = self._absent(half, -(-height // 2), -(-last // 2) - first // 2)
                    continue
                out[0][whole] = strip[0][:, :height, first - offset : last - offset]
                out[1][coarse] = strip[1][:, : -(-height // 2), (first - offset) // 2 : -(-(last - offset) // 2)]
                self._restore_nodata(out[0][whole], tile.nodata, ~half, 1)
                self._restore_nodata(out[1][coarse], tile.nodata, half, 2)
        return out

    def _strip(self, rows: list[list[_DecodedTile]], columns: range) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Full and half bands of neighbouring tiles of the middle row, up to their coded size; None if nothing has
        arrived of any. Where nothing has arrived of one, its latents count as zeros: every plane at its mean."""
        tiles = [rows[1][column] for column in columns]
        present = [tile.values.shape for tile in tiles if tile.values is not None]
        if not present or self.front_end is None:
            return None
        planes, channels, high, _ = present[0]
        halo, gain = self.halo, tiles[0].gain
        top, bottom = halo if rows[0] else 0, halo if rows[2] else 0
        left = halo if columns.start else 0
        right = halo if columns.stop < len(rows[1]) else 0
        widths = [tile.tile.coded[1] // dct.BLOCK for tile in tiles]
        wide = sum(widths)
        values = np.zeros((planes, channels, top + high + bottom, left + wide + right), np.float32)
        ends = [left, *(left + np.cumsum(widths)).tolist()]
        for down, row in enumerate(rows):
            if not row:
                continue
            for column in range(max(0, columns.start - 1), min(columns.stop + 1, len(row))):
                found = row[column].values
                if found is None:
                    continue
                source_rows, target_rows = _overlap(down - 1, found.shape[2], top, high, bottom)
                if column in columns:
                    at = column - columns.start
                    source_cols, target_cols = slice(0, found.shape[3]), slice(ends[at], ends[at + 1])
                else:
                    side = -1 if column < columns.start else 1
                    source_cols, target_cols = _overlap(side, found.shape[3], left, wide, right)
                part = found[:, :, source_rows, source_cols]
                coarser = row[column].gain - gain  # a neighbour's steps, in ours
                scaled = part * np.float32(2.0 ** (coarser / GAINS_PER_OCTAVE)) if coarser else part
                values[:, :, target_rows, target_cols] = scaled
        some = np.asarray(values.any(axis=1))
        out = self.decoder.synthesise(values, self.front_end.levels_at(gain), np.asarray(some.any(axis=(1, 2))))
        for at, tile in enumerate(tiles):  # a tile depends on itself and its halo, not on who shares its strip
            if tile.values is not None:
                seen = some[:, :, max(0, ends[at] - halo) : ends[at + 1] + halo].any(axis=(1, 2))
                first = ends[at] - (LAP if left and not at else 0)
                last = ends[at + 1] + (LAP if right and at == len(tiles) - 1 else 0)
                out[~_alive(seen), :, :, first:last] = 0
        above, before = min(top, LAP), min(left, LAP)
        below, after = min(bottom, LAP), min(right, LAP)
        core = out[:, :, top - above : top + high + below, left - before : left + wide + after]
        step = self.coding.step * 2.0 ** (gain / GAINS_PER_OCTAVE)
        coefficients = self.front_end.inverse(np.ascontiguousarray(core), step)
        if self.prediction is not None:
            corner = tiles[0].tile.window
            place = corner.row // dct.BLOCK - above, corner.col // dct.BLOCK - before
            coefficients += self.prediction.at(*place, *coefficients.shape[2:])
        window = tiles[-1].tile.window  # blocks wholly beyond the lattice are not mixed with others
        down = above + -(-window.height // dct.BLOCK) + below
        across = before + wide - widths[-1] + -(-window.width // dct.BLOCK) + after
        both = []
        for half, chosen in ((False, ~self.lattice.half), (True, self.lattice.half)):
            size = dct.BLOCK // 2 if half else dct.BLOCK
            (places,) = chosen.nonzero()
            wanted = above * size, high * size, before * size, wide * size
            done = accelerator.back(coefficients, places, half, (down, across), wanted, self.grid.dtype)
            if done is not None:
                both.append(done)
                continue
            pixels = dct.inverse(coefficients[chosen, : size * size], half)
            lap.unmix(pixels[:, : down * size, : across * size], size, (size, size))
            inside = np.s_[:, above * size : (above + high) * size, before * size : (before + wide) * size]
            both.append(self._whole(pixels[inside]))
        return both[0], both[1]

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

    def _restore_nodata(
        self, pixels: NDArray[Any], nodata: NDArray[np.bool_] | None, chosen: NDArray[np.bool_], factor: int
    ) -> None:
        """Write nodata into pixels of the `chosen` bands, in place, where the mask says so, and nowhere else: a valid
        pixel that came out as the nodata value moves by one."""
        value = self.grid.nodata
        if value is None:
            return
        beside = value + 1 if value < np.iinfo(self.grid.dtype).max else value - 1
        pixels[pixels == value] = beside
        if nodata is not None:
            whole = np.broadcast_to(nodata, (chosen.size, *nodata.shape[1:]))
            pixels[whole[chosen, ::factor, ::factor]] = value


def _strips(tiles: list[_DecodedTile]) -> Iterator[range]:
    """Neighbouring tiles of a row that are synthesised together: those of one gain."""
    start = 0
    for end in range(1, len(tiles) + 1):
        if end == len(tiles) or end - start == TILES_PER_STRIP or tiles[end].gain != tiles[start].gain:
            yield range(start, end)
            start = end


def _overlap(side: int, have: int, before: int, core: int, after: int) -> tuple[slice, slice]:
    """Slices (in the neighbour, in the output) of a neighbour before (-1), at (0) or after (1) the core along one
    axis."""
    if side < 0:
        return slice(have - before, have), slice(0, before)
    if side == 0:
        return slice(0, core), slice(before, before + core)
    count = min(after, have)
    return slice(0, count), slice(before + core, before + core + count)
