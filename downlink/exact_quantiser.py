"""Which values a band can take in a tile, and how predictions and samples are rounded to them. Integers only.

A prediction comes as a sum in units of 2^-shift. It becomes a *place*, from which errors are counted in steps, and a
fraction: what rounding left, in eighths of a step. Without a palette, places are the values themselves, and a step is
2 D + 1 of them for errors of at most D: the value nearest to a sample in whole steps from any place is within D. With
a palette (a tile whose samples have few values, unevenly spaced, or stand close about few), places are ranks in it;
it must have a value within D of every sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FRACTION_MAX: Final = 4


@dataclass(frozen=True, eq=False)
class Quantiser:
    """See the module. Values are `low` to `high`, and never `avoid` (nodata, if a rounded sample could become it), or
    those of `palette`, int64, rising, at least two."""

    low: int
    high: int
    step: int
    avoid: int | None
    palette: NDArray[np.int64] | None = None

    @cached_property
    def _middles(self) -> NDArray[np.int64]:
        """Twice the middles between neighbours of the palette."""
        assert self.palette is not None
        return self.palette[1:] + self.palette[:-1]

    @classmethod
    def of(cls, dtype: str, nodata: int | None, max_error: int, palette: NDArray[np.int64] | None = None) -> Quantiser:
        """For valid samples of a grid, with an error of at most `max_error`."""
        if palette is not None:
            low, high = int(palette[0]), int(palette[-1])
            return cls(low, high, max(1, (high - low) // (len(palette) - 1)), None, palette)
        bounds = np.iinfo(dtype)
        low, high = int(bounds.min), int(bounds.max)
        low, high = low + (low == nodata), high - (high == nodata)
        within = max_error > 0 and nodata is not None and low < nodata < high
        return cls(low, high, 2 * max_error + 1, nodata if within else None)

    def expected(self, total: NDArray[np.float64], shift: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Places and fractions of predictions."""
        return self._plain(total, shift) if self.palette is None else self._ranked(self.palette, total, shift)

    def errors(self, pixels: NDArray[Any], place: NDArray[np.int32]) -> NDArray[np.int32]:
        """Samples in steps from places."""
        if self.palette is not None:
            return np.searchsorted(self._middles, 2 * pixels.astype(np.int64)).astype(np.int32) - place
        errors: NDArray[np.int32] = pixels - place
        if self.step > 1:
            errors += self.step // 2
            errors //= self.step
        return errors

    def values(self, place: NDArray[np.int32], errors: NDArray[np.int32] | int = 0) -> NDArray[np.int64]:
        """Values so many steps from places; beyond the ends the last ones."""
        if self.palette is not None:
            found: NDArray[np.int64] = self.palette[np.clip(place + errors, 0, len(self.palette) - 1)]
            return found
        return np.clip(place + np.int64(self.step) * errors, self.low, self.high)

    def _plain(self, total: NDArray[np.float64], shift: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        one, step = float(1 << shift), self.step
        value = total + one / 2
        value *= 1 / one
        np.floor(value, out=value)
        np.clip(value, self.low, self.high, out=value)
        if self.avoid is not None:
            forbidden = (value - self.avoid) % step == 0
            value[forbidden] += 1
            np.subtract(value, 2, out=value, where=forbidden & (value > self.high))
        if step > 2 * FRACTION_MAX:
            return value.astype(np.int32), np.zeros(len(value), np.int32)
        return value.astype(np.int32), _fraction(total - value * one, step * one)

    @staticmethod
    def _ranked(
        palette: NDArray[np.int64], total: NDArray[np.float64], shift: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        one = float(1 << shift)
        known = palette.astype(np.float64)
        middles = (known[1:] + known[:-1]) * (one / 2)
        rank = np.searchsorted(middles, total, side="right")
        rest = total - known[rank] * one
        gaps = np.diff(known)
        up = np.append(gaps, gaps[-1])
        down = np.insert(gaps, 0, gaps[0])
        return rank.astype(np.int32), _fraction(rest, np.where(rest >= 0, up[rank], down[rank]) * one)


def _fraction(rest: NDArray[np.float64], step: NDArray[np.float64] | float) -> NDArray[np.int32]:
    """What is left of a step, in eighths of it, to the nearest."""
    rest = np.clip(rest, -step, step)
    # Integers below 2^42 over such below 2^36: the floor of the rounded quotient is that of the exact one.
    eighths = np.floor((rest * 16 + step) / (2 * step))
    return np.clip(eighths, -FRACTION_MAX, FRACTION_MAX).astype(np.int32)
