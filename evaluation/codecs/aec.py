"""CCSDS 121.0 (libaec through imagecodecs): the Rice coder that flies, behind its own unit-delay predictor.

A codestream per band, in raster order, with the standard's own parameters for images: blocks of 16 samples, a reference
sample every 128 blocks. It is lossless only: bounds above 0 are quantised ahead (`bounded`). Samples are declared with
as many bits as their largest number takes (2 at least, as the standard asks), not with those of their dtype: the
options of a block are told apart by an identifier whose length follows from it.

Bands are not predicted from one another: that would be CCSDS 123.0, of which no library can be had by pip.

Payload: u8 dtype, u16 bound, u16 bands, u32 height, u32 width, u8 bits, per band u32 length and codestream.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import imagecodecs
import numpy as np

from evaluation.codecs.base import Pixels
from evaluation.codecs.bounded import BoundedCodec, dequantise, quantise

_DTYPES = ("uint8", "uint16", "int16")
_HEAD = struct.Struct("<BHHIIB")
_BLOCK = 16
_INTERVAL = 128


class Aec(BoundedCodec):
    name: ClassVar[str] = "aec"

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        numbers = quantise(pixels, int(setting))
        bits = max(2, int(numbers.max()).bit_length())
        parts = [_HEAD.pack(_DTYPES.index(pixels.dtype.name), int(setting), *pixels.shape, bits)]
        for band in numbers:
            codestream = imagecodecs.aec_encode(np.ascontiguousarray(_as_coded(band, bits)), **_parameters(bits))
            parts += [struct.pack("<I", len(codestream)), bytes(codestream)]
        return b"".join(parts)

    def decode_grid(self, codestream: bytes) -> Pixels:
        number, bound, count, height, width, bits = _HEAD.unpack_from(codestream)
        dtype, bands, at = np.dtype(_DTYPES[number]), [], _HEAD.size
        for _ in range(count):
            (length,) = struct.unpack_from("<I", codestream, at)
            # libaec fills its last block up, and wants room for that
            flat = np.empty(-(-height * width // _BLOCK) * _BLOCK, np.uint8 if bits <= 8 else np.uint16)
            imagecodecs.aec_decode(codestream[at + 4 : at + 4 + length], out=flat, **_parameters(bits))
            bands.append(flat[: height * width].reshape(height, width).astype(f"u{dtype.itemsize}"))
            at += 4 + length
        return dequantise(np.stack(bands), bound, dtype)


def _as_coded(band: Pixels, bits: int) -> Pixels:
    """libaec takes samples of at most 8 bits in bytes, others in pairs of them."""
    return band.astype(np.uint8 if bits <= 8 else np.uint16)


def _parameters(bits: int) -> dict[str, Any]:
    preprocess = imagecodecs.AEC.FLAG.DATA_PREPROCESS
    return {"bitspersample": bits, "flags": int(preprocess), "blocksize": _BLOCK, "rsi": _INTERVAL}
