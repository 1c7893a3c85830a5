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

from downlink.dct import subband
from downlink.latent import TileCode, TileSymbols, expect_tile
from downlink.prior import Prior, Symbols

DEAD_ZONE = 0.65
"""Magnitude below which a latent counts as zero in the first guess."""
SCALE_UNIT = 0.11
"""Standard deviation of scale index 1; four indices make an octave (as in training and in the tables)."""
EXPONENT_LIMIT = 60.0

Floats = NDArray[np.float32]
_INVERSE_SCALES = (math.pi / (SCALE_UNIT * math.sqrt(3)) * np.exp2(-(np.arange(256, dtype=np.float32) - 1) / 4)).astype(
    np.float32
)


def _bits(offset: Floats, inverse: Floats) -> Floats:
    """Bits of an offset from the mean under a logistic density, up to what is the same for all offsets; `inverse` is
    one over its scale parameter."""
    distance = np.abs(offset)
    near = np.exp(np.minimum((distance - np.float32(0.5)) * inverse, np.float32(EXPONENT_LIMIT)))
    far = np.exp(np.maximum(-(distance + np.float32(0.5)) * inverse, np.float32(-EXPONENT_LIMIT)))
    total = np.log1p(near) + np.log1p(far)
    return np.asarray(total / math.log(2), np.float32)


def refine(root: Floats, latent: Floats, hyper: Symbols, code: TileCode, prior: Prior) -> TileSymbols:
    """Symbols of a tile for its exact `root` (planes, 16, h/4, w/4) and `latent` (planes, 64, h, w), given its
    hyper-latents."""
    price = code.spec.bit_price
    if price <= 0:
        return TileSymbols(_nearest(root), _without_means(_nearest(latent)), hyper)
    guess = TileSymbols(_guess(root), _without_means(_guess(latent)), hyper)
    out = TileSymbols(_nearest(root), _without_means(_nearest(latent)), hyper)
    for number, (index, mean) in enumerate(expect_tile(code, guess, prior)):
        count = len(index)
        exact = latent[:count, subband(number)] if number else root[:count]
        symbols = out.of_subband(number)
        symbols[:count] = _cheaper(exact, symbols[:count], index, mean, price)
        symbols[count:] = 0
    return out


def _nearest(exact: Floats) -> Symbols:
    return np.rint(exact).astype(np.int32)


def _guess(exact: Floats) -> Symbols:
    guess = _nearest(exact)
    guess[np.abs(exact) < DEAD_ZONE] = 0
    return guess


def _without_means(latent: Symbols) -> Symbols:
    """Channel 0 is coded as the root."""
    latent[:, 0] = 0
    return latent


def _cheaper(exact: Floats, nearest: Symbols, index: NDArray[np.uint8], mean: Symbols, price: float) -> Symbols:
    """`nearest`, or one step closer to zero where that is worth it."""
    symbols = nearest.reshape(-1)  # a copy where `nearest` is a view of some channels
    at = np.flatnonzero(symbols)
    value = symbols[at]
    lower = value - np.sign(value)
    inverse = _INVERSE_SCALES[index.reshape(-1)[at]]
    centre = (mean.reshape(-1)[at] / 8).astype(np.float32)
    there = exact.reshape(-1)[at]
    saved = np.subtract(_bits(value - centre, inverse), _bits(lower - centre, inverse))
    added = (there - lower) ** 2 - (there - value) ** 2
    symbols[at] = np.where(saved * np.float32(price) > added, lower, value)
    return symbols.reshape(nearest.shape)
