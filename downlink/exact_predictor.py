"""Rules of the exact method made ready for use: each as one weighted sum of samples that are known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.exact_lattice import NEAREST, A, Neighbour
from downlink.exact_model import Model, Rule, own_candidates, ring_candidates


class Taps(NamedTuple):
    """A rule as one sum: samples of the band (the four nearest first), samples around the site in the first reference,
    details of references, and the weights of all of these in this order."""

    own: tuple[Neighbour, ...]
    ring: tuple[Neighbour, ...]
    details: tuple[int, ...]
    weights: NDArray[np.float64]


def compile_taps(rule: Rule, level: int, phase: int, references: int) -> Taps:
    """The taps of a rule. Its weights are of 4 x sample - sum of the four nearest samples; those of taps are plain."""
    own_known, ring_known = own_candidates(level, phase), ring_candidates(phase) if references else ()
    ends = len(own_known), len(own_known) + len(ring_known)
    own_weights, ring_weights, detail_weights = np.split(rule.weights, ends)
    own = dict.fromkeys(NEAREST[phase], (1 << rule.exponent) - int(own_weights.sum()))
    for neighbour, weight in zip(own_known, own_weights.tolist(), strict=True):
        if weight:
            own[neighbour] = own.get(neighbour, 0) + 4 * weight
    ring = {n: 4 * weight for n, weight in zip(ring_known, ring_weights.tolist(), strict=True) if weight}
    details = detail_weights.tolist()
    if ring:  # the sum of the four nearest is 4 x centre - detail
        ring[Neighbour(phase, 0, 0)] = -4 * int(ring_weights.sum())
        details[0] += int(ring_weights.sum())
    used = tuple(at for at, weight in enumerate(details) if weight)
    weights = [*own.values(), *ring.values(), *(details[at] for at in used)]
    return Taps(tuple(own), tuple(ring), used, np.array(weights, np.float64))


class Predictor:
    """A model made ready: the taps of every rule."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.taps = {
            key: compile_taps(rule, *key[1:], len(model.references[key[0]]))
            for key, rule in model.rules.items()
            if key[2] != A
        }
        self.wanted = {near for references in model.references for near in references}
