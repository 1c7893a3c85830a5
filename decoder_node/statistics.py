"""What a grid's bands hold: `Statistics`, gathered strip by strip while a scene is decoded, for its STAC item.

Over valid pixels alone (those that differ from nodata). Sums are exact: of whole numbers of at most 16 bits, in 64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink.scene import Grid


class Statistics:
    """Least, largest, mean, standard deviation and share of valid pixels, of each band of one grid."""

    def __init__(self, grid: Grid) -> None:
        bands = len(grid.bands)
        self._nodata = grid.nodata
        self._pixels = 0
        self._valid, self._sum, self._squares = (np.zeros(bands, np.int64) for _ in range(3))
        self._least, self._most = np.full(bands, np.iinfo(np.int64).max), np.full(bands, np.iinfo(np.int64).min)

    def add(self, strip: NDArray[Any]) -> None:
        """Pixels (bands, rows, width)."""
        self._pixels += strip[0].size
        for band, pixels in enumerate(strip):
            values = pixels.ravel() if self._nodata is None else pixels[pixels != self._nodata]
            if not values.size:
                continue
            self._valid[band] += values.size
            self._least[band] = min(self._least[band], int(values.min()))
            self._most[band] = max(self._most[band], int(values.max()))
            self._sum[band] += int(values.sum(dtype=np.int64))
            # below 2^53 also as floats, which BLAS multiplies: 2^20 pixels of 2^16 at a time
            for part in range(0, values.size, 1 << 20):
                some = values[part : part + (1 << 20)].astype(np.float64)
                self._squares[band] += int(some @ some)

    def of_band(self, band: int) -> dict[str, float]:
        """As STAC's `statistics`; of a band without a valid pixel only that."""
        share = {"valid_percent": round(100 * int(self._valid[band]) / max(1, self._pixels), 4)}
        count = int(self._valid[band])
        if not count:
            return share
        mean = int(self._sum[band]) / count
        # whole numbers until the last step: no difference of large floats
        spread = (int(self._squares[band]) * count - int(self._sum[band]) ** 2) / count**2
        return {
            "minimum": int(self._least[band]), "maximum": int(self._most[band]), "mean": round(mean, 4),
            "stddev": round(max(0.0, spread) ** 0.5, 4), **share,
        }  # fmt: skip
