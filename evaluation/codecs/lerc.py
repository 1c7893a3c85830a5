"""LERC (limited error raster compression), the error-bounded codec of many GIS archives.

Its setting is a promise: no pixel is further from its original than that. The blob is compressed with zstd, as GDAL's
LERC_ZSTD does. LERC is made for bounds, not for PSNR: read its place on a PSNR curve together with its maximum error.
"""

from __future__ import annotations

import math
from typing import ClassVar

import imagecodecs

from evaluation.codecs.base import PSNR_SWEEP, GridCodec, Pixels, mse_of

_ZSTD_LEVEL = 9


class Lerc(GridCodec):
    name: ClassVar[str] = "lerc"
    unit: ClassVar[str] = "largest error allowed in DN"

    @classmethod
    def sweep(cls, peak: float) -> tuple[float, ...]:
        # Errors come out about evenly spread within the bound: mse = bound^2 / 3. Bounds on integers are integers.
        return tuple(float(max(1, round(math.sqrt(3 * mse_of(psnr, peak))))) for psnr in PSNR_SWEEP)

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        return bytes(
            imagecodecs.lerc_encode(
                pixels, level=setting, planar=True, compression="zstd", compressionargs={"level": _ZSTD_LEVEL}
            )
        )

    def decode_grid(self, codestream: bytes) -> Pixels:
        pixels = imagecodecs.lerc_decode(codestream)
        return pixels if pixels.ndim == 3 else pixels[None]
