"""A figure for eyes: original, received, and ten times their difference, whole and as a detail at full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray

_DETAIL_PX = 256
_ERROR_GAIN = 10


def side_by_side(path: Path, original: NDArray[Any], received: NDArray[Any], title: str) -> None:
    """Write the figure from red, green and blue, each (3, height, width).

    Original and received are stretched alike, by the original's percentiles. The error is |original - received| x 10 on
    the same scale, so that black is no error and what is seen is in proportion to the picture beside it.
    """
    low, high = np.percentile(original, (1, 99), axis=(1, 2), keepdims=True)
    span = np.maximum(high - low, 1)

    def shown(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(((pixels - low) / span).clip(0, 1), 0, -1)

    difference = np.abs(original.astype(np.float32) - received)
    error = np.moveaxis((difference * _ERROR_GAIN / span).clip(0, 1), 0, -1)
    pictures = {"original": shown(original), "received": shown(received), f"|error| x {_ERROR_GAIN}": error}
    detail = liveliest(original.clip(low, high), _DETAIL_PX)  # beyond the stretch there is nothing to see
    figure, axes = pyplot.subplots(
        2, 3, figsize=(18, 11), height_ratios=(original.shape[1] / original.shape[2] * 1.02, 1), layout="constrained"
    )
    figure.suptitle(title, fontsize=16)
    for column, (name, picture) in enumerate(pictures.items()):
        for axis, view, how in ((axes[0, column], picture, ""), (axes[1, column], picture[detail], ", detail")):
            axis.imshow(view, interpolation="nearest" if how else "antialiased")
            axis.set_title(name + how, fontsize=13)
            axis.axis("off")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def liveliest(original: NDArray[Any], side: int) -> tuple[slice, slice]:
    """The square of at most `side` pixels with the most contrast: where a codec has to work."""
    side = min(side, *original.shape[1:])
    step = max(1, side // 2)
    corners = [
        (row, col)
        for row in range(0, original.shape[1] - side + 1, step)
        for col in range(0, original.shape[2] - side + 1, step)
    ]
    row, col = max(corners, key=lambda at: float(original[:, at[0] : at[0] + side, at[1] : at[1] + side].std()))
    return slice(row, row + side), slice(col, col + side)
