"""What the synthesis sees of symbols, in integers that every machine makes alike.

The network (decoder.onnx, from training/synthesis.py) turns them into what is added to the symbols' values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from downlink.dct import CHANNELS, SUBBANDS

LOUD_PER_OCTAVE = 48
"""Units of a signed logarithm to a doubling of 1 + |x| …"""
SOFT_UNITS = 15
"""… and of x / (1 + |x| / 64) to one."""
SEEN_LIMIT = 1023
SEEN_CHANNELS = 3 * CHANNELS + len(SUBBANDS) + 4
_SOFT = np.float32(1 / 64)

Values = NDArray[np.float32]


def _loud(values: Values) -> NDArray[np.int32]:
    octaves = (np.abs(values) + np.float32(1)).view(np.int32)
    octaves >>= 15
    octaves -= 127 << 8  # in 1/256, as if straight between powers of two
    rest = octaves & 255
    octaves += rest * (256 - rest) * 88 >> 16
    return np.asarray(np.minimum(octaves * LOUD_PER_OCTAVE + 128 >> 8, SEEN_LIMIT))


def _soft(values: Values) -> Values:
    return np.asarray(np.rint(values / (np.float32(1) + np.abs(values) * _SOFT) * np.float32(SOFT_UNITS)))


def seen(values: Values, before: Values, levels: NDArray[np.uint8]) -> Values:
    """Values (planes, 64, h, w) of symbols, those of the planes before them, and levels (planes, 4) -> what the
    network is given (planes, 200, h, w): signed logarithms of both, softened values, levels, and how much higher the
    block means above, below, left and right are, softened, at the edge none."""
    planes, _, height, width = values.shape
    out = np.empty((planes, SEEN_CHANNELS, height, width), np.float32)
    for number, given in enumerate((values, before)):
        np.copysign(_loud(given), given, out=out[:, number * CHANNELS : (number + 1) * CHANNELS], casting="unsafe")
    out[:, 2 * CHANNELS : 3 * CHANNELS] = _soft(values)
    out[:, 3 * CHANNELS : -4] = levels[:, :, None, None]
    mean = values[:, 0]
    edge = np.pad(mean, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = edge[:, :-2, 1:-1], edge[:, 2:, 1:-1], edge[:, 1:-1, :-2], edge[:, 1:-1, 2:]
    for number, beside in enumerate(around):
        out[:, -4 + number] = _soft(beside - mean)
    return out


def sent(levels: NDArray[np.uint8]) -> Values:
    """Levels (planes, 4) -> 1 for channels of subbands that are sent, 0 for others: (planes, 64, 1, 1)."""
    return (levels > 0).repeat(np.diff([0, *SUBBANDS]), axis=1).astype(np.float32)[:, :, None, None]
