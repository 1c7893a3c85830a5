"""The exact method: pixels of a tile <-> its chunks, with an error of at most D in every valid pixel (0: lossless).

Plain prediction, no network: a tile is coded from coarse to fine (`exact_lattice`), every sample predicted from its
neighbours and from the bands before it by the rules of the grid's `Model`, and the rounded error is entropy-coded with
the scale that the errors around suggest. Everything is integers, so the bound holds on every machine. See
docs/format.md, "Exact grids".

Chunk (group, block) of a tile holds the levels of a group for a block of bands in the order of coding. `decode_tile`
takes what chunks there are: the bands of a block that is missing, and those after it, stay at the levels before it.
Chunks that cannot be what the manifest says raise a `StreamError`; samples that a damaged chunk would put outside the
dtype are clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.errors import Malformed
from downlink.exact_lattice import LEVELS, Cells
from downlink.exact_model import ODDS
from downlink.exact_predictor import Predictor
from downlink.exact_quantiser import Quantiser
from downlink.exact_site import Offer, Site
from downlink.exact_table import QUARTERS, exact_tables
from downlink.exact_tile import TileState
from downlink.scene import Grid
from downlink.symbol import SymbolEncoder
from downlink.symbol_decoder import SymbolDecoder

LANES_MAX: Final = 256
"""Lanes of a payload: 640 bytes at most."""
PERIOD: Final = 6
"""Rows (and columns) that begin a cell are expected where one began so many before: 20 m and 60 m on a 10 m grid."""
PALETTE_MAX: Final = 4096
"""Values of a palette."""
# Scale index of the numbers with which a block begins.
_COUNT_SCALE: Final = 3
_VALUE_SCALE: Final = 65
_GAP_SCALE: Final = QUARTERS + 25
_PATTERN_SCALE: Final = 17
_BEGINS_SCALE: Final = 9


@dataclass(frozen=True)
class ExactCode:
    """How the tiles of a grid are coded. `planes_per_chunk` bands make a block."""

    grid: Grid
    predictor: Predictor
    max_error: int
    groups: int
    planes_per_chunk: int

    @property
    def blocks(self) -> int:
        return -(-len(self.grid.bands) // self.planes_per_chunk)

    def block_bands(self, block: int) -> tuple[int, ...]:
        """Bands of a block, in the order of coding."""
        first = block * self.planes_per_chunk
        return self.predictor.model.order[first : first + self.planes_per_chunk]

    def group_levels(self, group: int) -> range:
        """Levels of a group, in the order of coding; that of the first lattice is `LEVELS`."""
        first = LEVELS if group == 0 else self.groups - 1 - group
        return range(first, self.groups - 2 - group, -1)


class Layout(NamedTuple):
    """How the valid samples of a band lie in a tile: the cells that repeat, and the few values that there are, int64
    and rising; None where that would not pay."""

    cells: Cells | None = None
    palette: NDArray[np.int64] | None = None


def encode_tile(
    code: ExactCode, pixels: NDArray[Any], nodata: NDArray[np.bool_] | None, layouts: Sequence[Layout]
) -> dict[tuple[int, int], bytes]:
    """Payloads by (group, block) of a tile: `pixels` (bands, height, width) in the grid's dtype, `nodata` of the same
    shape, `layouts` true of every valid pixel."""
    state = _state(code, pixels.shape, nodata, layouts)
    payloads: dict[tuple[int, int], bytes] = {}
    patterns: list[Cells] = []
    for group in range(code.groups):
        coders = [SymbolEncoder(exact_tables()) for _ in range(code.blocks)]
        if group == 0:
            for block, coder in enumerate(coders):
                _put_layouts(coder, [layouts[band] for band in code.block_bands(block)], patterns)
        for block, site in _sites(code, state, group, code.blocks):
            for offer in state.offers(site):
                taken = taken_offers(pixels[site.band][site.window()], offer, code.grid.nodata, code.max_error)
                coders[block].add(taken.astype(np.int32), *_odds(offer, len(taken)))
                state.copy(site, offer, taken)
            expected = state.expect(site)
            errors = state.errors(site, expected, pixels[site.band][site.window()])
            coders[block].add(errors, expected.scale, expected.fraction)
            state.settle(site, expected, errors)
        payloads |= {(group, block): coder.finish(most=LANES_MAX) for block, coder in enumerate(coders)}
    return payloads


def taken_offers(pixels: NDArray[Any], offer: Offer, nodata: int | None, max_error: int) -> NDArray[np.bool_]:
    """Which samples of an offer may be copies: `pixels` (rows, cols) are within `max_error` of what they would repeat,
    and that is not the nodata value."""
    values = offer.values[offer.where].astype(np.int32)
    taken: NDArray[np.bool_] = np.abs(pixels[offer.where] - values) <= max_error
    return taken if nodata is None else taken & (values != nodata)


def _odds(offer: Offer, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    scale, mean = ODDS[offer.odds]
    return np.full(count, scale, np.uint8), np.full(count, mean, np.int32)


def decode_tile(
    code: ExactCode,
    shape: tuple[int, int, int],
    nodata: NDArray[np.bool_] | None,
    chunks: Mapping[tuple[int, int], bytes],
) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Pixels of a tile (bands, height, width) from its payloads by (group, block), and the bands of which there is
    nothing; those have their mean.

    Where finer levels are missing, the nearest samples of the last one are repeated. Nodata pixels have any value.
    """
    layouts: list[Layout] = [Layout()] * shape[0]
    patterns: list[Cells] = []
    coders = _open(chunks, 0, code.blocks)
    for block, coder in enumerate(coders):
        bands = code.block_bands(block)
        for band, layout in zip(bands, _take_layouts(coder, len(bands), patterns, shape, code.grid.dtype), strict=True):
            layouts[band] = layout
    state = _state(code, shape, nodata, layouts)
    unknown = code.predictor.model.order[len(coders) * code.planes_per_chunk :]
    for group in range(code.groups):
        if group:
            coders = _open(chunks, group, len(coders))
        for block, site in _sites(code, state, group, len(coders)):
            for offer in state.offers(site):
                taken = coders[block].take(*_odds(offer, int(np.count_nonzero(offer.where))))
                if ((taken != 0) & (taken != 1)).any():
                    raise Malformed("exact tile: a sample repeats another neither once (1) nor not at all (0)")
                state.copy(site, offer, taken.astype(np.bool_))
            expected = state.expect(site)
            state.settle(site, expected, coders[block].take(expected.scale, expected.fraction))
        for coder in coders:
            coder.close()
    pixels = np.empty(shape, code.grid.dtype)
    for band in range(shape[0]):
        if band in unknown:
            pixels[band] = state.mean(band)
            continue
        known, level = state.lattice(band)
        wide = known if not level else known.repeat(1 << level, axis=0).repeat(1 << level, axis=1)
        pixels[band] = wide[: shape[1], : shape[2]]
    return pixels, unknown


def _open(chunks: Mapping[tuple[int, int], bytes], group: int, blocks: int) -> list[SymbolDecoder]:
    """Decoders of a group's blocks, up to the first that is not there."""
    there = next((block for block in range(blocks) if (group, block) not in chunks), blocks)
    return [SymbolDecoder(exact_tables(), chunks[group, block]) for block in range(there)]


def _state(
    code: ExactCode, shape: tuple[int, ...], nodata: NDArray[np.bool_] | None, layouts: Sequence[Layout]
) -> TileState:
    bands, height, width = shape
    grid = code.grid
    quantisers = [Quantiser.of(grid.dtype, grid.nodata, code.max_error, one.palette) for one in layouts]
    cells = [layout.cells for layout in layouts]
    return TileState(code.predictor, (bands, height, width), grid.dtype, quantisers, cells, nodata)


def _sites(code: ExactCode, state: TileState, group: int, blocks: int) -> Iterator[tuple[int, Site]]:
    """(block, site) of a group's levels, in the order of coding: level by level, so that later blocks see finished
    levels of earlier ones."""
    for level in code.group_levels(group):
        for block in range(blocks):
            for band in code.block_bands(block):
                for site in state.first_sites(band) if level == LEVELS else state.sites(band, level):
                    yield block, site


def _numbers(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def _constant(count: int, scale: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    return np.full(count, scale, np.uint8), np.zeros(count, np.int32)


def _put_layouts(coder: SymbolEncoder, layouts: Sequence[Layout], patterns: list[Cells]) -> None:
    """What a block of group 0 begins with. `patterns` are the cells that earlier bands of the tile have had."""
    palettes = [layout.palette if layout.palette is not None else np.empty(0, np.int64) for layout in layouts]
    coder.add(_numbers([len(palette) for palette in palettes]), *_constant(len(palettes), _COUNT_SCALE))
    first = [int(palette[0]) for palette in palettes if len(palette)]
    coder.add(_numbers(first), *_constant(len(first), _VALUE_SCALE))
    gaps = np.concatenate([*(np.diff(palette) - 1 for palette in palettes), np.empty(0, np.int64)]).astype(np.int32)
    coder.add(gaps, *_constant(len(gaps), _GAP_SCALE))
    numbers, bits = [], []
    for cells in (layout.cells for layout in layouts):
        number = 0
        if cells is not None:
            number = next((n for n, old in enumerate(patterns, 1) if _same(old, cells)), 0)
            if not number:
                patterns.append(cells)
                bits += [_from_period(side) for side in cells]
                number = len(patterns)
        numbers.append(number)
    coder.add(_numbers(numbers), *_constant(len(numbers), _PATTERN_SCALE))
    flat = np.concatenate([*bits, np.empty(0, np.int32)]).astype(np.int32)
    coder.add(flat, *_constant(len(flat), _BEGINS_SCALE))


def _take_layouts(
    coder: SymbolDecoder, count: int, patterns: list[Cells], shape: tuple[int, int, int], dtype: str
) -> list[Layout]:
    palettes = _take_palettes(coder, count, dtype)
    numbers = coder.take(*_constant(count, _PATTERN_SCALE)).tolist()
    last = len(patterns)
    for number in numbers:
        if not 0 <= number <= last + 1:
            raise Malformed(f"exact tile: a band repeats as pattern {number}, where {last} are known")
        last = max(last, number)
    height, width = shape[1:]
    flat = coder.take(*_constant((last - len(patterns)) * (height + width - 2), _BEGINS_SCALE))
    for part in flat.reshape(-1, height + width - 2) if len(flat) else [flat] * (last - len(patterns)):
        patterns.append(Cells(_to_period(part[: height - 1]), _to_period(part[height - 1 :])))
    return [
        Layout(patterns[number - 1] if number else None, palette)
        for number, palette in zip(numbers, palettes, strict=True)
    ]


def _take_palettes(coder: SymbolDecoder, count: int, dtype: str) -> list[NDArray[np.int64] | None]:
    sizes = coder.take(*_constant(count, _COUNT_SCALE)).tolist()
    if any(size not in range(PALETTE_MAX + 1) or size == 1 for size in sizes):
        raise Malformed(f"exact tile: palettes of {sizes[:16]} values; 0 (none) or 2 to {PALETTE_MAX} can be")
    used = [size for size in sizes if size]
    first = coder.take(*_constant(len(used), _VALUE_SCALE)).tolist()
    gaps = coder.take(*_constant(sum(used) - len(used), _GAP_SCALE)).astype(np.int64)
    found: list[NDArray[np.int64] | None] = []
    bounds, taken = np.iinfo(dtype), 0
    for size in sizes:
        if not size:
            found.append(None)
            continue
        steps = gaps[taken : taken + size - 1]
        palette = first.pop(0) + np.concatenate(([0], np.cumsum(steps + 1)))
        taken += size - 1
        if steps.min() < 0 or palette[0] < bounds.min or palette[-1] > bounds.max:
            raise Malformed(f"exact tile: a palette from {palette[0]} to {palette[-1]} does not rise within {dtype}")
        found.append(palette)
    return found


def _same(one: Cells, other: Cells) -> bool:
    return np.array_equal(one.rows, other.rows) and np.array_equal(one.cols, other.cols)


def _from_period(begins: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Rows 1 … that begin a cell, each less the one `PERIOD` before."""
    bits = begins[1:].astype(np.int32)
    bits[PERIOD:] -= begins[1:-PERIOD]
    return bits


def _to_period(bits: NDArray[np.int32]) -> NDArray[np.bool_]:
    begins = np.ones(len(bits) + 1, np.int32)
    for first in range(PERIOD):
        begins[1 + first :: PERIOD] = np.cumsum(bits[first::PERIOD])
    if ((begins != 0) & (begins != 1)).any():
        raise Malformed("exact tile: a row or column begins a cell neither once (1) nor not at all (0)")
    return begins.astype(np.bool_)
