"""What a symbol becomes in the stream, looked up at once: most symbols are small, and for those a table says it all.

For a symbol v = value - (mean >> 3) within -127..127, its scale index and its fraction mean & 7, `codes` holds the flat
entry that the coder takes (see `downlink.table`), `certain` where the symbol is certain and as expected and so costs
nothing, or `rare` where more has to be said: an exception, an escape, raw bits. `costs` holds its bits, to steer by.
Symbols further off are `rare`. Column v & 255 is that of v, so that a row and a column are the two bytes of a key.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.rans import ENTRIES
from downlink.table import FRACTIONS, Tables

REACH: Final = 128
"""Symbols within -127..127 have a column of their own; that of -128 stands for all others."""
COLUMNS: Final = 2 * REACH
_VARINT_BITS = 8.0
_EXCEPTION_BITS = 20.0
"""About what a symbol costs that was thought certain."""

Codes = NDArray[Any]
"""uint16 where the tables are few enough, else uint32."""


class Lookup:
    """Codes and costs of small symbols under some tables: (scales * 8, 256). `rare` is the largest code."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.dtype: type[np.uint16] | type[np.uint32] = np.uint16 if len(tables.frequencies) < 1 << 8 else np.uint32
        self.rare = int(np.iinfo(self.dtype).max)
        self.certain = self.rare - 1
        rows = tables.scales * FRACTIONS
        v = np.arange(COLUMNS).astype(np.int8).astype(np.int64)
        expected = (np.arange(FRACTIONS)[:, None] + 4) >> 3
        low, escape = tables.low_of.astype(np.int64), tables.escape_of.astype(np.int64)
        shift = tables.shift_of.astype(np.int64)[:rows]
        entry = (v >> shift[:, None]) - low[:, None]
        inside = (entry >= 0) & (entry < escape[:, None])
        flat = tables.table_of[:, None] * ENTRIES + np.where(inside, entry, escape[:, None])
        bits = tables.entry_bits.take(flat) + shift[:, None] + np.where(inside, 0.0, _VARINT_BITS)
        codes = np.where(inside & (shift == 0)[:, None], flat, self.rare)
        codes[:FRACTIONS] = np.where(v == expected, self.certain, self.rare)
        bits[:FRACTIONS] = np.where(v == expected, 0.0, _EXCEPTION_BITS)
        codes[:, REACH] = self.rare
        self.codes: Codes = codes.astype(self.dtype)
        self.costs: NDArray[np.float32] = bits.astype(np.float32)

    @cached_property
    def plain_codes(self) -> Codes:
        """`codes` of symbols whose mean is zero: (scales, 256)."""
        return np.ascontiguousarray(self.codes[::FRACTIONS])

    @cached_property
    def savings(self) -> NDArray[np.float32]:
        """Bits that a symbol saves if it is one closer to zero: (scales * 8, 256); none for 0, and for those without a
        column. v is that of a symbol whose mean >> 3 is zero."""
        v = np.arange(COLUMNS).astype(np.int8).astype(np.int64)
        lower = self.costs[:, (v - np.sign(v)) & (COLUMNS - 1)]
        out = self.costs - lower
        out[:, REACH] = 0
        return out

    @cached_property
    def route_tables(self) -> NDArray[np.uint16]:
        """Table number per index * 8 + fraction."""
        return self.tables.table_of.astype(np.uint16)

    @cached_property
    def route_escapes(self) -> NDArray[np.uint8]:
        """The escape's entry per index * 8 + fraction."""
        return self.tables.escape_of.astype(np.uint8)

    def keys(self, values: NDArray[Any], index: NDArray[np.uint8], mean: NDArray[np.int32] | None) -> NDArray[Any]:
        """Places of symbols in the flat forms of `codes` and `costs`, of every eighth row if there is no `mean`."""
        if mean is None:
            row = index.astype(np.uint16)
        else:
            values = values - (mean >> 3)
            row = index.astype(np.uint32)
            row <<= np.uint32(3)
            row |= (mean & 7).view(np.uint32)
        row <<= row.dtype.type(8)
        row |= small(values).view(np.uint8)
        return row

    def codes_of(self, values: NDArray[Any], index: NDArray[np.uint8], mean: NDArray[np.int32] | None) -> Codes:
        """Codes of symbols; `mean` None where all are zero."""
        self.tables.check(index, mean)
        codes = self.plain_codes if mean is None else self.codes
        return np.asarray(codes.reshape(-1).take(self.keys(values, index, mean), mode="clip"))


def small(values: NDArray[Any]) -> NDArray[np.int8]:
    """Symbols in a byte; -128 for all that are not within -127..127."""
    if values.dtype == np.int8:
        return values
    if values.size and (int(values.max()) >= REACH or int(values.min()) <= -REACH):
        values = np.where(np.abs(values) < REACH, values, -REACH)
    return values.astype(np.int8)
