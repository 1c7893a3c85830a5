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

from decoder_node.exact import exact_rows
from downlink import mask as masks
from downlink import selftest
from downlink.bundle import Bundle
from downlink.chunk import ChunkKey, GridCoding, Kind, Layout
from downlink.errors import BundleError, Malformed, Unsupported
from downlink.latent import Symbols, TileCode, TileSymbols, decode_tiles
from downlink.manifest import Manifest
from downlink.plane import FrontEnd, unpack_front_end
from downlink.scene import Grid
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
        provider = ["CPUExecutionProvider"]
        self._prior = onnxruntime.InferenceSession(bundle.file("prior.onnx"), options, providers=provider)
        self._synthesis = onnxruntime.InferenceSession(bundle.file("decoder.onnx"), options, providers=provider)
        selftest.check(self.spec, self.prior, bundle.file("selftest.json"), bundle.name)

    def prior(
        self,
        hyper: Symbols,
        own: NDArray[np.int16],
        before: NDArray[np.int16],
        energy: NDArray[np.int16],
        levels: NDArray[np.uint8],
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Scale index and mean (eighths) of every latent: `downlink.latent.Prior`."""
        arrays: dict[str, NDArray[Any]] = {"hyper": hyper, "own": own, "before": before, "energy": energy}
        inputs = {name: array.astype(np.float32) for name, array in arrays.items()}
        inputs["level"] = levels.astype(np.float32).reshape(-1, 1, 1, 1)
        index, mean = self._prior.run(["index", "mean"], inputs)
        return index.astype(np.uint8), mean.astype(np.int32)

    def synthesise(self, values: Values, levels: NDArray[np.uint8]) -> Values:
        """Latent values (planes, latents, h, w) -> planes (planes, h * patch, w * patch) in steps."""
        before = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
        size = (values.shape[2] * self.spec.patch, values.shape[3] * self.spec.patch)
        out = np.zeros((len(values), *size), np.float32)
        # A plane of zeros that follows a plane of zeros is its mean, exactly: constant scenes come back as they were.
        alive = np.flatnonzero(values.any(axis=(1, 2, 3)) | before.any(axis=(1, 2, 3)))
        for first in range(0, len(alive), PLANES_AT_ONCE):
            part = alive[first : first + PLANES_AT_ONCE]
            level = levels[part].astype(np.float32).reshape(-1, 1, 1, 1)
            inputs = {"symbols": values[part], "before": before[part], "level": level}
            out[part] = self._synthesis.run(["pixels"], inputs)[0][:, 0]
        return out


@dataclass(frozen=True)
class Row:
    """One row of tiles of a grid, decoded: `pixels` (bands, rows, width) in the grid's dtype, from pixel row `row`.
    `missing` is the share of the row's latent chunks that were not there."""

    grid: int
    row: int
    pixels: NDArray[Any]
    missing: float


@dataclass
class _DecodedTile:
    """A tile between entropy decoding and synthesis. `values` is None where nothing of the tile has arrived."""

    tile: Tile
    values: Values | None
    nodata: NDArray[np.bool_] | None


class _GridDecoder:
    """Decodes one grid of a stream."""

    def __init__(
        self,
        manifest: Manifest,
        layout: Layout,
        number: int,
        chunk: Callable[[int], bytes | None],
        decoder: PlaneDecoder,
    ) -> None:
        self.grid: Grid = manifest.scene.grids[number]
        self.coding: GridCoding = manifest.codings[number]
        self.layout, self.number, self.chunk, self.decoder = layout, number, chunk, decoder
        self.tiles: TileGrid = layout.tiles(number)
        spec = decoder.spec
        if self.coding.method != "planes" or self.coding.groups != len(spec.groups):
            raise Unsupported(
                f"grid {number}: coded by {self.coding.method!r} in {self.coding.groups} groups, bundle "
                f"{decoder.bundle.name} decodes 'planes' in {len(spec.groups)}; the manifest and its bundle disagree"
            )
        if self.coding.tile % spec.tile_multiple:
            raise Malformed(
                f"grid {number}: tiles of {self.coding.tile} px are not whole multiples of {spec.tile_multiple} px"
            )
        side = chunk(layout.index(ChunkKey(Kind.SIDE, grid=number)))
        self.front_end: FrontEnd | None = None
        self.code: TileCode | None = None
        if side is not None:
            self.front_end = unpack_front_end(side, len(self.grid.bands), self.coding.planes)
            self.code = TileCode(spec, decoder.tables, self.front_end.levels, self.coding.planes_per_chunk)

    def rows(self) -> Iterator[Row]:
        """All rows, top to bottom."""
        above: list[_DecodedTile] = []
        here, missing = self._entropy_decode(0)
        for row in range(self.tiles.rows):
            below, missing_below = self._entropy_decode(row + 1) if row + 1 < self.tiles.rows else ([], 0.0)
            yield Row(self.number, self.tiles.row_window(row).row, self._pixels(above, here, below), missing)
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
            by_size: dict[tuple[int, int], list[TileSymbols]] = {}
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
                height, width = (side // self.decoder.spec.patch for side in tile.coded)
                symbols = TileSymbols(self.code, height, width, chunks)
                decoded.values = symbols.value
                by_size.setdefault((height, width), []).append(symbols)
            for group in by_size.values():
                decode_tiles(group, self.decoder.prior)
        return out, absent / max(1, total)

    def _pixels(self, above: list[_DecodedTile], here: list[_DecodedTile], below: list[_DecodedTile]) -> NDArray[Any]:
        bands, _, width = self.grid.shape
        out = np.empty((bands, here[0].tile.window.height, width), self.grid.dtype)
        for column, decoded in enumerate(here):
            window = decoded.tile.window
            out[:, :, window.col : window.col + window.width] = self._tile_pixels(above, here, below, column)
        return out

    def _tile_pixels(
        self, above: list[_DecodedTile], here: list[_DecodedTile], below: list[_DecodedTile], column: int
    ) -> NDArray[Any]:
        decoded = here[column]
        window, bands = decoded.tile.window, len(self.grid.bands)
        limits = np.iinfo(self.grid.dtype)
        if decoded.values is None or self.front_end is None:
            if self.grid.nodata is not None:
                return np.full((bands, window.height, window.width), self.grid.nodata, self.grid.dtype)
            mean = np.zeros(bands) if self.front_end is None else self.front_end.mean
            flat = np.clip(mean, limits.min, limits.max).astype(self.grid.dtype)
            return np.broadcast_to(flat[:, None, None], (bands, window.height, window.width))
        values, top, left = self._with_halo([above, here, below], column)
        planes = self.decoder.synthesise(values, self.front_end.levels)
        patch = self.decoder.spec.patch
        core = planes[:, top * patch : top * patch + window.height, left * patch : left * patch + window.width]
        pixels = self.front_end.inverse(np.ascontiguousarray(core), self.coding.step)
        whole = np.clip(np.rint(pixels), limits.min, limits.max).astype(self.grid.dtype)
        return self._restore_nodata(whole, decoded.nodata)

    def _restore_nodata(self, pixels: NDArray[Any], nodata: NDArray[np.bool_] | None) -> NDArray[Any]:
        """Write nodata where the mask says so, and nowhere else: a valid pixel that came out as the nodata value
        moves by one."""
        value = self.grid.nodata
        if value is None:
            return pixels
        beside = value + 1 if value < np.iinfo(self.grid.dtype).max else value - 1
        pixels[pixels == value] = beside
        if nodata is not None:
            pixels[np.broadcast_to(nodata, pixels.shape)] = value
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


def decode_rows(
    manifest: Manifest, chunk: Callable[[int], bytes | None], decoder: PlaneDecoder | None
) -> Iterator[Row]:
    """Decode a stream row by row: grid 0 top to bottom, then grid 1, and so on.

    `chunk(i)` gives chunk i's checked payload, or None where it has not arrived. `decoder` may be None if all grids are
    exact. Raises BundleError if it is of another bundle, StreamError subclasses for payloads that cannot be what the
    manifest says.
    """
    layout = manifest.layout()
    for number, coding in enumerate(manifest.codings):
        if coding.method == "exact":
            for row in exact_rows(manifest, layout, number, chunk):
                yield Row(number, *row)
        else:
            yield from _GridDecoder(manifest, layout, number, chunk, _fitting(manifest, decoder)).rows()


def _fitting(manifest: Manifest, decoder: PlaneDecoder | None) -> PlaneDecoder:
    if decoder is None:
        raise BundleError(
            f"scene needs bundle {manifest.bundle_name}, but no decoder was given; give one of that bundle"
        )
    if decoder.bundle.id != manifest.bundle:
        raise BundleError(
            f"scene was coded with bundle {manifest.bundle_name} {manifest.bundle.hex()[:16]}…, this decoder is "
            f"{decoder.bundle.name} {decoder.bundle.id.hex()[:16]}…; give the decoder that bundle"
        )
    return decoder
