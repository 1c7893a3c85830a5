"""Lapping: pixels beside the borders of blocks are mixed before the block transform and unmixed after its inverse.

A block transform sees nothing beyond its block: what is smooth across a border costs bits in both blocks, and errors
show as an edge. Mixing the half blocks on both sides of every border (a time-domain lapped transform: Tran, Liang, Tu,
"Lapped transform via time-domain pre- and post-filtering", IEEE Trans. Signal Processing 51(6), 2003, type I with the
factor of §V) makes the pair a lapped biorthogonal transform with the coding gain of long wavelets: 5 to 20 % fewer bits
at equal error before entropy coding, and most where pixels were interpolated.

The border of a grid is left as it is. A constant stays what it was.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRETCH = 1.3
"""Factor of the first antisymmetric component. 1 is orthogonal; 1.3 needed least bits at equal error, of 1 to 1.6, with
8-pixel blocks of 10 m bands and with 4-pixel blocks of 20 m bands."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def _cosines(size: int, fourth: bool) -> Doubles:
    """Orthonormal DCT-II or DCT-IV (frequency, position)."""
    frequency, position = np.mgrid[:size, :size].astype(np.float64)
    if fourth:
        rows = np.cos(np.pi * (2 * position + 1) * (2 * frequency + 1) / (4 * size)) * np.sqrt(2 / size)
    else:
        rows = np.cos(np.pi * (2 * position + 1) * frequency / (2 * size)) * np.sqrt(2 / size)
        rows[0] /= np.sqrt(2)
    return np.asarray(rows)


@cache
def mixing(size: int) -> Doubles:
    """What is done to the `size` pixels around a border between blocks of `size`: (size, size)."""
    half = size // 2
    same, turned = np.eye(half), np.eye(half)[::-1]
    scale = np.diag([STRETCH] + [1.0] * (half - 1))
    inner = turned @ _cosines(half, False).T @ scale @ _cosines(half, True) @ turned
    fold = np.block([[same, turned], [turned, -same]])
    none = np.zeros((half, half))
    return np.asarray(0.5 * fold @ np.block([[same, none], [none, inner]]) @ fold)


@cache
def unmixing(size: int) -> Doubles:
    """What undoes `mixing`."""
    return np.asarray(np.linalg.inv(mixing(size)))


@cache
def norms(size: int) -> Doubles:
    """(size): how long, as a vector of pixels, a unit of each frequency of a block is after unmixing. Coefficients are
    multiplied by them, so that an error of one in any of them is about an error of one in pixels."""
    rows = np.zeros((size, 2 * size))
    rows[:, size // 2 : size // 2 + size] = _cosines(size, False)
    return np.asarray(np.linalg.norm(rows.reshape(size, 2, size) @ unmixing(size).T, axis=(1, 2)))


def mix(pixels: Floats, size: int, first: tuple[int, int]) -> Floats:
    """Pixels (n, height, width), changed in place: mixed across every border between blocks of `size` that has half a
    block on both sides. The first border below the top and right of the left are at `first` (row, column)."""
    return _apply(pixels, mixing(size), first)


def unmix(pixels: Floats, size: int, first: tuple[int, int]) -> Floats:
    """What `mix` undoes, in place."""
    return _apply(pixels, unmixing(size), first)


def _apply(pixels: Floats, matrix: Doubles, first: tuple[int, int]) -> Floats:
    turn: Any = matrix.astype(np.float32)
    size = len(turn)
    height, width = pixels.shape[1:]
    rows, columns = (_around(at, size, side) for at, side in zip(first, (height, width), strict=True))
    if rows.stop > rows.start:
        part = pixels[:, rows]
        part[...] = (turn @ part.reshape(-1, size, width)).reshape(part.shape)
    if columns.stop > columns.start:
        part = pixels[:, :, columns]
        part[...] = (part.reshape(-1, size) @ turn.T).reshape(part.shape)
    return pixels


def _around(first: int, size: int, side: int) -> slice:
    """The pixels of a side that lie around borders."""
    start = first - size // 2 if first >= size // 2 else first + size // 2
    return slice(start, start + max(0, side - start) // size * size)
