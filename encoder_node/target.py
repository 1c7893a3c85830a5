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
from downlink.scene import printable
from encoder_node.importance import Drawn
from encoder_node.weights import EQUAL, parse

DEFAULT_QUALITY = 50.0
QUALITY_MIN, QUALITY_MAX = 0.0, 120.0
BUDGET_MIN = 512
"""Bytes below which no stream can be: manifest, side chunk and chunk list alone take some hundred."""
BUDGET_AIM, BUDGET_USED = 0.985, 0.96
RATE_TOLERANCE = 0.015
SEARCH_ROUNDS = 12
SLOPES = 0.1, 5.0
"""Slopes of rate over step, in octaves per octave, that are believed."""
TOLERANCE = 0.004


@dataclass(frozen=True)
class Target:
    """At most one of the five; none means quality 50. PSNR is against 10000, or 255 for 8-bit scenes. `stream_bytes` is
    a budget that the stream may not exceed; `max_error` is a promise for every valid pixel, in units of the pixels; 0
    is lossless."""

    quality: float | None = None
    bits_per_sample: float | None = None
    psnr_db: float | None = None
    stream_bytes: int | None = None
    max_error: int | None = None
    weights: str = EQUAL
    """How much each band's error counts (`encoder_node.weights`)."""
    importance: Drawn | None = None
    """Where the scene matters (`encoder_node.importance`)."""

    def __post_init__(self) -> None:
        names = ("quality", "bits_per_sample", "psnr_db", "stream_bytes", "max_error")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise SceneError(f"targets {' and '.join(given)} were both given; give one")
        bounds = {
            "quality": (QUALITY_MIN, QUALITY_MAX),
            "bits_per_sample": (0.001, 16.0),
            "psnr_db": (10.0, 90.0),
            "stream_bytes": (BUDGET_MIN, limits.SCENE_RAW_BYTES_MAX),
            "max_error": (0, limits.MAX_ERROR_MAX),
        }
        parse(self.weights)
        if self.max_error is not None and self.importance is not None:
            raise SceneError(
                "max error is promised for every pixel, importance says where less is enough; give one of them"
            )
        for name in given:
            value, (low, high) = getattr(self, name), bounds[name]
            if not low <= value <= high:
                raise SceneError(
                    f"{name.replace('_', ' ')} {value:g} is outside {low:g} to {high:g}; choose one within"
                )

    @property
    def rate(self) -> bool:
        """Whether it is the size of the stream that is asked for."""
        return self.bits_per_sample is not None or self.stream_bytes is not None

    def sample_bits(self, samples: int) -> float:
        """Bits per sample that a rate target aims at for a scene of so many: a budget is aimed at from below."""
        if self.stream_bytes is not None:
            return 8 * self.stream_bytes * BUDGET_AIM / samples
        assert self.bits_per_sample is not None
        return self.bits_per_sample

    def met_by(self, stream_bytes: int, samples: int) -> bool:
        """Whether a stream of so many bytes is what was asked for: within 2 % of a rate, within a budget and not more
        than 4 % below it. Targets that are no rates are always met."""
        if self.stream_bytes is not None:
            return BUDGET_USED * self.stream_bytes <= stream_bytes <= self.stream_bytes
        if self.bits_per_sample is not None:
            return abs(8 * stream_bytes / samples / self.bits_per_sample - 1) <= RATE_TOLERANCE
        return True

    @property
    def settings(self) -> dict[str, str | float]:
        """How the stream was asked for, as the manifest keeps it."""
        asked: dict[str, str | float] = {} if self.weights == EQUAL else {"weights": self.weights}
        if self.importance is not None:
            asked["importance"] = printable(self.importance.name)
        if self.bits_per_sample is not None:
            return asked | {"bits_per_sample": float(self.bits_per_sample)}
        if self.psnr_db is not None:
            return asked | {"psnr_db": float(self.psnr_db)}
        if self.stream_bytes is not None:
            return asked | {"stream_bytes": float(self.stream_bytes)}
        if self.max_error is not None:
            return {"max_error": float(self.max_error)}
        return asked | {"quality": float(DEFAULT_QUALITY if self.quality is None else self.quality)}


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


def rate_slope(bits_per_sample: float) -> float:
    """About how many octaves the rate falls when the step grows by one: between 0.35 at high rates and 2 at low
    ones."""
    return max(0.35, min(2.0, 0.8 / max(bits_per_sample, 0.1)))


def secant(before: tuple[float, float] | None, now: tuple[float, float], otherwise: float) -> float:
    """How many octaves the excess falls when the step grows by one, from two (log2 step, excess); `otherwise` where
    they do not say."""
    if before is None or abs(now[0] - before[0]) < 1e-4:
        return otherwise
    slope = (before[1] - now[1]) / (now[0] - before[0])
    return slope if SLOPES[0] < slope < SLOPES[1] else otherwise


def search_step(target: Target, start: float, estimate: Callable[[float], Estimate], samples: int) -> float:
    """The step whose estimate meets a rate or PSNR target, by the secant of log rate (or dB) over log step, kept in a
    bracket.

    Ends within 0.4 % of the rate or 0.02 dB, or at the nearest step that the format allows.
    """
    low, high = math.log2(limits.STEP_MIN) + 4, math.log2(limits.STEP_MAX) - 2  # log2 step: fine (more bits) .. coarse
    at = math.log2(start)
    before: tuple[float, float] | None = None  # log2 step and excess of the round before
    for _ in range(SEARCH_ROUNDS):
        found = estimate(2.0**at)
        if target.rate:
            excess = math.log2(max(found.bits_per_sample, 1e-6) / target.sample_bits(samples))
            done, slope = abs(excess) < TOLERANCE, rate_slope(found.bits_per_sample)
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
        proposal = at + excess / secant(before, (at, excess), slope)
        before = at, excess
        at = proposal if low < proposal < high else (low + high) / 2
        if high - low < 1e-3:
            break
    return float(2.0**at)
