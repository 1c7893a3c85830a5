"""What the prior may know of a symbol before it is decoded, in integers only.

The prior network (``prior_*.onnx``) is exact on every machine because each of its inputs is a small integer made here
from symbols that both ends already share: the companded symbols of earlier subbands and of the plane before, the
running energy of all planes before, and what neighbouring blocks' means say of a block's own. No float enters.
Refuses nothing: any int32 symbol has a companded value.

Symbols of a subband are coded in three phases: a quarter of the fields, those diagonally between them, then the rest,
so that three in four symbols see four neighbours (as in checkerboard contexts: He et al. 2021). Once all block means
are known, their slopes predict the first horizontal and vertical frequency of every block (as JPEG's AC prediction
does).

Shapes: symbols of one plane are (channels, height, width) at latent resolution, any leading axes allowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COMPAND_LIMIT = 127
"""Companded magnitudes stay in 0..127, so that they and their 3x3 averages fit the prior's integer range."""

STEPS_PER_OCTAVE = 8
ENERGY_DECAY = 4
"""How fast the energy context forgets, in companded units (half an octave) per plane."""

LEVEL_ZERO = 32
LEVEL_LIMIT = 127
LEVELS_PER_OCTAVE = 4


def _thresholds() -> NDArray[np.int64]:
    """Smallest magnitude m whose companded value reaches t, for t = 0..127: (1 + m)^8 >= 2^t, in exact integers."""
    smallest = []
    for t in range(COMPAND_LIMIT + 1):
        m = max(0, int(2 ** (t / STEPS_PER_OCTAVE)) - 3)
        while (1 + m) ** STEPS_PER_OCTAVE < 1 << t:
            m += 1
        smallest.append(m)
    return np.array(smallest, dtype=np.int64)


_TABLE_SIZE = 1 << 16
COMPAND_TABLE: NDArray[np.int16] = (
    np.searchsorted(_thresholds(), np.arange(_TABLE_SIZE), side="right").astype(np.int16) - 1
)
"""``COMPAND_TABLE[|q|]`` = floor(8 log2(1 + |q|)), clipped to 127; |q| beyond the table counts as its last entry."""


def compand(symbols: NDArray[np.int32]) -> NDArray[np.int16]:
    """Signed logarithm of symbols: sign(q) floor(8 log2(1 + |q|)), within -127..127.

    >>> compand(np.array([0, 1, -1, 3, 1000], dtype=np.int32)).tolist()
    [0, 8, -8, 16, 79]
    """
    magnitude = COMPAND_TABLE[np.minimum(np.abs(symbols), _TABLE_SIZE - 1)]
    return np.where(symbols < 0, -magnitude, magnitude)


def next_energy(energy: NDArray[np.int16], companded: NDArray[np.int16]) -> NDArray[np.int16]:
    """Energy context for the plane that follows one with these companded symbols; zero before the first plane."""
    return np.maximum(energy - ENERGY_DECAY, np.abs(companded)).astype(np.int16)


def level_of(deviation: float, step: float) -> int:
    """A plane's loudness as the prior sees it: 4 log2(deviation / step) + 32, rounded, in 0..127.

    Both in DN. Computed by the encoder alone and sent (side chunk), so its float logarithm may differ between machines.
    """
    if deviation <= 0 or step <= 0:
        return 0
    level = round(LEVELS_PER_OCTAVE * float(np.log2(deviation / step))) + LEVEL_ZERO
    return max(0, min(LEVEL_LIMIT, level))


NEAR_LIMIT = 1 << 17
"""Predictions from neighbours, in eighths, stay within this: times a trust below 2^5 they stay below 2^24."""
ROTATION_SHIFT = 6

Integers = NDArray[np.int32]
Mask = NDArray[np.bool_]


def phases(height: int, width: int) -> tuple[Mask, Mask, Mask]:
    """The fields that a subband's three phases code, (height, width) each: every second one of every second row; those
    diagonally between them; all others."""
    rows, cols = np.arange(height)[:, None] % 2, np.arange(width) % 2
    return (rows == 0) & (cols == 0), (rows == 1) & (cols == 1), rows != cols


def _shifted(values: NDArray[Any], fill: int) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The fields diagonally and directly beside every field, `fill` beyond the edge; (..., h, w) each."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)], constant_values=fill)
    diagonal = [padded[..., :-2, :-2], padded[..., :-2, 2:], padded[..., 2:, :-2], padded[..., 2:, 2:]]
    direct = [padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]]
    return diagonal, direct


def around(magnitudes: NDArray[np.int16]) -> NDArray[np.int16]:
    """What a field's four neighbours of earlier phases hold, on average (floor; 0 beyond the edge): (..., h, w) of
    companded magnitudes. Nothing is known in the first phase; the second sees its diagonal neighbours, the third its
    direct ones."""
    _, second, third = phases(*magnitudes.shape[-2:])
    diagonal, direct = _shifted(magnitudes, 0)
    out = np.zeros_like(magnitudes)
    for mask, neighbours in ((second, diagonal), (third, direct)):
        np.copyto(out, (neighbours[0] + neighbours[1] + neighbours[2] + neighbours[3]) >> 2, where=mask)
    return out


def near(values: Integers) -> tuple[Integers, NDArray[np.int16]]:
    """What a field's neighbours of earlier phases predict: their average in eighths (floor), and the companded width
    of their range; 0 where there are none. `values` are symbols (..., h, w)."""
    bounded = np.clip(values, -NEAR_LIMIT // 8, NEAR_LIMIT // 8)
    height, width = values.shape[-2:]
    _, second, third = phases(height, width)
    average, widest = np.zeros(bounded.shape, np.int32), np.zeros(bounded.shape, np.int32)
    count = _shifted(np.ones((height, width), np.int32), 0)
    total, highest, lowest = _shifted(bounded, 0), _shifted(bounded, -NEAR_LIMIT), _shifted(bounded, NEAR_LIMIT)
    for which, mask in enumerate((second, third)):
        mask = mask & (sum(count[which]) > 0)
        average[..., mask] = (sum(total[which]) * 8 // np.maximum(1, sum(count[which])))[..., mask]
        span = np.maximum.reduce(highest[which]) - np.minimum.reduce(lowest[which])
        widest[..., mask] = span[..., mask]
    return average, compand(widest)


def smooth(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """3x3 binomial average of (..., h, w), floor of sixteenths, 0 beyond the edge."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    rows = padded[..., :-2, :] + padded[..., 2:, :] + 2 * padded[..., 1:-1, :]
    return np.asarray((rows[..., :-2] + rows[..., 2:] + 2 * rows[..., 1:-1]) >> 4)


def rotation(to_rows: NDArray[np.int16], from_rows: NDArray[np.int16], unit: int) -> NDArray[np.int64]:
    """What planes of one basis are in another, in units of 1/64: (planes to, planes from), from quantised rows whose
    products are in units of 1 / unit."""
    product = to_rows.astype(np.int64) @ from_rows.astype(np.int64).T
    return (2 * (product << ROTATION_SHIFT) + unit) // (2 * unit)


def slopes(means: Integers) -> Integers:
    """How block means (planes, h, w) fall from left to right and from top to bottom: (planes, 2, h, w)."""
    padded = np.pad(np.clip(means, -NEAR_LIMIT, NEAR_LIMIT), [(0, 0), (1, 1), (1, 1)], mode="edge")
    return np.stack([padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]], axis=1)


def turned(slope: Integers, turn: NDArray[np.int64]) -> Integers:
    """Slopes of subband 0's planes as subband 1's planes see them: (planes of 1, 2, h, w)."""
    exact = np.tensordot(turn.astype(np.float64), slope[: turn.shape[1]].astype(np.float64), axes=1)  # below 2^53
    return np.clip(np.floor(exact / (1 << ROTATION_SHIFT)), -NEAR_LIMIT, NEAR_LIMIT).astype(np.int32)


def steepness(slope: Integers) -> NDArray[np.int16]:
    """How steep the block means are: companded |across| + |down| of slopes (planes, 2, h, w) in eighths: (planes, h,
    w)."""
    return compand(np.abs(slope).sum(axis=1, dtype=np.int32) >> 3)
