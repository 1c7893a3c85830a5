"""Blocks of pixels <-> transform coefficients: the 8 x 8 DCT-II, its channels ordered by subband.

Pixels come mixed across the borders of blocks (`downlink.lap`), and channels are scaled by what that makes of their
norms: together nearly orthonormal.

A band at half the lattice's resolution (a 20 m band on a 10 m lattice) is transformed by the 4 x 4 DCT of its own
pixels, times 2: that is where the 8 x 8 DCT of a smooth enlargement would put it, with the same energy, and its high
subband is empty. So bands of both resolutions share blocks, and what they have in common is found per frequency
(downsampling in the DCT domain: Dugad, Ahuja 2001).

Subbands cut the channels by frequency (u, v): 0 the mean (0, 0); 1 the rest of u, v < 2; 2 the rest of u, v < 4; 3
all others. The means of 4 x 4 blocks are transformed once more, by a 4 x 4 DCT, into the 16 channels of the *root* at
1/32 of the resolution: at low rates most bits are theirs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink import lap

BLOCK = 8
CHANNELS = BLOCK * BLOCK
SUBBANDS = (1, 4, 16, 64)
"""Ends of the subbands' channels."""
HALF_CHANNELS = 16
"""Channels that a band of half resolution has: subbands 0 to 2."""

Floats = NDArray[np.float32]


def subband(number: int) -> slice:
    """Channels of a subband."""
    return slice(SUBBANDS[number - 1] if number else 0, SUBBANDS[number])


def _cosines(size: int) -> NDArray[np.float64]:
    """Orthonormal DCT-II matrix (frequency, position)."""
    frequency, position = np.mgrid[:size, :size]
    rows = np.cos(np.pi * (2 * position + 1) * frequency / (2 * size)) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return np.asarray(rows)


def scan() -> list[tuple[int, int]]:
    """(u, v) of every channel: by subband, within it by u + v, then u."""
    every = [(u, v) for u in range(BLOCK) for v in range(BLOCK)]

    def number(u: int, v: int) -> int:
        return max(u, v).bit_length()

    return sorted(every, key=lambda f: (number(*f), f[0] + f[1], f[0]))


@cache
def basis(half: bool = False) -> Floats:
    """Rows of the block transform: (64, 64) of an 8 x 8 block in row-major order, or (16, 16) of a 4 x 4 one (times
    2)."""
    size = BLOCK // 2 if half else BLOCK
    both = _products(_cosines(size) * lap.norms(size)[:, None])
    return (both * (2.0 if half else 1.0)).astype(np.float32)


def _products(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """One-dimensional transforms (frequency, position) -> that of blocks, channels in the order of `scan`."""
    return np.stack([np.outer(rows[u], rows[v]).ravel() for u, v in scan()[: len(rows) ** 2]])


@cache
def inverse_basis(half: bool = False) -> Floats:
    """Columns that undo `basis`: block = inverse_basis @ channels."""
    size = BLOCK // 2 if half else BLOCK
    both = _products(_cosines(size) / lap.norms(size)[:, None])
    return np.ascontiguousarray(both.T / (2.0 if half else 1.0), np.float32)


@cache
def lapped(half: bool = False) -> Floats:
    """What mixing and the transform together make, along one side, of half a block, a block and half a block of pixels:
    (4, size, 2 size). Number 3 is that of a block between two others; where bit 0 (bit 1) is not set, nothing lies
    before (after) it."""
    size = BLOCK // 2 if half else BLOCK
    middle = size // 2
    rows = _cosines(size) * lap.norms(size)[:, None] * (2.0**0.5 if half else 1.0)
    mixing = lap.mixing(size)
    out = np.zeros((4, size, 2 * size))
    for number in range(4):
        mixed = np.eye(size, 2 * size, middle)
        if number & 1:
            mixed[:middle, :size] = mixing[middle:]
        if number & 2:
            mixed[middle:, size:] = mixing[:middle]
        out[number] = rows @ mixed
    return np.ascontiguousarray(out, np.float32)


@cache
def unlapped(half: bool = False) -> Floats:
    """What a unit of each frequency of a block makes, along one side, of half a block, a block and half a block of
    pixels once they are unmixed: (4, size, 2 size), numbered as in `lapped`."""
    size = BLOCK // 2 if half else BLOCK
    middle = size // 2
    rows = _cosines(size) / lap.norms(size)[:, None] / (2.0**0.5 if half else 1.0)
    unmixing = lap.unmixing(size)
    out = np.zeros((4, size, 2 * size))
    for number in range(4):
        out[number, :, middle : middle + size] = rows
        if number & 1:
            out[number, :, :size] = rows[:, :middle] @ unmixing[:, middle:].T
        if number & 2:
            out[number, :, size:] = rows[:, middle:] @ unmixing[:, :middle].T
    return np.ascontiguousarray(out, np.float32)


@cache
def order(half: bool = False) -> NDArray[np.uint8]:
    """The channel of every frequency (u, v), in row-major order."""
    size = BLOCK // 2 if half else BLOCK
    out = np.zeros((size, size), np.uint8)
    for channel, (u, v) in enumerate(scan()[: size * size]):
        out[u, v] = channel
    return out


FLAT = BLOCK * float(lap.norms(BLOCK)[0]) ** 2
"""Channel 0 of a block whose pixels are all one; of both sizes of block."""


_UNITS = {4: (np.uint32, 1), 8: (np.uint64, 1), 16: (np.complex128, 1), 32: (np.complex128, 2)}
"""Types as wide as a block's row of so many bytes: one of them moves at once, or two."""


def _blocks(pixels: NDArray[Any], size: int) -> NDArray[Any]:
    """(n, height, width) -> (n, blocks, size * size), blocks row by row."""
    count, height, width = pixels.shape
    high, wide = height // size, width // size
    unit, parts = _UNITS[size * pixels.dtype.itemsize]
    if pixels.strides[-1] != pixels.itemsize:
        pixels = np.ascontiguousarray(pixels)
    rows: NDArray[Any] = pixels.view(unit).reshape(count, high, size, wide, parts).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(rows).view(pixels.dtype).reshape(count, high * wide, size * size)


def forward(pixels: NDArray[Any], half: bool = False) -> Floats:
    """(n, height, width) of any real type, sides multiples of the block -> (n, 64 or 16, height / block, width /
    block)."""
    size = BLOCK // 2 if half else BLOCK
    count, height, width = pixels.shape
    flat = _blocks(pixels, size).astype(np.float32, copy=False)
    out = np.matmul(basis(half), flat.swapaxes(1, 2))
    return np.asarray(out.reshape(count, size * size, height // size, width // size), np.float32)


def inverse(channels: Floats, half: bool = False) -> Floats:
    """(n, 64 or 16, h, w) -> pixels (n, h * block, w * block): what `forward` undoes."""
    size = BLOCK // 2 if half else BLOCK
    count, _, high, wide = channels.shape
    flat = channels.reshape(count, size * size, high * wide).swapaxes(1, 2)
    pixels = np.matmul(flat, inverse_basis(half).T)
    unit, parts = _UNITS[size * pixels.dtype.itemsize]
    rows: NDArray[Any] = pixels.view(unit).reshape(count, high, wide, size, parts).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(rows).view(np.float32).reshape(count, high * size, wide * size)


ROOT = 4
"""Blocks along a side whose means are transformed together."""
ROOT_CHANNELS = ROOT * ROOT
_ROOT_SHIFT = 10


@cache
def _root_basis() -> Floats:
    """Rows (16, 16) of the orthonormal 4 x 4 DCT, in the order of `scan`."""
    return _products(_cosines(ROOT)).astype(np.float32)


@cache
def root_integers() -> NDArray[np.float64]:
    """Columns that undo the root transform (blocks, channels), in units of 2^-10: small integers in float64."""
    return np.rint(_root_basis().T.astype(np.float64) * (1 << _ROOT_SHIFT))


def root_forward(means: Floats) -> Floats:
    """Block means (n, h, w), sides multiples of 4 -> root channels (n, 16, h/4, w/4)."""
    count, height, width = means.shape
    blocks = means.reshape(count, height // ROOT, ROOT, width // ROOT, ROOT).transpose(0, 2, 4, 1, 3)
    flat = np.ascontiguousarray(blocks, dtype=np.float32).reshape(count, ROOT_CHANNELS, (height * width) // 16)
    return (_root_basis() @ flat).reshape(count, ROOT_CHANNELS, height // ROOT, width // ROOT)


def _unblocked(flat: NDArray[np.generic], high: int, wide: int) -> NDArray[np.generic]:
    count = len(flat)
    blocks = flat.reshape(count, ROOT, ROOT, high, wide).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(blocks).reshape(count, high * ROOT, wide * ROOT)


def root_inverse(root: Floats) -> Floats:
    """What `root_forward` undoes: (n, 16, h, w) -> (n, 4 h, 4 w)."""
    count, _, high, wide = root.shape
    flat = _root_basis().T @ np.ascontiguousarray(root, dtype=np.float32).reshape(count, ROOT_CHANNELS, high * wide)
    return np.asarray(_unblocked(flat, high, wide), np.float32)


def root_means(symbols: NDArray[np.int32]) -> NDArray[np.int32]:
    """Block means that root symbols (n, 16, h, w) stand for, in eighths of a step, by integers alone: (n, 4 h, 4 w).

    Sums of 16 products below 2^33 are exact in float64, in any order.
    """
    count, _, high, wide = symbols.shape
    flat = root_integers() @ symbols.reshape(count, ROOT_CHANNELS, high * wide).astype(np.float64)
    eighths = np.floor(flat / (1 << _ROOT_SHIFT - 3))
    return np.asarray(_unblocked(eighths, high, wide)).astype(np.int32)
