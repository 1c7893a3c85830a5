"""Fits the model of an exact grid to sample tiles.

Each rule is fitted to the samples that will be there when it is used (rounded ones, where errors are allowed), so the
sample tiles are coded along, level by level; `exact_rule` has the least squares. Only the coarse levels, which share
rules, are fitted to unrounded samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact_lattice import COARSE, LEVELS, PHASES, A
from downlink.exact_model import REFERENCES_MAX, Copying, Model, Rule, activities, candidates
from downlink.scene import Grid
from encoder_node.exact_copy import SHARE_MIN, choose_copying
from encoder_node.exact_order import coding_order, mean_of
from encoder_node.exact_rule import fit_activity, fit_weights, trial_bits
from encoder_node.exact_walk import Collected, Key, Sample, SampledSite, Walk

ROWS: Final = 8192
"""Samples that a rule is fitted to."""
COARSE_VALUES: Final = 1 << 20
"""Numbers kept for the rules of the coarse levels, for each phase: fewer samples where there are many bands."""
WEIGHTS_MAX: Final = 48
WEIGHT_BITS: Final = 6.0
"""What a weight costs to send, about."""
GAIN_BITS: Final = 4.0
"""What a neighbour must save on the samples it is chosen on: the best of many useless ones saves as much by chance."""
COPYING_ROWS_MIN: Final = 64


def fit_model(grid: Grid, max_error: int, samples: Sequence[Sample], weights_max: int = WEIGHTS_MAX) -> Model:
    """The model of a grid, from sample tiles of it (at least one)."""
    return _Fit(grid, max_error, samples, weights_max).model


class _Fit:
    """`model`, fitted."""

    def __init__(self, grid: Grid, max_error: int, samples: Sequence[Sample], weights_max: int) -> None:
        self._grid, self._max_error, self._samples, self._weights_max = grid, max_error, samples, weights_max
        self._scale = max(1.0, grid.samples / sum(sample.pixels.size for sample in samples))
        order, references = coding_order(samples)
        means = np.array([mean_of(samples, band) for band in range(len(grid.bands))], np.int64)
        self.model = Model(order, references, means, {})
        self._walk = Walk(grid, max_error, samples, self.model)
        for band in order:
            self._fit_rule((band, LEVELS, A), self._walk.first_sites(band))
        self._fit_coarse()
        for level in range(COARSE - 1, -1, -1):
            for band in order:
                for phase, sites in self._walk.sites(band, level):
                    self._fit_rule((band, level, phase), sites)

    def _fit_rule(self, key: Key, sites: list[SampledSite]) -> None:
        """Fit a rule to sites, and settle them by it."""
        plain = self._walk.plain(key)
        total = sum(one.site.samples for one in sites)
        collected = self._collect(sites, total, len(plain.activity))
        copying = self._copying(key, sites, collected, total)
        if copying is not None:
            self._walk.use(key, replace(plain, copying=copying))
            for one in sites:
                one.copy(self._grid.nodata, self._max_error)
            total = sum(one.site.samples for one in sites)
            collected = self._collect(sites, total, len(plain.activity))
        weighted = replace(self._weighted(key, collected, total), copying=copying)
        self._walk.use(key, weighted)
        for one in sites:
            collected.settle(one)
        self._walk.use(key, self._active(key, weighted, collected, total))

    def _collect(self, sites: list[SampledSite], total: int, terms: int) -> Collected:
        collected = Collected()
        for one in sites:
            one.choose(ROWS / max(ROWS, total))
            collected.take(one, self.model, terms)
        return collected

    def _copying(self, key: Key, sites: list[SampledSite], collected: Collected, total: int) -> Copying | None:
        """How samples of the sites are copied, if that pays."""
        _, _, phase = key
        if phase == A or collected.rows < COPYING_ROWS_MIN:
            return None
        if sum(float(one.exact_repeats().sum()) for one in sites) < SHARE_MIN * collected.rows:
            return None
        references = self.model.references[key[0]]
        repeats = np.concatenate([one.repeats(self._max_error) for one in sites])
        witnessed = [np.concatenate([one.witnessed(near) for one in sites]) for near in references]
        data = collected.design(), collected.target(), collected.active()

        def trial(rest: NDArray[np.bool_]) -> float:
            price = self._price(int(rest.sum()), total)
            design, target, active = (one[rest] for one in data)
            most, near = self._weights_max, len(references)
            return trial_bits(design, target, active, 4.0 * collected.step, price, most, phase, near)

        return choose_copying(repeats, witnessed, trial)

    def _price(self, rows: int, total: int) -> float:
        """What a weight must save on so many samples of `total`."""
        return max(GAIN_BITS, WEIGHT_BITS * rows / (total * self._scale))

    def _fit_coarse(self) -> None:
        """Rules that the coarse levels share: weights from a walk without rounding, activities from the walk itself."""
        order = self.model.order
        keys = [(band, COARSE, phase) for band in order for phase in PHASES]
        plain = Model(order, self.model.references, self.model.means, {})
        ahead = Walk(self._grid, 0, self._samples, plain)
        for key in [*keys, *((band, LEVELS, A) for band in order)]:
            ahead.use(key, ahead.plain(key))
        for band in order:
            for one in ahead.first_sites(band):
                one.settle()
        found = self._walk_coarse(ahead, design=True)
        for key in keys:
            self._walk.use(key, self._weighted(key, *found[key]))
        found = self._walk_coarse(self._walk, design=False)
        for key in keys:
            self._walk.use(key, self._active(key, self.model.rules[key], *found[key]))

    def _walk_coarse(self, walk: Walk, design: bool) -> dict[Key, tuple[Collected, int]]:
        """Take all tiles through the coarse levels; per rule what was seen, and how many samples there were."""
        order = self.model.order
        width = candidates(COARSE, PHASES[-1], REFERENCES_MAX)
        pixels = sum(sample.pixels[0].size for sample in self._samples)
        rows = max(256, COARSE_VALUES // (width * len(order)))
        share = rows / max(rows, pixels >> 2 * COARSE)
        found: dict[Key, tuple[Collected, int]] = {
            (band, COARSE, phase): (Collected(), 0) for band in order for phase in PHASES
        }
        for level in range(LEVELS - 1, COARSE - 1, -1):
            for band in order:
                for phase, sites in walk.sites(band, level):
                    collected, total = found[band, COARSE, phase]
                    terms = activities(phase, len(self.model.references[band]))
                    for one in sites:
                        one.choose(share)
                        collected.take(one, self.model, terms, design)
                        collected.settle(one)
                        total += one.site.samples
                    found[band, COARSE, phase] = collected, total
        return found

    def _weighted(self, key: Key, collected: Collected, total: int) -> Rule:
        plain = self._walk.plain(key)
        if not collected.rows or not len(plain.weights):
            return plain
        price = self._price(collected.rows, total)
        design, target, active = collected.design(), collected.target(), collected.active()
        exponent, weights = fit_weights(design, target, active, 4.0 * collected.step, price, self._weights_max)
        return Rule(exponent, weights, 0, plain.activity)

    def _active(self, key: Key, rule: Rule, collected: Collected, total: int) -> Rule:
        if not collected.rows:
            return rule
        errors, fractions = collected.errors()
        near, scale = len(self.model.references[key[0]]), total * self._scale / collected.rows
        family, activity = fit_activity(errors, fractions, collected.active(), key[2], near, scale)
        return replace(rule, family=family, activity=activity)
