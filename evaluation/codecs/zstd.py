"""Zstandard over differences along rows: what a GeoTIFF with `COMPRESS=ZSTD PREDICTOR=2` holds, the archives' habit.

Bounds above 0 are quantised ahead (`bounded`). Level 9 is GDAL's own.

Payload: u8 dtype, u16 bound, u16 bands, u32 height, u32 width, one zstd frame.
"""

from __future__ import annotations

import struct
from typing import ClassVar

import numpy as np
import zstandard

from evaluation.codecs.base import Pixels
from evaluation.codecs.bounded import BoundedCodec, dequantise, quantise

_DTYPES = ("uint8", "uint16", "int16")
_HEAD = struct.Struct("<BHHII")
_LEVEL = 9


class Zstd(BoundedCodec):
    name: ClassVar[str] = "zstd"

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        numbers = quantise(pixels, int(setting))
        steps = np.diff(numbers, axis=2, prepend=numbers.dtype.type(0))
        head = _HEAD.pack(_DTYPES.index(pixels.dtype.name), int(setting), *pixels.shape)
        little = steps.astype(steps.dtype.newbyteorder("<"))
        return head + zstandard.ZstdCompressor(level=_LEVEL, threads=self.threads - 1).compress(little.tobytes())

    def decode_grid(self, codestream: bytes) -> Pixels:
        number, bound, *shape = _HEAD.unpack_from(codestream)
        dtype = np.dtype(_DTYPES[number])
        raw = zstandard.ZstdDecompressor().decompress(codestream[_HEAD.size :])
        unsigned = np.dtype(f"<u{dtype.itemsize}")
        steps = np.frombuffer(raw, unsigned).reshape(shape)
        return dequantise(np.cumsum(steps, axis=2, dtype=unsigned), bound, dtype)
