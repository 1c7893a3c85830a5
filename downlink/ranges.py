"""Runs of chunk indexes, and bitmaps of them.

A scene's chunks are numbered 0 .. n - 1. What is committed, or missing, is a bitmap (`bool`, length n: 1 MiB at the
format's bound of 2^20 chunks, whatever a peer does); what travels is a tuple of `Range`, ascending and not touching.
Pure functions; nothing here refuses anything but its caller's mistakes, because ranges from a peer are checked in
`downlink.framing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The chunk indexes first, first + 1, ..., first + count - 1."""

    first: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.count


def runs(bitmap: NDArray[np.bool_]) -> tuple[Range, ...]:
    """The set bits as ranges.

    >>> runs(np.array([1, 1, 0, 1], bool))
    (Range(first=0, count=2), Range(first=3, count=1))
    """
    edges = np.flatnonzero(np.diff(bitmap, prepend=False, append=False)).tolist()
    return tuple(Range(first, end - first) for first, end in zip(edges[::2], edges[1::2], strict=True))


def runs_of(indexes: Iterable[int]) -> tuple[Range, ...]:
    """The given indexes, in any order and with repeats, as ranges.

    >>> runs_of([4, 2, 3, 9, 4])
    (Range(first=2, count=3), Range(first=9, count=1))
    """
    found: list[Range] = []
    for index in sorted(set(indexes)):
        if found and found[-1].end == index:
            found[-1] = Range(found[-1].first, found[-1].count + 1)
        else:
            found.append(Range(index, 1))
    return tuple(found)


def cover(bitmap: NDArray[np.bool_], ranges_max: int) -> tuple[Range, ...]:
    """At most `ranges_max` ranges that hold all set bits: exact if so many are enough, else the last one swallows the
    rest.

    >>> cover(np.array([1, 0, 1, 0, 1], bool), 2)
    (Range(first=0, count=1), Range(first=2, count=3))
    """
    exact = runs(bitmap)
    if len(exact) <= ranges_max:
        return exact
    last = exact[ranges_max - 1]
    return (*exact[: ranges_max - 1], Range(last.first, exact[-1].end - last.first))


def bitmap(length: int, ranges: Iterable[Range]) -> NDArray[np.bool_]:
    """A bitmap of `length` bits with these ranges set; what lies past the end is cut off."""
    bits = np.zeros(length, bool)
    for item in ranges:
        bits[item.first : item.end] = True
    return bits


def holds(ranges: Iterable[Range], index: int) -> bool:
    """Is an index in one of these ranges?"""
    return any(item.first <= index < item.end for item in ranges)


def holder(ranges: Iterable[Range]) -> Callable[[int], bool]:
    """Is an index in these ranges (ascending, not touching)? Quick for many."""
    listed = tuple(ranges)
    if len(listed) < 4:
        return lambda index: holds(listed, index)
    firsts = np.array([item.first for item in listed])
    ends = [item.end for item in listed]

    def held(index: int) -> bool:
        place = int(firsts.searchsorted(index, side="right")) - 1
        return place >= 0 and index < ends[place]

    return held
