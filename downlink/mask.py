"""The exact nodata mask of a tile <-> bytes. True means: this pixel is nodata.

A grid's mask has a mode: "none" (no pixel is nodata, or the grid defines none), "shared" (all bands have the same mask,
sent once) or "bands" (each band its own, in blocks of up to 16 bands). A block's payload is

    (empty)             no pixel is nodata
    01                  every pixel is nodata
    02 <zstd frame>     bits, rows padded to whole bytes, first pixel in the highest bit, each row XOR the row above

`decode_mask` refuses any other first byte, frames that do not hold exactly the bytes that the shape needs, and set
padding bits. The shape always comes from the manifest.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import zstandard
from numpy.typing import NDArray

from downlink import limits
from downlink.errors import Malformed

MaskMode = Literal["none", "shared", "bands"]

MODES: Final = ("none", "shared", "bands")
BLOCK_BANDS: Final = 16  # 16 x 256 x 256 bits are 128 KiB: an incompressible block still is one chunk

_ALL: Final = b"\x01"
_BITS: Final = b"\x02"
_LEVEL: Final = 12  # masks are runs: higher levels gain under 1 % and take several times as long


def blocks(mode: MaskMode, bands: int) -> int:
    """How many chunks the mask of one tile takes."""
    return {"none": 0, "shared": 1, "bands": -(-bands // BLOCK_BANDS)}[mode]


def block_bands(mode: MaskMode, bands: int, block: int) -> range:
    """Which mask planes block `block` holds: bands in mode "bands", the one plane 0 in mode "shared"."""
    if not 0 <= block < blocks(mode, bands):
        raise IndexError(
            f"block {block} of a mask that has {blocks(mode, bands)} blocks (mode {mode!r}, {bands} bands)"
        )
    if mode == "shared":
        return range(1)
    return range(block * BLOCK_BANDS, min(bands, (block + 1) * BLOCK_BANDS))


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """The payload for a block's mask, (planes, height, width)."""
    if not mask.any():
        return b""
    if mask.all():
        return _ALL
    bits = np.packbits(mask, axis=-1)
    bits[:, 1:] ^= bits[:, :-1].copy()
    return _BITS + zstandard.ZstdCompressor(level=_LEVEL).compress(bits.tobytes())


def decode_mask(payload: bytes, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """The mask of `shape` (planes, height, width) that `payload` stands for."""
    planes, height, width = shape
    if not payload:
        return np.zeros(shape, np.bool_)
    if payload == _ALL:
        return np.ones(shape, np.bool_)
    if payload[:1] != _BITS:
        raise Malformed(
            f"mask: begins with byte {payload[0]:#04x} ({len(payload)} bytes), not 0x02, and is not 0x01 alone"
        )
    row_bytes = -(-width // 8)
    expected = planes * height * row_bytes
    raw = limits.expand(payload[1:], expected, "mask")
    if len(raw) != expected:
        raise Malformed(f"mask: holds {len(raw)} bytes where {planes} x {height} x {width} px need {expected}")
    bits = np.bitwise_xor.accumulate(np.frombuffer(raw, np.uint8).reshape(planes, height, row_bytes), axis=1)
    if width % 8 and (bits[:, :, -1] & (0xFF >> width % 8)).any():
        raise Malformed(f"mask: bits beyond the last of {width} columns are set; they must be 0")
    return np.unpackbits(bits, axis=-1, count=width).view(np.bool_)
