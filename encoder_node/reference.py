"""Coding a scene against one of the same place that the ground has: what of it to believe, and where.

The gains are Wiener filters, by least squares over sample windows; the cells' factors are chosen as tiles pass, by what
the planes of a cell would cost with each. Both are found in turns, because where the reference is of no use (clouds,
water, fields that were cut) it must not spoil the gains. Then the KLTs are those of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink.context import LEVEL_ZERO
from downlink.dct import BLOCK, CHANNELS, FLAT, SUBBANDS, subband
from downlink.moments import Moments, Statistics
from downlink.plane import FrontEnd
from downlink.prediction import CELLS, FACTOR_ONE, GAIN_MAX, GAIN_ONE, Prediction, cell_counts, expected, projected
from downlink.reference import ReferenceLattice
from downlink.tile import Tile
from encoder_node.tiles import SAMPLE_SIDE, LatticeReader

CELLS_MAX: Final = 1 << 18
"""Cells are 16 pixels wide, or, in lattices that would have more of them than this, twice as wide, and so on: their
factors must fit a chunk."""
WINDOW_VALUES: Final = 3 << 20
"""Coefficients of sample windows that gains are found from, at most."""
TURNS: Final = 2
LOUD: Final = LEVEL_ZERO - 8
"""Planes quieter than a quarter of a step do not count when a factor is chosen."""
TELLING: Final = 3.0
"""What it costs, about, in the unit of `_bits`, to say a factor that is one off from what is expected."""
_GROUPED: Final = 4
"""Values whose logarithms are taken together: their product stays far from the largest float32."""
_LARGEST: Final = np.float32(1e4)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Window:
    """Coefficients of a sample window: of the scene and of the reference less its mean (bands, 64, h, w), and which of
    its blocks hold any valid pixel (h * w)."""

    own: Floats
    known: Floats
    valid: NDArray[np.bool_]


class Foreknown:
    """What a reference says of a lattice that is being coded. A tile's factors are settled when its planes are made,
    and stand when those are coded."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction

    def take_off(self, tile: Tile, front_end: FrontEnd, step: float, planes: Floats) -> None:
        """Subtract from the planes (planes, 64, h, w) of a tile of whole cells what is known of them."""
        row, col = (at // BLOCK for at in tile.window[:2])
        cell, factors = self.prediction.cell, self.prediction.factors
        known = projected(front_end, self.prediction.whole(row, col, *planes.shape[2:]), step)
        chosen = choose_factors(planes, known, front_end.levels, cell)
        here = factors[row // cell :, col // cell :][: chosen.shape[0], : chosen.shape[1]]
        here[...] = chosen[: here.shape[0], : here.shape[1]]
        planes -= known * spread(chosen, cell, planes.shape[2:])


def foresee(
    reader: LatticeReader, reference: ReferenceLattice, front_end: FrontEnd, step: float
) -> tuple[Foreknown, Statistics] | None:
    """What a reference says of a lattice whose own `front_end` at this step is known, and the statistics, not weighted,
    of what it leaves open; None if it says nothing."""
    windows = _windows(reader, reference, front_end)
    lattice = reader.lattice
    fitting = (cell for cell in CELLS if np.prod(cell_counts(lattice.height, lattice.width, cell)) <= CELLS_MAX)
    cell = next(fitting)
    factors = [np.full([-(-side // cell) for side in window.own.shape[2:]], FACTOR_ONE, np.uint8) for window in windows]
    moments = Moments(lattice.half, front_end.mean.astype(np.float64))
    for turn in range(TURNS):
        gains = _gains(windows, factors, cell)
        channels = _by_channel(gains)
        for number, window in enumerate(windows):
            own, known = window.own.copy(), window.known * channels
            own[:, 0] -= FLAT * front_end.mean.astype(np.float32)[:, None, None]
            mixed = projected(front_end, own, step), projected(front_end, known, step)
            factors[number] = choose_factors(*mixed, front_end.levels, cell)
            if turn == TURNS - 1:
                left = window.own - known * spread(factors[number], cell, known.shape[2:])
                moments.add(left.reshape(*left.shape[:2], -1)[:, :, window.valid])
    if not gains.any() or not any(found.any() for found in factors):
        return None
    counts = cell_counts(lattice.height, lattice.width, cell)
    prediction = Prediction(reference, gains, cell, np.zeros(counts, np.uint8))
    return Foreknown(prediction), moments.statistics()


def choose_factors(planes: Floats, known: Floats, levels: NDArray[np.uint8], cell: int) -> NDArray[np.uint8]:
    """For each cell, the factor with which what is left of `planes` (planes, 64, h, w) costs least, about: (cells down,
    cells across). Of subbands 0 to 2 of planes that are loud, which are most of the cost."""
    loud = [np.flatnonzero(levels[:, band] >= LOUD) for band in range(len(SUBBANDS) - 1)]
    parts = [
        [np.clip(values[some, subband(band)], -_LARGEST, _LARGEST) for band, some in enumerate(loud) if len(some)]
        for values in (planes, known)
    ]
    down, across = (-(-side // cell) for side in planes.shape[2:])
    if not parts[0]:
        return np.zeros((down, across), np.uint8)
    own, said = (np.concatenate([part.reshape(-1, *planes.shape[2:]) for part in of]) for of in parts)
    costs = []
    for factor in range(FACTOR_ONE + 1):
        left = own - said * np.float32(factor / FACTOR_ONE)
        costs.append(_by_cell(_bits(left), cell, (down, across)))
    return _settled(np.stack(costs))


def _settled(costs: Floats) -> NDArray[np.uint8]:
    """The cheapest factors (cells down, cells across) of costs (factors, cells down, cells across), row by row, with
    what it costs to say that one differs from what the row above makes expected."""
    down, across = (int(side) for side in costs.shape[1:])
    out = np.empty((down, across), np.uint8)
    every = np.arange(len(costs), dtype=np.float32)[:, None]
    for row in range(down):
        likely = expected(out[row - 1] if row else None, across) / np.float32(8)
        out[row] = np.argmin(costs[:, row] + TELLING * np.abs(every - likely), axis=0)
    return out


def _bits(left: Floats) -> Floats:
    """About twice the bits of values (n, h, w) in steps, summed over n."""
    left *= left
    left *= 2
    left += 1
    count = len(left) // _GROUPED * _GROUPED
    grouped = left[:count].reshape(_GROUPED, -1, *left.shape[1:]).prod(axis=0)
    total = np.log2(grouped).sum(axis=0) + np.log2(left[count:]).sum(axis=0)
    return np.asarray(total, np.float32)


def _by_cell(values: Floats, cell: int, counts: tuple[int, int]) -> Floats:
    """Sums of values (h, w) over cells."""
    height, width = values.shape
    padded = np.pad(values, ((0, counts[0] * cell - height), (0, counts[1] * cell - width)))
    return np.asarray(padded.reshape(counts[0], cell, counts[1], cell).sum(axis=(1, 3)))


def spread(factors: NDArray[np.uint8], cell: int, shape: tuple[int, ...]) -> Floats:
    """Factors of cells, of every block (h, w)."""
    every = factors.repeat(cell, axis=0).repeat(cell, axis=1)[: shape[0], : shape[1]]
    return np.asarray(every / np.float32(FACTOR_ONE), np.float32)


def _by_channel(gains: NDArray[np.uint8]) -> Floats:
    """Gains (4, bands) of every channel: (bands, 64, 1, 1)."""
    real = gains / np.float32(GAIN_ONE)
    return np.asarray(real.T.repeat(np.diff([0, *SUBBANDS]), axis=1)[:, :, None, None])


def _windows(reader: LatticeReader, reference: ReferenceLattice, front_end: FrontEnd) -> list[_Window]:
    windows = reader.windows(SAMPLE_SIDE)
    bands = len(reader.lattice.members)
    most = max(1, WINDOW_VALUES // (bands * SAMPLE_SIDE**2))
    out = []
    for number in windows.sample_tiles(most):
        tile = windows.one(number)
        down, across = (-(-side // BLOCK) for side in tile.tile.window[2:])
        own = tile.coefficients(front_end.mean.astype(np.float32))[:, :, :down, :across]
        known = reference.at(tile.tile.window.row // BLOCK, tile.tile.window.col // BLOCK, down, across)
        known[:, 0] -= reference.mean[:, None, None]
        out.append(_Window(own, known, windows.valid_blocks(tile, down, across)))
    return out


def _gains(windows: list[_Window], factors: list[NDArray[np.uint8]], cell: int) -> NDArray[np.uint8]:
    """Least squares for every band and subband, where factors let the reference count: (4, bands)."""
    bands = len(windows[0].own)
    sums = np.zeros((5, bands, CHANNELS))
    for window, found in zip(windows, factors, strict=True):
        weight = spread(found, cell, window.own.shape[2:]) * window.valid.reshape(window.own.shape[2:])
        used = weight > 0
        known, own = window.known[:, :, used] * weight[used], window.own[:, :, used]
        products = known * own, known * known, known, own
        counted = np.full((bands, CHANNELS), used.sum())
        sums += np.stack([*(np.sum(each, axis=2, dtype=np.float64) for each in products), counted])
    both, power, known_sum, own_sum, count = sums
    # The mean is not predicted: only channel 0 has one.
    both[:, 0] -= known_sum[:, 0] * own_sum[:, 0] / np.maximum(count[:, 0], 1)
    power[:, 0] -= known_sum[:, 0] ** 2 / np.maximum(count[:, 0], 1)
    first = [0, *SUBBANDS[:-1]]
    gain = np.add.reduceat(both, first, axis=1) / np.maximum(np.add.reduceat(power, first, axis=1), 1e-6)
    return np.asarray(np.clip(np.rint(gain.T * GAIN_ONE), 0, GAIN_MAX), np.uint8)
