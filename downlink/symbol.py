"""Symbols of a chunk -> its payload bytes; `downlink.symbol_decoder` is the way back.

Both sides know, per symbol, a scale index and a mean (see `downlink.table`), segment after segment; the payload says
the rest, in three parts:

    head   bits, most significant first, zero-padded to a byte: lane code (4 bits: log2 of the lanes; 11: nothing is
           coded), exceptions flag (1), per lane n (4 bits), per lane m (16 + n bits); the lane's state is 2^(16+n) + m
    words  16 bits each, little-endian, as `downlink.rans` takes them
    side   from the payload's last byte backwards, per segment: if flagged and the segment has certain symbols,
           exceptions (count, then gap and zigzag of the difference - 1 of each) as varints; a varint per escape; the
           raw low bits, most significant first, zero-padded to a byte

Neither count nor length is stored: words and side must meet exactly when the last segment has been taken. A payload of
no bytes says that every symbol is certain and as expected.

`SymbolEncoder.add` refuses contexts and values out of range (`BundleError`, `TooLarge`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink import rans
from downlink.lanes import Coded, Stream, encode_together
from downlink.lookup import Codes, Lookup
from downlink.table import Located, Tables

NOTHING_CODED = 11
_LANE_BITS = 20
"""What a lane costs on average: 4 bits of n, 16 + n of the state, of which about half of n is content."""
_OVERHEAD = 7, 1000
"""Lanes may cost this share of the coded bits."""


@lru_cache(maxsize=8)
def lookup_of(tables: Tables) -> Lookup:
    """Codes of small symbols; made once for all chunks that share these tables."""
    return Lookup(tables)


class _Side(NamedTuple):
    """What a segment says beside its coded entries. `exceptions` is None where nothing is certain."""

    exceptions: bytes | None
    rest: bytes


_NOTHING = _Side(None, b"")


class SymbolEncoder:
    """Collects segments, then makes the payload; the coder runs backwards, so nothing can be written before the end."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._lookup = lookup_of(tables)
        self._entries: list[NDArray[Any]] = []
        self._sides: list[_Side] = []
        self._pending: list[NDArray[Any]] = []
        """Codes of segments whose certain symbols have not been left out yet."""
        self._pending_sides: list[_Side] = []
        self._excepted = False
        self._coded_bits = 0.0

    def add(self, values: NDArray[np.int32], index: NDArray[np.uint8], mean: NDArray[np.int32]) -> None:
        """The next segment: values with the scale index and the mean (in 1/8 units) of each."""
        self.settle()
        located = self._tables.locate(values, index, mean)
        self._entries.append(located.entries.astype(self._lookup.dtype))
        exceptions = self._exceptions(located.exception_ranks, located.exceptions) if located.certain else None
        self._sides.append(_Side(exceptions, _rest(located)))
        self._coded_bits += self._tables.coded_bits(located.entries)

    def add_codes(
        self, codes: Codes, values: NDArray[Any], index: NDArray[np.uint8], mean: NDArray[np.int32] | None
    ) -> None:
        """As `add`, of a segment whose `codes` have been looked up (`Lookup.codes_of`; they are kept, and changed where
        they are rare); `mean` None where all are zero."""
        add_codes_together(
            [self], codes[None], lambda: (values[None], index[None], None if mean is None else mean[None])
        )

    def _add_looked_up(self, codes: Codes, side: _Side) -> None:
        self._pending.append(codes)
        self._pending_sides.append(side)

    def _exceptions(self, ranks: NDArray[np.intp], exceptions: NDArray[np.int64]) -> bytes:
        out = bytearray()
        _put(out, len(exceptions))
        for gap, zigzag in zip((np.diff(ranks, prepend=-1) - 1).tolist(), exceptions.tolist(), strict=True):
            _put(out, gap)
            _put(out, zigzag - 1)
        self._excepted |= len(exceptions) > 0
        return bytes(out)

    def settle(self) -> None:
        """Leave out the certain symbols of segments added so far, all at once; what follows may come later."""
        if not self._pending:
            return
        codes = np.concatenate(self._pending)
        coded = codes != self._lookup.certain
        entries = codes.compress(coded)
        first = taken = 0
        for segment, side in zip(self._pending, self._pending_sides, strict=True):
            last = first + len(segment)
            count = int(np.count_nonzero(coded[first:last]))
            self._entries.append(entries[taken : taken + count])
            some = side.exceptions is None and count < len(segment)
            self._sides.append(side._replace(exceptions=b"\0") if some else side)
            first, taken = last, taken + count
        self._coded_bits += self._tables.coded_bits(entries)
        self._pending, self._pending_sides = [], []

    @property
    def bits(self) -> float:
        """Estimated bits of the payload without the few bytes that it costs by itself."""
        self.settle()
        return self._coded_bits + 8.0 * len(self._side())

    @property
    def coded(self) -> int:
        """Symbols that the coder will be given."""
        self.settle()
        return sum(len(entries) for entries in self._entries)

    def _side(self) -> bytes:
        excepted = self._excepted
        return b"".join((one.exceptions if excepted and one.exceptions else b"") + one.rest for one in self._sides)

    def finish(self, lanes: int | None = None, most: int = rans.MAX_LANES) -> bytes:
        """The payload. More lanes cost bytes and save time; None takes as many as cost 0.7 %, but not above `most`."""
        return finish_together([self], lanes, most)[0]

    def _stream(self, lanes: int | None = None, most: int = rans.MAX_LANES) -> Stream | None:
        """What goes to the coder; None if nothing does."""
        self.settle()
        if not any(len(entries) for entries in self._entries):
            return None
        if lanes is None:
            share, whole = _OVERHEAD
            affordable = int(self._coded_bits) * share // (whole * _LANE_BITS)
            lanes = 1 << min(most, max(1, affordable)).bit_length() - 1
        return Stream(self._entries, lanes)

    def _payload(self, coded: Coded | None) -> bytes:
        side = self._side()[::-1]
        if coded is None:
            return pack_bits(np.array([NOTHING_CODED, 1]), np.array([4, 1])) + side if self._excepted else b""
        states, words = coded
        lanes = len(states)
        extra = np.array([state.bit_length() - 17 for state in states.tolist()])
        mantissas = states.astype(np.int64) - (1 << 16 + extra)
        head = pack_bits(
            np.concatenate(([lanes.bit_length() - 1, self._excepted], extra, mantissas)),
            np.concatenate(([4, 1], np.full(lanes, 4), 16 + extra)),
        )
        return head + words.astype("<u2").tobytes() + side


Segments = tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int32] | None]
"""Values, scale indices and means of a segment of several payloads, (payloads, n) each."""


def add_codes_together(encoders: Sequence[SymbolEncoder], codes: Codes, segments: Callable[[], Segments]) -> None:
    """The next segment of encoders with the same tables: looked up `codes` (encoders, n), which are kept. Of what they
    stand for only rare ones are asked."""
    lookup, tables = encoders[0]._lookup, encoders[0]._tables
    if not codes.size or int(codes.max()) != lookup.rare:
        for encoder, one in zip(encoders, codes, strict=True):
            encoder._add_looked_up(one, _NOTHING)
        return
    values, index, mean = segments()
    owner, place = (codes == lookup.rare).nonzero()
    scales = index[owner, place]
    there = np.zeros(len(scales), np.int32) if mean is None else mean[owner, place]
    located = tables.locate(values[owner, place].astype(np.int32), scales, there)
    certain = scales == 0  # certain and rare: exceptions all of them
    codes[owner[certain], place[certain]] = lookup.certain
    codes[owner[~certain], place[~certain]] = located.entries
    coded_owner, number = owner[~certain], np.arange(len(encoders) + 1)
    escapes, raws = (np.searchsorted(coded_owner[at], number) for at in (located.escaped, located.shifted))
    excepted = np.searchsorted(owner[certain], number)
    for i, (encoder, one) in enumerate(zip(encoders, codes, strict=True)):
        exceptions = None
        mine = slice(excepted[i], excepted[i + 1])
        if mine.stop > mine.start:  # their ranks count all certain symbols of the segment
            ranks = np.searchsorted(np.flatnonzero(index[i] == 0), place[certain][mine])
            exceptions = encoder._exceptions(ranks, located.exceptions[mine])
        rest = bytearray()
        for over in located.escapes[escapes[i] : escapes[i + 1]].tolist():
            _put(rest, over)
        if raws[i + 1] > raws[i]:
            part = slice(raws[i], raws[i + 1])
            rest += pack_bits(located.raw[part], located.raw_widths[part])
        encoder._add_looked_up(one, _Side(exceptions, bytes(rest)))


def finish_together(
    encoders: Sequence[SymbolEncoder], lanes: int | None = None, most: int = rans.MAX_LANES
) -> list[bytes]:
    """The payloads of encoders with the same tables, whose streams are made side by side: many at once are faster."""
    streams = [encoder._stream(lanes, most) for encoder in encoders]
    chosen = [stream for stream in streams if stream is not None]
    done = iter(encode_together(encoders[0]._tables.model, chosen) if chosen else [])
    return [
        encoder._payload(None if stream is None else next(done))
        for encoder, stream in zip(encoders, streams, strict=True)
    ]


def _rest(located: Located) -> bytes:
    """Escapes and raw bits of a segment."""
    rest = bytearray()
    for over in located.escapes.tolist():
        _put(rest, over)
    return bytes(rest + pack_bits(located.raw, located.raw_widths)) if len(located.raw) else bytes(rest)


def pack_bits(numbers: NDArray[np.int64], widths: NDArray[Any]) -> bytes:
    """Numbers of 0 to 32 bits each as one bit string, most significant bit first, zero-padded to a byte."""
    wide = widths.astype(np.int64)
    most = int(wide.max(initial=0))
    place = wide[:, None] - 1 - np.arange(most)  # of each bit in its number, the highest first
    bits = numbers.astype(np.int64)[:, None] >> place.clip(0) & 1
    return np.packbits(bits[place >= 0].astype(np.uint8)).tobytes()


def _put(out: bytearray, number: int) -> None:
    """A number as a LEB128 varint."""
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
