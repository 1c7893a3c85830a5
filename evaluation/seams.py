"""Whether tiles show: how much the error jumps between tiles, against how much it jumps anywhere else.

Across a line between two columns the error e = decoded - original changes by e[x] - e[x - 1]; `seam_ratio` is the mean
square of that change over the lines between tiles, divided by its mean square over all other lines that lie a multiple
of 8 px from the edge: those between blocks of the transform, so that what blocks do is on both sides. 1 means that the
lines between tiles are like any other. A codec without tiles gives what chance gives: compare with such ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.quality import valid_pixels
from downlink.scene import Scene

TILE: Final = 256
_BLOCK: Final = 8


def seam_ratio(scene: Scene, original: Sequence[NDArray[Any]], decoded: Sequence[NDArray[Any]]) -> float | None:
    """Over all grids, arrays (bands, height, width) each; None for scenes of one tile, or without any error."""
    at_seams, elsewhere = [0.0, 0], [0.0, 0]
    for grid, one, other in zip(scene.grids, original, decoded, strict=True):
        valid = valid_pixels(one, grid.nodata)
        for axis in (1, 2):
            lines = np.arange(_BLOCK, one.shape[axis], _BLOCK)
            if one.shape[axis] <= TILE:
                continue
            for line in lines:
                pair = [np.take(array, (line - 1, line), axis).astype(np.float64) for array in (one, other)]
                jump = np.diff(pair[1] - pair[0], axis=axis)
                if valid is not None:
                    jump = jump[np.take(valid, (line - 1, line), axis).all(axis=axis, keepdims=True)]
                sums = at_seams if line % TILE == 0 else elsewhere
                sums[0] += float(np.square(jump).sum())
                sums[1] += jump.size
    if not at_seams[1] or not elsewhere[0]:
        return None
    return at_seams[0] / at_seams[1] / (elsewhere[0] / elsewhere[1])
