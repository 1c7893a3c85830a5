"""What the exact method knows of a grid: how each band is predicted, and how large the error is expected to be.

A `Model` has one `Rule` per band, level and phase (`downlink.exact_lattice`), and one per band for the first lattice.
All of it are integers, fitted by the encoder and sent in the side chunk (`Model.pack`, docs/format.md "Exact grids");
nothing in here depends on a network or a bundle. `Model.unpack` takes only what `pack` makes of a model of so many
bands: `Malformed` for a rule that refers to what is not there or could leave exact arithmetic, `Corrupt` for bytes
that are no symbols, `Unsupported` for another version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink.errors import Malformed, Unsupported
from downlink.exact_lattice import CLOSE, COARSE, LEVELS, OWN, PHASES, RING, A, C, Neighbour
from downlink.exact_table import QUARTERS, exact_tables
from downlink.symbol import SymbolEncoder
from downlink.symbol_decoder import SymbolDecoder

Integers = NDArray[np.int64]

REFERENCES_MAX: Final = 8
"""Bands before a band that help to predict it."""
ACTIVITY_REFERENCES: Final = 3
"""Of these, the ones whose errors at the same place tell how large an error to expect."""
EXPONENT_MAX: Final = 14
WEIGHT_MAX: Final = 1 << 17
"""With it every sum stays below 2^50: 107 weights of 2^17, each on 4 x 16 bits."""
ACTIVITY_MAX: Final = 1 << 21

_VERSION: Final = 1
_NO_WEIGHTS: Final = 1
"""The exponent of a rule without weights; others are at least 2."""
_FORMS: Final = 6  # family x how many activities are sent

_Context = tuple[int, int]
"""Scale index and mean (eighths) that a number of a side chunk is coded with."""
_REFERENCE: Final = 29, 0
_MEAN: Final = 65, 0
_HEAD: Final = ((25, 48), (23, 16), (31, 256))
_CHOSEN: Final = {COARSE: (6, 3), 1: (10, 3), 0: (1, 4)}
_CHOSEN_REFERENCE: Final = 1, 4
_COPYING: Final = 1, 3
_ODDS: Final = 31, 8 * 14
_CONSTANT: Final = QUARTERS + 49, 0
_ACTIVITY: Final = QUARTERS + 27, 8


ODDS: Final[tuple[_Context, ...]] = (
    (1, 0),
    (1, 2),
    *((scale, 3) for scale in range(1, 13)),
    (1, 4),
    *((scale, 5) for scale in range(12, 0, -1)),
    (1, 6),
    (1, 8),
)
"""Contexts for a 1 among 0 and 1, from improbable to all but certain."""
EVEN: Final = ODDS.index((1, 4))
_ODDS_SENT: Final = 5  # of the witnesses, and of each of the four nearest


@dataclass(frozen=True)
class Copying:
    """Which samples of a site repeat one of their four nearest, as pixels do that were resampled to the nearest.

    `witnesses` are places in the band's references: where all of these repeat the same of the four, the band probably
    does; whether it does is sent with `odds[0]`. If `told`, it is sent for the other samples, for each of the four in
    turn, with `odds[1:]`, whether they repeat it.
    """

    witnesses: tuple[int, ...]
    told: bool
    odds: tuple[int, ...]


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
    copying: Copying | None = None

    @cached_property
    def shift(self) -> int:
        """The prediction is a sum in units of 2^-shift."""
        return self.exponent + 2


def candidates(level: int, phase: int, references: int) -> int:
    """How many weights a rule has: own neighbours but the fourth, ring of the first reference but its first, one per
    reference. On the first lattice (phase A) only the latter."""
    if phase == A:
        return references
    return len(own_candidates(level, phase)) + (len(ring_candidates(phase)) if references else 0) + references


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


def own_candidates(level: int, phase: int) -> tuple[Neighbour, ...]:
    """Own neighbours that have a weight: the four nearest are a mean already, so one of them is left out."""
    return OWN[phase][:3] + OWN[phase][4 : CLOSE if level == COARSE else None]


def ring_candidates(phase: int) -> tuple[Neighbour, ...]:
    """Samples of the first reference that have a weight; the one left out follows from the others."""
    return RING[phase][1:]


@dataclass(frozen=True, eq=False)
class Model:
    """`order`: bands in the order of coding. `references[band]`: bands before it, the most helpful first. `means`:
    int64 per band. `rules[band, rule_level(level), phase]`, with phase A for the first lattice."""

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

        def put(values: Sequence[int], contexts: Sequence[_Context]) -> None:
            coder.add(np.array(values, np.int32), *_contexts(contexts))

        place = {band: at for at, band in enumerate(self.order)}
        steps = [place[band] - place[near] for band in self.order for near in self.references[band]]
        put(self.order, [_order_context(self.bands)] * self.bands)
        put(steps, [_REFERENCE] * len(steps))
        put(self.means.tolist(), [_MEAN] * self.bands)
        keys = list(rule_keys(self.order))
        rules = [self.rules[key] for key in keys]
        near = [len(self.references[band]) for band, _, _ in keys]
        heads = [_head(rule, key[2], count) for rule, key, count in zip(rules, keys, near, strict=True)]
        put([number for head in heads for number in head], list(_HEAD) * len(heads))
        put([_copying_number(rule.copying) for rule in rules], [_COPYING] * len(rules))
        odds = [number for rule in rules if rule.copying is not None for number in rule.copying.odds]
        put(odds, [_ODDS] * len(odds))
        weighted = [at for at, head in enumerate(heads) if head[0] != _NO_WEIGHTS]
        contexts = [context for at in weighted for context in _chosen_contexts(*keys[at][1:], near[at])]
        put([int(weight != 0) for at in weighted for weight in rules[at].weights.tolist()], contexts)
        used = [(int(weight), heads[at][2]) for at in weighted for weight in rules[at].weights.tolist() if weight]
        put([weight for weight, _ in used], [(scale, 0) for _, scale in used])
        sent = [activities_sent(key[2], count, head[1] % 3) for key, count, head in zip(keys, near, heads, strict=True)]
        active = [rule.activity[:count].tolist() for rule, count in zip(rules, sent, strict=True)]
        put([number for numbers in active for number in numbers], _activity_contexts(sent))
        return bytes([_VERSION]) + coder.finish()

    @classmethod
    def unpack(cls, payload: bytes, bands: int) -> Model:
        """The model in a side chunk of an exact grid that has so many bands."""
        if payload[:1] != bytes([_VERSION]):
            found = payload[0] if payload else "none"
            raise Unsupported(f"side chunk: version {found}, exact grids have version {_VERSION}; update this program")
        coder = SymbolDecoder(exact_tables(), payload[1:])

        def take(contexts: Sequence[_Context]) -> list[int]:
            numbers: list[int] = coder.take(*_contexts(contexts)).tolist()
            return numbers

        order = tuple(take([_order_context(bands)] * bands))
        if sorted(order) != list(range(bands)):
            raise Malformed(f"side chunk: the order of the bands is {order[:16]}, no order of 0 to {bands - 1}")
        references = _references(order, take([_REFERENCE] * sum(min(at, REFERENCES_MAX) for at in range(bands))))
        means = np.array(take([_MEAN] * bands), np.int64)
        if np.abs(means).max() > 1 << 16:
            raise Malformed(f"side chunk: a band's mean is {np.abs(means).max()}, beyond 16 bits")
        keys = list(rule_keys(order))
        near = [len(references[band]) for band, _, _ in keys]
        numbers = take(list(_HEAD) * len(keys))
        heads = [_checked_head(numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
        copying = take([_COPYING] * len(keys))
        odds = take([_ODDS] * (_ODDS_SENT * sum(number != 0 for number in copying)))
        copies = _copyings(copying, odds, near)
        contexts = [
            _chosen_contexts(*key[1:], count) if head[0] != _NO_WEIGHTS else []
            for key, count, head in zip(keys, near, heads, strict=True)
        ]
        chosen = np.array(take([context for part in contexts for context in part]), np.int64)
        if ((chosen != 0) & (chosen != 1)).any():
            raise Malformed("side chunk: a weight is neither there (1) nor not (0)")
        ends = np.cumsum([len(part) for part in contexts])
        used = [int(part.sum()) for part in np.split(chosen, ends[:-1])]
        values = take([(head[2], 0) for head, count in zip(heads, used, strict=True) for _ in range(count)])
        if any(not weight or abs(weight) > WEIGHT_MAX for weight in values):
            raise Malformed(f"side chunk: a weight is 0, or beyond {WEIGHT_MAX}")
        chosen[chosen == 1] = values
        sent = [activities_sent(key[2], count, head[1] % 3) for key, count, head in zip(keys, near, heads, strict=True)]
        activity = np.array(take(_activity_contexts(sent)), np.int64)
        if np.abs(activity).max() > ACTIVITY_MAX:
            raise Malformed(f"side chunk: an activity of {np.abs(activity).max()}, beyond {ACTIVITY_MAX}")
        coder.close()
        rules = {}
        shares = zip(np.split(chosen, ends[:-1]), np.split(activity, np.cumsum(sent)[:-1]), strict=True)
        for key, count, head, copied, (weights, active) in zip(keys, near, heads, copies, shares, strict=True):
            whole = np.zeros(candidates(*key[1:], count), np.int64)
            whole[: len(weights)] = weights
            levels = np.zeros(activities(key[2], count), np.int64)
            levels[: len(active)] = active
            rules[key] = Rule(head[0], whole, head[1] // 3, levels, copied)
        return cls(order, references, means, rules)


def rule_keys(order: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(band, level, phase) of all rules, in the order in which they are sent."""
    for band in order:
        yield band, LEVELS, A
    for level in range(COARSE, -1, -1):
        for band in order:
            for phase in PHASES:
                yield band, level, phase


def _contexts(contexts: Sequence[_Context]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    both = np.array(contexts, np.int32).reshape(-1, 2)
    return both[:, 0].astype(np.uint8), np.ascontiguousarray(both[:, 1])


def _order_context(bands: int) -> _Context:
    """The middle of the bands, and a scale of about a quarter of them."""
    return min(QUARTERS, 1 + 4 * (3 + bands.bit_length())), 4 * bands


def _chosen_contexts(level: int, phase: int, references: int) -> list[_Context]:
    if phase == A:
        return [_CHOSEN_REFERENCE] * references
    count = candidates(level, phase, references) - references
    return [_CHOSEN[level]] * count + [_CHOSEN_REFERENCE] * references


def _activity_contexts(sent: Sequence[int]) -> list[_Context]:
    return [context for count in sent for context in (_CONSTANT, *[_ACTIVITY] * (count - 1))]


def _head(rule: Rule, phase: int, references: int) -> tuple[int, int, int]:
    """Exponent, form and the scale index of the weights."""
    mode = next(m for m in range(3) if not rule.activity[activities_sent(phase, references, m) :].any())
    used = np.abs(rule.weights[rule.weights != 0])
    if not len(used):
        return _NO_WEIGHTS, 3 * rule.family + mode, _HEAD[2][1] // 8
    return rule.exponent, 3 * rule.family + mode, weight_scale(used)


def weight_scale(weights: Integers) -> int:
    """The scale index that codes these weights best, about."""
    size = float(np.abs(weights).mean()) + 0.25
    octave = np.floor(np.log2(size))
    return int(np.clip(1 + 4 * (octave + 5) + np.floor(4 * (size / 2**octave - 1)), 1, QUARTERS))


def _checked_head(head: list[int]) -> tuple[int, int, int]:
    exponent, form, scale = head
    if not (_NO_WEIGHTS <= exponent <= EXPONENT_MAX and 0 <= form < _FORMS and 1 <= scale <= QUARTERS):
        raise Malformed(
            f"side chunk: a rule begins with {head}; at most {[EXPONENT_MAX, _FORMS - 1, QUARTERS]} is allowed"
        )
    return exponent, form, scale


def _copying_number(copying: Copying | None) -> int:
    """0 for none, else a bit that it is told, and one for each witness."""
    if copying is None:
        return 0
    return int(copying.told) + sum(2 << witness for witness in copying.witnesses)


def _copyings(numbers: list[int], odds: list[int], near: list[int]) -> list[Copying | None]:
    found: list[Copying | None] = []
    taken = 0
    for number, references in zip(numbers, near, strict=True):
        if not 0 <= number < 2 << references:
            raise Malformed(f"side chunk: copying {number}, where the band has {references} references to witness it")
        if not number:
            found.append(None)
            continue
        part = tuple(odds[taken : taken + _ODDS_SENT])
        taken += _ODDS_SENT
        if min(part) < 0 or max(part) >= len(ODDS):
            raise Malformed(f"side chunk: odds {part}; there are {len(ODDS)}")
        witnesses = tuple(place for place in range(references) if number >> place + 1 & 1)
        found.append(Copying(witnesses, bool(number & 1), part))
    return found


def _references(order: tuple[int, ...], steps: list[int]) -> tuple[tuple[int, ...], ...]:
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
