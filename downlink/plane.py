"""The scene-adaptive front end: bands <-> decorrelated planes, and the side chunk that carries how.

A spectral KLT (Karhunen-Loève transform: principal components over bands) is estimated from a subsample of the scene,
quantised, and sent. Both ends use the quantised rows, so the inverse (a pseudo-inverse) undoes exactly what was done;
planes too quiet to survive the quantiser are not kept. Nothing here feeds the entropy decoder except the integer
levels.

Arrays are (bands, height, width) or (bands, samples). Side chunk: see docs/format.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from downlink import limits
from downlink.context import LEVEL_LIMIT, level_of
from downlink.errors import Malformed

QUIET = 0.06
"""A plane whose deviation is below this share of the step is dropped: even all of it in one latent would round to
zero."""

_HEADER = struct.Struct("<BBHH")
_VERSION = 1
_FINE = 1
_COARSE_LIMIT, _FINE_LIMIT = 127, 32767
_COARSE_LEAK = 1.0 / 30
"""Coarse (int8) rows leak about 1/440 of the loudest plane into others: harmless while the step is above this share
of it."""


@dataclass(frozen=True)
class FrontEnd:
    """Quantised KLT of a grid: `mean` int32 (bands), `rows` int16 (planes, bands) in units of 1/limit, `levels` uint8
    (planes)."""

    mean: NDArray[np.int32]
    rows: NDArray[np.int16]
    levels: NDArray[np.uint8]
    fine: bool

    @property
    def planes(self) -> int:
        return int(self.rows.shape[0])

    @cached_property
    def forward_rows(self) -> NDArray[np.float32]:
        """(planes, bands): planes = forward_rows @ (bands - mean)."""
        return (self.rows / (_FINE_LIMIT if self.fine else _COARSE_LIMIT)).astype(np.float32)

    @cached_property
    def inverse_rows(self) -> NDArray[np.float32]:
        """(bands, planes): bands = inverse_rows @ planes + mean."""
        return np.linalg.pinv(self.forward_rows.astype(np.float64)).astype(np.float32)

    def forward(self, pixels: NDArray[np.float32], step: float) -> NDArray[np.float32]:
        """(bands, h, w) in DN -> (planes, h, w) in steps."""
        bands = pixels.shape[0]
        flat = pixels.reshape(bands, -1) - self.mean.astype(np.float32)[:, None]
        rows = (self.forward_rows / step).astype(np.float32)
        return (rows @ flat).reshape(self.planes, *pixels.shape[1:])

    def inverse(self, planes: NDArray[np.float32], step: float) -> NDArray[np.float32]:
        """(planes, h, w) in steps -> (bands, h, w) in DN, unrounded."""
        flat = (self.inverse_rows * step).astype(np.float32) @ planes.reshape(self.planes, -1)
        flat += self.mean.astype(np.float32)[:, None]
        return flat.reshape(-1, *planes.shape[1:])

    def pack(self) -> bytes:
        """The side chunk's bytes."""
        rows = self.rows.astype("<i2" if self.fine else "i1")
        header = _HEADER.pack(_VERSION, _FINE if self.fine else 0, self.mean.size, self.planes)
        return header + self.mean.astype("<i4").tobytes() + self.levels.tobytes() + rows.tobytes()


def unpack_front_end(payload: bytes, bands: int, planes: int) -> FrontEnd:
    """Read a side chunk of a grid whose manifest states so many bands and planes; Malformed where they disagree."""
    if len(payload) < _HEADER.size:
        raise Malformed(f"side chunk: {len(payload)} bytes, its header alone is {_HEADER.size}; this is no side chunk")
    version, flags, stated_bands, stated_planes = _HEADER.unpack_from(payload)
    if version != _VERSION or flags > _FINE:
        raise Malformed(
            f"side chunk: version {version} flags {flags}, known is version {_VERSION}; update this program"
        )
    if (stated_bands, stated_planes) != (bands, planes):
        raise Malformed(
            f"side chunk: {stated_bands} bands and {stated_planes} planes, the manifest says {bands} and {planes}"
        )
    fine = bool(flags & _FINE)
    expected = _HEADER.size + 4 * bands + planes + planes * bands * (2 if fine else 1)
    if len(payload) != expected:
        raise Malformed(f"side chunk: {len(payload)} bytes, {bands} bands and {planes} planes need {expected}")
    at = _HEADER.size
    mean = np.frombuffer(payload, "<i4", bands, at).astype(np.int32)
    levels = np.frombuffer(payload, np.uint8, planes, at + 4 * bands)
    rows = np.frombuffer(payload, "<i2" if fine else "i1", planes * bands, at + 4 * bands + planes).astype(np.int16)
    if levels.size and int(levels.max()) > LEVEL_LIMIT:
        raise Malformed(f"side chunk: level {int(levels.max())} is above {LEVEL_LIMIT}")
    return FrontEnd(mean, rows.reshape(planes, bands), levels, fine)


class Moments:
    """First and second moments of samples that come in pieces; memory is (bands, bands) whatever their number."""

    def __init__(self, bands: int) -> None:
        self._centre: NDArray[np.float64] | None = None
        self._valid = np.zeros(bands)
        self._sum = np.zeros(bands)
        self._product = np.zeros((bands, bands))
        self._count = 0

    def add(self, samples: NDArray[np.generic], hole: NDArray[np.bool_] | None = None) -> None:
        """Samples (bands, n), and where they are nodata, if they are: a hole counts as if it were ordinary."""
        values = samples.astype(np.float64)
        valid = np.ones(values.shape, np.bool_) if hole is None else ~hole
        if self._centre is None:  # sums are taken around the first piece's mean: differences stay small
            if not values.shape[1]:
                return
            self._centre = np.where(valid, values, 0).sum(axis=1) / np.maximum(1, valid.sum(axis=1))
        values -= self._centre[:, None]
        values[~valid] = 0
        self._valid += valid.sum(axis=1)
        self._sum += values.sum(axis=1)
        self._product += values @ values.T
        self._count += values.shape[1]

    def statistics(self) -> Statistics:
        """Of all samples so far; all zero if there were none."""
        if self._centre is None:
            return Statistics(self._sum, self._product)
        mean = self._centre + self._sum / np.maximum(1, self._valid)
        shift = self._sum / self._count
        return Statistics(mean, self._product / self._count - np.outer(shift, shift))


@dataclass(frozen=True)
class Statistics:
    """Moments of a grid's valid samples: `mean` (bands), `covariance` (bands, bands), in DN."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @cached_property
    def components(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Variances, falling, and the rows that have them: (bands), (bands, bands)."""
        variances, vectors = np.linalg.eigh(self.covariance)
        return np.maximum(variances[::-1], 0.0), vectors[:, ::-1].T

    def front_end(self, step: float) -> FrontEnd:
        """The KLT at this step: planes loud enough to matter, rows as coarse as the step allows."""
        variances, rows = self.components
        deviations = np.sqrt(variances)
        bands = self.mean.size
        planes = max(1, int(np.count_nonzero(deviations > QUIET * step)))
        fine = bands > 1 and bool(deviations[0] * _COARSE_LEAK > step)
        planes = min(planes, (limits.CHUNK_BYTES_MAX - _HEADER.size - 4 * bands) // (1 + bands * (2 if fine else 1)))
        limit = _FINE_LIMIT if fine else _COARSE_LIMIT
        quantised = np.rint(rows[:planes] * limit).astype(np.int16)
        levels = np.array([level_of(float(d), step) for d in deviations[:planes]], dtype=np.uint8)
        return FrontEnd(np.rint(self.mean).astype(np.int32), quantised, levels, fine)

    def dropped_variance(self, front_end: FrontEnd) -> float:
        """Mean squared error per sample (DN squared) that the dropped planes leave."""
        variances, _ = self.components
        return float(variances[front_end.planes :].sum() / self.mean.size)
