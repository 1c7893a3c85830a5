"""Rate-distortion optimised quantisation: symbols that cost more bits than they are worth move one step towards zero.

An encoder may send any symbols it likes; the format does not care. A first guess (rounding with a dead zone) asks the
prior what each symbol would cost; then each symbol is its nearest integer q, or the next one towards zero if the bits
that saves are worth more (`bit_price`, in squared steps per bit) than the error it adds. Floats are fine here: nobody
else needs to know why.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from downlink.latent import TileCode, contexts
from downlink.prior import Prior, Symbols, expect_known

DEAD_ZONE = 0.65
"""Magnitude below which a latent counts as zero in the first guess."""
SCALE_UNIT = 0.11
"""Standard deviation of scale index 1; four indices make an octave (as in training and in the tables)."""
EXPONENT_LIMIT = 60.0

Floats = NDArray[np.float32]


def _bits(offset: Floats, inverse: Floats) -> Floats:
    """Bits of an offset from the mean under a logistic density, up to what is the same for all offsets; `inverse` is
    one over its scale parameter."""
    distance = np.abs(offset)
    near = np.exp(np.minimum((distance - np.float32(0.5)) * inverse, np.float32(EXPONENT_LIMIT)))
    far = np.exp(np.maximum(-(distance + np.float32(0.5)) * inverse, np.float32(-EXPONENT_LIMIT)))
    total = np.log1p(near) + np.log1p(far)
    return np.asarray(total / math.log(2), np.float32)


def refine(latents: Floats, hyper: Symbols, code: TileCode, prior: Prior) -> Symbols:
    """Symbols int32 for unrounded `latents` (planes, 64, h, w) of a tile, given its hyper-latents."""
    nearest = np.rint(latents).astype(np.int32)
    bit_price = code.spec.bit_price
    if bit_price <= 0:
        return nearest
    guess = nearest.copy()
    guess[np.abs(latents) < DEAD_ZONE] = 0
    index, mean = expect_known(prior, hyper, guess, *contexts(guess, code.turn), code.levels)
    at = np.flatnonzero(nearest)
    value = nearest.reshape(-1)[at]
    lower = value - np.sign(value)
    scale = np.exp2((np.arange(256, dtype=np.float32) - 1) / 4) * np.float32(SCALE_UNIT * math.sqrt(3) / math.pi)
    inverse = (1 / scale).astype(np.float32)[index.reshape(-1)[at]]
    centre = (mean.reshape(-1)[at] / 8).astype(np.float32)
    exact = latents.reshape(-1)[at]
    saved = np.subtract(_bits(value - centre, inverse), _bits(lower - centre, inverse))
    added = (exact - lower) ** 2 - (exact - value) ** 2
    symbols = nearest.reshape(-1)
    symbols[at] = np.where(saved * np.float32(bit_price) > added, lower, value)
    return symbols.reshape(nearest.shape)
