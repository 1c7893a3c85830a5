"""Symbols of a chunk <-> its payload bytes.

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

`SymbolEncoder.add` refuses contexts and values out of range (`BundleError`, `TooLarge`). `SymbolDecoder` and `take`
refuse bytes that cannot be (`Corrupt`), in time and memory bounded by the arrays given to `take`; `close` refuses what
does not end as it must (`Corrupt`). Flipped raw bits, escapes and exceptions can pass: the chunk's checksum guards
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink import rans
from downlink.errors import Corrupt
from downlink.lanes import Coded, Stream, TogetherDecoder, encode_together
from downlink.lookup import Codes, Lookup
from downlink.table import MAX_VALUE, Keys, Located, Tables

NOTHING_CODED = 11
_LANE_BITS = 20
"""What a lane costs on average: 4 bits of n, 16 + n of the state, of which about half of n is content."""
_OVERHEAD = 7, 1000
"""Lanes may cost this share of the coded bits."""
_VARINT_BYTES = 4
_AGAIN = "fetch the chunk again"
_SHORT = f"the payload ends before its symbols do; {_AGAIN}"


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


class SymbolDecoder:
    """Takes the segments out of a payload, in the order in which they were added."""

    def __init__(self, tables: Tables, payload: bytes) -> None:
        self._tables = tables
        self._side = bytes(payload)[::-1]
        self._side_position = 0
        self._size = len(payload)
        self._head = 0
        self._coder: rans.Decoder | None = None
        self._excepted = False
        self._flagged = False
        self._coded = 0
        if payload:
            self._read_head(np.frombuffer(payload, np.uint8))

    def _read_head(self, payload: NDArray[np.uint8]) -> None:
        code = int(payload[0]) >> 4
        self._flagged = bool(payload[0] & 8)
        if code > NOTHING_CODED:
            raise Corrupt(f"the payload has lane code {code}; the highest is {NOTHING_CODED}; {_AGAIN}")
        lanes = 1 << code if code < NOTHING_CODED else 0
        bits = 5 + 4 * lanes
        if bits > 8 * self._size:
            raise Corrupt(f"{lanes} lanes need more than the {self._size} bytes of the payload; {_AGAIN}")
        extra = unpack_bits(payload, 5 + 4 * np.arange(lanes), np.full(lanes, 4))
        ends = bits + np.cumsum(16 + extra)
        bits = int(ends[-1]) if lanes else bits
        self._head = -(-bits // 8)
        if self._head > self._size:
            raise Corrupt(f"{lanes} lanes need {self._head} bytes, the payload has {self._size}; {_AGAIN}")
        if bits % 8 and payload[self._head - 1] & (0xFF >> bits % 8):
            raise Corrupt(f"the padding after the lanes is not zero; {_AGAIN}")
        if lanes:
            states = (1 << 16 + extra) + unpack_bits(payload, ends - 16 - extra, 16 + extra)
            count = (self._size - self._head) // 2
            words = payload[self._head : self._head + 2 * count].view("<u2")
            self._coder = rans.Decoder(self._tables.model, states, words)

    def take(self, index: NDArray[np.uint8], mean: NDArray[np.int32]) -> NDArray[np.int32]:
        """The values of the next segment."""
        keys = self._tables.keys(index, mean)
        if keys.certain is None:
            values = self._take_coded(keys)
        else:
            values = mean.astype(np.int32)
            values += 4
            values >>= 3
            if self._flagged:
                self._take_exceptions(values, np.flatnonzero(keys.certain))
            if len(keys.route):
                values[~keys.certain] = self._take_coded(keys)
        if len(values) and (int(values.max()) > MAX_VALUE or int(values.min()) < -MAX_VALUE):
            raise Corrupt(
                f"a symbol lies between {values.min()} and {values.max()}; {MAX_VALUE} is the limit; {_AGAIN}"
            )
        return values

    def _take_coded(self, keys: Keys) -> NDArray[np.int32]:
        count = len(keys.route)
        if count == 0:
            return np.empty(0, np.int32)
        if self._coder is None:
            raise Corrupt(f"{count} symbols are coded, but the payload of {self._size} bytes has no lanes; {_AGAIN}")
        self._coded += count
        tables = self._tables
        v = self._coder.decode(tables.table_of.take(keys.route, mode="clip")).astype(np.int32)
        escaped = np.flatnonzero(v == tables.escape_of.take(keys.route, mode="clip"))
        v += tables.low_of.take(keys.route, mode="clip")
        self._take_rest(v, keys.route, escaped, keys.shifted)
        v += keys.base
        return v

    def _take_rest(self, v: NDArray[np.int32], route: NDArray[Any], escaped: NDArray[np.intp], shifted: bool) -> None:
        """Of coded symbols `v`, in place: those that escaped, and raw bits."""
        tables = self._tables
        for i in escaped.tolist():
            over, key = self._varint(), int(route[i])
            entry = int(tables.low_of[key]) - 1 - (over >> 1) if over & 1 else int(v[i]) + (over >> 1)
            bits = int(tables.shift_of[key])
            if abs(entry) << bits > 4 * MAX_VALUE:
                raise Corrupt(f"an escaped symbol is {entry} << {bits}, but {MAX_VALUE} is the limit; {_AGAIN}")
            v[i] = entry
        if shifted:
            shift = tables.shift_of.take(route, mode="clip")
            v <<= shift
            places = np.flatnonzero(shift != 0)
            if len(places):
                v[places] |= self._raw(shift[places].astype(np.int64)).astype(np.int32)

    def _take_exceptions(self, values: NDArray[np.int32], certain: NDArray[np.intp]) -> None:
        count = self._varint()
        if count > len(certain):
            raise Corrupt(f"{count} exceptions among {len(certain)} certain symbols; {_AGAIN}")
        self._excepted |= count > 0
        rank = -1
        for _ in range(count):
            rank += 1 + self._varint()
            zigzag = 1 + self._varint()
            if rank >= len(certain):
                raise Corrupt(f"an exception has rank {rank} among {len(certain)} certain symbols; {_AGAIN}")
            value = int(values[certain[rank]]) + (zigzag >> 1 ^ -(zigzag & 1))
            if abs(value) > MAX_VALUE:
                raise Corrupt(f"an exception has the value {value}; {MAX_VALUE} is the limit; {_AGAIN}")
            values[certain[rank]] = value

    def _varint(self) -> int:
        number = 0
        for i in range(_VARINT_BYTES):
            if self._side_position >= self._size - self._head:
                raise Corrupt(_SHORT)
            byte = self._side[self._side_position]
            self._side_position += 1
            number |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if byte == 0 and i:
                    raise Corrupt(f"a number in the side bytes is longer than it needs to be; {_AGAIN}")
                return number
        raise Corrupt(f"a number in the side bytes is longer than {_VARINT_BYTES} bytes; {_AGAIN}")

    def _raw(self, widths: NDArray[np.int64]) -> NDArray[np.int64]:
        ends = np.cumsum(widths)
        size = -(-int(ends[-1]) // 8)
        if self._side_position + size > self._size - self._head:
            raise Corrupt(_SHORT)
        packed = np.frombuffer(self._side, np.uint8, size, self._side_position)
        self._side_position += size
        if ends[-1] % 8 and packed[-1] & (0xFF >> int(ends[-1]) % 8):
            raise Corrupt(f"the padding after raw bits is not zero; {_AGAIN}")
        return unpack_bits(packed, ends - widths, widths)

    def close(self) -> None:
        """After the last segment: everything must have been used, and every lane be back where the encoder started."""
        coder = self._coder
        used = self._head + self._side_position + (2 * coder.position if coder else 0)
        if used != self._size:
            raise Corrupt(f"the symbols take {used} bytes, the payload has {self._size}; {_AGAIN}")
        if coder and not (coder.finished and self._coded):
            raise Corrupt(f"the symbols do not end where the encoder started; {_AGAIN}")
        if self._flagged != self._excepted:
            raise Corrupt(f"the payload promises exceptions but has none; {_AGAIN}")
        if self._size and not coder and not self._excepted:
            raise Corrupt(f"the payload has {self._size} bytes but says nothing; {_AGAIN}")


class TogetherSymbols:
    """Takes segments out of several payloads under the same tables at once."""

    def __init__(self, decoders: Sequence[SymbolDecoder]) -> None:
        self._decoders = decoders
        coders = [decoder._coder for decoder in decoders]
        self._coding = np.array([coder is not None for coder in coders], np.bool_)
        self._tables = decoders[0]._tables
        self._lookup = lookup_of(self._tables)
        self._coder = TogetherDecoder(self._tables.model, [coder for coder in coders if coder is not None])

    def take(self, index: NDArray[np.uint8], mean: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """The values of the next segment of each payload: `index` and `mean` (None: all zero) are (payloads, n)."""
        tables, count = self._tables, index.shape[1]
        tables.check(index, mean)
        values = np.zeros(index.shape, np.int32) if mean is None else (mean + 4) >> 3
        coded = index != 0
        counts = np.count_nonzero(coded, axis=1)
        self._check_coders(counts)
        (at,) = coded.reshape(-1).nonzero()
        route = index.reshape(-1).take(at).astype(np.uint16) << 3
        if mean is not None:
            route |= (mean.reshape(-1).take(at) & 7).astype(np.uint16)
        entries = self._coder.decode(self._lookup.route_tables.take(route), counts[self._coding])
        v = entries.astype(np.int32)
        (escaped,) = (entries == self._lookup.route_escapes.take(route)).nonzero()
        v += tables.low_of.take(route)
        shifted = bool(len(route)) and int(index.max()) >= tables.first_shifted
        ends = np.cumsum(counts)
        for i, decoder in enumerate(self._decoders):
            if decoder._flagged and counts[i] < count:
                decoder._take_exceptions(values[i], np.flatnonzero(~coded[i]))
            first, last = int(ends[i] - counts[i]), int(ends[i])
            mine = escaped[np.searchsorted(escaped, first) : np.searchsorted(escaped, last)] - first
            if len(mine) or shifted:
                decoder._take_rest(v[first:last], route[first:last], mine, shifted)
        if mean is not None:
            v += mean.reshape(-1).take(at) >> 3
        values.reshape(-1)[at] = v
        if values.size and (int(values.max()) > MAX_VALUE or int(values.min()) < -MAX_VALUE):
            raise Corrupt(
                f"a symbol lies between {values.min()} and {values.max()}; {MAX_VALUE} is the limit; {_AGAIN}"
            )
        return values

    def _check_coders(self, counts: NDArray[np.int64]) -> None:
        for decoder, coding, coded in zip(self._decoders, self._coding, counts.tolist(), strict=True):
            if coded and not coding:
                raise Corrupt(
                    f"{coded} symbols are coded, but the payload of {decoder._size} bytes has no lanes; {_AGAIN}"
                )
            decoder._coded += coded

    def close(self) -> None:
        """After the last segment: as `SymbolDecoder.close`, of each."""
        self._coder.finish()
        for decoder in self._decoders:
            decoder.close()


def pack_bits(numbers: NDArray[np.int64], widths: NDArray[Any]) -> bytes:
    """Numbers of 0 to 32 bits each as one bit string, most significant bit first, zero-padded to a byte."""
    wide = widths.astype(np.int64)
    most = int(wide.max(initial=0))
    place = wide[:, None] - 1 - np.arange(most)  # of each bit in its number, the highest first
    bits = numbers.astype(np.int64)[:, None] >> place.clip(0) & 1
    return np.packbits(bits[place >= 0].astype(np.uint8)).tobytes()


def unpack_bits(packed: NDArray[np.uint8], starts: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of 0 to 32 bits that start at the given bits."""
    padded = np.zeros(len(packed) + 5, np.int64)
    padded[: len(packed)] = packed
    at = starts >> 3
    window = np.zeros(len(starts), np.int64)
    for i in range(5):
        window = window << 8 | padded[at + i]
    unpacked: NDArray[np.int64] = window >> 40 - (starts & 7) - widths & (1 << widths) - 1
    return unpacked


def _put(out: bytearray, number: int) -> None:
    """A number as a LEB128 varint."""
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
