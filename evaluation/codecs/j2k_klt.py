"""JPEG 2000 behind a spectral Karhunen-Loève transform of the scene: the classical codec that learned ones must beat.

Per grid: the bands' means and covariance, the eigenvectors, quantised; the planes they give become the components of
one JPEG 2000 codestream (`j2k`: one rate allocation, equal weight for equal squared error, which an orthonormal
transform carries over to the bands). At 45 dB it takes 40 to 75 % of the bits off JPEG 2000.

What makes it strong rather than nominal, each choice by measurement on the corpus:
- The basis has just as many bits per coefficient (6 to 16) as the target error needs: a wrong angle leaks energy of
  the first plane, `_LEAK` of the water level at most. The encoder projects with the pseudo-inverse of the *quantised*
  basis, so what is quantised away is not lost but only a little less well decorrelated.
- Planes far below the water level are dropped with their basis vectors: on small images each plane costs more in
  headers than it returns; on large ones it pays to keep planes of a tenth of it for their few strong coefficients.
- The planes use all 16 bits, so rounding them to integers adds nothing that can be seen in the PSNR.

All of it is counted. Per grid: u16 bands, u8 dtype, u8 bits of the basis, u16 planes, f32 scale, i32 offset,
u16 height, u16 width, means (16 bits each), basis (bands x planes, packed), codestream. A scene that does not vary has
0 planes and no codestream.
"""

from __future__ import annotations

import math
import struct
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from evaluation.codecs.base import GridCodec, Pixels, mse_of
from evaluation.codecs.j2k import decode_components, encode_components

Floats = NDArray[np.float64]

_HEAD = struct.Struct("<HBBHfiHH")
_DTYPES = ("uint8", "uint16", "int16")
_FULL_SCALE = 65_000
_SCALE_MAX = 64.0  # quiet scenes: rounding at 1/64 is far below any error asked for
_LEAK = 0.005
_BASIS_BITS = (6, 16)
_PIXELS_PER_PLANE = 4000.0  # see `_planes_kept`
_BLOCK = 1 << 18  # pixels per step through a grid, for memory's sake


class Jpeg2000Klt(GridCodec):
    name: ClassVar[str] = "j2k-klt"

    def encode_grid(self, pixels: Pixels, setting: float, peak: float) -> bytes:
        bands, height, width = pixels.shape
        flat = pixels.reshape(bands, -1)
        means, covariance = _statistics(flat)
        variances, vectors = np.linalg.eigh(covariance)
        variances, vectors = variances[::-1].clip(0), vectors[:, ::-1]
        target = mse_of(setting, peak)
        level = _water_level(variances, bands * target)
        count = _planes_kept(variances, level, height * width)
        bits = _basis_bits(variances[0], level)
        steps = np.round(vectors[:, :count] * _top(bits)).astype(np.int16)
        basis = steps / _top(bits)
        planes, scale, offset = _project(flat, means, basis)
        head = _HEAD.pack(bands, _DTYPES.index(pixels.dtype.name), bits, count, scale, offset, height, width)
        side = head + means.astype("<i4").astype("<u2").tobytes() + _pack(steps, bits)
        if not count:
            return side
        # What the dropped planes lose is spent already; the kept ones get the rest, and never nothing.
        spent = variances[count:].sum()
        per_plane = max(bands * target - spent, 0.1 * bands * target) / count
        codestream = encode_components(
            planes.reshape(count, height, width), per_plane * scale * scale, threads=self.threads
        )
        return side + codestream

    def decode_grid(self, codestream: bytes) -> Pixels:
        bands, code, bits, count, scale, offset, height, width = _HEAD.unpack_from(codestream)
        dtype = np.dtype(_DTYPES[code])
        at = _HEAD.size
        means = np.frombuffer(codestream, "<i2" if dtype.kind == "i" else "<u2", bands, at).astype(np.float64)
        at += 2 * bands
        packed = -(-bands * count * bits // 8)
        basis = _unpack(codestream[at : at + packed], (bands, count), bits) / _top(bits)
        pixels = np.empty((bands, height * width), dtype)
        planes = decode_components(codestream[at + packed :], self.threads).reshape(count, -1) if count else None
        bounds = np.iinfo(dtype)
        for start in range(0, height * width, _BLOCK):
            block = slice(start, start + _BLOCK)
            values = means[:, None]
            if planes is not None:
                values = values + basis @ ((planes[:, block].astype(np.float64) + offset) / scale)
            pixels[:, block] = np.clip(np.round(values), bounds.min, bounds.max)
        return pixels.reshape(bands, height, width)


def _statistics(flat: Pixels) -> tuple[Floats, Floats]:
    """Means, rounded as they are sent, and the covariance about them."""
    count = flat.shape[1]
    means = np.round(flat.mean(axis=1, dtype=np.float64))
    covariance = np.zeros((len(flat), len(flat)))
    for start in range(0, count, _BLOCK):
        centred = flat[:, start : start + _BLOCK] - means[:, None]
        covariance += centred @ centred.T
    return means, covariance / count


def _water_level(variances: Floats, total: float) -> float:
    """The error per plane at which planes cut off at their own variance add up to `total`."""
    low, high = 0.0, float(variances[0])
    for _ in range(60):
        level = (low + high) / 2
        if np.minimum(level, variances).sum() > total:
            high = level
        else:
            low = level
    return max(high, 1e-9)


def _planes_kept(variances: Floats, level: float, pixels: int) -> int:
    """How many planes pass: those above 1 (small images) to 0.1 (large ones) times the water level, and the first."""
    share = min(max(_PIXELS_PER_PLANE / pixels, 0.1), 1.0)
    return max(int((variances > share * level).sum()), int(variances[0] > 0))


def _basis_bits(first: float, level: float) -> int:
    """Bits, with sign, at which rounding the basis leaks `_LEAK` of the water level out of the first plane."""
    low, high = _BASIS_BITS
    if first <= 0:
        return low
    return int(np.clip(math.ceil(0.5 * math.log2(first / (12 * _LEAK * level))) + 1, low, high))


def _top(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


def _project(flat: Pixels, means: Floats, basis: Floats) -> tuple[NDArray[np.uint16], float, int]:
    """The planes as uint16, and the scale and offset that undo it: value = (integer + offset) / scale."""
    analysis = np.linalg.pinv(basis)
    planes = np.empty((len(analysis), flat.shape[1]), np.float32)
    for start in range(0, flat.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        planes[:, block] = analysis @ (flat[:, block] - means[:, None])
    if not planes.size:
        return planes.astype(np.uint16), 1.0, 0
    low, high = float(planes.min()), float(planes.max())
    scale = float(np.float32(min(_SCALE_MAX, _FULL_SCALE / max(high - low, 1.0))))
    offset = math.floor(low * scale)
    for start in range(0, flat.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        planes[:, block] = np.round(planes[:, block] * scale - offset)
    return planes.astype(np.uint16), scale, offset


def _pack(steps: NDArray[np.int16], bits: int) -> bytes:
    """Two's complement of `bits` bits each, highest first."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((steps.reshape(-1, 1).astype(np.int32) >> shifts & 1).astype(np.uint8)).tobytes()


def _unpack(packed: bytes, shape: tuple[int, int], bits: int) -> NDArray[np.int64]:
    count = shape[0] * shape[1]
    digits = np.unpackbits(np.frombuffer(packed, np.uint8), count=count * bits).reshape(count, bits).astype(np.int64)
    values = digits @ (1 << np.arange(bits - 1, -1, -1))
    values[values >= 1 << (bits - 1)] -= 1 << bits
    return values.reshape(shape)
