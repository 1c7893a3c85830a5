"""Rate-distortion curves: bits per sample at a PSNR, and the Bjøntegaard delta of two codecs.

A curve is interpolated (pchip on the logarithm of the rate) and never extrapolated: outside of what was measured there
is no answer. Points that another point beats in rate and PSNR are left out: no user would choose such a setting.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import bjontegaard
import numpy as np
from scipy.interpolate import PchipInterpolator

# A delta over a sliver of common quality says nothing about the codecs.
OVERLAP_MIN_DB = 3.0
OVERLAP_MIN_SHARE = 0.5  # of the shorter curve
POINTS_MIN = 4  # what the method was made for


class NoDelta(Exception):
    """Two curves have too little in common; the text says why."""


class Curve:
    """A codec on one scene: points of (bits per sample, PSNR in dB), in any order. Lossless points do not count."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        finite = [(bits, psnr) for bits, psnr in points if math.isfinite(psnr) and bits > 0]
        self.points: list[tuple[float, float]] = []
        for bits, psnr in sorted(finite, key=lambda point: (point[0], -point[1])):
            if not self.points or psnr > self.points[-1][1]:
                self.points.append((bits, psnr))

    @property
    def bits(self) -> list[float]:
        return [bits for bits, _ in self.points]

    @property
    def psnr(self) -> list[float]:
        return [psnr for _, psnr in self.points]

    def covers(self, psnr: float) -> bool:
        return len(self.points) >= 2 and self.points[0][1] <= psnr <= self.points[-1][1]

    def bits_at(self, psnr: float) -> float | None:
        """Bits per sample at `psnr`, or None where the curve does not reach."""
        if not self.covers(psnr):
            return None
        return float(np.exp(PchipInterpolator(self.psnr, np.log(self.bits))(psnr)))


@dataclass(frozen=True)
class Delta:
    """How many percent more (or, below 0, fewer) bits a codec needs than the anchor, over `low` to `high` dB."""

    percent: float
    low: float
    high: float


def delta(anchor: Curve, test: Curve) -> Delta:
    """The BD-rate of `test` against `anchor` (Akima interpolation), or `NoDelta`."""
    for name, curve in (("anchor", anchor), ("codec", test)):
        if len(curve.points) < POINTS_MIN:
            raise NoDelta(f"the {name}'s curve has {len(curve.points)} points; at least {POINTS_MIN} are needed")
    low, high = max(anchor.psnr[0], test.psnr[0]), min(anchor.psnr[-1], test.psnr[-1])
    shorter = min(anchor.psnr[-1] - anchor.psnr[0], test.psnr[-1] - test.psnr[0])
    needed = max(OVERLAP_MIN_DB, OVERLAP_MIN_SHARE * shorter)
    if high - low < needed:
        raise NoDelta(
            f"the curves share {max(high - low, 0):.1f} dB ({anchor.psnr[0]:.1f} to {anchor.psnr[-1]:.1f} and "
            f"{test.psnr[0]:.1f} to {test.psnr[-1]:.1f}); at least {needed:.1f} dB are needed: widen the settings"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns of overlaps under 75 %; ours is stated with the figure
        percent = bjontegaard.bd_rate(
            anchor.bits, anchor.psnr, test.bits, test.psnr, method="akima", require_matching_points=False
        )
    return Delta(float(percent), low, high)


def mean_percent(percents: Iterable[float]) -> float:
    """The mean of changes in percent, taken on the ratios' logarithms: -50 and +100 cancel out.

    >>> mean_percent([-50.0, 100.0])
    0.0
    """
    logs = [math.log1p(percent / 100) for percent in percents]
    return 100 * math.expm1(math.fsum(logs) / len(logs)) if logs else math.nan
