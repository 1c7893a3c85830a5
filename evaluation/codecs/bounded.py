"""What codecs that bound the error of every sample share: settings, and a quantiser for those that are lossless only.

A lossless codec keeps a bound D when the samples are rounded to every (2 D + 1)th value first; it then codes their
numbers, which is the best that can be done in front of it without touching it (the nodes' own method and JPEG-LS round
inside their prediction instead). D = 0 changes nothing.

A sample that comes out as the nodata value moves by one (`base`), so with nodata a peer may miss its bound by one;
`downlink evaluate --max-error` says where.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from evaluation.codecs.base import PSNR_SWEEP, GridCodec, Pixels, mse_of


class BoundedCodec(GridCodec):
    """Its setting is a promise: no sample is further from its original than that."""

    unit: ClassVar[str] = "largest error allowed in DN"

    @classmethod
    def sweep(cls, peak: float) -> tuple[float, ...]:
        # Errors come out about evenly spread within the bound: mse = bound^2 / 3. Bounds on integers are integers.
        return tuple(float(max(1, round(math.sqrt(3 * mse_of(psnr, peak))))) for psnr in PSNR_SWEEP)


def quantise(pixels: Pixels, bound: int) -> Pixels:
    """Numbers of the values nearest to samples: uint8 or uint16, as wide as the samples."""
    low = int(np.iinfo(pixels.dtype).min)
    numbers = (pixels.astype(np.int32) - low + bound) // (2 * bound + 1)
    return numbers.astype(np.uint8 if pixels.dtype.itemsize == 1 else np.uint16)


def dequantise(numbers: Pixels, bound: int, dtype: np.dtype[np.generic]) -> Pixels:
    """Samples again, within `bound` of what they were."""
    limits = np.iinfo(dtype)  # type: ignore[type-var]
    values = numbers.astype(np.int64) * (2 * bound + 1) + int(limits.min)
    return np.minimum(values, int(limits.max)).astype(dtype)
