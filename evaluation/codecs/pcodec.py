"""Pcodec (pco through imagecodecs): binned numerical compression, the strongest general codec for columns of numbers.

It learns a histogram per chunk and predicts a number from those before it (differences of a chosen order), knows of no
rows and no bands: a codestream per band, in raster order. It is lossless only: bounds above 0 are quantised ahead
(`bounded`). It codes no bytes, so 8-bit samples are widened to 16 bits, which costs nothing.

Payload: u8 dtype, u16 bound, u16 bands, u32 height, u32 width, per band u32 length and codestream.
"""

from __future__ import annotations

import struct
from typing import ClassVar

import imagecodecs
import numpy as np

from evaluation.codecs.base import Pixels
from evaluation.codecs.bounded import BoundedCodec, dequantise, quantise

_DTYPES = ("uint8", "uint16", "int16")
_HEAD = struct.Struct("<BHHII")
_LEVEL = 8
"""pco's own default."""


class Pcodec(BoundedCodec):
    name: ClassVar[str] = "pcodec"

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        numbers = quantise(pixels, int(setting)).astype(np.uint16)
        parts = [_HEAD.pack(_DTYPES.index(pixels.dtype.name), int(setting), *pixels.shape)]
        for band in numbers:
            codestream = imagecodecs.pcodec_encode(np.ascontiguousarray(band), level=_LEVEL)
            parts += [struct.pack("<I", len(codestream)), bytes(codestream)]
        return b"".join(parts)

    def decode_grid(self, codestream: bytes) -> Pixels:
        number, bound, count, height, width = _HEAD.unpack_from(codestream)
        dtype, bands, at = np.dtype(_DTYPES[number]), [], _HEAD.size
        for _ in range(count):
            (length,) = struct.unpack_from("<I", codestream, at)
            band = imagecodecs.pcodec_decode(codestream[at + 4 : at + 4 + length], (height, width), np.uint16)
            bands.append(band.astype(f"u{dtype.itemsize}"))
            at += 4 + length
        return dequantise(np.stack(bands), bound, dtype)
