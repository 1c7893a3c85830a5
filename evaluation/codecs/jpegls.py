"""JPEG-LS (ISO/IEC 14495-1; CharLS through imagecodecs), the near-lossless standard: a codestream per band.

The standard's NEAR is at most 255 (127 for 8 bits); larger bounds are quantised ahead. Signed pixels are coded with an
offset of 2^15. Bands are components without any prediction between them: the standard has none.

Payload: u16 bands, u8 dtype, u16 bound, per band u32 length and codestream.
"""

from __future__ import annotations

import struct
from typing import ClassVar

import imagecodecs
import numpy as np

from evaluation.codecs.base import Pixels
from evaluation.codecs.bounded import BoundedCodec, dequantise, quantise

_DTYPES = ("uint8", "uint16", "int16")


class JpegLs(BoundedCodec):
    name: ClassVar[str] = "jpegls"

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        bound = int(setting)
        near, ahead = _split(bound, pixels.dtype.itemsize)
        parts = [struct.pack("<HBH", len(pixels), _DTYPES.index(pixels.dtype.name), bound)]
        for band in quantise(pixels, ahead):
            codestream = imagecodecs.jpegls_encode(np.ascontiguousarray(band), level=near)
            parts += [struct.pack("<I", len(codestream)), bytes(codestream)]
        return b"".join(parts)

    def decode_grid(self, codestream: bytes) -> Pixels:
        count, number, bound = struct.unpack_from("<HBH", codestream)
        dtype, bands, at = np.dtype(_DTYPES[number]), [], 5
        for _ in range(count):
            (length,) = struct.unpack_from("<I", codestream, at)
            bands.append(imagecodecs.jpegls_decode(codestream[at + 4 : at + 4 + length]))
            at += 4 + length
        return dequantise(np.stack(bands), _split(bound, dtype.itemsize)[1], dtype)


def _split(bound: int, size: int) -> tuple[int, int]:
    """(NEAR, bound of the quantiser ahead) for samples of so many bytes."""
    return (bound, 0) if bound <= (127 if size == 1 else 255) else (0, bound)
