"""JPEG XL without loss (libjxl through imagecodecs); bounds above 0 are quantised ahead (`bounded`).

All bands are channels of one codestream, the first grey and the others extra: effort 7 needs 1 to 2 % fewer bits so
than a codestream per band, because channels may predict one another's contexts. Effort 9 takes four times as long and
gave no less. The lossy mode of JPEG XL bounds nothing: its "distance" is perceptual (`jpegxl`).

Payload: u8 dtype, u16 bound, codestream.
"""

from __future__ import annotations

import struct
from typing import ClassVar

import imagecodecs
import numpy as np

from evaluation.codecs.base import Pixels
from evaluation.codecs.bounded import BoundedCodec, dequantise, quantise

_DTYPES = ("uint8", "uint16", "int16")


class JpegXlLossless(BoundedCodec):
    name: ClassVar[str] = "jpegxl-lossless"
    effort: ClassVar[int] = 7

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        numbers = quantise(pixels, int(setting))
        codestream = imagecodecs.jpegxl_encode(
            numbers if len(numbers) > 1 else np.ascontiguousarray(numbers[0]),
            lossless=True,
            effort=self.effort,
            planar=len(numbers) > 1,
            photometric="minisblack",
            usecontainer=False,
            numthreads=self.threads,
        )
        head = struct.pack("<BH", _DTYPES.index(pixels.dtype.name), int(setting))
        return head + _without_container(bytes(codestream))

    def decode_grid(self, codestream: bytes) -> Pixels:
        number, bound = struct.unpack_from("<BH", codestream)
        numbers = imagecodecs.jpegxl_decode(codestream[3:], numthreads=self.threads)
        return dequantise(numbers if numbers.ndim == 3 else numbers[None], bound, np.dtype(_DTYPES[number]))


class JpegXlLosslessFast(JpegXlLossless):
    name: ClassVar[str] = "jpegxl-lossless-e3"
    effort: ClassVar[int] = 3


def _without_container(file: bytes) -> bytes:
    """The bare codestream: with extra channels libjxl writes boxes around it whatever it is told, 49 bytes."""
    if file.startswith(b"\xff\x0a"):
        return file
    at = 0
    while file[at + 4 : at + 8] != b"jxlc":
        at += int.from_bytes(file[at : at + 4], "big")
    return file[at + 8 : at + int.from_bytes(file[at : at + 4], "big")]
