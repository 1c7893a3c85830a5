"""Fields of a subband in quarters, so that each phase of coding is contiguous and neighbours are a shift away.

A grid of (h, w) fields is split by the parity of its rows and columns: A (even, even), C1 (odd, even), C0 (even, odd)
and B (odd, odd), in this order. The first phase codes A, the second B, the third C1 and C0
(`downlink.context.phases`). Each quarter has (ceil(h / 2), ceil(w / 2)) fields and a border of zeros: a row above, a
row below, and one column at the right that serves the next row as its left border, too. So a neighbour is a fixed
distance away in the flat array, all averages are sums of slices of flat arrays, and nothing is copied to be padded.
What such a sum gives in the border means nothing.

`around` and `smooth` are `downlink.context`'s, on quarters.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

A, C1, C0, B = range(4)
PHASES: Final = (slice(A, A + 1), slice(B, B + 1), slice(C1, C0 + 1))
"""Quarters that each phase codes."""
PLACES: Final = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Parity of rows and columns, per quarter."""

Magnitudes = NDArray[np.int16]


class Shape(NamedTuple):
    """A grid of fields and its quarters."""

    height: int
    width: int

    @property
    def rows(self) -> int:
        """Rows of a quarter."""
        return -(-self.height // 2)

    @property
    def columns(self) -> int:
        return -(-self.width // 2)

    @property
    def stride(self) -> int:
        """Columns of a quarter with its border."""
        return self.columns + 1

    def blank(self, *leading: int) -> Magnitudes:
        """Quarters of zeros: (4, *leading, rows + 2, stride)."""
        return np.zeros((4, *leading, self.rows + 2, self.stride), np.int16)


class Order:
    """In which order a phase's fields stand in the stream: by rows, then columns, of the whole grid."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    @cached_property
    def fields(self) -> tuple[NDArray[np.intp], ...]:
        """Per phase: the places of its fields among those of its quarters, (quarters, rows, columns) flattened, in the
        stream's order."""
        number = np.full((self.shape.rows * 2, self.shape.columns * 2), -1)
        found = []
        for phase in PHASES:
            number[...] = -1
            for place, quarter in enumerate(range(phase.start, phase.stop)):
                down, across = PLACES[quarter]
                size = self.shape.rows * self.shape.columns
                number[down::2, across::2] = place * size + np.arange(size).reshape(self.shape.rows, -1)
            inside = number[: self.shape.height, : self.shape.width].ravel()
            found.append(inside[inside >= 0].astype(np.intp))
        return tuple(found)

    @cached_property
    def straight(self) -> tuple[bool, ...]:
        """Per phase: whether its fields already stand in the stream's order."""
        return tuple(np.array_equal(one, np.arange(self._size(phase))) for phase, one in enumerate(self.fields))

    def _size(self, phase: int) -> int:
        return (PHASES[phase].stop - PHASES[phase].start) * self.shape.rows * self.shape.columns

    def stream(self, phase: int, values: NDArray[Any]) -> NDArray[Any]:
        """(..., quarters, rows, columns) of a phase -> (..., fields) in the stream's order."""
        flat = values.reshape(*values.shape[:-3], -1)
        return flat if self.straight[phase] else flat.take(self.fields[phase], axis=-1)

    def quarters(self, phase: int, values: NDArray[Any]) -> NDArray[Any]:
        """What `stream` undoes; fields beyond the grid's edge are zero."""
        count = PHASES[phase].stop - PHASES[phase].start
        shape = (*values.shape[:-1], count, self.shape.rows, self.shape.columns)
        if self.straight[phase]:
            return values.reshape(shape)
        out = np.zeros((*values.shape[:-1], self._size(phase)), values.dtype)
        out[..., self.fields[phase]] = values
        return out.reshape(shape)


def split(values: NDArray[Any], out: NDArray[Any]) -> None:
    """Natural (..., h, w) -> quarters `out` (4, ..., at least rows, at least columns), from its first row and column;
    fields beyond the edge are left as they are."""
    for quarter, (down, across) in enumerate(PLACES):
        part = values[..., down::2, across::2]
        out[quarter][..., : part.shape[-2], : part.shape[-1]] = part


def joined(quarters: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """What `split` undoes: (4, ..., rows, columns) -> natural (..., height, width)."""
    out = np.empty((*quarters.shape[1:-2], height, width), quarters.dtype)
    for quarter, (down, across) in enumerate(PLACES):
        part = out[..., down::2, across::2]
        part[...] = quarters[quarter][..., : part.shape[-2], : part.shape[-1]]
    return out


def gather(values: NDArray[Any], phase: int, out: NDArray[Any]) -> None:
    """Natural (..., h, w) -> fields of a phase `out` (..., quarters, rows, columns); what lies beyond the edge is left
    as it is."""
    for place, quarter in enumerate(range(PHASES[phase].start, PHASES[phase].stop)):
        down, across = PLACES[quarter]
        part = values[..., down::2, across::2]
        out[..., place, : part.shape[-2], : part.shape[-1]] = part


def scatter(values: NDArray[Any], phase: int, out: NDArray[Any]) -> None:
    """Fields of a phase (..., quarters, rows, columns) -> their places in the natural `out` (..., h, w)."""
    for place, quarter in enumerate(range(PHASES[phase].start, PHASES[phase].stop)):
        down, across = PLACES[quarter]
        part = out[..., down::2, across::2]
        part[...] = values[..., place, : part.shape[-2], : part.shape[-1]]


def inner(quarters: NDArray[Any]) -> NDArray[Any]:
    """(4, ..., rows, columns): quarters without their border."""
    return quarters[..., 1:-1, :-1]


def around(own: Magnitudes, phase: int) -> Magnitudes:
    """What the neighbours of earlier phases hold, on average, for the second (1) and the third phase (2): own
    magnitudes (4, n, channels, rows + 2, stride) -> (quarters of the phase, n, channels, rows + 2, stride)."""
    _, count, channels, rows, stride = own.shape
    flat = own.reshape(4, -1)
    a, b = flat[A], flat[B]
    size = a.size
    if phase == 1:
        out = np.zeros((1, size), np.int16)
        pairs = a[:-1] + a[1:]
        np.add(pairs[:-stride], pairs[stride:], out=out[0, : size - stride - 1])
    else:
        out = np.empty((2, size), np.int16)
        for place, (step, back) in enumerate(((stride, 1), (1, stride))):  # C1: A above and below, B at both sides
            sums = out[place]
            np.add(a[:-step], a[step:], out=sums[: size - step])
            sums[size - step :] = 0
            sums += b
            sums[back:] += b[: size - back]
    out >>= 2
    return out.reshape(-1, count, channels, rows, stride)


def smooth(values: Magnitudes) -> Magnitudes:
    """3x3 binomial averages (floor of sixteenths) of quarters (4, n, channels, rows + 2, stride) that are zero in their
    border. Sums of two neighbours twice, along rows and along columns."""
    stride = values.shape[-1]
    flat = values.reshape(2, 2, -1)  # (parity of columns, parity of rows, fields)
    out = np.empty_like(flat)
    here, before = np.empty_like(flat[0]), np.empty_like(flat[0])
    even, odd = flat[0], flat[1]
    np.add(even, odd, out=here)
    np.add(odd[:, :-1], even[:, 1:], out=before[:, 1:])
    before[:, 0] = even[:, 0]
    np.add(here, before, out=out[0])
    np.add(here[:, :-1], before[:, 1:], out=out[1][:, :-1])
    out[1][:, -1] = 0
    even, odd = out[:, 0], out[:, 1]
    np.add(even, odd, out=here)
    np.add(odd[:, :-stride], even[:, stride:], out=before[:, stride:])
    before[:, :stride] = even[:, :stride]
    np.add(here, before, out=even)
    np.add(here[:, :-stride], before[:, stride:], out=odd[:, :-stride])
    odd[:, -stride:] = 0
    out >>= 4
    return out.reshape(values.shape)


def neighbours(quarters: NDArray[Any], phase: int) -> list[NDArray[Any]]:
    """The four neighbours of earlier phases of every field of the second (1) or the third phase (2): quarters (4, n,
    channels, rows + 2, stride) -> four of (quarters of the phase, n, channels, rows, stride)."""
    flat = quarters.reshape(4, -1)
    stride = quarters.shape[-1]
    size = flat.shape[1]
    shape = (1, *quarters.shape[1:])

    def moved(quarter: int, by: int) -> NDArray[Any]:
        out = np.zeros(size, quarters.dtype)
        first, last = max(0, -by), size - max(0, by)
        out[first:last] = flat[quarter, first + by : last + by]
        return out.reshape(shape)[..., 1:-1, :]

    if phase == 1:
        return [moved(A, by) for by in (0, 1, stride, stride + 1)]
    return [
        np.concatenate([moved(one, step), moved(other, back)])
        for (one, step), (other, back) in (
            ((A, 0), (A, 0)),
            ((A, stride), (A, 1)),
            ((B, -1), (B, -stride)),
            ((B, 0), (B, 0)),
        )
    ]
