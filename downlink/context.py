"""What the prior may know of a symbol before it is decoded, in integers only.

The prior network (``prior.onnx``) is exact on every machine because each of its inputs is a small integer made here
from symbols that both ends already share: the companded symbols of earlier channel groups, of the plane before, and
the running energy of all planes before. No float enters. Refuses nothing: any int32 symbol has a companded value.

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
