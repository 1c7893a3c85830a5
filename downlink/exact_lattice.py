"""Lattices of a tile, coarse to fine: what the exact method predicts from what. Pure geometry.

At level l a tile's rows and columns are those whose numbers are multiples of 2^l. The lattice of level l + 1 is known;
what level l adds falls into three *phases*, coded one after the other, by where they lie in a 2 x 2 cell:

    A R     A: the lattice of level l + 1        D: predicted from A, its diagonal neighbours
    C D     R: from A (left, right), D (above, below)        C: from D (left, right), A (above, below), and R

`OWN` lists, per phase, the known neighbours that a prediction may use, nearest first, in steps of the level's lattice;
`RING` the eight around a sample in a plane that is already complete at this level. A neighbour is (part, row, column):
the sample of `part` in the cell that many rows and columns away.

A plane whose source repeats pixels (a 60 m band on a 10 m grid) has *cells*: runs of equal rows crossed with runs of
equal columns. A sample whose cell is already known is not coded.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

A, D, R, C = range(4)
PARTS: Final = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Row and column of a part in its cell."""
PHASES: Final = (D, R, C)
LEVELS: Final = 5
"""Levels of every tile: the first lattice has every 32nd row and column."""
MARGIN: Final = 4
"""Edge samples repeat so many cells beyond a part."""


class Neighbour(NamedTuple):
    part: int
    row: int
    col: int


def _neighbours(phase: int, parts: tuple[int, ...], reach: int) -> tuple[Neighbour, ...]:
    """Samples of `parts` within sqrt(reach) steps of a sample of `phase`, nearest first."""
    found = []
    for part in parts:
        for row in range(-MARGIN, MARGIN + 1):
            for col in range(-MARGIN, MARGIN + 1):
                down = 2 * row + PARTS[part][0] - PARTS[phase][0]
                right = 2 * col + PARTS[part][1] - PARTS[phase][1]
                if 0 < down * down + right * right <= reach:
                    found.append((down * down + right * right, abs(down), down, right, Neighbour(part, row, col)))
    return tuple(entry[-1] for entry in sorted(found))


# Wide for the bands that were interpolated from a coarser grid: there the kernel is found and undone. 44, 52, 48.
OWN: Final = {D: _neighbours(D, (A,), 50), R: _neighbours(R, (A, D), 34), C: _neighbours(C, (A, D, R), 20)}
NEAREST: Final = {
    D: _neighbours(D, (A,), 2),
    R: _neighbours(R, (A, D), 1),
    C: _neighbours(C, (A, D), 1),
}
"""Four each, as the first of `OWN`."""
RING: Final = {phase: _neighbours(phase, (A, D, R, C), 2) for phase in PHASES}
CLOSE: Final = 12
"""Own neighbours that predictions use on lattices coarser than `rule_level` tells apart."""
COARSE: Final = 2
SIDES: Final = {D: _neighbours(D, (R, C), 1), R: NEAREST[R], C: NEAREST[C]}
"""The four samples of a complete plane next to a sample of a phase."""
DIAGONAL: Final = _neighbours(C, (R,), 2)
"""The four samples of R around one of C."""


def rule_level(level: int) -> int:
    """The level whose rules a level has: the finest two have their own, and so has the first lattice; those between,
    which are few samples, share theirs."""
    return level if level in (LEVELS, 0, 1) else COARSE


def lattice_size(side: int, level: int) -> int:
    """Rows (or columns) of a tile's lattice at a level."""
    return -(-side >> level)


def framed(part: NDArray[Any], rows: int, cols: int) -> NDArray[Any]:
    """A part with its edge samples repeated: (rows + 2 margins, cols + 2 margins), itself from (margin, margin)."""
    height, width = part.shape
    out = np.empty((rows + 2 * MARGIN, cols + 2 * MARGIN), part.dtype)
    bottom, right = MARGIN + height, MARGIN + width
    inner = out[MARGIN:bottom]
    inner[:, MARGIN:right] = part
    inner[:, :MARGIN] = part[:, :1]
    inner[:, right:] = part[:, -1:]
    out[:MARGIN] = out[MARGIN]
    out[bottom:] = out[bottom - 1]
    return out


def inner(part: NDArray[Any], rows: int, cols: int) -> NDArray[Any]:
    """A framed part without its margins."""
    return part[MARGIN : MARGIN + rows, MARGIN : MARGIN + cols]


def shifted(part: NDArray[Any], neighbour: Neighbour, shape: tuple[int, ...]) -> NDArray[Any]:
    """The neighbour of each sample of a site of this shape."""
    row, col = MARGIN + neighbour.row, MARGIN + neighbour.col
    return part[row : row + shape[0], col : col + shape[1]]


class Cells(NamedTuple):
    """Which rows and columns of a plane begin something new: bool (height), bool (width), the first of each True."""

    rows: NDArray[np.bool_]
    cols: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """Cells per pixel."""
        return float(self.rows.mean() * self.cols.mean())

    def within(self, other: Cells) -> bool:
        """Whether planes with these cells have the cells of `other` as well, which are finer."""
        return not (self.rows & ~other.rows).any() and not (self.cols & ~other.cols).any()


def cells_of(plane: NDArray[Any]) -> Cells:
    """The cells of a plane (height, width)."""
    rows, cols = np.ones(plane.shape[0], np.bool_), np.ones(plane.shape[1], np.bool_)
    rows[1:] = (plane[1:] != plane[:-1]).any(axis=1)
    kept = plane[rows]
    cols[1:] = (kept[:, 1:] != kept[:, :-1]).any(axis=0)
    return Cells(rows, cols)


class CellSources:
    """Where the samples of a level that lie in cells already known are to be taken from."""

    def __init__(self, cells: Cells, level: int) -> None:
        self._rows = [_Side(cells.rows, level, odd) for odd in (0, 1)]
        self._cols = [_Side(cells.cols, level, odd) for odd in (0, 1)]

    def known(self, phase: int) -> list[tuple[int, NDArray[np.bool_], NDArray[np.intp], NDArray[np.intp]]]:
        """(part, which samples of the phase it has, rows and columns of it to look at), in the order of preference."""
        row, col = PARTS[phase]
        found = []
        for part in range(phase):  # A before D before R before C: what is known when the phase is coded
            rows = self._rows[PARTS[part][0]].of_cell[self._rows[row].cell]
            cols = self._cols[PARTS[part][1]].of_cell[self._cols[col].cell]
            mask = (rows >= 0)[:, None] & (cols >= 0)
            if mask.any():
                found.append((part, mask, rows, cols))
        return found


class _Side:
    """Rows (or columns) of a level with even or odd numbers: `cell` of each, and one of them for each cell, or -1."""

    def __init__(self, begins: NDArray[np.bool_], level: int, odd: int) -> None:
        number = np.cumsum(begins) - 1
        self.cell: NDArray[np.intp] = number[odd << level :: 2 << level]
        self.of_cell = np.full(int(number[-1]) + 1, -1, np.intp)
        self.of_cell[self.cell[::-1]] = np.arange(len(self.cell) - 1, -1, -1)  # of several the first
