"""Samples of a tile that the exact method codes together, and what is asked and expected of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.exact_lattice import LEVELS, PARTS, rule_level


@dataclass
class Site:
    """One phase of one level of one band: `values` and `errors` (rows, cols) are filled when it is settled. `coded`
    says which samples are in the stream, None: all; `copied` which are known already, None: none."""

    band: int
    level: int
    phase: int
    values: NDArray[Any]
    errors: NDArray[np.int32]
    coded: NDArray[np.bool_] | None
    copied: NDArray[np.bool_] | None = None

    @property
    def samples(self) -> int:
        """How many samples are coded."""
        return self.values.size if self.coded is None else int(np.count_nonzero(self.coded))

    @property
    def rule(self) -> tuple[int, int, int]:
        """The key of its rule."""
        return self.band, rule_level(self.level), self.phase

    def window(self) -> tuple[slice, slice]:
        """Where its samples are in the tile."""
        row, col = PARTS[self.phase]
        if self.level == LEVELS:
            return slice(None, None, 1 << LEVELS), slice(None, None, 1 << LEVELS)
        step = 2 << self.level
        return slice(row << self.level, None, step), slice(col << self.level, None, step)


class Offer(NamedTuple):
    """Samples of a site that may be copies: `where` (rows, cols) they are, `values` (rows, cols) of what they would
    repeat, and the place in `exact_model.ODDS` of how probable that is."""

    where: NDArray[np.bool_]
    values: NDArray[Any]
    odds: int


class Expectation(NamedTuple):
    """What is expected of a site's samples, flat: the place of each prediction, and of those that are coded the
    fraction and the scale index of the error (`exact_quantiser`)."""

    place: NDArray[np.int32]
    fraction: NDArray[np.int32]
    scale: NDArray[np.uint8]
