"""What the exact method knows of a grid: how each band is predicted, and how large the error is expected to be.

A `Model` has one `Rule` per band, level and phase (`downlink.exact_lattice`), and one per band for the first lattice.
All of it are integers, fitted by the encoder and sent in the side chunk (`Model.pack`, docs/format.md "Exact grids");
nothing in here depends on a network or a bundle. `Model.unpack` takes only what `pack` makes of a model of so many
bands: `Malformed` for a rule that refers to what is not there or could leave exact arithmetic, `Corrupt` for bytes
that are no symbols, `Unsupported` for another version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink.errors import Malformed, Unsupported
from downlink.exact_lattice import LEVELS, OWN, PHASES, RING, A, C, Neighbour
from downlink.exact_table import QUARTERS, exact_tables
from downlink.symbol import SymbolDecoder, SymbolEncoder

Integers = NDArray[np.int64]

REFERENCES_MAX: Final = 8
"""Bands before a band that help to predict it."""
ACTIVITY_REFERENCES: Final = 3
"""Of these, the ones whose errors at the same place tell how large an error to expect."""
EXPONENT_MAX: Final = 14
WEIGHT_MAX: Final = 1 << 17
"""With it every sum stays below 2^50: 107 weights of 2^17, each on 4 x 16 bits."""
ACTIVITY_MAX: Final = 1 << 14

_VERSION: Final = 1
_NO_WEIGHTS: Final = EXPONENT_MAX + 1
_FORMS: Final = 6  # family x how many activities are sent
# Scale index and mean (eighths) of the numbers in a side chunk.
_SCALE: Final = {"order": 33, "reference": 29, "mean": 65, "head": 29, "chosen": 15, "activity": 37}
_CHOSEN_MEAN: Final = 2


@dataclass(frozen=True, eq=False)
class Rule:
    """How one phase of one level of a band is predicted.

    `weights` has one integer per candidate (see `candidates`), zeros where it is not used, in units of 2^-exponent.
    `activity` has one per error that is looked at (see `activities`), in 1/64.
    """

    exponent: int
    weights: Integers
    family: int
    activity: Integers

    @cached_property
    def shift(self) -> int:
        """The prediction is a sum in units of 2^-shift."""
        return self.exponent + 2


def candidates(phase: int, references: int) -> int:
    """How many weights a rule has: own neighbours but the fourth, ring of the first reference but its first, one per
    reference. On the first lattice (phase A) only the latter."""
    if phase == A:
        return references
    return len(OWN[phase]) - 1 + (len(RING[phase]) - 1 if references else 0) + references


def activities(phase: int, references: int) -> int:
    """How many activities a rule has: constant, own nearest, in phase C own diagonal, range of the nearest, and two
    per reference that is looked at. On the first lattice only the constant."""
    if phase == A:
        return 1
    return 3 + (phase == C) + 2 * min(references, ACTIVITY_REFERENCES)


def activities_sent(phase: int, references: int, mode: int) -> int:
    """How many activities, the first ones, a mode sends: 0 the constant, 1 the band's own as well, 2 all."""
    everything = activities(phase, references)
    return (1, min(everything, 3 + (phase == C)), everything)[mode]


def own_candidates(phase: int) -> tuple[Neighbour, ...]:
    """Own neighbours that have a weight: the four nearest have a mean of their own, so one of them is left out."""
    return OWN[phase][:3] + OWN[phase][4:]


def ring_candidates(phase: int) -> tuple[Neighbour, ...]:
    """Samples of the first reference that have a weight; the one left out follows from the others."""
    return RING[phase][1:]


@dataclass(frozen=True, eq=False)
class Model:
    """`order`: bands in the order of coding. `references[band]`: bands before it, the most helpful first. `means`:
    int64 per band. `rules[band, level, phase]`, with level `LEVELS` and phase A for the first lattice."""

    order: tuple[int, ...]
    references: tuple[tuple[int, ...], ...]
    means: Integers
    rules: dict[tuple[int, int, int], Rule]

    @property
    def bands(self) -> int:
        return len(self.order)

    def pack(self) -> bytes:
        """The side chunk's bytes."""
        coder = SymbolEncoder(exact_tables())
        place = {band: at for at, band in enumerate(self.order)}

        def put(numbers: Iterator[int] | list[int], scale: int, mean: int = 0) -> None:
            values = np.array(list(numbers), np.int32)
            coder.add(values, np.full(len(values), scale, np.uint8), np.full(len(values), mean, np.int32))

        put(list(self.order), _SCALE["order"], 4 * self.bands)
        put((place[band] - place[near] for band in self.order for near in self.references[band]), _SCALE["reference"])
        put(self.means.tolist(), _SCALE["mean"])
        rules = [(key, self.rules[key]) for key in rule_keys(self.order)]
        heads = [_head(rule, phase, len(self.references[band])) for (band, _, phase), rule in rules]
        put((number for head in heads for number in head), _SCALE["head"])
        weighted = [rule.weights for (_, rule), head in zip(rules, heads, strict=True) if head[0] != _NO_WEIGHTS]
        put((int(weight != 0) for weights in weighted for weight in weights.tolist()), _SCALE["chosen"], _CHOSEN_MEAN)
        values = [weights[weights != 0].astype(np.int32) for weights in weighted]
        scales = [head[2] for head in heads if head[0] != _NO_WEIGHTS]
        flat = np.concatenate([*values, np.empty(0, np.int32)])
        coder.add(flat, np.repeat(np.array(scales, np.uint8), [len(v) for v in values]), np.zeros(len(flat), np.int32))
        sent = (
            activities_sent(phase, len(self.references[band]), head[1] % 3)
            for ((band, _, phase), _), head in zip(rules, heads, strict=True)
        )
        put(
            (number for (_, rule), count in zip(rules, sent, strict=True) for number in rule.activity[:count].tolist()),
            _SCALE["activity"],
        )
        return bytes([_VERSION]) + coder.finish()

    @classmethod
    def unpack(cls, payload: bytes, bands: int) -> Model:
        """The model in a side chunk of an exact grid that has so many bands."""
        if payload[:1] != bytes([_VERSION]):
            found = payload[0] if payload else "none"
            raise Unsupported(f"side chunk: version {found}, exact grids have version {_VERSION}; update this program")
        coder = SymbolDecoder(exact_tables(), payload[1:])

        def take(count: int, scale: int, mean: int = 0) -> list[int]:
            numbers: list[int] = coder.take(np.full(count, scale, np.uint8), np.full(count, mean, np.int32)).tolist()
            return numbers

        order = take(bands, _SCALE["order"], 4 * bands)
        if sorted(order) != list(range(bands)):
            raise Malformed(f"side chunk: the order of the bands is {order[:16]}, no order of 0 to {bands - 1}")
        references = _references(order, take(sum(min(at, REFERENCES_MAX) for at in range(bands)), _SCALE["reference"]))
        means = np.array(take(bands, _SCALE["mean"]), np.int64)
        if np.abs(means).max() > 1 << 16:
            raise Malformed(f"side chunk: a band's mean is {np.abs(means).max()}, beyond 16 bits")
        keys = list(rule_keys(tuple(order)))
        near = [len(references[band]) for band, _, _ in keys]
        numbers = take(3 * len(keys), _SCALE["head"])
        heads = [_checked_head(numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
        counts = [
            0 if head[0] == _NO_WEIGHTS else candidates(phase, count)
            for (_, _, phase), count, head in zip(keys, near, heads, strict=True)
        ]
        chosen = np.array(take(sum(counts), _SCALE["chosen"], _CHOSEN_MEAN), np.int64)
        if len(chosen) and not ((chosen == 0) | (chosen == 1)).all():
            raise Malformed("side chunk: a weight is neither there (1) nor not (0)")
        used = [int(part.sum()) for part in np.split(chosen, np.cumsum(counts)[:-1])]
        scales = np.repeat(np.array([head[2] for head in heads], np.uint8), used)
        values = coder.take(scales, np.zeros(len(scales), np.int32)).astype(np.int64)
        if len(values) and (np.abs(values).max() > WEIGHT_MAX or not values.all()):
            raise Malformed(f"side chunk: a weight is 0, or beyond {WEIGHT_MAX}")
        chosen[chosen == 1] = values
        sent = [
            activities_sent(phase, count, head[1] % 3)
            for (_, _, phase), count, head in zip(keys, near, heads, strict=True)
        ]
        activity = np.array(take(sum(sent), _SCALE["activity"]), np.int64)
        if np.abs(activity).max() > ACTIVITY_MAX:
            raise Malformed(f"side chunk: an activity of {np.abs(activity).max()}, beyond {ACTIVITY_MAX}")
        coder.close()
        rules = {}
        weights_at = activity_at = 0
        for key, count, head, weighted, active in zip(keys, near, heads, counts, sent, strict=True):
            weights = np.zeros(candidates(key[2], count), np.int64)
            weights[:weighted] = chosen[weights_at : weights_at + weighted]
            levels = np.zeros(activities(key[2], count), np.int64)
            levels[:active] = activity[activity_at : activity_at + active]
            rules[key] = Rule(0 if head[0] == _NO_WEIGHTS else head[0], weights, head[1] // 3, levels)
            weights_at, activity_at = weights_at + weighted, activity_at + active
        return cls(tuple(order), references, means, rules)


def rule_keys(order: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(band, level, phase) of all rules, in the order of coding."""
    for band in order:
        yield band, LEVELS, A
    for level in range(LEVELS - 1, -1, -1):
        for band in order:
            for phase in PHASES:
                yield band, level, phase


def _head(rule: Rule, phase: int, references: int) -> tuple[int, int, int]:
    """Exponent, form and the scale index of the weights."""
    mode = next(m for m in range(3) if not rule.activity[activities_sent(phase, references, m) :].any())
    used = np.abs(rule.weights[rule.weights != 0])
    if not len(used):
        return _NO_WEIGHTS, 3 * rule.family + mode, 1
    return rule.exponent, 3 * rule.family + mode, weight_scale(used)


def weight_scale(weights: Integers) -> int:
    """The scale index that codes these weights best, about."""
    size = float(np.abs(weights).mean()) + 0.25
    octave = np.floor(np.log2(size))
    return int(np.clip(1 + 4 * (octave + 5) + np.floor(4 * (size / 2**octave - 1)), 1, QUARTERS))


def _checked_head(head: list[int]) -> tuple[int, int, int]:
    exponent, form, scale = head
    if not (0 <= exponent <= _NO_WEIGHTS and 0 <= form < _FORMS and 1 <= scale <= QUARTERS):
        raise Malformed(
            f"side chunk: a rule begins with {head}; at most {[_NO_WEIGHTS, _FORMS - 1, QUARTERS]} is allowed"
        )
    return exponent, form, scale


def _references(order: list[int], steps: list[int]) -> tuple[tuple[int, ...], ...]:
    """References per band, from how far back in the order each is."""
    found: list[tuple[int, ...]] = [()] * len(order)
    taken = 0
    for at, band in enumerate(order):
        back = steps[taken : taken + min(at, REFERENCES_MAX)]
        taken += len(back)
        if len(set(back)) != len(back) or any(not 1 <= step <= at for step in back):
            raise Malformed(f"side chunk: band {band} refers {back} bands back, where {at} are known")
        found[band] = tuple(order[at - step] for step in back)
    return tuple(found)
