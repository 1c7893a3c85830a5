"""What a reference says of a lattice's coefficients, and the few numbers that both ends must know for it.

Prediction of channel c (of subband s) of band b in block (i, j), in DN:

    gain[s][b] / 32 * factor[cell of (i, j)] / 4 * (coefficient of the reference - its mean)

A *gain* for each band and subband is a Wiener filter: details change more from day to day than what is large, so less
of them is believed. A *factor* for each cell of blocks says how much of it holds there: nothing under a new cloud, all
of it beside. They travel in front of the lattice's side chunk (docs/format.md, "Reference"). Added to coefficients it
changes no symbol. `unpack` refuses, with `StreamError`, whatever `pack` would not make.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from downlink.dct import BLOCK, SUBBANDS
from downlink.errors import Malformed
from downlink.exact_table import exact_tables
from downlink.plane import ALL_BANDS, FrontEnd
from downlink.symbol import SymbolEncoder
from downlink.symbol_decoder import SymbolDecoder

GAIN_ONE: Final = 32
GAIN_MAX: Final = 63
FACTOR_ONE: Final = 4
CELLS: Final = (2, 4, 8, 16, 32)
"""Blocks along a cell that are possible."""

_HEAD: Final = struct.Struct("<H")
_GAIN_CONTEXT: Final = 33, 8 * (GAIN_ONE - 8)  # a scale of 9, around 24
_SCALES: Final = 48
"""Scale indices that cells may have: the first ones of the exact tables, light tails."""
_MIDDLE: Final = 4 * FACTOR_ONE  # the mean of cells of the first row, in eighths: half

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Coefficients(Protocol):
    """A lattice that can be asked for its coefficients (`downlink.reference.ReferenceLattice`)."""

    @property
    def mean(self) -> Floats:
        """Of channel 0 of each band: (bands)."""

    def at(self, row: int, col: int, height: int, width: int) -> Floats:
        """(bands, 64, height, width) of blocks from (row, col) on, new."""


def cell_counts(height: int, width: int, cell: int) -> tuple[int, int]:
    """Cells down and across a lattice of so many pixels."""
    return -(-height // (cell * BLOCK)), -(-width // (cell * BLOCK))


@dataclass(frozen=True, eq=False)
class Prediction:
    """`gains` uint8 (4, bands), 0 where a band has no such subband; `cell` blocks along a cell; `factors` uint8 (cells
    down, cells across)."""

    reference: Coefficients
    gains: Bytes
    cell: int
    factors: Bytes

    def whole(self, row: int, col: int, height: int, width: int) -> Floats:
        """As if every factor were one, (bands, 64, height, width) in DN of blocks from (row, col) on."""
        found = self.reference.at(row, col, height, width)
        found[:, 0] -= self.reference.mean[:, None, None]
        gains = (self.gains / np.float32(GAIN_ONE)).T.repeat(np.diff([0, *SUBBANDS]), axis=1)
        found *= gains[:, :, None, None]
        return found

    def at(self, row: int, col: int, height: int, width: int) -> Floats:
        """What is predicted: (bands, 64, height, width) in DN. Blocks beyond the lattice take the last factor."""
        rows, cols = (
            (np.arange(first, first + count) // self.cell).clip(0, most - 1)
            for first, count, most in zip((row, col), (height, width), self.factors.shape, strict=True)
        )
        factors = self.factors[np.ix_(rows, cols)] / np.float32(FACTOR_ONE)
        return np.asarray(self.whole(row, col, height, width) * factors)

    def pack(self, half: NDArray[np.bool_]) -> bytes:
        """The bytes that precede a side chunk, with their length. `half`: bands of half resolution."""
        coder = SymbolEncoder(exact_tables())
        gains = self.gains[_sent(half)].astype(np.int32)
        coder.add(gains, *_contexts(gains.size, *_GAIN_CONTEXT))
        values = self.factors.astype(np.int32)
        means = [expected(self.factors[row - 1] if row else None, values.shape[1]) for row in range(len(values))]
        scale = _cheapest(values.ravel(), np.concatenate(means))
        for row, mean in zip(values, means, strict=True):
            coder.add(row, np.full(mean.size, scale, np.uint8), mean)
        packed = bytes([self.cell, scale]) + coder.finish()
        return _HEAD.pack(len(packed)) + packed

    @classmethod
    def unpack(
        cls, packed: bytes, half: NDArray[np.bool_], height: int, width: int, reference: Coefficients
    ) -> Prediction:
        """What `pack` has made for a lattice of so many pixels; `packed` without its length."""
        if len(packed) < 2 or packed[0] not in CELLS or not 1 <= packed[1] <= _SCALES:
            raise Malformed(f"prediction: begins with {packed[:2].hex(' ')}; a cell of {CELLS} blocks and a scale must")
        cell, scale = packed[:2]
        coder = SymbolDecoder(exact_tables(), packed[2:])
        sent = _sent(half)
        gains = np.zeros(sent.shape, np.uint8)
        gains[sent] = _within(coder.take(*_contexts(int(sent.sum()), *_GAIN_CONTEXT)), GAIN_MAX, "gain")
        down, across = cell_counts(height, width, cell)
        factors = np.zeros((down, across), np.uint8)
        scales = np.full(across, scale, np.uint8)
        for row in range(down):
            mean = expected(factors[row - 1] if row else None, across)
            factors[row] = _within(coder.take(scales, mean), FACTOR_ONE, "factor")
        coder.close()
        return cls(reference, gains, cell, factors)


def split_side(payload: bytes) -> tuple[bytes, bytes]:
    """The side chunk of a lattice that has a reference: (prediction, empty if there is none; front end)."""
    if len(payload) < _HEAD.size:
        raise Malformed(f"side chunk: {len(payload)} bytes, the length of its prediction alone has {_HEAD.size}")
    (length,) = _HEAD.unpack_from(payload)
    if _HEAD.size + length > len(payload):
        raise Malformed(f"side chunk: {len(payload)} bytes, its prediction states {length}")
    return payload[_HEAD.size : _HEAD.size + length], payload[_HEAD.size + length :]


NOTHING: Final = _HEAD.pack(0)
"""What precedes the side chunk of a lattice that is coded alone in a scene that has a reference."""


def projected(front_end: FrontEnd, coefficients: Floats, step: float) -> Floats:
    """What is taken off planes in steps when `coefficients` (bands, 64, h, w) are taken off bands."""
    return replace(front_end, mean=np.zeros_like(front_end.mean)).forward(coefficients, step)


def _sent(half: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which gains there are: (4, bands)."""
    sent = np.ones((len(SUBBANDS), half.size), np.bool_)
    sent[ALL_BANDS, half] = False
    return sent


def _contexts(count: int, index: int, mean: int) -> tuple[Bytes, NDArray[np.int32]]:
    return np.full(count, index, np.uint8), np.full(count, mean, np.int32)


def expected(above: Bytes | None, width: int) -> NDArray[np.int32]:
    """What the row of cells above says of the next one, in eighths: of the three nearest, the middle one twice."""
    if above is None:
        return np.full(width, _MIDDLE, np.int32)
    edge = above[[0, *range(width), width - 1]].astype(np.int32)
    return np.asarray(2 * (edge[:-2] + 2 * edge[1:-1] + edge[2:]), np.int32)


def _cheapest(values: NDArray[np.int32], means: NDArray[np.int32]) -> int:
    """The scale at which cells take fewest bits, judged by some thousands of them."""
    every = -(-values.size // 4096)
    own, mean = values[::every], means[::every]
    costs = [exact_tables().cost_bits(own, np.full(own.size, scale, np.uint8), mean) for scale in range(1, 1 + _SCALES)]
    return 1 + int(np.argmin(costs))


def _within(values: NDArray[np.int32], most: int, what: str) -> NDArray[np.int32]:
    if values.size and (int(values.min()) < 0 or int(values.max()) > most):
        raise Malformed(f"prediction: a {what} of {int(values.min())} or {int(values.max())}; 0 to {most} are possible")
    return values
