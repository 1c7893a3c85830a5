"""What a codec is to the evaluation: an image and a setting in, bytes out, and the image back from those bytes alone.

`decode` gets nothing but the bytes that were counted. Classical codecs derive from `GridCodec`, which codes each grid
by itself, carries nodata exactly (`nodata`) and counts every byte that a decoder needs:

    u8    number of grids
    per grid: u8 flag (1 = has nodata), u32 length of the codestream, codestream;
              with nodata also i32 nodata value, u32 length of the mask, mask
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from downlink.scene import Scene
from evaluation.codecs.nodata import fill, pack_mask, unpack_mask

Pixels = NDArray[Any]
Half = Literal["encode", "decode"]

# PSNR targets in dB that classical codecs are swept over: dense around the levels of the summary (40, 45, 50), so that
# interpolation has little to do there, and so far down that they can be compared at the bits of a codec that needs a
# third of theirs. 30 to 54 dB is RMSE 316 to 20 for reflectance in 16 bits.
PSNR_SWEEP = (30.0, 33.0, 36.0, 40.0, 42.5, 45.0, 47.5, 50.0, 54.0)


@dataclass(frozen=True)
class Image:
    """A scene in memory: its description, the pixels of each grid (bands, height, width), the peak of its PSNR."""

    scene: Scene
    grids: tuple[Pixels, ...]
    peak: float


class Codec(Protocol):
    """One way to compress. `setting` is whatever the codec is steered by; `unit` says what that is."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def load(self, half: Half) -> None:
        """Get ready to encode or to decode: what a node does once when it starts, before anything is timed."""
        ...

    def encode(self, image: Image, setting: float) -> bytes: ...

    def decode(self, payload: bytes) -> list[Pixels]: ...


class GridCodec(ABC):
    """A classical codec: grids apart, nodata beside them. Its setting is a PSNR target unless it says otherwise."""

    name: ClassVar[str]
    unit: ClassVar[str] = "PSNR asked for in dB"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def load(self, half: Half) -> None:
        """Nothing to do: the libraries are loaded with the module."""
        return

    @classmethod
    def sweep(cls, peak: float) -> tuple[float, ...]:
        """Settings that spread this codec's curve over `PSNR_SWEEP`, lowest rate first."""
        return PSNR_SWEEP

    @abstractmethod
    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes: ...

    @abstractmethod
    def decode_grid(self, codestream: bytes) -> Pixels: ...

    def encode(self, image: Image, setting: float) -> bytes:
        parts = [struct.pack("<B", len(image.grids))]
        for grid, pixels in zip(image.scene.grids, image.grids, strict=True):
            hole = None if grid.nodata is None else pixels == grid.nodata
            if hole is None or not hole.any():
                codestream = self.encode_grid(pixels, setting, image.peak)
                parts += [struct.pack("<BI", 0, len(codestream)), codestream]
                continue
            filled = np.stack([fill(band, gap) for band, gap in zip(pixels, hole, strict=True)])
            codestream = self.encode_grid(filled, setting, image.peak)
            mask = pack_mask(hole)
            parts += [struct.pack("<BI", 1, len(codestream)), codestream]
            parts += [struct.pack("<iI", grid.nodata, len(mask)), mask]
        return b"".join(parts)

    def decode(self, payload: bytes) -> list[Pixels]:
        grids, at = [], 1
        for _ in range(payload[0]):
            has_nodata, length = struct.unpack_from("<BI", payload, at)
            at += 5
            pixels = self.decode_grid(payload[at : at + length])
            at += length
            if has_nodata:
                nodata, length = struct.unpack_from("<iI", payload, at)
                at += 8
                hole = unpack_mask(payload[at : at + length], pixels.shape)
                at += length
                # Data must not turn into nodata either: such a sample moves to the nearest value that is none.
                beside = nodata + 1 if nodata < np.iinfo(pixels.dtype).max else nodata - 1
                pixels = np.where(hole, nodata, np.where(pixels == nodata, beside, pixels)).astype(pixels.dtype)
            grids.append(pixels)
        return grids


def mse_of(psnr_db: float, peak: float) -> float:
    return peak * peak / 10 ** (psnr_db / 10)
