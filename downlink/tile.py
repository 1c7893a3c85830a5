"""How a grid is cut into tiles: windows, halos and slices. Pure geometry, no pixels.

A tile's *core* is its own square of pixels; cores cover the grid once. A *halo* is a window around a core, clipped at
the grid's edges. The *coded* size is the core's size rounded up to a multiple of 32, which the networks' strides need;
what lies beyond the core there is padding. Rows before columns everywhere: (row, col), (height, width).

Geometry comes from a validated manifest; nonsense here is a caller's bug and raises ValueError or IndexError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

CODED_MULTIPLE: Final = 32


def align_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `number`.

    >>> align_up(1, 32), align_up(32, 32), align_up(33, 32)
    (32, 32, 64)
    """
    return -(-number // multiple) * multiple


class Window(NamedTuple):
    """A rectangle of pixels: `height` rows from `row`, `width` columns from `col`."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns), for `pixels[:, *window.slices]`."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    @property
    def samples(self) -> int:
        """Pixels of one band."""
        return self.height * self.width

    def relative_to(self, outer: Window) -> Window:
        """This window in the coordinates of `outer`, which must hold it: the core inside its halo."""
        inner = Window(self.row - outer.row, self.col - outer.col, self.height, self.width)
        if (
            min(inner.row, inner.col) < 0
            or inner.row + inner.height > outer.height
            or inner.col + inner.width > outer.width
        ):
            raise ValueError(f"{self} does not lie inside {outer}")
        return inner

    def grown(self, margin: int, height: int, width: int) -> Window:
        """This window with `margin` more pixels on each side, clipped to a grid of (height, width)."""
        top, left = max(0, self.row - margin), max(0, self.col - margin)
        bottom, right = min(height, self.row + self.height + margin), min(width, self.col + self.width + margin)
        return Window(top, left, bottom - top, right - left)


class Tile(NamedTuple):
    """The tile in tile-row `row` and tile-column `col`; `window` is its core."""

    row: int
    col: int
    window: Window

    @property
    def coded(self) -> tuple[int, int]:
        """(height, width) of the core rounded up to multiples of 32."""
        return align_up(self.window.height, CODED_MULTIPLE), align_up(self.window.width, CODED_MULTIPLE)


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of a grid of (height, width), numbered row by row. Nothing is allocated per tile."""

    height: int
    width: int
    core: int = 256

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.core < 1:
            raise ValueError(f"a grid of {self.height} x {self.width} px cannot be cut in tiles of {self.core} px")

    @property
    def rows(self) -> int:
        return -(-self.height // self.core)

    @property
    def cols(self) -> int:
        return -(-self.width // self.core)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(number) for number in range(len(self)))

    def tile(self, number: int) -> Tile:
        """Tile `number`, counted row by row from 0."""
        if not 0 <= number < len(self):
            raise IndexError(f"tile {number} of a grid that has {len(self)} tiles")
        row, col = divmod(number, self.cols)
        top, left = row * self.core, col * self.core
        core = Window(top, left, min(self.core, self.height - top), min(self.core, self.width - left))
        return Tile(row, col, core)

    def number(self, row: int, col: int) -> int:
        """The number of the tile in tile-row `row`, tile-column `col`."""
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(f"tile ({row}, {col}) of a grid that has {self.rows} x {self.cols} tiles")
        return row * self.cols + col

    def halo(self, number: int, margin: int) -> Window:
        """The core of tile `number` with up to `margin` pixels around it, as many as the grid has."""
        return self.tile(number).window.grown(margin, self.height, self.width)

    def row_tiles(self, row: int) -> range:
        """The numbers of the tiles in tile-row `row`."""
        return range(self.number(row, 0), self.number(row, 0) + self.cols)

    def row_window(self, row: int) -> Window:
        """The cores of tile-row `row` together: a strip across the whole grid."""
        core = self.tile(self.number(row, 0)).window
        return Window(core.row, 0, core.height, self.width)
