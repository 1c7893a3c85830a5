"""Lane-interleaved rANS: symbols with integer frequencies <-> 16-bit words and one 32-bit state per lane.

Integers only, so the same words come out of every machine. A lane's state lies in [2^16, 2^32), frequencies sum to
2^14, and one 16-bit word at a time enters or leaves a state. The i-th symbol of a segment belongs to row i // lanes,
lane i % lanes; the last row of a segment may be partial and the next segment starts a new row. Within a row the words
stand in the order of the lanes. `encode` takes all segments and walks them backwards from states of exactly 2^16;
`Decoder` takes them forwards, one by one, so that the tables of a later segment may depend on the symbols of an
earlier one.

Few lanes cost few bytes but leave numpy little to do at once: up to `SCALAR_LANES` the same stream is made and read
with plain Python integers, which is faster there.

`Decoder` refuses words that run out (`Corrupt`); time and memory are bounded by the number of symbols asked for. It
cannot know that it is at the end: `finished` says whether every lane is back at 2^16, and `position` how many words
were used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink.errors import Corrupt

PRECISION = 14
TOTAL = 1 << PRECISION
ENTRIES = 256
"""Entries of a table, so that an entry fits a byte; entry `e` of table `t` has the flat number t * 256 + e."""
START = 1 << 16
"""Lower end of a state's interval, and the state of every lane before the first symbol is encoded."""
MAX_LANES = 1024
SCALAR_LANES = 8

RECIPROCAL_BITS = 46
_BLOCK = 1 << 14
"""Symbols gathered at once: their table rows then stay in the cache."""

States = NDArray[np.uint32]
Words = NDArray[np.uint16]


class Model:
    """Frequency tables in the forms in which the coder needs them, each made on first use.

    `frequencies` is (tables, 256), every row a run of positive numbers that sum to 2^14, then zeros; at least two
    positive ones, because a frequency of 2^14 would overflow a state. `downlink.table.Tables` checks that.
    """

    def __init__(self, frequencies: NDArray[Any]) -> None:
        table = frequencies.astype(np.int64)
        self.tables = len(table)
        self.frequency: NDArray[np.int64] = table.reshape(-1)
        self.start: NDArray[np.int64] = (np.cumsum(table, axis=1) - table).reshape(-1)

    @cached_property
    def encoding(self) -> tuple[NDArray[np.uint64], ...]:
        """Per flat entry: the state from which a word leaves first, a reciprocal, 2^14 - frequency, the cumulative one.

        A frequency f is below 2^14 and a state x below f * 2^18 once its word has left. So with m = ceil(2^46 / f),
        x * m < 2^64 because f (f - 1) < 2^28, and x * m >> 46 == x // f because x * (m f - 2^46) < f * 2^18 * f < 2^46.
        """
        f = np.maximum(self.frequency, 1)
        reciprocal = ((1 << RECIPROCAL_BITS) + f - 1) // f
        return tuple(a.astype(np.uint64) for a in (f << (32 - PRECISION), reciprocal, TOTAL - f, self.start))

    @cached_property
    def stepping(self) -> tuple[NDArray[np.uint64], ...]:
        """As the last three of `encoding`, with one more entry: of frequency 2^14, which changes no state."""
        _, reciprocal, gap, start = self.encoding
        return tuple(np.append(a, np.uint64(last)) for a, last in ((reciprocal, 0), (gap, 0), (start, 0)))

    @cached_property
    def decoding(self) -> NDArray[np.uint32]:
        """Per flat entry: frequency << 14 | cumulative frequency."""
        return (self.frequency << PRECISION | self.start & TOTAL - 1).astype(np.uint32)

    @cached_property
    def slot_entries(self) -> NDArray[np.uint8]:
        """Per table and slot (the low 14 bits of a state): the entry."""
        return np.repeat(np.tile(np.arange(ENTRIES, dtype=np.uint8), self.tables), self.frequency)

    @cached_property
    def steps(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Entries per slot; frequency and cumulative frequency per flat entry; with one more table, whose only entry
        has the frequency 2^14 and changes no state."""
        entries = np.concatenate([self.slot_entries, np.zeros(TOTAL, np.uint8)])
        frequency = np.append(self.frequency, np.full(ENTRIES, TOTAL))
        return entries, frequency, np.append(self.start, np.zeros(ENTRIES, self.start.dtype))

    @cached_property
    def lists(self) -> tuple[bytes, list[int], list[int]]:
        """Entries per slot, frequencies and cumulative frequencies, in the types that plain Python reads fastest."""
        return self.slot_entries.tobytes(), self.frequency.tolist(), self.start.tolist()


def encode(model: Model, segments: Sequence[NDArray[np.int64]], lanes: int) -> tuple[States, Words]:
    """Final states and words, in the order in which the decoder wants them, of segments of flat entries."""
    if lanes & (lanes - 1) or not 1 <= lanes <= MAX_LANES:
        raise ValueError(f"{lanes} lanes: give a power of two from 1 to {MAX_LANES}")
    if lanes <= SCALAR_LANES:
        return _encode_scalar(model, segments, lanes)
    return _encode_rows(model, segments, lanes)


def _encode_scalar(model: Model, segments: Sequence[NDArray[np.int64]], lanes: int) -> tuple[States, Words]:
    states = [START] * lanes
    words: list[int] = []
    for entries in reversed(segments):
        backwards = entries[::-1]
        frequencies = model.frequency[backwards].tolist()
        starts = model.start[backwards].tolist()
        order = (np.arange(len(entries) - 1, -1, -1) & (lanes - 1)).tolist()
        for f, start, lane in zip(frequencies, starts, order, strict=True):
            x = states[lane]
            if x >= f << 18:
                words.append(x & 0xFFFF)
                x >>= 16
            states[lane] = x + x // f * (TOTAL - f) + start
    return np.array(states, dtype=np.uint32), np.array(words[::-1], dtype=np.uint16)


def _encode_rows(model: Model, segments: Sequence[NDArray[np.int64]], lanes: int) -> tuple[States, Words]:
    limits, reciprocals, gaps, starts = model.encoding
    block = max(1, _BLOCK // lanes) * lanes
    limit, reciprocal, gap, start = (np.empty(block, np.uint64) for _ in range(4))
    states = np.full(lanes, START, np.uint64)
    quotients = np.empty(lanes, np.uint64)
    full = np.empty(lanes, bool)
    words = np.empty(sum(len(entries) for entries in segments), np.uint16)
    position = len(words)
    word_bits, reciprocal_bits = np.array(16, np.uint64), np.array(RECIPROCAL_BITS, np.uint64)
    greater_equal, multiply, right_shift, add = np.greater_equal, np.multiply, np.right_shift, np.add

    for entries in reversed(segments):
        for first in range((len(entries) - 1) // block * block, -1, -block):
            part = entries[first : first + block]
            n = len(part)
            limits.take(part, out=limit[:n], mode="clip")
            reciprocals.take(part, out=reciprocal[:n], mode="clip")
            gaps.take(part, out=gap[:n], mode="clip")
            starts.take(part, out=start[:n], mode="clip")
            x, q, mask = states, quotients, full
            for a in range((n - 1) // lanes * lanes, -1, -lanes):
                b = a + lanes
                if b > n:
                    b = n
                    x, q, mask = states[: n - a], quotients[: n - a], full[: n - a]
                (leaving,) = greater_equal(x, limit[a:b], mask).nonzero()
                count = leaving.size
                if count:
                    word = x[leaving]
                    words[position - count : position] = word  # keeps the low 16 bits
                    position -= count
                    right_shift(word, word_bits, word)
                    x[leaving] = word
                multiply(x, reciprocal[a:b], q)
                right_shift(q, reciprocal_bits, q)
                multiply(q, gap[a:b], q)
                add(x, q, x)
                add(x, start[a:b], x)
                if x is not states:
                    x, q, mask = states, quotients, full
    return states.astype(np.uint32), words[position:]


def exhausted(available: int) -> Corrupt:
    """What is raised when symbols need more words than there are."""
    return Corrupt(f"the symbols need more than the {available} coded words there are; fetch the chunk again")


class Decoder:
    """Reads the segments of a stream in the order in which they were encoded."""

    def __init__(self, model: Model, states: NDArray[Any], words: NDArray[Any]) -> None:
        self._model = model
        self.lanes = len(states)
        self.position = 0
        self._available = len(words)
        self._scalar = self.lanes <= SCALAR_LANES
        if self._scalar:
            self._state_list: list[int] = states.tolist()
            self._word_list: list[int] = words.tolist()
        else:
            self._states = states.astype(np.uint32)
            self._words = words.astype(np.uint32)

    @property
    def states(self) -> States:
        """Of all lanes, as they are now."""
        return np.array(self._state_list, np.uint32) if self._scalar else self._states

    @property
    def words(self) -> NDArray[np.uint32]:
        """All words there are, read or not."""
        return np.array(self._word_list, np.uint32) if self._scalar else self._words

    def advance(self, states: NDArray[Any], position: int) -> None:
        """Go on from other states and from the word at `position`: somebody else has decoded what was between."""
        self.position = position
        if self._scalar:
            self._state_list = states.tolist()
        else:
            self._states = states.astype(np.uint32)

    @property
    def finished(self) -> bool:
        """Whether every lane is back where the encoder started."""
        states = self._state_list if self._scalar else self._states.tolist()
        return all(state == START for state in states)

    def decode(self, tables: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The entries of the next segment, whose i-th symbol was coded with table number `tables[i]`."""
        if len(tables) == 0:
            return np.empty(0, np.uint8)
        return self._decode_scalar(tables) if self._scalar else self._decode_rows(tables)

    def _decode_scalar(self, tables: NDArray[np.int64]) -> NDArray[np.uint8]:
        states, words, position = self._state_list, self._word_list, self.position
        slot_entries, frequencies, starts = self._model.lists
        order = (np.arange(len(tables)) & (self.lanes - 1)).tolist()
        entries = bytearray()
        put = entries.append
        try:
            for table, lane in zip(tables.tolist(), order, strict=True):
                x = states[lane]
                slot = x & 0x3FFF
                entry = slot_entries[table << 14 | slot]
                put(entry)
                entry |= table << 8
                x = frequencies[entry] * (x >> 14) + slot - starts[entry]
                if x < 65536:
                    x = x << 16 | words[position]
                    position += 1
                states[lane] = x
        except IndexError:
            raise exhausted(self._available) from None
        self.position = position
        return np.frombuffer(entries, np.uint8)

    def _decode_rows(self, tables: NDArray[np.int64]) -> NDArray[np.uint8]:
        lanes, total = self.lanes, len(tables)
        x, words, position = self._states, self._words, self.position
        slot, packed, part = (np.empty(lanes, np.uint32) for _ in range(3))
        number, low = np.empty(lanes, np.int64), np.empty(lanes, bool)
        slot_mask, slot_bits = np.array(TOTAL - 1, np.uint32), np.array(PRECISION, np.uint32)
        lower_end, word_bits = np.array(START, np.uint32), np.array(16, np.uint32)
        bitwise_and, bitwise_or, add, multiply, subtract = (
            np.bitwise_and,
            np.bitwise_or,
            np.add,
            np.multiply,
            np.subtract,
        )
        left_shift, right_shift, less = np.left_shift, np.right_shift, np.less
        take_entry, take_packed = self._model.slot_entries.take, self._model.decoding.take

        entries = np.empty(total, np.uint8)
        block = max(1, _BLOCK // lanes) * lanes
        for first in range(0, total, block):
            slots = tables[first : first + block] << PRECISION
            flats = tables[first : first + block] << 8
            for a in range(first, min(first + block, total), lanes):
                n = min(lanes, total - a)
                if n < lanes:
                    x, slot, packed, part, number, low = x[:n], slot[:n], packed[:n], part[:n], number[:n], low[:n]
                at, flat, entry = slots[a - first : a - first + n], flats[a - first : a - first + n], entries[a : a + n]
                bitwise_and(x, slot_mask, slot)
                number[...] = slot  # one type per operation: mixed ones take numpy's slow path
                add(at, number, at)
                take_entry(at, None, entry, "clip")
                number[...] = entry
                add(flat, number, flat)
                take_packed(flat, None, packed, "clip")
                right_shift(packed, slot_bits, part)
                right_shift(x, slot_bits, x)
                multiply(x, part, x)
                bitwise_and(packed, slot_mask, packed)
                subtract(slot, packed, slot)
                add(x, slot, x)
                (hungry,) = less(x, lower_end, low).nonzero()
                count = hungry.size
                if count:
                    end = position + count
                    if end > self._available:
                        raise exhausted(self._available)
                    fed = x[hungry]
                    left_shift(fed, word_bits, fed)
                    bitwise_or(fed, words[position:end], fed)
                    x[hungry] = fed
                    position = end
        self.position = position
        return entries
