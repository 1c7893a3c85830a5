"""What the prior may know of a symbol before it is decoded, in integers only.

The prior network (``prior.onnx``) is exact on every machine because each of its inputs is a small integer made here
from symbols that both ends already share: the companded symbols of earlier subbands and of the plane before, the
running energy of all planes before, and what neighbouring blocks' means say of a block's own. No float enters.
Refuses nothing: any int32 symbol has a companded value.

A block's mean (channel 0) is coded in two passes over a checkerboard: first the anchors, then the others, each
predicted from its four anchors (checkerboard context: He et al. 2021). Once all means are known, their slopes predict
the first horizontal and vertical frequency of every block (as JPEG's AC prediction does).

Shapes: symbols of one plane are (channels, height, width) at latent resolution, any leading axes allowed.
"""

from __future__ import annotations

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
"""Predictions from neighbours stay within this: times a trust below 2^6 they are exact in float32."""
ROTATION_SHIFT = 6

Integers = NDArray[np.int32]


def anchors(height: int, width: int) -> NDArray[np.bool_]:
    """Blocks whose mean is coded first: the even fields of a checkerboard, (height, width)."""
    rows, cols = np.ogrid[:height, :width]
    return np.asarray((rows + cols) % 2 == 0)


def _neighbours(values: Integers, fill: int) -> list[Integers]:
    """The field above, below, left and right of every field, `fill` beyond the edge; (..., h, w) each."""
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)], constant_values=fill)
    return [padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]]


def near(means: Integers) -> tuple[Integers, NDArray[np.int16]]:
    """What a block's four neighbours say of its mean: their average in eighths (floor), and the companded width of
    their range.

    `means` are the symbols of channel 0, (..., h, w) with h, w >= 2; only neighbours are looked at.
    """
    values = np.clip(means, -NEAR_LIMIT // 8, NEAR_LIMIT // 8)
    total = sum(_neighbours(values, 0))
    height, width = values.shape[-2:]
    count = sum(_neighbours(np.ones((height, width), np.int32), 0))
    widest = np.maximum.reduce(_neighbours(values, -NEAR_LIMIT))
    lowest = np.minimum.reduce(_neighbours(values, NEAR_LIMIT))
    return (total * 8 // count).astype(np.int32), compand(widest - lowest)


def rotation(to_rows: NDArray[np.int16], from_rows: NDArray[np.int16], unit: int) -> NDArray[np.int64]:
    """What planes of one basis are in another, in units of 1/64: (planes to, planes from), from quantised rows whose
    products are in units of 1 / unit."""
    product = to_rows.astype(np.int64) @ from_rows.astype(np.int64).T
    return (2 * (product << ROTATION_SHIFT) + unit) // (2 * unit)


def slopes(means: Integers, turn: NDArray[np.int64]) -> Integers:
    """How a tile's block means fall from left to right and from top to bottom, turned into subband 1's planes:
    (planes, 2, h, w) from means (planes of subband 0, h, w)."""
    values = np.clip(means, -NEAR_LIMIT // 8, NEAR_LIMIT // 8)
    padded = np.pad(values, [(0, 0), (1, 1), (1, 1)], mode="edge").astype(np.float64)  # exact: sums stay below 2^53
    both = np.stack([padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]], axis=1)
    turned = np.floor(np.tensordot(turn.astype(np.float64), both, axes=1) / (1 << ROTATION_SHIFT))
    return np.clip(turned, -NEAR_LIMIT, NEAR_LIMIT).astype(np.int32)
