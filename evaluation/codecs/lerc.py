"""LERC (limited error raster compression), the error-bounded codec of many GIS archives.

Its setting is a promise: no pixel is further from its original than that. The blob is compressed with zstd, as GDAL's
LERC_ZSTD does. LERC is made for bounds, not for PSNR: read its place on a PSNR curve together with its maximum error.
"""

from __future__ import annotations

from typing import ClassVar

import imagecodecs

from evaluation.codecs.base import Pixels
from evaluation.codecs.bounded import BoundedCodec

_ZSTD_LEVEL = 9


class Lerc(BoundedCodec):
    name: ClassVar[str] = "lerc"

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        return bytes(
            imagecodecs.lerc_encode(
                pixels, level=setting, planar=True, compression="zstd", compressionargs={"level": _ZSTD_LEVEL}
            )
        )

    def decode_grid(self, codestream: bytes) -> Pixels:
        pixels = imagecodecs.lerc_decode(codestream)
        return pixels if pixels.ndim == 3 else pixels[None]
