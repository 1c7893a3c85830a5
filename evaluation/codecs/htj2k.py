"""High-throughput JPEG 2000 (OpenJPH through imagecodecs): 9/7, all bands as components of one codestream.

OpenJPH has no rate allocation: the setting is its quantiser step, the same for every band, hence equal error where a
band has more than that to say. `level` of imagecodecs is the step divided by 2^bits of the dtype; here it is in units
of the pixels.
"""

from __future__ import annotations

import math
from typing import ClassVar

import imagecodecs
import numpy as np

from evaluation.codecs.base import PSNR_SWEEP, GridCodec, Pixels, mse_of
from evaluation.codecs.j2k import size_of


class HighThroughputJpeg2000(GridCodec):
    name: ClassVar[str] = "htj2k"
    unit: ClassVar[str] = "quantiser step in DN"

    @classmethod
    def sweep(cls, peak: float) -> tuple[float, ...]:
        # Quiet scenes reach 36 dB at far coarser steps than busy ones, so the sweep is wide; OpenJPH is fast.
        finest = math.sqrt(12 * mse_of(PSNR_SWEEP[-1], peak))
        return tuple(round(finest * 1.6**octave, 2) for octave in range(9, -2, -1))

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        bits = 8 * pixels.dtype.itemsize
        return bytes(
            imagecodecs.htj2k_encode(
                np.ascontiguousarray(pixels.transpose(1, 2, 0)),
                level=setting / 2**bits,
                reversible=False,
                rgb=False,  # no colour transform over three bands
                planar=False,
            )
        )

    def decode_grid(self, codestream: bytes) -> Pixels:
        height, width, count = size_of(codestream)
        return imagecodecs.htj2k_decode(codestream, planar=True).reshape(count, height, width)
