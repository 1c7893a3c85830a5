"""How far a decoded scene is from its original: streamable, exact, nodata left out.

`Quality` takes a scene in pieces of any size and order, grid by grid, and answers for the whole scene. PSNR comes from
the mean squared error over **all valid samples of the scene** (never a mean of per-band or per-tile PSNRs) against a
peak that is always stated: 10000 for reflectance in 16 bits, 255 for 8 bits. Squared errors are summed as integers, so
the figures do not depend on how the scene was cut.

A sample is valid when its original is not nodata. What became of the others is counted in `nodata_wrong`: nodata that
came back as something else, or data that came back as nodata.

Refuses arrays whose shapes disagree and float pixels: measure what is written to the file, after rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.errors import SceneError
from downlink.scene import Scene

PEAK_REFLECTANCE: Final = 10_000.0  # reflectance 1.0 in the products of Sentinel-2, HLS and most others
PEAK_8_BIT: Final = 255.0

_BLOCK_SAMPLES: Final = 1 << 20  # samples compared at once: bounds the float64 temporaries to some tens of MB


def default_peak(scene: Scene) -> float:
    """The peak that a scene's PSNR is measured against when nobody says otherwise."""
    return PEAK_8_BIT if all(grid.dtype == "uint8" for grid in scene.grids) else PEAK_REFLECTANCE


def psnr_db(mse: float, peak: float) -> float:
    """Peak signal-to-noise ratio. Infinite for no error, nan for no samples.

    >>> round(psnr_db(3162.28, 10_000), 2)
    45.0
    """
    if mse == 0:
        return math.inf
    return 10 * math.log10(peak * peak / mse)


def valid_pixels(original: NDArray[Any], nodata: int | None) -> NDArray[np.bool_] | None:
    """Where `original` holds data; None when it does everywhere."""
    if nodata is None:
        return None
    valid = original != nodata
    return None if valid.all() else valid


class Quality:
    """Collects the errors of one scene.

    >>> quality = Quality([2], peak=255)
    >>> quality.add(0, np.array([[[1, 2]], [[3, 4]]], np.uint8), np.array([[[1, 2]], [[3, 8]]], np.uint8))
    >>> quality.mse, quality.max_error, quality.rmse_per_band
    (4.0, 4, [0.0, 2.8284271247461903])
    """

    def __init__(self, bands: Sequence[int], peak: float, nodata: Sequence[int | None] | None = None) -> None:
        """`bands` and `nodata` have one entry per grid."""
        if not peak > 0:
            raise SceneError(f"peak is {peak}; PSNR needs a peak above 0, such as 10000 or 255")
        self.peak = peak
        self.max_error = 0
        self.nodata_wrong = 0
        self._nodata = list(nodata) if nodata is not None else [None] * len(bands)
        # Python integers: a sum of squared 16-bit errors over 16 GiB of pixels passes 2^63.
        self._squared = [[0] * count for count in bands]
        self._samples = [[0] * count for count in bands]
        self._angle_sum = 0.0
        self._angle_count = 0

    @classmethod
    def of_scene(cls, scene: Scene, peak: float | None = None) -> Quality:
        return cls(
            [len(grid.bands) for grid in scene.grids],
            default_peak(scene) if peak is None else peak,
            [grid.nodata for grid in scene.grids],
        )

    def add(self, grid: int, original: NDArray[Any], decoded: NDArray[Any]) -> None:
        """Compare a piece of `grid`: both (bands, rows, columns), in the file's own integers."""
        bands = len(self._squared[grid])
        if original.shape != decoded.shape or original.ndim != 3 or len(original) != bands:
            raise SceneError(
                f"original is {original.shape}, decoded is {decoded.shape}; both must be ({bands}, rows, columns)"
            )
        for name, array in (("original", original), ("decoded", decoded)):
            if array.dtype.kind not in "ui":
                raise SceneError(f"{name} is {array.dtype}; measure integers, as they are written to the file")
        rows = max(1, _BLOCK_SAMPLES // max(1, bands * original.shape[2]))
        for top in range(0, original.shape[1], rows):
            self._add_block(grid, original[:, top : top + rows], decoded[:, top : top + rows])

    def _add_block(self, grid: int, original: NDArray[Any], decoded: NDArray[Any]) -> None:
        nodata = self._nodata[grid]
        valid = valid_pixels(original, nodata)
        error = original.astype(np.int64) - decoded
        if valid is not None:
            error[~valid] = 0
        if nodata is not None:
            self.nodata_wrong += int(((decoded == nodata) != (original == nodata)).sum())
        self.max_error = max(self.max_error, int(np.abs(error).max(initial=0)))
        for band, plane in enumerate(error):
            self._squared[grid][band] += int(np.vdot(plane, plane))
            self._samples[grid][band] += plane.size if valid is None else int(valid[band].sum())
        self._add_angles(original, decoded, valid)

    def _add_angles(self, original: NDArray[Any], decoded: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
        """Spectral angles of the pixels that are valid in all bands and not black in the original."""
        if len(original) < 2:
            return
        one = original.reshape(len(original), -1).astype(np.float64)
        other = decoded.reshape(len(decoded), -1).astype(np.float64)
        length = np.sqrt((one * one).sum(0))
        counted = length > 0
        if valid is not None:
            counted &= valid.reshape(len(valid), -1).all(0)
        # A pixel that came back black has no direction: as wrong as can be without being opposite.
        lengths = length * np.sqrt((other * other).sum(0))
        cosine = np.divide((one * other).sum(0), lengths, out=np.zeros_like(lengths), where=lengths > 0)
        self._angle_sum += float(np.arccos(np.clip(cosine[counted], -1, 1)).sum())
        self._angle_count += int(counted.sum())

    @property
    def samples(self) -> int:
        """Valid samples seen so far."""
        return sum(map(sum, self._samples))

    @property
    def mse(self) -> float:
        """Mean squared error over all valid samples of all grids; nan when there are none."""
        samples = self.samples
        return sum(map(sum, self._squared)) / samples if samples else math.nan

    @property
    def psnr_db(self) -> float:
        return psnr_db(self.mse, self.peak)

    @property
    def mse_per_band(self) -> list[float]:
        """Bands of grid 0, then those of grid 1 and so on; nan for a band without valid samples."""
        return [
            squared / samples if samples else math.nan
            for squares, counts in zip(self._squared, self._samples, strict=True)
            for squared, samples in zip(squares, counts, strict=True)
        ]

    @property
    def rmse_per_band(self) -> list[float]:
        return [math.sqrt(mse) for mse in self.mse_per_band]

    @property
    def sam_deg(self) -> float:
        """Mean spectral angle in degrees, over grids of two bands or more; nan when there are none."""
        return math.degrees(self._angle_sum / self._angle_count) if self._angle_count else math.nan
