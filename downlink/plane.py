"""The scene-adaptive front end: coefficients of bands <-> decorrelated planes, and the side chunk that carries how.

A spectral KLT (Karhunen-Loève transform: principal components over bands) is estimated from a subsample of the scene
(`downlink.moments`) for each subband of the block transform, or for several together: bands have less in common, and
coarse bands nothing, at high frequencies. Its rows are quantised and sent. Both ends use the quantised
rows, so the inverse (a pseudo-inverse) undoes exactly what was done; planes too quiet to survive the quantiser are not
kept. Nothing here feeds the entropy decoder except integers: levels, and how one subband's planes see another's.

Arrays are (bands, 64, h, w) of coefficients (`downlink.dct`) and (planes, 64, h, w). Side chunk: see docs/format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from downlink import accelerator
from downlink.accelerator import Mixing
from downlink.context import rotation
from downlink.dct import FLAT, SUBBANDS, subband
from downlink.errors import Malformed
from downlink.symbol import pack_bits
from downlink.symbol_decoder import unpack_bits

PARTITIONS = ((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 2, 3))
"""Which basis each subband has: from one KLT for all to one for each."""
GAINS_PER_OCTAVE = 4
"""A tile's gain says how much coarser it is coded than the lattice's step, in the unit of levels: quarter octaves."""
GAIN_MAX = 63
ALL_BANDS = 3
"""Subbands that bands of half resolution have: the first three."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int16]

_VERSION = 2
_HEAD = 9  # version, flags, partition, bits of means, levels and of each basis
_WEIGHED = 1  # flag: weights of bands follow the means
_GAINED = 2  # flag: gains of tiles follow the bases
_GAIN_BITS = 6
_WEIGHT_BITS = 16
_WEIGHT_UNIT = 1024.0  # per octave; 0 octaves in the middle of the range
_LEVEL_BITS = 7
_COUNT_BITS = 10
ROW_BITS = 5, 16


@dataclass(frozen=True)
class FrontEnd:
    """Quantised KLTs of a lattice. `mean` int32 (bands); `half` bool (bands): bands of half resolution; `weights`
    (bands): what a band's coefficients are multiplied by; `rows[b]` int16 (planes of subband b, bands that have it) in
    units of 1 / `limits[b]`; `levels` uint8 (planes, 4)."""

    mean: NDArray[np.int32]
    half: NDArray[np.bool_]
    native: Floats
    importance: NDArray[np.uint16] | None
    partition: int
    rows: tuple[Rows, ...]
    limits: tuple[int, ...]
    levels: NDArray[np.uint8]
    gains: NDArray[np.uint8] | None = None
    """Of every tile of the lattice (tiles); None: all 0."""

    def gain(self, tile: int) -> int:
        """The gain of a tile."""
        return 0 if self.gains is None else int(self.gains[tile])

    def levels_at(self, gain: int) -> NDArray[np.uint8]:
        """Levels (planes, 4) relative to the step of tiles of this gain; what is sent stays sent."""
        lower = np.maximum(1, self.levels.astype(np.int16) - gain).astype(np.uint8)
        return np.where(self.levels > 0, lower, 0).astype(np.uint8)

    @property
    def planes(self) -> int:
        return int(self.levels.shape[0])

    @cached_property
    def weights(self) -> Floats:
        """What bands' coefficients are multiplied by: (bands)."""
        return self.native if self.importance is None else self.native * importance_of(self.importance)

    @cached_property
    def turn(self) -> NDArray[np.int64]:
        """How subband 1's planes see those of subband 0, in 1/64: (planes of 1, planes of 0)."""
        return rotation(self.rows[1], self.rows[0], self.limits[1] * self.limits[0])

    def members(self, band: int) -> NDArray[np.intp]:
        """Bands that have subband `band`."""
        return np.flatnonzero(~self.half) if band >= ALL_BANDS else np.arange(self.half.size)

    @cached_property
    def forward_rows(self) -> tuple[Floats, ...]:
        """Per subband (planes, bands): planes = forward_rows @ bands."""
        return tuple((r / limit).astype(np.float32) for r, limit in zip(self.rows, self.limits, strict=True))

    @cached_property
    def inverse_rows(self) -> tuple[Floats, ...]:
        """Per subband (bands, planes): bands = inverse_rows @ planes."""
        return tuple(
            np.linalg.pinv(rows.astype(np.float64)).astype(np.float32)
            if rows.size
            else np.zeros(rows.shape[::-1], np.float32)
            for rows in self.forward_rows
        )

    def mixings(self, step: float) -> tuple[Mixing, ...]:
        """Per subband, how planes in steps come from coefficients of bands in DN."""
        found = []
        for band, rows in enumerate(self.forward_rows):
            members = self.members(band)
            scaled = np.asarray(rows.reshape(-1, len(members)) * self.weights[members] / np.float32(step))
            offset = np.zeros(len(rows), np.float32)
            if band == 0:
                offset -= scaled @ (FLAT * self.mean.astype(np.float32))
            found.append(Mixing(scaled, offset, members))
        return tuple(found)

    def forward(self, coefficients: Floats, step: float, out: Floats | None = None) -> Floats:
        """(bands, 64, h, w) in DN, mean not yet subtracted -> (planes, 64, h, w) in steps, into `out` if there is one
        (C order)."""
        _, channels, height, width = coefficients.shape
        if out is None:
            out = np.empty((self.planes, channels, height, width), np.float32)
        for band, (scaled, offset, members) in enumerate(self.mixings(step)):
            at = subband(band)
            out[len(scaled) :, at] = 0
            if not len(scaled):
                continue
            if accelerator.mix(scaled, offset, coefficients, members, out, np.arange(len(scaled)), at):
                continue
            planes = out[: len(scaled), at].reshape(len(scaled), -1)
            chosen = coefficients[:, at] if len(members) == len(coefficients) else coefficients[members, at]
            np.matmul(scaled, chosen.reshape(len(members), -1), out=planes)
            planes += offset[:, None]
        return out

    def inverse(self, planes: Floats, step: float) -> Floats:
        """(planes, 64, h, w) in steps -> coefficients (bands, 64, h, w) in DN."""
        _, channels, height, width = planes.shape
        out = np.zeros((self.half.size, channels, height, width), np.float32)
        for band, rows in enumerate(self.inverse_rows):
            at, members, count = subband(band), self.members(band), rows.shape[1]
            if not rows.size:
                continue
            scaled = rows / self.weights[members, None] * np.float32(step)
            none = np.zeros(len(members), np.float32)
            if accelerator.mix(scaled, none, planes, np.arange(count), out, members, at):
                continue
            flat = scaled @ planes[:count, at].reshape(count, -1)
            out[members, at] = flat.reshape(len(members), -1, height, width)
        out[:, 0] += (FLAT * self.mean.astype(np.float32))[:, None, None]
        return out

    def pack(self) -> bytes:
        """The side chunk's bytes."""
        mean_bits = max(1, int(np.abs(self.mean).max()).bit_length() + 1)
        row_bits = [limit.bit_length() + 1 for limit in self.limits]
        flags = (0 if self.importance is None else _WEIGHED) | (0 if self.gains is None else _GAINED)
        head = bytes([_VERSION, flags, self.partition, mean_bits, _LEVEL_BITS, *row_bits])
        counts = [len(rows) for rows in self.rows]
        numbers: list[NDArray[np.int64]] = [np.array(counts), self.mean.astype(np.int64) + (1 << mean_bits - 1)]
        widths = [_COUNT_BITS] * len(counts) + [mean_bits] * self.mean.size
        if self.importance is not None:
            numbers.append(self.importance.astype(np.int64))
            widths += [_WEIGHT_BITS] * self.importance.size
        for band, count in enumerate(counts):
            numbers.append(self.levels[:count, band].astype(np.int64))
            widths += [_LEVEL_BITS] * count
        for first in self._bases():
            numbers.append(self._basis(first).astype(np.int64).ravel() + self.limits[first])
            widths += [row_bits[first]] * numbers[-1].size
        if self.gains is not None:
            numbers.append(self.gains.astype(np.int64))
            widths += [_GAIN_BITS] * self.gains.size
        return head + pack_bits(np.concatenate(numbers), np.array(widths))

    def _bases(self) -> list[int]:
        """The first subband of each basis."""
        return first_subbands(self.partition)

    def _basis(self, first: int) -> Rows:
        """The longest rows among the subbands that share a basis."""
        partition = PARTITIONS[self.partition]
        sharing = [rows for rows, basis in zip(self.rows, partition, strict=True) if basis == partition[first]]
        return max(sharing, key=len)


def importance_code(weights: Floats) -> NDArray[np.uint16]:
    """Weights of bands as they are sent: octaves in units of 1/1024, within +-32."""
    octaves = np.log2(np.maximum(weights.astype(np.float64), 2.0**-31))
    middle = 1 << _WEIGHT_BITS - 1
    code = np.clip(np.rint(octaves * _WEIGHT_UNIT) + middle, 0, 2 * middle - 1)
    return np.asarray(code, np.uint16)


def importance_of(code: NDArray[np.uint16]) -> Floats:
    """The weights that `importance_code` wrote."""
    return np.exp2((code.astype(np.float64) - (1 << _WEIGHT_BITS - 1)) / _WEIGHT_UNIT).astype(np.float32)


def first_subbands(partition: int) -> list[int]:
    bases = PARTITIONS[partition]
    return [bases.index(basis) for basis in sorted(set(bases))]


def unpack_front_end(payload: bytes, half: NDArray[np.bool_], native: Floats, planes: int, tiles: int) -> FrontEnd:
    """Read a side chunk of a lattice with so many bands, `half` of them of half resolution, and so many tiles, whose
    coding states so many planes; Malformed where they disagree."""
    bands, subbands = half.size, len(SUBBANDS)
    if len(payload) < _HEAD:
        raise Malformed(f"side chunk: {len(payload)} bytes, its head alone is {_HEAD}; this is no side chunk")
    version, flags, partition, mean_bits, level_bits, *row_bits = payload[:_HEAD]
    if version != _VERSION or flags > _WEIGHED | _GAINED:
        raise Malformed(
            f"side chunk: version {version} flags {flags}, known is version {_VERSION}; update this program"
        )
    if partition >= len(PARTITIONS) or not 1 <= mean_bits <= 32 or level_bits != _LEVEL_BITS:
        raise Malformed(f"side chunk: partition {partition}, means of {mean_bits} bits, levels of {level_bits}")
    if any(not ROW_BITS[0] <= bits <= ROW_BITS[1] for bits in row_bits):
        raise Malformed(f"side chunk: rows of {row_bits} bits; {ROW_BITS[0]} to {ROW_BITS[1]} are possible")
    if partition == 0 and half.any():
        raise Malformed("side chunk: one basis for all subbands, but some bands have no high subband")
    reader = _Bits(payload[_HEAD:])
    counts = reader.take(subbands, _COUNT_BITS)
    has = [int(np.count_nonzero(~half)) if band >= ALL_BANDS else bands for band in range(subbands)]
    if max(counts) != planes or any(count > most for count, most in zip(counts, has, strict=True)):
        raise Malformed(f"side chunk: {list(counts)} planes for {bands} bands, the manifest says {planes}")
    mean = reader.take(bands, mean_bits) - (1 << mean_bits - 1)
    importance = reader.take(bands, _WEIGHT_BITS).astype(np.uint16) if flags & _WEIGHED else None
    levels = np.zeros((planes, subbands), np.uint8)
    for band, count in enumerate(counts):
        levels[:count, band] = reader.take(int(count), _LEVEL_BITS)
        if (levels[:count, band] == 0).any():
            raise Malformed(f"side chunk: a plane of subband {band} has level 0, but it is sent")
    bounds = tuple((1 << bits - 1) - 1 for bits in row_bits)
    rows: list[Rows] = [np.zeros((0, 0), np.int16)] * subbands
    for first in first_subbands(partition):
        sharing = [b for b in range(subbands) if PARTITIONS[partition][b] == PARTITIONS[partition][first]]
        longest = max(int(counts[b]) for b in sharing)
        basis = reader.take(longest * has[first], row_bits[first]) - bounds[first]
        if basis.max(initial=0) > bounds[first]:
            raise Malformed(f"side chunk: a row of subband {first} has {basis.max()}, which is beyond its unit")
        for b in sharing:
            if row_bits[b] != row_bits[first] or has[b] != has[first]:
                raise Malformed(f"side chunk: subbands {sharing} share a basis but not its bits or bands")
            rows[b] = basis.reshape(longest, has[first])[: int(counts[b])].astype(np.int16)
    gains = reader.take(tiles, _GAIN_BITS).astype(np.uint8) if flags & _GAINED else None
    reader.close()
    return FrontEnd(mean.astype(np.int32), half, native, importance, partition, tuple(rows), bounds, levels, gains)


class _Bits:
    """Numbers out of a bit string, one run of equal widths after the other."""

    def __init__(self, packed: bytes) -> None:
        self._packed = np.frombuffer(packed, np.uint8)
        self._at = 0

    def take(self, count: int, width: int) -> NDArray[np.int64]:
        if self._at + count * width > 8 * len(self._packed):
            raise Malformed(f"side chunk: {len(self._packed) + _HEAD} bytes, its numbers need more")
        starts = self._at + width * np.arange(count, dtype=np.int64)
        self._at += count * width
        return unpack_bits(self._packed, starts, np.full(count, width))

    def close(self) -> None:
        whole = -(-self._at // 8)
        if whole != len(self._packed) or (self._at % 8 and self._packed[-1] & (0xFF >> self._at % 8)):
            raise Malformed(f"side chunk: {len(self._packed) + _HEAD} bytes, its numbers end after {whole + _HEAD}")
