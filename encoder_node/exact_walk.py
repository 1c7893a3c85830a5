"""Sample tiles on their way from coarse to fine while the model of an exact grid is fitted, and what they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact import Layout, taken_offers
from downlink.exact_lattice import NEAREST, PARTS, PHASES, A, framed, rule_level, shifted
from downlink.exact_model import Model, Rule, activities, candidates, own_candidates, ring_candidates
from downlink.exact_predictor import Predictor, compile_taps
from downlink.exact_quantiser import Quantiser
from downlink.exact_site import Site
from downlink.exact_tile import TileState
from downlink.scene import Grid
from encoder_node.exact_rule import Floats

_GOLDEN: Final = 0.6180339887498949

Key = tuple[int, int, int]
"""Band, level and phase of a rule (`exact_model.rule_keys`)."""


@dataclass(frozen=True)
class Sample:
    """A sample tile: `pixels` (bands, height, width), `nodata` of that shape or None, and the bands' layouts."""

    pixels: NDArray[Any]
    nodata: NDArray[np.bool_] | None
    layouts: Sequence[Layout]


class Walk:
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

    def use(self, key: Key, rule: Rule) -> None:
        self.model.rules[key] = rule
        if key[2] != A:
            self.predictor.taps[key] = compile_taps(rule, *key[1:], len(self.model.references[key[0]]))

    def plain(self, key: Key) -> Rule:
        """A rule without weights: the mean of the four nearest."""
        near = len(self.model.references[key[0]])
        return Rule(2, np.zeros(candidates(*key[1:], near), np.int64), 0, np.zeros(activities(key[2], near), np.int64))

    def first_sites(self, band: int) -> list[SampledSite]:
        return [SampledSite(sample, state, site) for sample, state in self._tiles for site in state.first_sites(band)]

    def sites(self, band: int, level: int) -> Iterator[tuple[int, list[SampledSite]]]:
        """Phase by phase, the sites that the tiles have in it. All must be settled before the next phase is taken: each
        tile waits at its next site until the others are there."""
        walks = [state.sites(band, level) for _, state in self._tiles]
        waiting = [next(walk, None) for walk in walks]
        for phase in PHASES:
            there = [site is not None and site.phase == phase for site in waiting]
            yield (
                phase,
                [
                    SampledSite(sample, state, site)
                    for (sample, state), site in zip(self._tiles, waiting, strict=True)
                    if site is not None and site.phase == phase
                ],
            )
            waiting = [next(walk, None) if at else site for walk, at, site in zip(walks, there, waiting, strict=True)]


class Collected:
    """What chosen samples of sites have shown."""

    def __init__(self) -> None:
        self.rows, self.step = 0, 1
        self._designs: list[Floats] = []
        self._targets: list[Floats] = []
        self._actives: list[Floats] = []
        self._errors: list[NDArray[np.int32]] = []
        self._fractions: list[NDArray[np.int32]] = []

    def take(self, one: SampledSite, model: Model, terms: int, design: bool = True) -> None:
        """Look at the chosen samples of a site before it is settled."""
        self.rows += len(one.rows)
        self.step = one.state.quantisers[one.site.band].step
        self._actives.append(one.active(terms))
        if design:
            self._designs.append(one.design(model))
            self._targets.append(one.target(model))

    def settle(self, one: SampledSite) -> None:
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


class SampledSite:
    """A site of a sample tile, and which of its coded samples are looked at."""

    def __init__(self, sample: Sample, state: TileState, site: Site) -> None:
        self.sample, self.state, self.site = sample, state, site
        self.rows = np.empty(0, np.intp)
        self._place = self._row = self._col = np.empty(0, np.intp)

    def choose(self, share: float) -> None:
        """Look at this share of the coded samples, spread evenly; all if it is 1."""
        count = self.site.samples
        wanted = count if share >= 1 else min(count, 1 + int(count * share))
        self.rows = np.arange(wanted)
        if wanted < count:
            self.rows = (self.rows * _GOLDEN % 1 * count).astype(np.intp)
        self._place = self.rows if self.site.coded is None else np.flatnonzero(self.site.coded)[self.rows]
        self._row, self._col = np.divmod(self._place, self.site.values.shape[1])

    def _at(self, values: NDArray[Any]) -> Floats:
        chosen = values[self._row, self._col] if values.ndim == 2 else values[self._place]
        return np.asarray(chosen, np.float64)

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
        return np.stack(columns).T if columns else np.empty((len(self.rows), 0))

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
            nearest = np.stack(self._nearest(self.site.band))
            spread = (nearest.max(axis=0) - nearest.min(axis=0)) // self.state.quantisers[self.site.band].step
            for number in range(1, terms):
                parts = [self._at(part) for part in self.state.activity_parts(self.site, number)]
                columns.append(np.add.reduce(parts) if parts else spread)
        return np.stack(columns).T

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
