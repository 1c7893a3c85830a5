"""What the user asks of an encoding, and the quantiser step that gives it.

Quality Q sets the step outright: step = peak * 2^(-Q/8) with peak 10000 for 16-bit grids (reflectance 1.0) and 255
for 8-bit ones, so 8 more of Q halve the step (about 6 dB, twice the detail). A rate or PSNR target is met by
searching the step on a sample of tiles, from the entropy estimate: no trial decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from downlink import limits
from downlink.errors import SceneError
from downlink.quality import PEAK_8_BIT, PEAK_REFLECTANCE, psnr_db

DEFAULT_QUALITY = 50.0
QUALITY_MIN, QUALITY_MAX = 0.0, 120.0
SEARCH_ROUNDS = 12
TOLERANCE = 0.004


@dataclass(frozen=True)
class Target:
    """At most one of the four; none means quality 50. PSNR is against 10000, or 255 for 8-bit scenes. `max_error` is a
    promise for every valid pixel, in units of the pixels; 0 is lossless."""

    quality: float | None = None
    bits_per_sample: float | None = None
    psnr_db: float | None = None
    max_error: int | None = None

    def __post_init__(self) -> None:
        given = [
            name for name in ("quality", "bits_per_sample", "psnr_db", "max_error") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise SceneError(f"targets {' and '.join(given)} were both given; give one")
        bounds = {
            "quality": (QUALITY_MIN, QUALITY_MAX),
            "bits_per_sample": (0.001, 16.0),
            "psnr_db": (10.0, 90.0),
            "max_error": (0, limits.MAX_ERROR_MAX),
        }
        for name in given:
            value, (low, high) = getattr(self, name), bounds[name]
            if not low <= value <= high:
                raise SceneError(
                    f"{name.replace('_', ' ')} {value:g} is outside {low:g} to {high:g}; choose one within"
                )

    @property
    def settings(self) -> dict[str, str | float]:
        """How the stream was asked for, as the manifest keeps it."""
        if self.bits_per_sample is not None:
            return {"bits_per_sample": float(self.bits_per_sample)}
        if self.psnr_db is not None:
            return {"psnr_db": float(self.psnr_db)}
        if self.max_error is not None:
            return {"max_error": float(self.max_error)}
        return {"quality": float(DEFAULT_QUALITY if self.quality is None else self.quality)}


@dataclass(frozen=True)
class Estimate:
    """What a step would give, from a sample of tiles: bits per sample of the scene and mean squared error in DN
    squared."""

    bits_per_sample: float
    squared_error: float
    peak: float

    @property
    def psnr_db(self) -> float:
        return psnr_db(max(self.squared_error, 1e-9), self.peak)


def step_of_quality(quality: float, dtype: str) -> float:
    """The quantiser step (DN) of a quality for grids of this type."""
    peak = PEAK_8_BIT if dtype == "uint8" else PEAK_REFLECTANCE
    return float(peak * 2.0 ** (-quality / 8))


def search_step(target: Target, start: float, estimate: Callable[[float], Estimate]) -> float:
    """The step whose estimate meets a rate or PSNR target, by the secant of log rate (or dB) over log step, kept in a
    bracket.

    Ends within 0.4 % of the rate or 0.02 dB, or at the nearest step that the format allows.
    """
    low, high = math.log2(limits.STEP_MIN) + 4, math.log2(limits.STEP_MAX) - 2  # log2 step: fine (more bits) .. coarse
    at = math.log2(start)
    for _ in range(SEARCH_ROUNDS):
        found = estimate(2.0**at)
        if target.bits_per_sample is not None:
            excess = math.log2(max(found.bits_per_sample, 1e-6) / target.bits_per_sample)
            done, slope = abs(excess) < TOLERANCE, max(0.35, min(2.0, 0.8 / max(found.bits_per_sample, 0.1)))
        else:
            assert target.psnr_db is not None
            excess = (found.psnr_db - target.psnr_db) / 6.02
            done, slope = abs(excess) < TOLERANCE, 0.8
        if done:
            break
        if excess > 0:
            low = at
        else:
            high = at
        proposal = at + excess / slope
        at = proposal if low < proposal < high else (low + high) / 2
        if high - low < 1e-3:
            break
    return float(2.0**at)
