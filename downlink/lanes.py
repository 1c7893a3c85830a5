"""Many rANS streams at once: the lanes of all of them side by side, so that numpy has enough to do per call.

A stream of few lanes costs few bytes, but then each row holds few symbols, and what a row takes is mostly the price of
calling numpy. Streams that do not depend on each other advance row by row together: the same words come out as from
`downlink.rans` for each stream alone, and in the same order.

`encode_together` walks every stream backwards from its own last row; a stream with more rows begins earlier. Rows that
are not full are padded with a symbol of probability one, which changes no state. `TogetherDecoder` refuses words that
run out (`Corrupt`), as `rans.Decoder` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink import rans
from downlink.rans import START, Model, States, Words

_BLOCK = 1 << 14
"""Symbols whose table rows are gathered at once: they stay in the cache."""
_LAID_OUT = 1 << 20
"""Symbols put side by side at once: each stream's part should be worth a call."""
_READ_AHEAD = 1 << 18
"""Symbols whose tables are laid side by side at once when decoding."""
_WORTH_LANES = 24
"""Fewer lanes than this are decoded one stream after the other."""
_LIMIT_SHIFT = 32 - rans.PRECISION
_SHIFT_MASK = 16

Entries = NDArray[Any]


class Stream(NamedTuple):
    """What one stream is made of: segments of flat entries, and its number of lanes (a power of two)."""

    segments: Sequence[Entries]
    lanes: int

    @property
    def rows(self) -> int:
        return sum(-(-len(segment) // self.lanes) for segment in self.segments)


class Coded(NamedTuple):
    """Final states and words of a stream, in the order in which its decoder wants them."""

    states: States
    words: Words


def encode_together(model: Model, streams: Sequence[Stream]) -> list[Coded]:
    """Encode streams of flat entries; each comes out as `rans.encode` would make it."""
    wide = sum(stream.lanes for stream in streams)
    if wide <= rans.SCALAR_LANES * 2:
        return [Coded(*rans.encode(model, stream.segments, stream.lanes)) for stream in streams]
    order = sorted(range(len(streams)), key=lambda i: -streams[i].rows)
    out: list[Coded | None] = [None] * len(streams)
    for place, coded in zip(order, _encode_sorted(model, [streams[i] for i in order]), strict=True):
        out[place] = coded
    return [coded for coded in out if coded is not None]


def _rows_of(stream: Stream, nothing: int, dtype: Any) -> Entries:
    """(rows, lanes) of a stream, the last row of each segment padded with the entry `nothing`."""
    lanes = stream.lanes
    out = np.empty((stream.rows, lanes), dtype)
    flat, at = out.reshape(-1), 0
    for segment in stream.segments:
        end = at + len(segment)
        flat[at:end] = segment
        at = -(-end // lanes) * lanes
        flat[end:at] = nothing
    return out


def _encode_sorted(model: Model, streams: list[Stream]) -> list[Coded]:
    """As `encode_together`, of streams with falling numbers of rows."""
    reciprocals, gaps, starts = model.stepping
    nothing = len(gaps) - 1
    dtype = np.uint16 if nothing < 1 << 16 else np.uint32
    rows = [_rows_of(stream, nothing, dtype) for stream in streams]
    offsets = np.cumsum([0, *(stream.lanes for stream in streams)]).tolist()
    heights = [len(r) for r in rows]
    owner = np.repeat(np.arange(len(streams), dtype=np.uint16), [stream.lanes for stream in streams])
    final = np.full(offsets[-1], START, np.uint64)
    found: list[tuple[NDArray[np.uint16], Words]] = []  # (stream, word), later rows of the streams first
    whole = _Buffers(max(_BLOCK, offsets[-1]) + offsets[-1])
    active, done, total = len(streams), 0, heights[0]
    while done < total:
        while heights[active - 1] <= done:
            active -= 1
        width = offsets[active]
        count = min(max(1, _LAID_OUT // width), total - done)
        entries = np.full((count, width), nothing, dtype)
        for number in range(active):
            last = heights[number] - done
            first = max(0, last - count)
            there = entries[: last - first, offsets[number] : offsets[number + 1]]
            _units(there)[...] = _units(rows[number])[first:last][::-1]
        at_once = max(1, _BLOCK // width)
        for first in range(0, count, at_once):
            part = entries[first : first + at_once]
            found.append(_encode_block(whole, (reciprocals, gaps, starts), part, final[:width], owner))
        done += count
    return _collect(found, final, offsets)


class _Buffers:
    """Work space of `_encode_block`, made once."""

    def __init__(self, size: int) -> None:
        self.reciprocal, self.gap, self.start, self.shift, self.state, self.limit = (
            np.empty(size, np.uint64) for _ in range(6)
        )


def _encode_block(
    space: _Buffers,
    stepping: tuple[NDArray[np.uint64], ...],
    entries: Entries,
    final: NDArray[np.uint64],
    owner: NDArray[np.uint16],
) -> tuple[NDArray[np.uint16], Words]:
    """Encode rows of entries (count, width), the first row first; `final` (width) holds the states before and after.
    Returns the stream and the word of all that left, last row first, in the order of lanes."""
    count, width = entries.shape
    size = count * width
    flat = entries.reshape(-1).astype(np.intp)
    gathered = []
    for table, space_of in zip(stepping, (space.reciprocal, space.gap, space.start), strict=True):
        table.take(flat, None, space_of[:size], "clip")
        gathered.append(space_of[:size].reshape(count, width))
    reciprocal, gap, start = gathered
    limit = space.limit[:size].reshape(count, width)
    # The largest state that keeps its word: frequency * 2^18 - 1, frequency = 2^14 - gap.
    np.left_shift(gap, np.uint64(_LIMIT_SHIFT), out=limit)
    np.subtract(np.uint64((1 << 32) - 1), limit, out=limit)
    shift = space.shift[:size].reshape(count, width)
    state = space.state[: size + width].reshape(count + 1, width)
    state[0] = final
    sign_bits, word_bits = np.array(59, np.uint64), np.array(_SHIFT_MASK, np.uint64)
    reciprocal_bits = np.array(rans.RECIPROCAL_BITS, np.uint64)
    subtract, right_shift, bitwise_and = np.subtract, np.right_shift, np.bitwise_and
    multiply, add = np.multiply, np.add
    x, quotient = np.empty(width, np.uint64), np.empty(width, np.uint64)
    for before, after, most, s, r, g, c in zip(
        state[:-1], state[1:], limit, shift, reciprocal, gap, start, strict=True
    ):
        subtract(most, before, s)  # wraps to a huge number where a word must leave
        right_shift(s, sign_bits, s)
        bitwise_and(s, word_bits, s)  # 16 there, else 0
        right_shift(before, s, x)
        multiply(x, r, quotient)
        right_shift(quotient, reciprocal_bits, quotient)
        multiply(quotient, g, quotient)
        add(x, quotient, x)
        add(x, c, after)
    final[...] = state[count]
    (left,) = (shift[::-1] != 0).reshape(-1).nonzero()
    row = left // width
    lane = left - row * width
    words = space.state.take((count - 1 - row) * width + lane).astype(np.uint16)  # keeps the low 16 bits
    return owner.take(lane), words


def _collect(
    found: list[tuple[NDArray[np.uint16], Words]], final: NDArray[np.uint64], offsets: list[int]
) -> list[Coded]:
    """Words by stream, first rows first."""
    found.reverse()
    owners = np.concatenate([stream for stream, _ in found])
    words = np.concatenate([words for _, words in found])
    ordered = words[np.argsort(owners, kind="stable")]
    ends = np.cumsum(np.bincount(owners, minlength=len(offsets) - 1)).tolist()
    states = final.astype(np.uint32)
    return [
        Coded(states[offsets[i] : offsets[i + 1]], ordered[(ends[i - 1] if i else 0) : ends[i]])
        for i in range(len(offsets) - 1)
    ]


class TogetherDecoder:
    """Reads the segments of several streams under the same tables side by side."""

    def __init__(self, model: Model, coders: Sequence[rans.Decoder]) -> None:
        self._model, self._coders = model, coders
        lanes = [coder.lanes for coder in coders]
        self._wide = sum(lanes) >= _WORTH_LANES and len(coders) > 1
        if not self._wide:
            return
        self._lanes = np.array(lanes, np.int64)
        self._offsets = np.cumsum([0, *lanes])
        self._states = np.concatenate([coder.states for coder in coders]).astype(np.int64)
        words = [coder.words for coder in coders]
        ends = np.cumsum([len(part) for part in words])
        self._words = np.concatenate([*words, np.zeros(1, np.uint32)]).astype(np.int64)
        self._first = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        self._position = self._first + np.array([coder.position for coder in coders], np.int64)
        self._ends = ends.astype(np.int64)

    def decode(self, tables: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Entries of the next segment of every stream, one stream's `counts` after the other's; `tables` (uint16) holds
        the table of each symbol. Corrupt where words run out."""
        if not self._wide:
            if not self._coders:
                return np.empty(0, np.uint8)
            each = zip(self._coders, np.split(tables, np.cumsum(counts)[:-1]), strict=True)
            return np.concatenate([coder.decode(part.astype(np.int64)) for coder, part in each])
        rows = -(-counts // self._lanes)
        order = np.argsort(-rows, kind="stable")
        order = order[: int(np.count_nonzero(rows))]
        entries = np.empty(len(tables), np.uint8)
        if not len(order):
            return entries
        starts = np.cumsum(counts) - counts
        lanes, heights = self._lanes[order], rows[order]
        ends = np.cumsum(lanes)
        wide = [slice(self._offsets[i], self._offsets[i + 1]) for i in order]
        state = np.concatenate([self._states[part] for part in wide])
        owner = np.repeat(np.arange(len(order)), lanes)
        position: NDArray[np.int64] = self._position[order]
        active, done, total = len(order), 0, int(heights[0])
        while done < total:
            while heights[active - 1] <= done:
                active -= 1
            width = int(ends[active - 1])
            count = min(max(1, _READ_AHEAD // width), int(heights[active - 1]) - done)
            layout = np.full((count, width), self._model.tables, np.uint16)
            parts: list[tuple[int, int, slice]] = []
            for i in range(active):
                stream, at = order[i], slice(int(ends[i] - lanes[i]), int(ends[i]))
                first = int(starts[stream]) + done * int(lanes[i])
                last = min(first + count * int(lanes[i]), int(starts[stream] + counts[stream]))
                parts.append((first, last, at))
                _put_rows(layout, at, tables[first:last])
            found = np.empty((count, width), np.uint8)
            at_once = max(1, _BLOCK // width)
            for row in range(0, count, at_once):
                part = slice(row, min(row + at_once, count))
                self._read(layout[part], state[:width], owner[:width], position, found[part])
            for first, last, at in parts:
                _take_rows(found, at, entries[first:last])
            done += count
        for columns, last, size in zip(wide, ends, lanes, strict=True):
            self._states[columns] = state[last - size : last]
        self._position[order] = position
        short = self._position > self._ends
        if short.any():
            available = (self._ends - self._first)[short][0]
            raise rans.exhausted(available)
        return entries

    def _read(
        self,
        tables: NDArray[Any],
        x: NDArray[np.int64],
        owner: NDArray[np.int64],
        position: NDArray[np.int64],
        entries: NDArray[np.uint8],
    ) -> None:
        """Rows of `entries` (count, width) of rows of `tables`; changes the states `x` (width) and, per stream, the
        `position` of the next word. Lanes of a stream stand together, streams in the order of `owner`."""
        width = tables.shape[1]
        slot_entries, frequency, start = self._model.steps
        slots = tables.astype(np.int64)
        flats = slots << 8
        slots <<= rans.PRECISION
        slot, number, step = (np.empty(width, np.int64) for _ in range(3))
        low = np.empty(width, np.bool_)
        words, numbers, streams = self._words, np.arange(width), len(position)
        slot_mask, slot_bits = np.array(rans.TOTAL - 1), np.array(rans.PRECISION)
        lower_end, word_bits = np.array(START), np.array(16)
        bitwise_and, add, multiply, subtract = np.bitwise_and, np.add, np.multiply, np.subtract
        right_shift, less, left_shift, bitwise_or, bincount = (
            np.right_shift,
            np.less,
            np.left_shift,
            np.bitwise_or,
            np.bincount,
        )
        for at, flat, entry in zip(slots, flats, entries, strict=True):
            bitwise_and(x, slot_mask, slot)
            add(at, slot, at)
            slot_entries.take(at, None, entry, "clip")
            number[...] = entry  # one type per operation: mixed ones take numpy's slow path
            add(flat, number, flat)
            right_shift(x, slot_bits, x)
            frequency.take(flat, None, step, "clip")
            multiply(x, step, x)
            start.take(flat, None, step, "clip")
            subtract(slot, step, slot)
            add(x, slot, x)
            (hungry,) = less(x, lower_end, low).nonzero()
            if hungry.size:
                stream = owner.take(hungry)
                taken = bincount(stream, None, streams)
                place = taken.cumsum()  # each stream's words begin where it stands, less what those before it take
                subtract(position, place, place)
                add(place, taken, place)
                place = place.take(stream)
                add(place, numbers[: hungry.size], place)
                fed = x.take(hungry)
                left_shift(fed, word_bits, fed)
                bitwise_or(fed, words.take(place, None, None, "clip"), fed)
                x[hungry] = fed
                add(position, taken, position)

    def finish(self) -> None:
        """Leave the streams' own decoders where they would be had they decoded alone."""
        if self._wide:
            for i, coder in enumerate(self._coders):
                states = self._states[self._offsets[i] : self._offsets[i + 1]]
                coder.advance(states, int(self._position[i] - self._first[i]))


def _units(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of a power of two of lanes in as few wide items as there can be: short rows copy slowly item by item."""
    size = rows.shape[1] * rows.itemsize
    return rows.view({1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}.get(size, np.complex128))


def _put_rows(layout: NDArray[Any], at: slice, values: NDArray[Any]) -> None:
    """Values row by row into columns `at`; the last row may be short."""
    lanes = at.stop - at.start
    full = len(values) // lanes
    _units(layout[:full, at])[...] = _units(values[: full * lanes].reshape(full, lanes))
    if full * lanes < len(values):
        layout[full, at.start : at.start + len(values) - full * lanes] = values[full * lanes :]


def _take_rows(rows: NDArray[Any], at: slice, out: NDArray[Any]) -> None:
    """What `_put_rows` undoes."""
    lanes = at.stop - at.start
    full = len(out) // lanes
    _units(out[: full * lanes].reshape(full, lanes))[...] = _units(rows[:full, at])
    if full * lanes < len(out):
        out[full * lanes :] = rows[full, at.start : at.start + len(out) - full * lanes]
