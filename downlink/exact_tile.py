"""A tile while it is coded by the exact method: what is known of each band, and what it says about the next samples.

Encoder and decoder take the same `TileState` through the same sites (`TileState.sites`), so both expect the same:
`expect` gives prediction, fraction and scale index of a site's samples, `settle` takes their quantised errors and
makes them known. All arithmetic is on integers; where they are carried in float64, they and all sums of them stay
below 2^53, so any order of summation on any machine gives the same numbers.

Samples that are nodata are not coded but take their prediction. Samples whose cell is known (`exact_lattice`) take its
value. A site where nothing is coded takes the samples of part A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact_lattice import (
    DIAGONAL,
    LEVELS,
    MARGIN,
    NEAREST,
    PARTS,
    PHASES,
    SIDES,
    A,
    C,
    Cells,
    CellSources,
    Neighbour,
    framed,
    inner,
    lattice_size,
    shifted,
)
from downlink.exact_model import Rule
from downlink.exact_predictor import Predictor
from downlink.exact_quantiser import Quantiser
from downlink.exact_site import Expectation, Offer, Site
from downlink.exact_table import scale_index

ERROR_MAX: Final = 1 << 19
"""Errors (in eighths of a step) that activities see; larger ones count as this."""


@dataclass
class _Plane:
    """A band at the level in work: the lattice of the level above, its parts with margins, what references show."""

    values: NDArray[Any]
    errors: NDArray[np.int32]
    level: int = LEVELS
    parts: list[NDArray[Any]] = field(default_factory=list)
    error_parts: list[NDArray[np.int32]] = field(default_factory=list)
    details: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    around: dict[int, NDArray[np.int32]] = field(default_factory=dict)


class TileState:
    """See the module. `nodata` is bool (bands, height, width) or None; `cells` has an entry per band."""

    def __init__(
        self,
        predictor: Predictor,
        shape: tuple[int, int, int],
        dtype: str,
        quantisers: Sequence[Quantiser],
        cells: Sequence[Cells | None],
        nodata: NDArray[np.bool_] | None,
    ) -> None:
        self.bands, self.height, self.width = shape
        self.predictor, self.quantisers, self.cells, self.nodata = predictor, quantisers, cells, nodata
        first = lattice_size(self.height, LEVELS), lattice_size(self.width, LEVELS)
        self._planes = [_Plane(np.zeros(first, dtype), np.zeros(first, np.int32)) for _ in range(self.bands)]
        self._buffer: NDArray[np.float64] = np.empty(0)

    def mean(self, band: int) -> int:
        """The mean of a band, within what its pixels can be."""
        quantiser = self.quantisers[band]
        return min(max(int(self.predictor.model.means[band]), quantiser.low), quantiser.high)

    def lattice(self, band: int) -> tuple[NDArray[Any], int]:
        """What is known of a band: its lattice after the last level that it has been taken through, and that level."""
        plane = self._planes[band]
        self._merge(plane)
        return plane.values, plane.level

    def first_sites(self, band: int) -> Iterator[Site]:
        """The site of the first lattice of a band, if there is anything to code in it."""
        plane = self._planes[band]
        site = Site(band, LEVELS, A, plane.values, plane.errors, None)
        site.coded = self._valid(site)
        if site.coded is None or site.coded.any():
            yield site
        else:
            plane.values[...] = self.mean(band)

    def sites(self, band: int, level: int) -> Iterator[Site]:
        """The sites of a level of a band that have samples to code. Each must be settled before the next is taken."""
        plane = self._planes[band]
        self._begin(plane, level)
        cells = self.cells[band]
        sources = None if cells is None else CellSources(cells, level)
        for phase in PHASES:
            rows = (lattice_size(self.height, level) + 1 - PARTS[phase][0]) // 2
            cols = (lattice_size(self.width, level) + 1 - PARTS[phase][1]) // 2
            if not rows or not cols:  # a lattice of one row or column: A stands in
                plane.parts.append(plane.parts[A])
                plane.error_parts.append(plane.error_parts[A])
                continue
            values, errors = np.empty((rows, cols), plane.values.dtype), np.zeros((rows, cols), np.int32)
            site = Site(band, level, phase, values, errors, None)
            site.coded = self._valid(site)
            if sources is not None:
                self._copy_known(plane, site, sources)
            if site.coded is None or site.coded.any():
                yield site
            elif site.copied is None:
                values[...] = inner(plane.parts[A], rows, cols)
            else:
                np.copyto(values, inner(plane.parts[A], rows, cols), where=~site.copied)
            self._complete(plane, site)

    def near(self, site: Site, band: int, neighbour: Neighbour) -> NDArray[Any]:
        """The neighbour in `band` of each sample of a site, (rows, cols)."""
        return shifted(self._planes[band].parts[neighbour.part], neighbour, site.values.shape)

    def detail(self, site: Site, band: int) -> NDArray[np.float64]:
        """4 x sample - sum of its four nearest samples in a complete `band`, where a site's samples are; flat."""
        return self._planes[band].details[site.phase]

    def offers(self, site: Site) -> Iterator[Offer]:
        """What samples of a site may be copies of, if its rule asks that. Each offer must be answered by `copy` before
        the next is taken."""
        copying = self.predictor.model.rules[site.rule].copying
        if copying is None:
            return
        nearest = [self.near(site, site.band, neighbour) for neighbour in NEAREST[site.phase]]
        if copying.witnesses:
            references = self.predictor.model.references[site.band]
            witnesses = [references[place] for place in copying.witnesses]
            same = self.repeats(site, witnesses)
            values = np.zeros_like(site.values)
            for near, where in zip(nearest[::-1], same[::-1], strict=True):  # of several the first
                np.copyto(values, near, where=where)
            yield from self._open_offer(site, np.logical_or.reduce(same), values, copying.odds[0])
        if copying.told:
            for near, odds in zip(nearest, copying.odds[1:], strict=True):
                yield from self._open_offer(site, np.ones(near.shape, np.bool_), near, odds)

    @staticmethod
    def _open_offer(site: Site, where: NDArray[np.bool_], values: NDArray[Any], odds: int) -> Iterator[Offer]:
        if site.coded is not None:
            where = where & site.coded
        if where.any():
            yield Offer(where, values, odds)

    def repeats(self, site: Site, witnesses: Sequence[int]) -> list[NDArray[np.bool_]]:
        """For each of the four nearest samples, where all these bands repeat it at a site, (rows, cols)."""
        centre = Neighbour(site.phase, 0, 0)
        found = []
        for neighbour in NEAREST[site.phase]:
            same = [self.near(site, band, centre) == self.near(site, band, neighbour) for band in witnesses]
            found.append(np.logical_and.reduce(same))
        return found

    @staticmethod
    def copy(site: Site, offer: Offer, taken: NDArray[np.bool_]) -> None:
        """Settle the samples of an offer that are `taken` (as many as `offer.where` has)."""
        where = offer.where.copy()
        where[offer.where] = taken
        site.values[where] = offer.values[where]
        site.errors[where] = 0
        site.copied = where if site.copied is None else site.copied | where
        site.coded = ~where if site.coded is None else site.coded & ~where

    def expect(self, site: Site) -> Expectation:
        """What the known samples say about those of a site."""
        model = self.predictor.model
        rule = model.rules[site.rule]
        if site.phase == A:
            total = self._first_total(site, rule)
            activity = np.full(site.values.size, float(8 * rule.activity[0]))
        else:
            total, spread = self._total(site)
            activity = self._activity(site, rule, spread)
        place, fraction = self.quantisers[site.band].expected(total, rule.shift)
        if site.coded is not None:
            coded = site.coded.ravel()
            fraction, activity = fraction[coded], activity[coded]
        return Expectation(place, fraction, scale_index(activity, rule.family))

    def errors(self, site: Site, expected: Expectation, pixels: NDArray[Any]) -> NDArray[np.int32]:
        """What `settle` is to be given so that a site's samples become `pixels` (rows, cols), as nearly as may be."""
        if site.coded is None:
            return self.quantisers[site.band].errors(pixels.ravel(), expected.place)
        return self.quantisers[site.band].errors(pixels[site.coded], expected.place[site.coded.ravel()])

    def settle(self, site: Site, expected: Expectation, errors: NDArray[np.int32]) -> None:
        """Make a site known: `errors` are those of its coded samples, in steps."""
        quantiser = self.quantisers[site.band]
        place = expected.place if site.coded is None else expected.place[site.coded.ravel()]
        value = quantiser.values(place, errors)
        size = errors << 3
        size -= expected.fraction
        np.abs(size, out=size)
        np.minimum(size, ERROR_MAX, out=size)
        if site.coded is None:
            site.values[...] = value.reshape(site.values.shape)
            site.errors[...] = size.reshape(site.errors.shape)
            return
        site.values[site.coded] = value
        site.errors[site.coded] = size
        free = ~site.coded if site.copied is None else ~(site.coded | site.copied)
        if free.any():
            site.values[free] = quantiser.values(expected.place[free.ravel()])

    # ------------------------------------------------------------- what is known

    def _merge(self, plane: _Plane) -> None:
        """One lattice of the four parts of the level that has been gone through."""
        if len(plane.parts) < len(PARTS):
            return
        plane.level -= 1
        shape = lattice_size(self.height, plane.level), lattice_size(self.width, plane.level)
        values, errors = np.empty(shape, plane.values.dtype), np.empty(shape, np.int32)
        for (row, col), part, error_part in zip(PARTS, plane.parts, plane.error_parts, strict=True):
            rows, cols = values[row::2, col::2].shape
            values[row::2, col::2] = inner(part, rows, cols)
            errors[row::2, col::2] = inner(error_part, rows, cols)
        plane.values, plane.errors, plane.parts, plane.error_parts = values, errors, [], []

    def _begin(self, plane: _Plane, level: int) -> None:
        self._merge(plane)
        if plane.level != level + 1:
            raise ValueError(f"level {level} of a band that is at level {plane.level}: take one after the other")
        plane.parts = [framed(plane.values, *plane.values.shape)]
        plane.error_parts = [framed(plane.errors, *plane.values.shape)]
        plane.details, plane.around = {}, {}

    def _valid(self, site: Site) -> NDArray[np.bool_] | None:
        if self.nodata is None:
            return None
        hole = self.nodata[site.band][site.window()]
        return ~hole if hole.any() else None

    def _copy_known(self, plane: _Plane, site: Site, sources: CellSources) -> None:
        """Fill in the samples whose cell is known, and take them off those to code."""
        for part, mask, rows, cols in sources.known(site.phase):
            new = mask if site.copied is None else mask & ~site.copied
            at = np.ix_(rows + MARGIN, cols + MARGIN)  # -1 where there is none, which lies in the margin
            np.copyto(site.values, plane.parts[part][at], where=new)
            np.copyto(site.errors, plane.error_parts[part][at], where=new)
            site.copied = new if site.copied is None else site.copied | new
        if site.copied is not None:
            site.coded = ~site.copied if site.coded is None else site.coded & ~site.copied

    def _complete(self, plane: _Plane, site: Site) -> None:
        rows, cols = (side - 2 * MARGIN for side in plane.parts[A].shape)
        plane.parts.append(framed(site.values, rows, cols))
        plane.error_parts.append(framed(site.errors, rows, cols))
        if site.band in self.predictor.wanted:
            near = [shifted(plane.parts[n.part], n, site.values.shape) for n in NEAREST[site.phase]]
            detail = site.values * np.float64(4)
            for samples in near:
                detail -= samples
            plane.details[site.phase] = detail.ravel()

    def _around(self, plane: _Plane, site: Site) -> NDArray[np.int32]:
        """Errors of the four samples of a complete plane beside those of a site, summed."""
        found = plane.around.get(site.phase)
        if found is None:
            parts = [shifted(plane.error_parts[n.part], n, site.values.shape) for n in SIDES[site.phase]]
            found = plane.around[site.phase] = parts[0] + parts[1] + parts[2] + parts[3]
        return found

    # -------------------------------------------------------------- expectation

    def _first_total(self, site: Site, rule: Rule) -> NDArray[np.float64]:
        model = self.predictor.model
        total = np.full(site.values.size, float(int(model.means[site.band]) << rule.shift))
        for near, weight in zip(model.references[site.band], rule.weights.tolist(), strict=True):
            if weight:
                total += 4.0 * weight * (self._planes[near].values.ravel() - float(model.means[near]))
        return total

    def _total(self, site: Site) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Prediction in units of 2^-shift, and range of the four nearest samples."""
        taps = self.predictor.taps[site.rule]
        references = self.predictor.model.references[site.band]
        shape, size = site.values.shape, site.values.size
        count = len(taps.weights)
        if self._buffer.size < count * size:
            self._buffer = np.empty(count * size)
        rows = self._buffer[: count * size].reshape(count, size)
        at = 0
        for neighbour in taps.own:
            rows[at].reshape(shape)[...] = self.near(site, site.band, neighbour)
            at += 1
        for neighbour in taps.ring:
            rows[at].reshape(shape)[...] = self.near(site, references[0], neighbour)
            at += 1
        for number in taps.details:
            rows[at] = self.detail(site, references[number])
            at += 1
        total = taps.weights @ rows
        spread = np.maximum(np.maximum(rows[0], rows[1]), np.maximum(rows[2], rows[3]))
        spread -= np.minimum(np.minimum(rows[0], rows[1]), np.minimum(rows[2], rows[3]))
        return total, spread

    def _activity(self, site: Site, rule: Rule, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """How large an error is expected, in 1/512 of a step: a weighted sum of what `activity_term` gives."""
        total = np.full(site.values.shape, 8.0 * float(rule.activity[0]))
        for number, weight in enumerate(rule.activity.tolist()):
            if weight and number:
                total += self.activity_term(site, number, spread) * float(weight)
        return total.ravel()

    def activity_term(self, site: Site, number: int, spread: NDArray[np.float64]) -> NDArray[Any]:
        """Term 1 … of an activity, (rows, cols): errors of the four nearest samples; in phase C, those of the diagonal
        ones; `spread`, the range of the nearest samples, in steps; and per reference the error at the same place, and
        those of the four samples beside it. Errors are in eighths of a step."""
        after = number - 2 - (site.phase == C)
        if after == 0:
            return (spread // self.quantisers[site.band].step).reshape(site.values.shape)
        if after > 0 and after % 2 == 0:
            return self._around(self._other(site, after), site)
        parts = self.activity_parts(site, number)
        return parts[0] if after > 0 else np.asarray(parts[0] + parts[1] + parts[2] + parts[3])

    def activity_parts(self, site: Site, number: int) -> list[NDArray[np.int32]]:
        """What sums to an `activity_term`, each (rows, cols); nothing for the spread."""
        shape, after = site.values.shape, number - 2 - (site.phase == C)
        if after < 0:
            plane, near = self._planes[site.band], NEAREST[site.phase] if number == 1 else DIAGONAL
            return [shifted(plane.error_parts[n.part], n, shape) for n in near]
        if after == 0:
            return []
        parts = self._other(site, after).error_parts
        return (
            [inner(parts[site.phase], *shape)]
            if after % 2
            else [shifted(parts[n.part], n, shape) for n in SIDES[site.phase]]
        )

    def _other(self, site: Site, after: int) -> _Plane:
        return self._planes[self.predictor.model.references[site.band][(after - 1) // 2]]
