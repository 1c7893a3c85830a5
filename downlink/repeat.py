"""Bands that repeat their pixels: a coarser band (20 m, 60 m) brought to a finer grid by exact repetition.

Such a band is coded on its own coarser lattice, where it has 1/4 or 1/36 of the samples, and restored exactly as
repeated. Found by looking at where neighbouring rows and columns ever differ: a band repeated k times can change only
at every k-th boundary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FACTORS = (6, 3, 2)
"""Repetitions looked for: 60 m on 10 m, 60 m on 20 m (or 30 m on 10 m), 20 m on 10 m. The largest that fits wins."""
_CYCLE = 6


class Repeat(NamedTuple):
    """A band whose pixels come in blocks of factor x factor; blocks begin at rows = row and columns = col (modulo
    factor)."""

    factor: int
    row: int
    col: int


ONCE = Repeat(1, 0, 0)


class Repetition:
    """What windows of a grid, one by one, leave possible."""

    def __init__(self, bands: int) -> None:
        self._rows = np.zeros((bands, _CYCLE), np.bool_)
        self._cols = np.zeros((bands, _CYCLE), np.bool_)

    def add(self, pixels: NDArray[np.generic], row: int, col: int) -> None:
        """A window (bands, height, width) whose first pixel is at (row, col) of the grid."""
        for band, values in enumerate(pixels):
            if self._open(band):
                self._rows[band] |= _changes((values[1:] != values[:-1]).any(axis=1), row)
                self._cols[band] |= _changes((values[:, 1:] != values[:, :-1]).any(axis=0), col)

    def _open(self, band: int) -> bool:
        return any(_phase(self._rows[band], k) is not None and _phase(self._cols[band], k) is not None for k in FACTORS)

    def found(self, band: int) -> Repeat:
        """The largest repetition that everything seen so far allows; ONCE for a band that never changes."""
        if not (self._rows[band].any() and self._cols[band].any()):
            return ONCE
        for factor in FACTORS:
            row, col = _phase(self._rows[band], factor), _phase(self._cols[band], factor)
            if row is not None and col is not None:
                return Repeat(factor, row, col)
        return ONCE


def _changes(changed: NDArray[np.bool_], first: int) -> NDArray[np.bool_]:
    """Boundaries with a change, by the index of the later row modulo the cycle."""
    return np.array([changed[(at - first - 1) % _CYCLE :: _CYCLE].any() for at in range(_CYCLE)])


def _phase(changes: NDArray[np.bool_], factor: int) -> int | None:
    """The one phase at which a band repeated `factor` times changes, 0 if it never does, None if there is no one."""
    phases = {at % factor for at, some in enumerate(changes) if some}
    return None if len(phases) > 1 else phases.pop() if phases else 0
