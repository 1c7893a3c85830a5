"""Frequency tables of the exact method: constants of the format, made from integers alone.

Residuals of a good predictor are bell-shaped with tails heavier than a Gaussian's: Student's t with 8 degrees of
freedom fits noise, 4 what mixes noise with edges. For even degrees its distribution function needs no more than a
square root (Abramowitz and Stegun 1964, 26.7.4), so plain Python integers give every machine the same tables.

A scale index is `family * QUARTERS + quarter`, 1 + quarter = 1 … QUARTERS: four steps to the octave, linear within
one, from 2^-5 to 2^17 steps of the quantiser. `scale_index` finds the quarter of an activity, which is 512 times the
expected scale, in the bits of its float64: activities are integers below 2^53, so nothing is rounded.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import isqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.rans import ENTRIES, TOTAL
from downlink.table import FRACTIONS, Tables

FAMILIES: Final = 2  # light tails, heavy tails
DEGREES: Final = (8, 4)
OCTAVE_MIN: Final = -5
OCTAVES: Final = 22
QUARTERS: Final = 4 * OCTAVES
ACTIVITY_ONE: Final = 512  # activity of a scale of one step

_UNIT: Final = 512  # edges and scales are integers in this fraction of a step
_ONE: Final = 1 << 31  # probability 1
_HALF_WIDTH: Final = 100  # entries on each side at most; wider scales send low bits raw
_TRIM: Final = _ONE >> 13  # entries less probable than this are left to the escape
_SHARED_SHIFT: Final = 4  # from here on octaves share tables: half a step is 1/32 of an entry
_ACTIVITY_MIN: Final = float(ACTIVITY_ONE * 2.0**OCTAVE_MIN)
_ACTIVITY_MAX: Final = ACTIVITY_ONE * 2.0 ** (OCTAVE_MIN + OCTAVES) - 1
_FIRST_BITS: Final = int(np.float64(_ACTIVITY_MIN).view(np.int64)) >> 50


def scale_index(activity: NDArray[np.float64], family: int) -> NDArray[np.uint8]:
    """Scale index of activities that are integers; what is too small or too large takes the first or last scale."""
    clipped = np.clip(activity, _ACTIVITY_MIN, _ACTIVITY_MAX)
    quarter = clipped.view(np.int64)
    quarter >>= 50  # sign (0), exponent, two bits of mantissa
    quarter += 1 + family * QUARTERS - _FIRST_BITS
    return quarter.astype(np.uint8)


def _cumulative(edge: int, scale: int, degrees: int) -> int:
    """Probability (of `_ONE`) of what lies between 0 and `edge` > 0, both in `_UNIT`, negative below 0."""
    spread, square = degrees * scale * scale, edge * edge
    sine = (abs(edge) << 90) // isqrt((spread + square) << 120)  # of 2^30
    cosine = (spread << 30) // (spread + square)
    term = series = 1 << 30
    for k in range(1, degrees // 2):
        term = (term * cosine * (2 * k - 1) // (2 * k)) >> 30
        series += term
    half = (sine * series) >> 30  # of 2^30, half the probability of |t| < edge
    return half if edge >= 0 else -half


def _weights(scale: int, mean: int, shift: int, degrees: int) -> tuple[int, list[int]]:
    """Entry values >> shift from `low`, and the probability of each, the escape's last; `mean` in `_UNIT`."""

    def edge(k: int) -> int:
        return _cumulative((k << shift) * _UNIT - _UNIT // 2 - mean, scale, degrees)

    middle = 1 if mean > _UNIT // 2 and not shift else 0
    up = [edge(middle), edge(middle + 1)]
    while (above := edge(middle + len(up))) - up[-1] >= _TRIM:
        up.append(above)
    down = [up[0]]
    while down[-1] - (below := edge(middle - len(down))) >= _TRIM:
        down.append(below)
    edges = down[:0:-1] + up
    found = [b - a for a, b in pairwise(edges)]
    return middle - len(down) + 1, [*found, _ONE - sum(found)]


def _frequencies(weights: list[int]) -> list[int]:
    """Integers of at least 1 that sum to 2^14, in proportion: largest remainders first."""
    shares = [weight * TOTAL for weight in weights]
    counts = [max(1, share // _ONE) for share in shares]
    missing = TOTAL - sum(counts)
    order = sorted(range(len(counts)), key=lambda k: (counts[k] * _ONE - shares[k], k))
    while missing > 0:
        for k in order[:missing]:
            counts[k] += 1
        missing = TOTAL - sum(counts)
    counts[counts.index(max(counts))] += missing
    return counts


def _octave_shift(octave: int, degrees: int) -> int:
    """Raw bits of an octave: the fewest with which its widest scale keeps to `_HALF_WIDTH` entries a side."""
    scale, shift = _scale(octave, 3), 0
    while True:
        low, weights = _weights(scale, 0, shift, degrees)
        if max(-low, low + len(weights) - 1) <= _HALF_WIDTH:
            return shift
        shift += 1


def _scale(octave: int, quarter: int) -> int:
    """The middle of a quarter, in `_UNIT`."""
    return _UNIT * (9 + 2 * quarter) << octave >> 3 if octave >= 0 else (_UNIT * (9 + 2 * quarter)) >> (3 - octave)


@cache
def exact_tables() -> Tables:
    """The tables. About a tenth of a second, once."""
    route = np.full((1 + FAMILIES * QUARTERS, FRACTIONS), -1, np.int16)
    shifts = np.zeros(1 + FAMILIES * QUARTERS, np.uint8)
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    for family, degrees in enumerate(DEGREES):
        shared = 0
        for octave in range(OCTAVE_MIN, OCTAVE_MIN + OCTAVES):
            shift = _octave_shift(octave, degrees) if octave < shared or not shared else octave - shared
            if shift == _SHARED_SHIFT and not shared:
                shared = octave - shift
            for quarter in range(4):
                index = 1 + family * QUARTERS + 4 * (octave - OCTAVE_MIN) + quarter
                shifts[index] = shift
                like = octave - max(0, shift - _SHARED_SHIFT)
                groups = 8 if like < 1 else 2 if like < 3 else 1
                width = FRACTIONS // groups
                for group in range(groups):
                    mean = (2 * group * width + width - 1) * _UNIT // 16
                    low, weights = _weights(_scale(like, quarter), mean, min(shift, _SHARED_SHIFT), degrees)
                    key = low, tuple(_frequencies(weights))
                    route[index, group * width : (group + 1) * width] = numbers.setdefault(key, len(numbers))
    frequencies: NDArray[Any] = np.zeros((len(numbers), ENTRIES), np.uint16)
    for row, (_, counts) in zip(frequencies, numbers, strict=True):
        row[: len(counts)] = counts
    return Tables(frequencies, np.array([low for low, _ in numbers], np.int32), route, shifts)
