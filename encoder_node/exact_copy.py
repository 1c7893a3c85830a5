"""Finds bands whose pixels were resampled to the nearest, askew to their own grid: samples repeat a neighbour.

Where they do so in whole rows and columns, cells say it (`encoder_node.exact.layouts_of`). Otherwise the bands of the
same native grid repeat at the same places, so those coded before bear witness, and only the first must be told. What
is tried costs least squares of its own, so it is only tried where a good share of the samples repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact_model import EVEN, ODDS, Copying
from downlink.exact_table import exact_tables

Flags = NDArray[np.bool_]

SHARE_MIN: Final = 0.25
"""Samples that repeat one of their four nearest, at least, for it to be worth a look."""
GAIN_MIN: Final = 0.02
"""Share of the bits that copying must save."""
WITNESSES_MAX: Final = 2


def choose_copying(repeats: Flags, witnessed: list[Flags], trial: Callable[[Flags], float]) -> Copying | None:
    """How samples are best copied, if at all.

    `repeats` (samples, 4): which of its four nearest a sample repeats. `witnessed`: the same for each reference.
    `trial(rest)`: bits of the samples that are not copied.
    """
    everything = np.ones(len(repeats), np.bool_)
    plain = trial(everything)
    best: tuple[float, Copying | None] = (plain * (1 - GAIN_MIN), None)
    for witnesses in ((), _witnesses(repeats, witnessed, plain / len(repeats))):
        for told in (False, True):
            if witnesses or told:
                cost, odds, rest = _copied(repeats, [witnessed[place] for place in witnesses], told)
                if cost < best[0]:
                    cost += trial(rest)
                if cost < best[0]:
                    best = cost, Copying(witnesses, told, odds)
    return best[1]


def _witnesses(repeats: Flags, witnessed: list[Flags], price: float) -> tuple[int, ...]:
    """The references that save most as witnesses, if a sample costs `price` bits."""
    chosen: tuple[int, ...] = ()
    saved = 0.0
    while len(chosen) < WITNESSES_MAX:
        tried = []
        for place in range(len(witnessed)):
            if place not in chosen:
                cost, _, rest = _copied(repeats, [witnessed[at] for at in (*chosen, place)], told=False)
                tried.append((float((~rest).sum()) * price - cost, place))
        gain, place = max(tried, default=(0.0, 0))
        if gain <= saved:
            break
        chosen, saved = (*chosen, place), gain
    return tuple(sorted(chosen))


def _copied(repeats: Flags, witnesses: list[Flags], told: bool) -> tuple[float, tuple[int, ...], Flags]:
    """(bits, odds, samples that are left) of copying with these witnesses."""
    rest = np.ones(len(repeats), np.bool_)
    bits, odds = 0.0, [EVEN] * 5
    if witnesses:
        same = np.logical_and.reduce(witnesses)
        where = same.any(axis=1)
        taken = repeats[where, same[where].argmax(axis=1)]
        bits, odds[0] = _best_odds(taken)
        rest[np.flatnonzero(where)[taken]] = False
    if told:
        for place in range(repeats.shape[1]):
            taken = repeats[rest, place]
            cost, odds[1 + place] = _best_odds(taken)
            bits += cost
            rest[np.flatnonzero(rest)[taken]] = False
    return bits, tuple(odds), rest


def _best_odds(taken: Flags) -> tuple[float, int]:
    """Bits of these flags with the odds that suit them best, and those."""
    ones = int(np.count_nonzero(taken))
    costs = [(len(taken) - ones) * no + ones * yes for no, yes in _odds_bits()]
    best = int(np.argmin(costs))
    return costs[best], best


@cache
def _odds_bits() -> tuple[tuple[float, float], ...]:
    """Bits of a 0 and of a 1 with all odds."""

    def bits(flag: int, scale: int, mean: int) -> float:
        context = np.array([scale], np.uint8), np.array([mean], np.int32)
        return exact_tables().cost_bits(np.array([flag], np.int32), *context)

    return tuple((bits(0, *odds), bits(1, *odds)) for odds in ODDS)
