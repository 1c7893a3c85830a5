"""Nodata for codecs that know none: a lossless mask beside the picture, and a smooth filling beneath it.

JPEG 2000 and its like have no notion of nodata: coded as it stands, its edge costs many bits and comes back blurred.
Every classical codec here is given what a careful user would give it: the holes are filled so smoothly that they cost
next to nothing, the mask travels beside the codestream (and is counted), and nodata is put back exactly.
"""

from __future__ import annotations

import numpy as np
import zstandard
from numpy.typing import NDArray

_LEVEL = 19  # the mask is small and the baseline shall be strong


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """(bands, height, width), True is nodata -> bytes. One plane only when all bands share it."""
    shared = bool((mask == mask[:1]).all())
    bits = np.packbits(mask[:1] if shared else mask, axis=-1)
    bits[:, 1:] ^= bits[:, :-1].copy()
    return bytes([shared]) + zstandard.ZstdCompressor(level=_LEVEL).compress(bits.tobytes())


def unpack_mask(payload: bytes, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    bands, height, width = shape
    planes = 1 if payload[0] else bands
    raw = zstandard.ZstdDecompressor().decompress(payload[1:])
    bits = np.frombuffer(raw, np.uint8).reshape(planes, height, -(-width // 8))
    mask = np.unpackbits(np.bitwise_xor.accumulate(bits, axis=1), axis=-1, count=width).view(np.bool_)
    return np.broadcast_to(mask, shape)


def fill(band: NDArray[np.generic], hole: NDArray[np.bool_]) -> NDArray[np.generic]:
    """`band` with its holes filled from ever coarser averages of what surrounds them (push-pull)."""
    if not hole.any():
        return band
    if hole.all():
        return np.zeros_like(band)
    smooth = _pull(np.where(hole, 0.0, band.astype(np.float64)), (~hole).astype(np.float64))
    filled = band.copy()
    filled[hole] = np.round(smooth[hole]).astype(band.dtype)
    return filled


def _pull(total: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means; where the weight is 0, those of the next coarser level."""
    known = weight > 0
    mean = np.divide(total, weight, out=np.zeros_like(total), where=known)
    if known.all():
        return mean
    height, width = total.shape
    pad = ((0, height % 2), (0, width % 2))
    halves = [
        np.pad(array, pad).reshape(-(-height // 2), 2, -(-width // 2), 2).sum((1, 3)) for array in (total, weight)
    ]
    coarse = _pull(*halves).repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(known, mean, coarse)
