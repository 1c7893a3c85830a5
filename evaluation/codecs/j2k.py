"""JPEG 2000 (OpenJPEG through imagecodecs): the 9/7 wavelet, all bands as components of one codestream.

One codestream has one rate allocation over all bands, so that every band gets the same slope of distortion over rate:
equal weight for equal squared error, which is what the scene's PSNR counts. It needs 40 % fewer bits than a codestream
per band at 45 dB, where the bands are quiet.

Traps, each held by a test:
- `level` of imagecodecs is the PSNR against 2^bits - 1 (65535), not against the scene's peak.
- Its default for lossy three-component images is a colour transform (`mct`): off, bands are no colours.
- Samples are declared with as many bits as they use: each empty bit plane costs bits in every code block.
- OpenJPEG signs each codestream with a 37-byte comment. It is left out: decoders need none.
"""

from __future__ import annotations

import math
import struct
from typing import ClassVar

import imagecodecs
import numpy as np

from evaluation.codecs.base import GridCodec, Pixels, mse_of

_SOT, _COM = 0xFF90, 0xFF64


def encode_components(components: Pixels, mse: float, threads: int = 1) -> bytes:
    """A raw codestream of (components, height, width) in which the mean squared error is about `mse`."""
    bits = _bits(components)
    level = 10 * math.log10((2**bits - 1) ** 2 / mse)
    codestream = imagecodecs.jpeg2k_encode(
        # Bands last and contiguous: given bands first, imagecodecs takes (3, 9, 1) for three rows of one component.
        np.ascontiguousarray(components.transpose(1, 2, 0)),
        level=max(level, 1.0),  # type: ignore[arg-type]  # takes fractions, whatever its stub says; 0 means lossless
        codecformat="j2k",
        reversible=False,
        mct=False,
        planar=False,
        bitspersample=bits,
        numthreads=threads,
    )
    return _without_comment(bytes(codestream))


def decode_components(codestream: bytes, threads: int = 1) -> Pixels:
    height, width, count = size_of(codestream)
    pixels = imagecodecs.jpeg2k_decode(codestream, planar=True, numthreads=threads)
    return pixels.reshape(count, height, width)


def _bits(components: Pixels) -> int:
    """Bits per sample that hold every value."""
    if components.dtype.kind == "i":
        return 1 + max(int(components.max()), ~int(components.min()), 1).bit_length()
    # A byte's worth at least: below 9 bits decoders hand back uint8.
    return max(int(components.max()).bit_length(), 9 if components.dtype == np.uint16 else 1)


def size_of(codestream: bytes) -> tuple[int, int, int]:
    """(height, width, components) of a codestream: the SIZ marker segment is always the first."""
    right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
    (count,) = struct.unpack_from(">H", codestream, 40)
    return bottom - top, right - left, count


def _without_comment(codestream: bytes) -> bytes:
    """The codestream without the COM segments of its main header."""
    kept, at = [codestream[:2]], 2
    while True:
        marker, length = struct.unpack_from(">HH", codestream, at)
        if marker == _SOT:
            return b"".join([*kept, codestream[at:]])
        if marker != _COM:
            kept.append(codestream[at : at + 2 + length])
        at += 2 + length


class Jpeg2000(GridCodec):
    name: ClassVar[str] = "j2k"

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        return encode_components(pixels, mse_of(setting, peak), self.threads)

    def decode_grid(self, codestream: bytes) -> Pixels:
        return decode_components(codestream, self.threads)
