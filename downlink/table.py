"""Frozen integer frequency tables: which probabilities a symbol is coded with.

A symbol comes with a scale index (0: certain, not coded; 1 to S-1) and a mean m in 1/8 units. With base = m >> 3 and
fraction = m & 7, the table `route[index, fraction]` models v = value - base: entry e stands for v >> shift[index]
equal to low + e, the low `shift` bits of v travel raw, and the last entry is the escape for everything outside. A
certain symbol is expected to be (m + 4) >> 3. Frequencies sum to 2^14.

`Tables` holds only what is valid (`Malformed` otherwise), and `unpack` refuses every byte string that `pack` does not
make (`Malformed`; `Unsupported` for another version). `keys` refuses a scale index without tables (`BundleError`:
prior and tables of a bundle disagree) and a mean out of range, `locate` a value out of range (both `TooLarge`). What
the decoder needs are integers in the bundle; only `parametric`, which runs at training time, and `cost_bits`, which
steers the rate, use floats.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.errors import BundleError, Malformed, TooLarge, Unsupported
from downlink.pmf import Cdf, Pmf, frequencies_of, logistic, trim
from downlink.rans import ENTRIES, TOTAL, Model

FRACTIONS = 8
MAX_VALUE = 1 << 24
MAX_MEAN = MAX_VALUE * FRACTIONS
MAX_SHIFT = 24
MAX_SCALES = 256
MAX_TABLES = 512
"""The decoder's slot tables take 80 KiB each."""

_MAGIC = b"LDT"
_VERSION = 1
_HEADER = struct.Struct("<3sBHH")
_MAX_REACH = 1 << 28
"""Bound of |entry value| << shift: with it every v fits an int32."""


class Keys(NamedTuple):
    """Which symbols are coded, and with what: one item per coded symbol, in order, except `certain`."""

    certain: NDArray[np.bool_] | None
    """Per symbol; None when none is certain."""
    base: NDArray[np.int32]
    route: NDArray[np.intp]
    """index * 8 + fraction, to look up the flat forms of `Tables`."""
    shifted: bool
    """Whether any of them may have raw bits."""


class Located(NamedTuple):
    """Symbols as what the stream carries."""

    entries: NDArray[np.int64]
    """Flat entries: table * 256 + entry."""
    escapes: NDArray[np.int64]
    """Zigzag of how far each escaped v >> shift lies beyond the table, in order."""
    raw: NDArray[np.int64]
    raw_widths: NDArray[np.uint8]
    certain: int
    """How many symbols are certain."""
    exception_ranks: NDArray[np.intp]
    """Which of the certain symbols are not as expected."""
    exceptions: NDArray[np.int64]
    """Zigzag of value - expected, never 0."""
    escaped: NDArray[np.intp]
    """Which of the coded symbols escape, …"""
    shifted: NDArray[np.intp]
    """… and which have raw bits."""


@dataclass(frozen=True, eq=False)
class Tables:
    """See the module. `frequencies` is uint16 (tables, 256) with the escape as each row's last positive entry."""

    frequencies: NDArray[np.uint16]
    low: NDArray[np.int32]
    route: NDArray[np.int16]
    shift: NDArray[np.uint8]

    def __post_init__(self) -> None:
        count, scales = len(self.frequencies), len(self.shift)
        _check_size(count, scales)
        shapes = (self.frequencies.shape, self.low.shape, self.route.shape)
        if shapes != ((count, ENTRIES), (count,), (scales, FRACTIONS)):
            raise Malformed(f"shapes {shapes} of frequencies, low and route do not fit {count} tables, {scales} scales")
        sums = self.frequencies.sum(axis=1, dtype=np.int64)
        if (sums != TOTAL).any():
            bad = int((sums != TOTAL).argmax())
            raise Malformed(f"frequencies of table {bad} sum to {sums[bad]}, not {TOTAL}; rebuild the tables")
        positive = self.frequencies > 0
        if (positive[:, 1:] & ~positive[:, :-1]).any() or not positive[:, 1].all():
            raise Malformed(
                "a table has a frequency of 0 before its end, or fewer than two entries; rebuild the tables"
            )
        coded = self.route[1:]
        if coded.min() < 0 or coded.max() >= count:
            raise Malformed(f"scales are routed to tables {coded.min()} to {coded.max()} of 0 to {count - 1}")
        if self.shift.max() > MAX_SHIFT:
            raise Malformed(f"a scale has {self.shift.max()} raw bits; at most {MAX_SHIFT} are allowed")
        reach = (np.abs(self.low.astype(np.int64))[coded] + ENTRIES) << self.shift[1:, None]
        if reach.max() > _MAX_REACH:
            raise Malformed(f"entries with their raw bits reach {reach.max()}; at most {_MAX_REACH} is allowed")

    @property
    def scales(self) -> int:
        """Scale indices run from 0 to scales - 1."""
        return len(self.shift)

    @cached_property
    def model(self) -> Model:
        """What the coder needs."""
        return Model(self.frequencies)

    # Forms per index * 8 + fraction; those of index 0 are never used.

    @cached_property
    def table_of(self) -> NDArray[np.int64]:
        """Table number."""
        return np.maximum(self.route, 0).reshape(-1).astype(np.int64)

    @cached_property
    def low_of(self) -> NDArray[np.int32]:
        """v >> shift of entry 0."""
        return np.asarray(self.low[self.table_of], np.int32)

    @cached_property
    def escape_of(self) -> NDArray[np.int32]:
        """The escape entry, which is also the number of the others."""
        return np.asarray((self.frequencies > 0).sum(axis=1)[self.table_of] - 1, np.int32)

    @cached_property
    def shift_of(self) -> NDArray[np.uint8]:
        """Raw bits."""
        return np.repeat(self.shift, FRACTIONS)

    @cached_property
    def first_shifted(self) -> int:
        """The smallest scale index with raw bits."""
        shifted = self.shift[1:] > 0
        return 1 + int(shifted.argmax()) if shifted.any() else self.scales

    @cached_property
    def entry_bits(self) -> NDArray[np.float32]:
        """Ideal bits of each flat entry, in whole 1/65536: their sums are exact in float64, in any order."""
        exact = np.log2(TOTAL) - np.log2(np.maximum(self.frequencies, 1).reshape(-1))
        return np.asarray(np.rint(exact * 65536) / 65536, np.float32)

    def check(self, index: NDArray[np.uint8], mean: NDArray[np.int32] | None) -> None:
        """Refuse contexts that cannot be: BundleError for a scale index without tables, TooLarge for a mean out of
        range."""
        if index.size and int(index.max()) >= self.scales:
            raise BundleError(
                f"the prior asks for scale {index.max()}, but tables.bin has 0 to {self.scales - 1}; rebuild the bundle"
            )
        if mean is not None:
            _check_range("mean", mean, MAX_MEAN)

    def keys(self, index: NDArray[np.uint8], mean: NDArray[np.int32]) -> Keys:
        """What each symbol is coded with. Both sides call it, so both refuse the same contexts."""
        if index.ndim != 1 or index.shape != mean.shape:
            raise ValueError(f"index has shape {index.shape}, mean {mean.shape}: both must be flat and equally long")
        if len(index) == 0:
            return Keys(None, np.empty(0, np.int32), np.empty(0, np.intp), False)
        self.check(index, mean)
        top = int(index.max())
        certain = None
        coded = index != 0
        if not coded.all():
            certain = ~coded
            index, mean = index[coded], mean[coded]
        mean = mean.astype(np.int32, copy=False)
        route = ((index.astype(np.int32) << 3) | (mean & 7)).astype(np.intp)
        return Keys(certain, mean >> 3, route, top >= self.first_shifted)

    def locate(self, values: NDArray[np.int32], index: NDArray[np.uint8], mean: NDArray[np.int32]) -> Located:
        """What the stream carries for these symbols."""
        if values.shape != index.shape:
            raise ValueError(f"values have shape {values.shape}, index {index.shape}: both must be equally long")
        keys = self.keys(index, mean)
        _check_range("value", values, MAX_VALUE)
        values = values.astype(np.int32, copy=False)
        certain, ranks, exceptions = 0, np.empty(0, np.intp), np.empty(0, np.int64)
        if keys.certain is not None:
            off = values[keys.certain] - ((mean[keys.certain] + 4) >> 3)
            certain = len(off)
            ranks = np.flatnonzero(off != 0)
            exceptions = off[ranks].astype(np.int64)
            exceptions = exceptions << 1 ^ exceptions >> 63
            values = values[~keys.certain]
        v = values - keys.base
        raw, widths, shifted = np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.intp)
        if keys.shifted:
            shift = self.shift_of.take(keys.route, mode="clip")
            shifted = np.flatnonzero(shift != 0)
            widths = shift[shifted]
            raw = v[shifted] & ((1 << widths.astype(np.int64)) - 1)
            v >>= shift
        v -= self.low_of.take(keys.route, mode="clip")
        escape = self.escape_of.take(keys.route, mode="clip")
        entry = np.minimum(v.view(np.uint32), escape.view(np.uint32))  # what is negative becomes large
        escaped = np.flatnonzero(entry == escape.view(np.uint32))
        over = v[escaped].astype(np.int64)
        over = np.where(over < 0, -2 * over - 1, 2 * (over - escape[escaped]))
        entries = self.table_of.take(keys.route, mode="clip")
        entries <<= 8
        entries += entry
        return Located(entries, over, raw, widths, certain, ranks, exceptions, escaped, shifted)

    def cost_bits(self, values: NDArray[np.int32], index: NDArray[np.uint8], mean: NDArray[np.int32]) -> float:
        """Estimated bits of these symbols, without the few bytes that a payload costs by itself."""
        located = self.locate(values, index, mean)
        bits = self.coded_bits(located.entries) + float(located.raw_widths.sum(dtype=np.int64))
        for numbers in (located.escapes, located.exceptions):
            if len(numbers):
                bits += 8.0 * float(np.maximum(1, np.ceil(np.log2(numbers + 1.0) / 7)).sum())
        return bits + 8.0 * len(located.exceptions)

    def coded_bits(self, entries: NDArray[np.int64]) -> float:
        """Ideal bits of flat entries alone."""
        return float(self.entry_bits.take(entries, mode="clip").sum(dtype=np.float64))

    def pack(self) -> bytes:
        """Bytes for the bundle: header, shifts, routes, then every table."""
        out = bytearray(_HEADER.pack(_MAGIC, _VERSION, self.scales, len(self.frequencies)))
        out += self.shift[1:].tobytes()
        out += self.route[1:].astype("<u2").tobytes()
        for row, low in zip(self.frequencies.tolist(), self.low.tolist(), strict=True):
            others = row.index(0) - 1 if 0 in row else ENTRIES - 1
            out.append(others)
            for number in (low << 1 ^ low >> 31, *row[:others]):  # the escape has what is left of 2^14
                while number > 0x7F:
                    out.append(number & 0x7F | 0x80)
                    number >>= 7
                out.append(number)
        return bytes(out)

    @classmethod
    def unpack(cls, packed: bytes) -> Tables:
        """The tables that `pack` wrote."""
        if len(packed) < _HEADER.size or packed[:3] != _MAGIC:
            raise Malformed(f"tables start with {bytes(packed[:3])!r}, not {_MAGIC!r}; give a bundle's tables.bin")
        _, version, scales, count = _HEADER.unpack_from(packed)
        if version != _VERSION:
            raise Unsupported(f"tables are of version {version}, this program knows {_VERSION}; update it")
        _check_size(count, scales)
        coded = scales - 1
        position = _HEADER.size + coded * (1 + 2 * FRACTIONS)
        if len(packed) < position:
            raise Malformed(f"tables end after {len(packed)} bytes, inside the routes of {scales} scales")
        shift = np.zeros(scales, np.uint8)
        shift[1:] = np.frombuffer(packed, np.uint8, coded, _HEADER.size)
        route = np.full((scales, FRACTIONS), -1, np.int16)
        stored = np.frombuffer(packed, "<u2", coded * FRACTIONS, _HEADER.size + coded)
        route[1:] = np.minimum(stored, MAX_TABLES).reshape(-1, FRACTIONS)
        frequencies = np.zeros((count, ENTRIES), np.uint16)
        low = np.zeros(count, np.int32)
        try:
            for table in range(count):
                others = packed[position]
                zigzag, position = _number(packed, position + 1)
                low[table] = zigzag >> 1 ^ -(zigzag & 1)
                row = []
                for _ in range(others):
                    number, position = _number(packed, position)
                    row.append(number)
                rest = TOTAL - sum(row)
                if rest < 1:
                    raise Malformed(f"frequencies of table {table} leave {rest} of {TOTAL} for the escape; 1 is needed")
                frequencies[table, : others + 1] = [*row, rest]
        except IndexError:
            raise Malformed(f"tables end after {len(packed)} bytes, before table {count} of {count} does") from None
        if position != len(packed):
            raise Malformed(f"tables end at byte {position}, but {len(packed)} were given")
        return cls(frequencies, low, route, shift)

    @classmethod
    def from_pmfs(cls, pmfs: Sequence[Pmf], route: NDArray[Any], shift: NDArray[Any]) -> Tables:
        """Tables from (low, weights) pairs, the last weight being the escape's: measured histograms, or any model."""
        frequencies = np.zeros((len(pmfs), ENTRIES), np.uint16)
        for row, (_, weights) in zip(frequencies, pmfs, strict=True):
            row[: len(weights)] = frequencies_of(weights)
        low = np.array([low for low, _ in pmfs], np.int32)
        return cls(frequencies, low, np.asarray(route, np.int16), np.asarray(shift, np.uint8))

    @classmethod
    def parametric(cls, cdf: Cdf | None = None, sigmas: Sequence[float] | None = None, half_width: int = 100) -> Tables:
        """Tables of a family of distributions: P(v) = cdf(v + 1/2 - f/8, sigma) - cdf(v - 1/2 - f/8, sigma).

        `cdf` is of a distribution with mean 0 (logistic if None); scale index i has `sigmas[i - 1]`, by default
        0.11 * 2^((i - 1) / 4) for i = 1 to 95. Wide scales share a table among neighbouring fractions, and any share
        tables that code equally well.
        """
        cdf = logistic if cdf is None else cdf
        sigmas = [0.11 * 2 ** ((i - 1) / 4) for i in range(1, 96)] if sigmas is None else sigmas
        route = np.full((len(sigmas) + 1, FRACTIONS), -1, np.int16)
        shift = np.zeros(len(sigmas) + 1, np.uint8)
        pmfs: list[Pmf] = []
        for index, sigma in enumerate(sigmas, start=1):
            groups = 8 if sigma < 2 else 2 if sigma < 8 else 1
            bits = max(0, int(np.ceil(np.log2(sigma / half_width))))
            own = _family(cdf, sigma, groups, bits)
            while max(max(-low, low + len(weights)) for low, weights in own) > half_width + 1:
                bits += 1
                own = _family(cdf, sigma, groups, bits)
            if bits > MAX_SHIFT:
                raise ValueError(f"scale {sigma:g} needs {bits} raw bits, above {MAX_SHIFT}; give smaller scales")
            shift[index] = bits
            for fraction in range(FRACTIONS):
                pmf = own[fraction * groups // FRACTIONS]
                table = _equal_table(pmfs, pmf)
                if table == len(pmfs):
                    pmfs.append(pmf)
                route[index, fraction] = table
        return cls.from_pmfs(pmfs, route, shift)


def _family(cdf: Cdf, sigma: float, groups: int, shift: int) -> list[Pmf]:
    """Trimmed pmfs of v >> shift, one per group of neighbouring fractions, each at the mean of its group."""
    step, width = 1 << shift, FRACTIONS // groups
    reach = 40 * int(sigma / step + 1)
    edges = np.arange(-reach, reach + 1, dtype=np.float64) * step - 0.5
    means = [(group * width + (width - 1) / 2) / FRACTIONS for group in range(groups)]
    return [trim(-reach, np.diff(cdf(edges - mean, sigma))) for mean in means]


def _equal_table(pmfs: Sequence[Pmf], pmf: Pmf) -> int:
    """An earlier table that costs less than 0.0005 bits per symbol more than the ideal one, or the next number."""
    low, weights = pmf
    for number, (other_low, other) in enumerate(pmfs):
        if other_low == low and len(other) == len(weights):
            excess = weights * np.log2(np.maximum(weights, 1e-12) / np.maximum(other, 1 / TOTAL))
            if float(excess.sum()) < 0.0005:
                return number
    return len(pmfs)


def _check_size(tables: int, scales: int) -> None:
    if not 1 <= tables <= MAX_TABLES or not 2 <= scales <= MAX_SCALES:
        raise Malformed(f"{tables} tables for {scales} scales: 1 to {MAX_TABLES} and 2 to {MAX_SCALES} are allowed")


def _check_range(what: str, numbers: NDArray[Any], bound: int) -> None:
    if numbers.size and (int(numbers.max()) > bound or int(numbers.min()) < -bound):
        raise TooLarge(f"a {what} lies between {numbers.min()} and {numbers.max()}; {bound} either way is the limit")


def _number(packed: bytes, position: int) -> tuple[int, int]:
    """A LEB128 number below 2^28 in its shortest form, and where the next one starts."""
    number = 0
    for i in range(4):
        byte = packed[position]
        position += 1
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if byte == 0 and i:
                raise Malformed(f"a number before byte {position} of the tables is longer than it needs to be")
            return number, position
    raise Malformed(f"a number before byte {position} of the tables is longer than 4 bytes")
