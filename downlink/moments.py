"""Statistics of a scene -> its front end: which planes there are, how loud, and what telling so costs.

Moments of coefficients are gathered from sample windows; for a step, the KLT of each subband (or of several together,
where that costs less than it saves) is estimated from them, quantised just finely enough, and cut to the planes that
are loud enough to survive the quantiser. All of this is the encoder's alone: what it decides is sent
(`downlink.plane`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from downlink import limits
from downlink.context import level_of
from downlink.dct import BLOCK, FLAT, SUBBANDS, subband
from downlink.plane import ALL_BANDS, PARTITIONS, ROW_BITS, FrontEnd, importance_code, importance_of

QUIET = 0.05
"""A plane's subband whose coefficients deviate by less than this share of the step is dropped."""
_LEAK = (0.35, 0.25, 0.12, 0.08)
"""Per subband: what rounding of the rows may leak of the loudest plane into the others, in steps. Coefficients of the
low subbands are few, and loud."""
_WORTH = 0.35
"""Variance, in steps squared, that counts as one when the bits of a partition are estimated."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int16]


class Moments:
    """Products of bands' coefficients, of windows that come one by one; memory is (bands, bands) whatever their
    number. `centre` (bands) is about the mean in DN: products are taken around it."""

    def __init__(self, half: NDArray[np.bool_], centre: Doubles) -> None:
        self.half, self.centre = half, np.rint(centre)
        self._products = np.zeros((len(SUBBANDS), half.size, half.size))
        self._first = np.zeros(half.size)
        self._blocks = 0

    def add(self, coefficients: Floats) -> None:
        """Coefficients (bands, 64, blocks)."""
        for band in range(len(SUBBANDS)):
            values = coefficients[:, subband(band)]
            if band == 0:
                values = values - (FLAT * self.centre.astype(np.float32))[:, None, None]
                self._first += values.sum(axis=(1, 2), dtype=np.float64)
            flat = values.reshape(self.half.size, -1)
            self._products[band] += flat @ flat.T  # float32 within a window, double over windows
        self._blocks += coefficients.shape[2]

    def statistics(self) -> Statistics:
        """Of all windows so far; all zero if there were none."""
        count = max(1, self._blocks)
        covariances = self._products / count
        covariances[0] -= np.outer(self._first, self._first) / count**2
        mean = self.centre + self._first / count / FLAT
        return Statistics(mean, self.half, covariances)


@dataclass(frozen=True)
class Statistics:
    """Moments of a lattice's samples: `mean` (bands) in DN; `covariances` (4, bands, bands) of coefficients, weighted
    by `native` and `importance`, summed over each subband's channels."""

    mean: Doubles
    half: NDArray[np.bool_]
    covariances: Doubles
    native: Floats | None = None
    importance: NDArray[np.uint16] | None = None

    def weighted(self, native: Floats, importance: Floats | None) -> Statistics:
        """Of bands whose coefficients are multiplied by the lattice's weights and the user's (bands); given once."""
        code = None if importance is None or bool((importance == 1).all()) else importance_code(importance)
        weights = (native if code is None else native * importance_of(code)).astype(np.float64)
        return Statistics(self.mean, self.half, self.covariances * np.outer(weights, weights), native, code)

    @property
    def deviations(self) -> Doubles:
        """Standard deviation of each band's pixels, as weighted: (bands)."""
        return np.asarray(np.sqrt(np.maximum(np.einsum("sbb->b", self.covariances), 0.0)) / BLOCK)

    @property
    def noises(self) -> Doubles:
        """Deviation of each band's coefficients in the highest subband that it has, about that of its noise in DN:
        (bands)."""
        highest = np.where(self.half, ALL_BANDS - 1, ALL_BANDS)
        sizes = np.diff([0, *SUBBANDS])[highest]
        variances = self.covariances[highest, np.arange(self.half.size), np.arange(self.half.size)] / sizes
        return np.asarray(np.sqrt(np.maximum(variances, 0.0)) / np.where(self.half, 2.0, 1.0))

    def _components(self, bands: list[int]) -> Doubles:
        """KLT of the subbands `bands` together: rows by falling variance."""
        members = np.flatnonzero(~self.half) if max(bands) >= ALL_BANDS else np.arange(self.half.size)
        pooled = self.covariances[bands][:, members][:, :, members].sum(axis=0)
        _, vectors = np.linalg.eigh(pooled)
        return np.asarray(vectors[:, ::-1].T)

    def _variances(self, rows: Doubles, band: int) -> Doubles:
        """Variance per coefficient of each plane in a subband."""
        at = subband(band)
        members = np.flatnonzero(~self.half) if band >= ALL_BANDS else np.arange(self.half.size)
        covariance = self.covariances[band][np.ix_(members, members)]
        power = np.einsum("pb,pb->p", rows @ covariance, rows) / (at.stop - at.start)
        return np.asarray(np.maximum(power, 0.0))

    def front_ends(self, step: float, quiet: float = QUIET) -> list[FrontEnd]:
        """The KLTs at this step, in every partition that a side chunk can hold: planes loud enough to matter, those
        whose deviation is more than `quiet` of the step, rows as coarse as the step allows."""
        fewest = 1 if self.half.any() else 0  # the high subband has fewer bands: a basis of its own
        options = [self._partitioned(number, step, quiet) for number in range(fewest, len(PARTITIONS))]
        return [option for option, cut in options if not cut] or [options[0][0]]

    def front_end(self, step: float, blocks: int) -> FrontEnd:
        """The one of `front_ends` for a lattice of so many blocks that is expected to cost least."""
        return min(self.front_ends(step), key=lambda option: self._cost(option, step, blocks))

    def _partitioned(self, number: int, step: float, quiet: float = QUIET) -> tuple[FrontEnd, bool]:
        """The front end in a partition, and whether planes had to be left out because the side chunk would burst."""
        partition, cut = PARTITIONS[number], False
        rows: list[Rows] = []
        bounds: list[int] = []
        deviations: list[Doubles] = []
        for band in range(len(SUBBANDS)):
            sharing = [b for b in range(len(SUBBANDS)) if partition[b] == partition[band]]
            basis = self._components(sharing)
            every = [np.sqrt(self._variances(basis, b)) for b in sharing]
            bound = max(_bound(float(d.max(initial=0.0)), step, b) for d, b in zip(every, sharing, strict=True))
            own = every[sharing.index(band)]
            loud = np.flatnonzero(own > quiet * step)
            count = int(loud[-1]) + 1 if len(loud) else int(band == 0)  # at least one plane: something to decode
            most = limits.SIDE_VALUES_MAX // max(1, basis.shape[1] * (max(partition) + 1))
            cut, count = cut or count > most, min(count, most)
            rows.append(np.rint(basis[:count] * bound).astype(np.int16))
            bounds.append(bound)
            deviations.append(own[:count])
        planes = max(len(r) for r in rows)
        levels = np.zeros((planes, len(SUBBANDS)), np.uint8)
        for band, own in enumerate(deviations):
            levels[: len(own), band] = [max(1, level_of(float(d), step)) for d in own]
        mean = np.rint(self.mean).astype(np.int32)
        native = np.ones(self.half.size, np.float32) if self.native is None else self.native
        return FrontEnd(mean, self.half, native, self.importance, number, tuple(rows), tuple(bounds), levels), cut

    def _cost(self, option: FrontEnd, step: float, blocks: int) -> float:
        """Bits that planes and side chunk are expected to take."""
        bits = 8.0 * len(option.pack())
        for band, rows in enumerate(option.forward_rows):
            at = subband(band)
            variances = self._variances(rows.astype(np.float64), band)
            bits += blocks * (at.stop - at.start) * 0.5 * float(np.log2(1 + variances / (_WORTH * step**2)).sum())
        return bits

    def dropped_variance(self, front_end: FrontEnd) -> float:
        """Weighted squared error per lattice sample (DN squared) that the dropped planes leave."""
        total = 0.0
        for band, rows in enumerate(front_end.forward_rows):
            members = front_end.members(band)
            covariance = self.covariances[band][np.ix_(members, members)]
            span, _ = np.linalg.qr(rows.T.astype(np.float64))  # quantised rows are not quite orthonormal
            total += max(0.0, float(np.trace(covariance)) - float(np.einsum("bp,bc,cp->", span, covariance, span)))
        return total / (BLOCK * BLOCK * self.half.size)


def _bound(loudest: float, step: float, band: int) -> int:
    """The unit of a basis' rows: 2^k - 1, so that rounding leaks no more than allowed."""
    needed = loudest / (step * _LEAK[band] * 12**0.5)
    bits = int(np.ceil(np.log2(max(needed, 1.0)))) + 1
    return int((1 << min(max(bits, ROW_BITS[0]), ROW_BITS[1]) - 1) - 1)
