"""JPEG XL (libjxl through imagecodecs), a codestream per band: libjxl's lossy mode takes one grey channel or RGB.

Its setting, the Butteraugli distance, is **perceptual**: it spends bits where eyes look, not where squared error is,
and takes 16-bit reflectance for a very dark picture. So it looks weaker here, on PSNR, than it is on photographs;
effort 3 (`jpegxl-e3`) needs fewer bits at equal PSNR than effort 7. Signed pixels are coded with an offset of 2^15.

Payload: u16 bands, u8 signed, per band u32 length and codestream.
"""

from __future__ import annotations

import struct
from typing import ClassVar

import imagecodecs
import numpy as np

from evaluation.codecs.base import GridCodec, Pixels

_OFFSET = 1 << 15


class JpegXl(GridCodec):
    name: ClassVar[str] = "jpegxl"
    unit: ClassVar[str] = "Butteraugli distance"
    effort: ClassVar[int] = 7

    @classmethod
    def sweep(cls, peak: float) -> tuple[float, ...]:
        return (25.0, 15.0, 8.0, 4.0, 2.0, 1.0, 0.6, 0.35, 0.2)

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        signed = pixels.dtype.kind == "i"
        bands = (pixels.astype(np.int32) + _OFFSET).astype(np.uint16) if signed else pixels
        parts = [struct.pack("<HB", len(bands), signed)]
        for band in bands:
            codestream = imagecodecs.jpegxl_encode(
                np.ascontiguousarray(band),
                distance=setting,
                effort=self.effort,
                lossless=False,
                usecontainer=False,
                numthreads=self.threads,
            )
            parts += [struct.pack("<I", len(codestream)), bytes(codestream)]
        return b"".join(parts)

    def decode_grid(self, codestream: bytes) -> Pixels:
        count, signed = struct.unpack_from("<HB", codestream)
        bands, at = [], 3
        for _ in range(count):
            (length,) = struct.unpack_from("<I", codestream, at)
            bands.append(imagecodecs.jpegxl_decode(codestream[at + 4 : at + 4 + length], numthreads=self.threads))
            at += 4 + length
        pixels = np.stack(bands)
        return (pixels.astype(np.int32) - _OFFSET).astype(np.int16) if signed else pixels


class JpegXlFast(JpegXl):
    name: ClassVar[str] = "jpegxl-e3"
    effort: ClassVar[int] = 3
