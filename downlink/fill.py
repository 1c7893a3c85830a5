"""Smooth filling of nodata pixels before the encoder, so that they cost no bits: pull-push over a pyramid of averages.

Holes take the average of the nearest scale at which something valid is in reach (Gortler et al., The Lumigraph, 1996,
§3.4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fill_holes(
    pixels: NDArray[np.float32], hole: NDArray[np.bool_], otherwise: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Pixels (bands, h, w) with those under `hole` (1 or bands, h, w) replaced; a band with no valid pixel becomes
    `otherwise`."""
    if not hole.any():
        return pixels
    weight = np.broadcast_to(~hole, pixels.shape).astype(np.float32)
    filled = _pull_push(pixels * weight, weight)
    empty = weight.reshape(len(pixels), -1).sum(axis=1) == 0
    filled[empty] = otherwise[empty, None, None]
    return np.where(weight > 0, pixels, filled)


def _pull_push(total: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Averages where weight is positive, coarser averages elsewhere; `total` is weighted."""
    height, width = total.shape[1:]
    average = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    if max(height, width) == 1 or bool((weight > 0).all()):
        return average
    odd = [(0, 0), (0, height % 2), (0, width % 2)]
    coarse_total = _halve(np.pad(total, odd))
    coarse_weight = _halve(np.pad(weight, odd))
    # Weights stay within 0..1: what is known counts the same at each scale.
    share = np.reciprocal(np.maximum(coarse_weight, 1)).astype(np.float32)
    coarse = _pull_push(coarse_total * share, coarse_weight * share)
    up = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
    return np.asarray(np.where(weight > 0, average, up))


def _halve(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    bands, height, width = planes.shape
    return np.asarray(planes.reshape(bands, height // 2, 2, width // 2, 2).sum(axis=(2, 4)))
