"""Fits the model of an exact grid to sample tiles: least squares, then integers.

Floats are welcome here: whatever they give, the decoder gets integers. Each rule is fitted to the samples that will be
there when it is used (rounded ones, where errors are allowed), so the sample tiles are coded along, level by level.

Prediction: weighted least squares, each sample weighted by the inverse of the error variance expected there, because
otherwise a few edges decide for all (measured: a tenth of the bits of interpolated bands). Neighbours join one by one
(orthogonal matching pursuit), while they save more bits than their weights cost to send. Activity: the absolute error
is regressed on the errors around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact import Layout, quantised_errors
from downlink.exact_lattice import LEVELS, NEAREST, PHASES, A
from downlink.exact_model import (
    ACTIVITY_MAX,
    EXPONENT_MAX,
    REFERENCES_MAX,
    WEIGHT_MAX,
    Model,
    Rule,
    activities,
    activities_sent,
    candidates,
    own_candidates,
    ring_candidates,
)
from downlink.exact_table import FAMILIES, exact_tables, scale_index
from downlink.exact_tile import Predictor, Quantiser, Site, TileState, compile_taps
from downlink.scene import Grid

Floats = NDArray[np.float64]

ROWS: Final = 8192
"""Samples that a rule is fitted to."""
FIRST_ROWS: Final = 3072
"""Samples of the first, unweighted fit, which only has to find where errors are large."""
ORDER_ROWS: Final = 8192
WEIGHTS_MAX: Final = 48
WEIGHT_BITS: Final = 6.0
"""What a weight costs to send, about."""
GAIN_BITS: Final = 4.0
"""What a neighbour must save on the samples it is chosen on: the best of many useless ones saves as much by chance."""
NOISE: Final = 0.02
"""Share of the error variance that rounding the weights may add."""
_PATIENCE: Final = 6
_MULTIPLES: Final = (0.85, 1.0, 1.2, 1.5)
_GOLDEN: Final = 0.6180339887498949


@dataclass(frozen=True)
class Sample:
    """A sample tile: `pixels` (bands, height, width), `nodata` of that shape or None, and the bands' layouts."""

    pixels: NDArray[Any]
    nodata: NDArray[np.bool_] | None
    layouts: Sequence[Layout]


def fit_model(grid: Grid, max_error: int, samples: Sequence[Sample], weights_max: int = WEIGHTS_MAX) -> Model:
    """The model of a grid, from sample tiles of it (at least one)."""
    return _Fit(grid, max_error, samples, weights_max).model


class _Fit:
    """Sample tiles on their way from coarse to fine, and the rules so far."""

    def __init__(self, grid: Grid, max_error: int, samples: Sequence[Sample], weights_max: int) -> None:
        self.weights_max = weights_max
        self.scale = max(1.0, grid.samples / sum(sample.pixels.size for sample in samples))
        order, references = _order(samples)
        means = [_mean(samples, band) for band in range(len(grid.bands))]
        self.model = Model(order, references, np.array(means, np.int64), {})
        self.predictor = Predictor(self.model)
        self.tiles = [
            (
                sample,
                TileState(
                    self.predictor,
                    (len(grid.bands), *sample.pixels.shape[1:]),
                    grid.dtype,
                    [Quantiser.of(grid.dtype, grid.nodata, max_error, one.unit, one.offset) for one in sample.layouts],
                    [one.cells for one in sample.layouts],
                    sample.nodata,
                ),
            )
            for sample in samples
        ]
        for band in order:
            sites = [_Sampled(*tile, site) for tile in self.tiles for site in tile[1].first_sites(band)]
            self._fit_rule((band, LEVELS, A), sites)
        for level in range(LEVELS - 1, -1, -1):
            for band in order:
                self._fit_level(band, level)

    def _fit_level(self, band: int, level: int) -> None:
        """All phases of a level: each tile waits at its next site until the rule for that has been fitted."""
        walks = [state.sites(band, level) for _, state in self.tiles]
        waiting = [next(walk, None) for walk in walks]
        for phase in PHASES:
            sites = []
            for (sample, state), site in zip(self.tiles, waiting, strict=True):
                if site is not None and site.phase == phase:
                    sites.append(_Sampled(sample, state, site))
            self._fit_rule((band, level, phase), sites)
            for at, site in enumerate(waiting):
                if site is not None and site.phase == phase:
                    waiting[at] = next(walks[at], None)

    def _use(self, key: tuple[int, int, int], rule: Rule) -> None:
        self.model.rules[key] = rule
        if key[2] != A:
            self.predictor.taps[key] = compile_taps(rule, key[2], len(self.model.references[key[0]]))

    def _fit_rule(self, key: tuple[int, int, int], sites: list[_Sampled]) -> None:
        """Fit a rule, and settle its sites by it."""
        band, _, phase = key
        references = self.model.references[band]
        terms = activities(phase, len(references))
        total = sum(one.site.samples for one in sites)
        for one in sites:
            one.choose(ROWS / max(ROWS, total))
        chosen = sum(len(one.rows) for one in sites)
        design = np.concatenate([one.design(self.model) for one in sites]) if sites else np.empty((0, 0))
        if not chosen or not design.shape[1]:
            exponent, weights = 0, np.zeros(candidates(phase, len(references)), np.int64)
            active = np.empty((0, terms))
        else:
            target = np.concatenate([one.target(self.model) for one in sites])
            active = np.concatenate([one.active(terms) for one in sites])
            price = max(GAIN_BITS, WEIGHT_BITS * chosen / (total * self.scale))
            step = 4.0 * min(one.state.quantisers[band].step for one in sites)
            exponent, weights = _fit_weights(design, target, active, step, price, self.weights_max)
        self._use(key, Rule(exponent, weights, 0, np.zeros(terms, np.int64)))
        found = [one.settle() for one in sites]
        if not chosen:
            return
        errors, fractions = (np.concatenate([one[part] for one in found]) for part in range(2))
        if not len(active):
            active = np.concatenate([one.active(terms) for one in sites])
        family, activity = _fit_activity(errors, fractions, active, phase, len(references), total * self.scale / chosen)
        self._use(key, Rule(exponent, weights, family, activity))


class _Sampled:
    """A site of a sample tile, and which of its coded samples are looked at."""

    def __init__(self, sample: Sample, state: TileState, site: Site) -> None:
        self.sample, self.state, self.site = sample, state, site
        self.rows = np.empty(0, np.intp)
        self._place = np.empty(0, np.intp)

    def choose(self, share: float) -> None:
        """Look at this share of the coded samples, spread evenly; all if it is 1."""
        count = self.site.samples
        wanted = count if share >= 1 else max(1, int(count * share))
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
            columns += [4 * self._at(self.state.near(self.site, band, n)) - mean for n in own_candidates(phase)[3:]]
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

    def settle(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Settle the site by the rule there is; errors and fractions of the chosen samples."""
        expected = self.state.expect(self.site)
        errors = quantised_errors(self._pixels(), self.site, expected.value, self.state.quantisers)
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


def _fit_weights(
    design: Floats, target: Floats, active: Floats, step: float, price: float, most: int
) -> tuple[int, NDArray[np.int64]]:
    """(exponent, weights): of the columns of `design` that are worth `price` bits each, in the sense of the module."""
    every = max(1, len(target) // FIRST_ROWS)
    first, goal = design[::every], target[::every]
    chosen, weights, _ = _pursue(first.T @ first, first.T @ goal, float(goal @ goal), len(goal), step, price, most)
    left = np.abs(target - design[:, chosen] @ weights)
    expected = np.maximum(active @ _regress(left, active), 0.05 * (left.mean() + step))
    trust = 1 / (expected**2 + (0.15 * step) ** 2)
    trust /= trust.mean()
    trusted = design * trust[:, None]
    gram, product = design.T @ trusted, trusted.T @ target
    energy = float((trust * target * target).sum())
    chosen, weights, variance = _pursue(gram, product, energy, len(target), step, price, most)
    whole = np.zeros(design.shape[1], np.int64)
    if not len(chosen):
        return 0, whole
    power = float(np.diag(gram)[chosen].sum()) / len(target)
    finest = np.sqrt(12 * NOISE * max(variance, 0.1 * step**2) / max(power, 1e-9))
    exponent = int(np.clip(np.ceil(-np.log2(finest)), 2, EXPONENT_MAX))
    whole[chosen] = np.clip(np.rint(weights * 2.0**exponent), -WEIGHT_MAX, WEIGHT_MAX)
    return exponent, whole


def _pursue(
    gram: Floats, product: Floats, energy: float, rows: int, step: float, price: float, most: int
) -> tuple[NDArray[np.intp], Floats, float]:
    """Columns joined one by one (the one that lowers the error most is next) as long as they pay; their weights; the
    variance left."""
    count = len(product)
    floor = np.diag(gram) * 1e-6 + 1e-6 * rows
    open_, left, energy_left = np.diag(gram).copy(), product.copy(), energy
    factor = np.zeros((min(most, count), count))
    chosen: list[int] = []
    best, best_count = rows * _bits(energy / rows / step**2), 0
    while len(chosen) < min(most, count):
        gain = np.where(open_ > floor, left * left / np.maximum(open_, floor), 0.0)
        gain[chosen] = 0
        column = int(gain.argmax())
        if gain[column] <= 0:
            break
        at = len(chosen)
        row = (gram[column] - factor[:at, column] @ factor[:at]) / np.sqrt(open_[column])
        factor[at] = row
        step_left = left[column] / np.sqrt(open_[column])
        energy_left -= gain[column]
        left = left - row * step_left
        open_ = open_ - row * row
        chosen.append(column)
        cost = rows * _bits(max(energy_left, 0.0) / rows / step**2) + price * len(chosen)
        if cost < best:
            best, best_count = cost, len(chosen)
        elif len(chosen) >= best_count + _PATIENCE:
            break
    kept = np.array(chosen[:best_count], np.intp)
    if not len(kept):
        return kept, np.empty(0), energy / rows
    part = gram[np.ix_(kept, kept)]
    weights: Floats = np.asarray(np.linalg.solve(part + np.diag(floor[kept] * 0.1), product[kept]), np.float64)
    return kept, weights, max(0.0, energy - 2 * float(weights @ product[kept]) + float(weights @ part @ weights)) / rows


def _bits(variance: float) -> float:
    """Entropy, about, of errors of this variance (in steps) after rounding."""
    return 0.5 * float(np.log2(1 + 17 * variance))


def _regress(size: Floats, active: Floats) -> Floats:
    """Coefficients with which the columns of `active` sum to the expected `size`: least squares, each row in
    proportion to what is expected of it."""
    trust = np.ones(len(size))
    least = 0.05 * float(size.mean()) + 1e-3
    found: Floats = np.zeros(active.shape[1])
    for _ in range(4):
        weighted = active * trust[:, None]
        gram = weighted.T @ active
        gram[np.diag_indices_from(gram)] *= 1 + 1e-4
        gram[np.diag_indices_from(gram)] += 1e-9
        found = np.asarray(np.linalg.solve(gram, weighted.T @ size), np.float64)
        trust = 1 / np.maximum(active @ found, least) ** 2
    return found


def _fit_activity(
    errors: NDArray[np.int32],
    fractions: NDArray[np.int32],
    active: Floats,
    phase: int,
    references: int,
    scale: float,
) -> tuple[int, NDArray[np.int64]]:
    """(family, activities) that cost the fewest bits, `scale` being how many samples each of these stands for."""
    size = np.abs(8.0 * errors - fractions)
    terms = active.shape[1]
    tables = exact_tables()
    best: tuple[float, int, NDArray[np.int64]] | None = None
    for mode in (2, 1, 0):
        count = activities_sent(phase, references, mode)
        if mode < 2 and count == activities_sent(phase, references, mode + 1):
            continue
        found = _regress(size + 0.1, active[:, :count])
        for family in range(FAMILIES):
            for multiple in _MULTIPLES:
                activity = np.zeros(terms, np.int64)
                activity[:count] = np.clip(np.rint(64 * multiple * found), -ACTIVITY_MAX, ACTIVITY_MAX)
                scales = scale_index(active @ activity.astype(np.float64), family)
                cost = tables.cost_bits(errors, scales, fractions) * scale + 7.0 * count
                if best is None or cost < best[0]:
                    best = cost, family, activity
    assert best is not None
    return best[1], best[2]
