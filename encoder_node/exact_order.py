"""In which order the bands of an exact grid are coded, and which help to predict which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact_model import REFERENCES_MAX
from encoder_node.exact_rule import Floats
from encoder_node.exact_walk import Sample

ORDER_ROWS: Final = 8192
"""Pixels that bands are compared at."""


def mean_of(samples: Sequence[Sample], band: int) -> int:
    total = count = 0.0
    for sample in samples:
        valid = sample.pixels[band] if sample.nodata is None else sample.pixels[band][~sample.nodata[band]]
        total, count = total + float(valid.sum(dtype=np.float64)), count + valid.size
    return round(total / count) if count else 0


def coding_order(samples: Sequence[Sample]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Bands by how much of them their own neighbours leave open, most first: what is hard helps with what is similar.
    And for each, the bands before it that leave open the same, the most alike first."""
    details: list[list[Floats]] = []
    for distance in (1, 2):
        parts = []
        for sample in samples:
            _, height, width = sample.pixels.shape
            if min(height, width) > 2 * distance:
                rows = np.arange(distance, height - distance)
                cols = np.arange(distance, width - distance)
                keep = max(1, int(np.sqrt(rows.size * cols.size * len(samples) / ORDER_ROWS)))
                parts.append(_detail(sample, rows[::keep], cols[::keep], distance))
        details.append([np.concatenate(parts, axis=1)] if parts else [])
    bands = samples[0].pixels.shape[0]
    likeness, size = np.zeros((bands, bands)), np.zeros(bands)
    for one in details:
        for detail in one:
            size += np.abs(detail).mean(axis=1)
            power = np.sqrt((detail * detail).sum(axis=1)) + 1e-9
            likeness += np.abs(detail @ detail.T) / power / power[:, None]
    order = tuple(np.argsort(-size, kind="stable").tolist())
    references: list[tuple[int, ...]] = [()] * bands
    for at, band in enumerate(order):
        before = np.array(order[:at], np.intp)
        best = before[np.argsort(-likeness[band, before], kind="stable")][:REFERENCES_MAX]
        references[band] = tuple(best.tolist())
    return order, tuple(references)


def _detail(sample: Sample, rows: NDArray[np.intp], cols: NDArray[np.intp], distance: int) -> Floats:
    """(bands, n): samples less the mean of the four at this distance, 0 where any is nodata."""
    pixels, hole = sample.pixels, sample.nodata
    around = [(0, 0), (-distance, 0), (distance, 0), (0, -distance), (0, distance)]
    picked = [pixels[:, (rows + down)[:, None], cols + right].astype(np.float64) for down, right in around]
    detail = picked[0] - sum(picked[1:]) / 4
    if hole is not None:
        for down, right in around:
            detail[hole[:, (rows + down)[:, None], cols + right]] = 0
    return np.asarray(detail.reshape(len(pixels), -1), np.float64)
