"""Structural similarity of bands: SSIM (Wang et al. 2004) and MS-SSIM (Wang, Simoncelli and Bovik 2003).

Gaussian window of 11 x 11, sigma 1.5, K1 = 0.01, K2 = 0.03; MS-SSIM over five scales with the paper's weights, each
scale the mean of 2 x 2 pixels of the one before. Both take the mean over a band's valid pixels, then over bands, and
need sides: SSIM one window (11 px), MS-SSIM one window at its coarsest scale (176 px). What is smaller has none, rather
than a figure that nobody else's compares with.

Nodata is taken out by giving both pictures the same constant there, so that it neither helps nor hurts what is beside
it more than its share of the window. Both measures come from one pass: scale 1 of MS-SSIM is SSIM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from downlink.quality import valid_pixels
from downlink.scene import Scene

SSIM_SIDE_MIN = 11
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE_MIN = SSIM_SIDE_MIN * 2 ** (len(SCALE_WEIGHTS) - 1)

_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_TAPS = np.exp(-0.5 * (np.arange(-5, 6) / _SIGMA) ** 2)
_TAPS /= _TAPS.sum()

Floats = NDArray[np.float64]


class Similarity(NamedTuple):
    """Means over bands; None where the sides are too short or nothing is valid."""

    ssim: float | None
    ms_ssim: float | None


def similarity(
    scene: Scene, original: Sequence[NDArray[Any]], decoded: Sequence[NDArray[Any]], peak: float
) -> Similarity:
    """Of all bands of a scene, arrays (bands, height, width) per grid."""
    single: list[float] = []
    multiple: list[float] = []
    for grid, one, other in zip(scene.grids, original, decoded, strict=True):
        side = min(grid.height, grid.width)
        if side < SSIM_SIDE_MIN:
            continue
        valid = valid_pixels(one, grid.nodata)
        scales = len(SCALE_WEIGHTS) if side >= MS_SSIM_SIDE_MIN else 1
        for band in range(len(grid.bands)):
            where = None if valid is None else valid[band]
            if where is not None and not where.any():
                continue
            luminance, contrasts = _band(one[band], other[band], where, peak, scales)
            single.append(luminance[0])
            if scales > 1:
                # A negative contrast has no fractional power; it means "nothing alike", which 0 says as well.
                factors = [max(c, 0.0) for c in contrasts[:-1]] + [max(luminance[-1], 0.0)]
                multiple.append(float(np.prod(np.power(factors, SCALE_WEIGHTS))))
    return Similarity(float(np.mean(single)) if single else None, float(np.mean(multiple)) if multiple else None)


def _band(
    original: NDArray[Any], decoded: NDArray[Any], where: NDArray[np.bool_] | None, peak: float, scales: int
) -> tuple[list[float], list[float]]:
    """Per scale the mean of SSIM, and of its contrast and structure alone."""
    one, other = original.astype(np.float64), decoded.astype(np.float64)
    if where is not None:
        level = float(one[where].mean())
        one, other = np.where(where, one, level), np.where(where, other, level)
    whole: list[float] = []
    contrast: list[float] = []
    for scale in range(scales):
        if scale:
            one, other = _halved(one), _halved(other)
            where = None if where is None else _halved(where.astype(np.float64)) == 1
        full, part = _maps(one, other, peak)
        if where is not None and where.any():
            full, part = full[where], part[where]
        whole.append(float(full.mean()))
        contrast.append(float(part.mean()))
    return whole, contrast


def _maps(one: Floats, other: Floats, peak: float) -> tuple[Floats, Floats]:
    """SSIM of every pixel, and its contrast and structure term."""
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    mean_one, mean_other = _blurred(one), _blurred(other)
    product = mean_one * mean_other
    squares = mean_one**2 + mean_other**2
    variances = _blurred(one**2 + other**2) - squares
    covariance = _blurred(one * other) - product
    part = (2 * covariance + c2) / (variances + c2)
    return part * (2 * product + c1) / (squares + c1), part


def _blurred(values: Floats) -> Floats:
    rows: Floats = correlate1d(values, _TAPS, axis=0, mode="reflect")
    both: Floats = correlate1d(rows, _TAPS, axis=1, mode="reflect")
    return both


def _halved(values: Floats) -> Floats:
    height, width = (side // 2 for side in values.shape)
    means: Floats = values[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
    return means
