"""Fits the model of an exact grid to sample tiles.

Each rule is fitted to the samples that will be there when it is used (rounded ones, where errors are allowed), so the
sample tiles are coded along, level by level; `exact_rule` has the least squares. Only the coarse levels, which share
rules, are fitted to unrounded samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact import Layout, taken_offers
from downlink.exact_lattice import COARSE, LEVELS, NEAREST, PARTS, PHASES, A, framed, rule_level, shifted
from downlink.exact_model import (
    REFERENCES_MAX,
    Copying,
    Model,
    Rule,
    activities,
    candidates,
    own_candidates,
    ring_candidates,
)
from downlink.exact_quantiser import Quantiser
from downlink.exact_tile import Predictor, Site, TileState, compile_taps
from downlink.scene import Grid
from encoder_node.exact_copy import SHARE_MIN, choose_copying
from encoder_node.exact_rule import Floats, fit_activity, fit_weights, trial_bits

ROWS: Final = 8192
"""Samples that a rule is fitted to."""
COARSE_VALUES: Final = 1 << 20
"""Numbers kept for the rules of the coarse levels, for each phase: fewer samples where there are many bands."""
ORDER_ROWS: Final = 8192
WEIGHTS_MAX: Final = 48
WEIGHT_BITS: Final = 6.0
"""What a weight costs to send, about."""
GAIN_BITS: Final = 4.0
"""What a neighbour must save on the samples it is chosen on: the best of many useless ones saves as much by chance."""
COPYING_ROWS_MIN: Final = 64
_GOLDEN: Final = 0.6180339887498949

_Key = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """A sample tile: `pixels` (bands, height, width), `nodata` of that shape or None, and the bands' layouts."""

    pixels: NDArray[Any]
    nodata: NDArray[np.bool_] | None
    layouts: Sequence[Layout]


def fit_model(grid: Grid, max_error: int, samples: Sequence[Sample], weights_max: int = WEIGHTS_MAX) -> Model:
    """The model of a grid, from sample tiles of it (at least one)."""
    return _Fit(grid, max_error, samples, weights_max).model


class _Walk:
    """Sample tiles on their way from coarse to fine, all at the same site, under the rules so far."""

    def __init__(self, grid: Grid, max_error: int, samples: Sequence[Sample], model: Model) -> None:
        self.model, self.predictor = model, Predictor(model)
        self._tiles = [
            (
                sample,
                TileState(
                    self.predictor,
                    (len(grid.bands), *sample.pixels.shape[1:]),
                    grid.dtype,
                    [Quantiser.of(grid.dtype, grid.nodata, max_error, one.palette) for one in sample.layouts],
                    [one.cells for one in sample.layouts],
                    sample.nodata,
                ),
            )
            for sample in samples
        ]

    def use(self, key: _Key, rule: Rule) -> None:
        self.model.rules[key] = rule
        if key[2] != A:
            self.predictor.taps[key] = compile_taps(rule, *key[1:], len(self.model.references[key[0]]))

    def plain(self, key: _Key) -> Rule:
        """A rule without weights: the mean of the four nearest."""
        near = len(self.model.references[key[0]])
        return Rule(2, np.zeros(candidates(*key[1:], near), np.int64), 0, np.zeros(activities(key[2], near), np.int64))

    def first_sites(self, band: int) -> list[_Sampled]:
        return [_Sampled(sample, state, site) for sample, state in self._tiles for site in state.first_sites(band)]

    def sites(self, band: int, level: int) -> Iterator[tuple[int, list[_Sampled]]]:
        """Phase by phase, the sites that the tiles have in it. All must be settled before the next phase is taken: each
        tile waits at its next site until the others are there."""
        walks = [state.sites(band, level) for _, state in self._tiles]
        waiting = [next(walk, None) for walk in walks]
        for phase in PHASES:
            there = [site is not None and site.phase == phase for site in waiting]
            yield (
                phase,
                [
                    _Sampled(sample, state, site)
                    for (sample, state), site in zip(self._tiles, waiting, strict=True)
                    if site is not None and site.phase == phase
                ],
            )
            waiting = [next(walk, None) if at else site for walk, at, site in zip(walks, there, waiting, strict=True)]


class _Fit:
    """`model`, fitted."""

    def __init__(self, grid: Grid, max_error: int, samples: Sequence[Sample], weights_max: int) -> None:
        self._grid, self._max_error, self._samples, self._weights_max = grid, max_error, samples, weights_max
        self._scale = max(1.0, grid.samples / sum(sample.pixels.size for sample in samples))
        order, references = _order(samples)
        means = np.array([_mean(samples, band) for band in range(len(grid.bands))], np.int64)
        self.model = Model(order, references, means, {})
        self._walk = _Walk(grid, max_error, samples, self.model)
        for band in order:
            self._fit_rule((band, LEVELS, A), self._walk.first_sites(band))
        self._fit_coarse()
        for level in range(COARSE - 1, -1, -1):
            for band in order:
                for phase, sites in self._walk.sites(band, level):
                    self._fit_rule((band, level, phase), sites)

    def _fit_rule(self, key: _Key, sites: list[_Sampled]) -> None:
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

    def _collect(self, sites: list[_Sampled], total: int, terms: int) -> _Collected:
        collected = _Collected()
        for one in sites:
            one.choose(ROWS / max(ROWS, total))
            collected.take(one, self.model, terms)
        return collected

    def _copying(self, key: _Key, sites: list[_Sampled], collected: _Collected, total: int) -> Copying | None:
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
        ahead = _Walk(self._grid, 0, self._samples, plain)
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

    def _walk_coarse(self, walk: _Walk, design: bool) -> dict[_Key, tuple[_Collected, int]]:
        """Take all tiles through the coarse levels; per rule what was seen, and how many samples there were."""
        order = self.model.order
        width = candidates(COARSE, PHASES[-1], REFERENCES_MAX)
        pixels = sum(sample.pixels[0].size for sample in self._samples)
        rows = max(256, COARSE_VALUES // (width * len(order)))
        share = rows / max(rows, pixels >> 2 * COARSE)
        found: dict[_Key, tuple[_Collected, int]] = {
            (band, COARSE, phase): (_Collected(), 0) for band in order for phase in PHASES
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

    def _weighted(self, key: _Key, collected: _Collected, total: int) -> Rule:
        plain = self._walk.plain(key)
        if not collected.rows or not len(plain.weights):
            return plain
        price = self._price(collected.rows, total)
        design, target, active = collected.design(), collected.target(), collected.active()
        exponent, weights = fit_weights(design, target, active, 4.0 * collected.step, price, self._weights_max)
        return Rule(exponent, weights, 0, plain.activity)

    def _active(self, key: _Key, rule: Rule, collected: _Collected, total: int) -> Rule:
        if not collected.rows:
            return rule
        errors, fractions = collected.errors()
        near, scale = len(self.model.references[key[0]]), total * self._scale / collected.rows
        family, activity = fit_activity(errors, fractions, collected.active(), key[2], near, scale)
        return replace(rule, family=family, activity=activity)


class _Collected:
    """What chosen samples of sites have shown."""

    def __init__(self) -> None:
        self.rows, self.step = 0, 1
        self._designs: list[Floats] = []
        self._targets: list[Floats] = []
        self._actives: list[Floats] = []
        self._errors: list[NDArray[np.int32]] = []
        self._fractions: list[NDArray[np.int32]] = []

    def take(self, one: _Sampled, model: Model, terms: int, design: bool = True) -> None:
        """Look at the chosen samples of a site before it is settled."""
        self.rows += len(one.rows)
        self.step = one.state.quantisers[one.site.band].step
        self._actives.append(one.active(terms))
        if design:
            self._designs.append(one.design(model))
            self._targets.append(one.target(model))

    def settle(self, one: _Sampled) -> None:
        errors, fractions = one.settle()
        self._errors.append(errors)
        self._fractions.append(fractions)

    def design(self) -> Floats:
        return np.concatenate(self._designs)

    def target(self) -> Floats:
        return np.concatenate(self._targets)

    def active(self) -> Floats:
        return np.concatenate(self._actives)

    def errors(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.concatenate(self._errors), np.concatenate(self._fractions)


class _Sampled:
    """A site of a sample tile, and which of its coded samples are looked at."""

    def __init__(self, sample: Sample, state: TileState, site: Site) -> None:
        self.sample, self.state, self.site = sample, state, site
        self.rows = np.empty(0, np.intp)
        self._place = np.empty(0, np.intp)

    def choose(self, share: float) -> None:
        """Look at this share of the coded samples, spread evenly; all if it is 1."""
        count = self.site.samples
        wanted = count if share >= 1 else min(count, 1 + int(count * share))
        self.rows = np.arange(wanted)
        if wanted < count:
            self.rows = (self.rows * _GOLDEN % 1 * count).astype(np.intp)
        self._place = self.rows if self.site.coded is None else np.flatnonzero(self.site.coded)[self.rows]

    def _at(self, values: NDArray[Any]) -> Floats:
        return np.asarray(values.ravel()[self._place], np.float64)

    def _nearest(self, band: int) -> list[Floats]:
        return [self._at(self.state.near(self.site, band, n)) for n in NEAREST[self.site.phase]]

    def _pixels(self) -> NDArray[Any]:
        pixels: NDArray[Any] = self.sample.pixels[self.site.band][self.site.window()]
        return pixels

    def design(self, model: Model) -> Floats:
        """(chosen, candidates): what the weights of a rule multiply, as `compile_taps` has it."""
        band, phase = self.site.band, self.site.phase
        near = model.references[band]
        if phase == A:
            columns = [4 * (self._at(self.state.lattice(one)[0]) - float(model.means[one])) for one in near]
        else:
            nearest = self._nearest(band)
            mean = sum(nearest)
            columns = [4 * one - mean for one in nearest[:3]]
            own = own_candidates(rule_level(self.site.level), phase)[3:]
            columns += [4 * self._at(self.state.near(self.site, band, n)) - mean for n in own]
            if near:
                mean = sum(self._nearest(near[0]))
                columns += [4 * self._at(self.state.near(self.site, near[0], n)) - mean for n in ring_candidates(phase)]
            columns += [self._at(self.state.detail(self.site, one)) for one in near]
        return np.stack(columns, axis=1) if columns else np.empty((len(self.rows), 0))

    def target(self, model: Model) -> Floats:
        """(chosen): what the rule's sum is to be."""
        pixels = 4 * self._at(self._pixels())
        if self.site.phase == A:
            return pixels - 4.0 * float(model.means[self.site.band])
        return np.asarray(pixels - sum(self._nearest(self.site.band)), np.float64)

    def active(self, terms: int) -> Floats:
        """(chosen, terms): what the activities of a rule multiply."""
        columns = [np.full(len(self.rows), 8.0)]
        if terms > 1:
            nearest = np.stack([self.state.near(self.site, self.site.band, n) for n in NEAREST[self.site.phase]])
            spread = (nearest.max(axis=0).astype(np.float64) - nearest.min(axis=0)).ravel()
            columns += [self._at(self.state.activity_term(self.site, number, spread)) for number in range(1, terms)]
        return np.stack(columns, axis=1)

    def exact_repeats(self) -> NDArray[np.bool_]:
        """(chosen): whether a sample is exactly one of its four nearest, before any rounding."""
        level, phase, shape = self.site.level, self.site.phase, self.site.values.shape
        plane = self.sample.pixels[self.site.band]
        cut = [plane[row << level :: 2 << level, col << level :: 2 << level] for row, col in PARTS]
        parts = [framed(part if part.size else cut[A], *cut[A].shape) for part in cut]
        near = [self._at(shifted(parts[n.part], n, shape)) for n in NEAREST[phase]]
        pixels = self._at(self._pixels())
        return np.asarray(np.logical_or.reduce([pixels == one for one in near]), np.bool_)

    def repeats(self, max_error: int) -> NDArray[np.bool_]:
        """(chosen, 4): which of its four nearest a sample may be a copy of."""
        pixels = self._at(self._pixels())
        return np.stack([np.abs(pixels - near) <= max_error for near in self._nearest(self.site.band)], axis=1)

    def witnessed(self, band: int) -> NDArray[np.bool_]:
        """(chosen, 4): which of its four nearest the sample of another band repeats."""
        return np.stack([same.ravel()[self._place] for same in self.state.repeats(self.site, [band])], axis=1)

    def copy(self, nodata: int | None, max_error: int) -> None:
        """Settle the samples that the rule there is lets be copies."""
        for offer in self.state.offers(self.site):
            self.state.copy(self.site, offer, taken_offers(self._pixels(), offer, nodata, max_error))

    def settle(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Settle the site by the rule there is; errors and fractions of the chosen samples."""
        expected = self.state.expect(self.site)
        errors = self.state.errors(self.site, expected, self._pixels())
        self.state.settle(self.site, expected, errors)
        return errors[self.rows], expected.fraction[self.rows]


def _mean(samples: Sequence[Sample], band: int) -> int:
    total = count = 0.0
    for sample in samples:
        valid = sample.pixels[band] if sample.nodata is None else sample.pixels[band][~sample.nodata[band]]
        total, count = total + float(valid.sum(dtype=np.float64)), count + valid.size
    return round(total / count) if count else 0


def _order(samples: Sequence[Sample]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Bands by how much of them their own neighbours leave open, most first: what is hard helps with what is similar.
    And for each, the bands before it that leave open the same, the most alike first."""
    details: list[list[Floats]] = []
    for distance in (1, 2):
        parts = []
        for sample in samples:
            _, height, width = sample.pixels.shape
            if min(height, width) > 2 * distance:
                rows = np.arange(distance, height - distance)
                cols = np.arange(distance, width - distance)
                keep = max(1, int(np.sqrt(rows.size * cols.size * len(samples) / ORDER_ROWS)))
                parts.append(_detail(sample, rows[::keep], cols[::keep], distance))
        details.append([np.concatenate(parts, axis=1)] if parts else [])
    bands = samples[0].pixels.shape[0]
    likeness, size = np.zeros((bands, bands)), np.zeros(bands)
    for one in details:
        for detail in one:
            size += np.abs(detail).mean(axis=1)
            power = np.sqrt((detail * detail).sum(axis=1)) + 1e-9
            likeness += np.abs(detail @ detail.T) / power / power[:, None]
    order = tuple(np.argsort(-size, kind="stable").tolist())
    references: list[tuple[int, ...]] = [()] * bands
    for at, band in enumerate(order):
        before = np.array(order[:at], np.intp)
        best = before[np.argsort(-likeness[band, before], kind="stable")][:REFERENCES_MAX]
        references[band] = tuple(best.tolist())
    return order, tuple(references)


def _detail(sample: Sample, rows: NDArray[np.intp], cols: NDArray[np.intp], distance: int) -> Floats:
    """(bands, n): samples less the mean of the four at this distance, 0 where any is nodata."""
    pixels, hole = sample.pixels, sample.nodata
    around = [(0, 0), (-distance, 0), (distance, 0), (0, -distance), (0, distance)]
    picked = [pixels[:, (rows + down)[:, None], cols + right].astype(np.float64) for down, right in around]
    detail = picked[0] - sum(picked[1:]) / 4
    if hole is not None:
        for down, right in around:
            detail[hole[:, (rows + down)[:, None], cols + right]] = 0
    return np.asarray(detail.reshape(len(pixels), -1), np.float64)
