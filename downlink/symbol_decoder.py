"""Payload bytes of a chunk -> its symbols: what `downlink.symbol` has written, which says how it is laid out.

`SymbolDecoder` and `take` refuse bytes that cannot be (`Corrupt`), in time and memory bounded by the arrays given to
`take`; `close` refuses what does not end as it must (`Corrupt`). Flipped raw bits, escapes and exceptions can pass: the
chunk's checksum guards them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink import rans
from downlink.errors import Corrupt
from downlink.lanes import TogetherDecoder
from downlink.symbol import NOTHING_CODED, lookup_of
from downlink.table import MAX_VALUE, Keys, Tables

_VARINT_BYTES = 4
_AGAIN = "fetch the chunk again"
_SHORT = f"the payload ends before its symbols do; {_AGAIN}"


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
