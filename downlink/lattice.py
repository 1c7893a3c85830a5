"""The lattices a scene is coded on: each band at its native resolution, bands that share blocks together.

Users' grids are what their files hold; a lattice is what the codec sees. Bands that repeat their pixels (20 m on a 10 m
grid) count at their native resolution, and grids that lie exactly on each other (Sentinel-2's 10, 20 and 60 m) are
joined, so that what they have in common is coded once. A lattice has one unit, in pixels of the scene's finest grid;
its bands have that native resolution or half of it. How grids map to lattices follows from `Resolution`s alone, which
the manifest states, by the same integers on both ends.

A lattice is described by a `Grid` (its size, dtype, nodata and bands), so that tiles, masks and chunks are cut from it
as from any grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from downlink import limits
from downlink.errors import Malformed
from downlink.repeat import FACTORS, Repeat
from downlink.scene import Grid, Scene

UNITS = (1, 2, 3, 6)
"""Sizes of a grid's pixel that joined grids may have, in pixels of the finest."""


class Resolution(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How one grid's bands resolve. Positional on the wire: never reorder the fields.

    `unit` is the grid's pixel size in pixels of the finest grid of the scene, where grids are joined; 0 for a grid on
    its own. `repeats` has a digit per band (empty: all 1): each block of so many rows and columns holds one value.
    Blocks begin at row `row` and column `col` modulo 6.
    """

    unit: int = 0
    repeats: Annotated[str, Meta(max_length=limits.BANDS_MAX)] = ""
    row: Annotated[int, Meta(ge=0, le=5)] = 0
    col: Annotated[int, Meta(ge=0, le=5)] = 0

    def repeat(self, band: int) -> int:
        return int(self.repeats[band]) if self.repeats else 1


@dataclass(frozen=True)
class Member:
    """A band of a lattice: which one of which grid, its native pixel in lattice pixels (1 or 2), and its grid's pixel
    in pixels of the finest grid."""

    grid: int
    band: int
    factor: int
    pixel: int


@dataclass(frozen=True)
class Lattice:
    """Bands coded together. Lattice pixel (i, j) covers `unit` x `unit` pixels of the finest grid from row `row` + unit
    i and column `col` + unit j; both origins are 0 or less."""

    unit: int
    row: int
    col: int
    grid: Grid
    members: tuple[Member, ...]

    @cached_property
    def half(self) -> NDArray[np.bool_]:
        """Members of half the lattice's resolution."""
        return np.array([member.factor == 2 for member in self.members])

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """Per member: what its coefficients are multiplied by, so that a squared error of one counts as much as one per
        pixel of the users' grids."""
        return np.array([self.unit / member.pixel for member in self.members], np.float32)

    @property
    def height(self) -> int:
        return self.grid.height

    @property
    def width(self) -> int:
        return self.grid.width


def lattices(scene: Scene, resolutions: Sequence[Resolution]) -> tuple[Lattice, ...]:
    """The lattices of a scene, in the order in which they are coded; Malformed where the resolutions cannot be."""
    stated = tuple(resolutions) or (Resolution(),) * len(scene.grids)
    if len(stated) != len(scene.grids):
        raise Malformed(f"{len(stated)} resolutions for {len(scene.grids)} grids; each grid needs exactly one")
    out: list[Lattice] = []
    joined = [number for number, resolution in enumerate(stated) if resolution.unit]
    for number, (grid, resolution) in enumerate(zip(scene.grids, stated, strict=True)):
        _check(grid, resolution, f"resolution of grid {number}")
        if not resolution.unit:
            out += _family(scene, stated, [number], [1])
    if joined:
        out += _family(scene, stated, joined, [stated[number].unit for number in joined])
    return tuple(out)


def _check(grid: Grid, resolution: Resolution, what: str) -> None:
    if resolution.unit not in (0, *UNITS):
        raise Malformed(f"{what}: unit {resolution.unit} is none of {(0, *UNITS)}")
    allowed = {str(factor) for factor in (1, *FACTORS)}
    if resolution.repeats and (len(resolution.repeats) != len(grid.bands) or set(resolution.repeats) - allowed):
        raise Malformed(f"{what}: repeats {resolution.repeats[:64]!r} for {len(grid.bands)} bands")


def _family(scene: Scene, stated: Sequence[Resolution], numbers: list[int], units: list[int]) -> list[Lattice]:
    """The lattices of grids that lie on each other."""
    grids = [scene.grids[number] for number in numbers]
    finest = grids[0]
    if units[0] != 1:
        raise Malformed(f"joined grids begin with unit {units[0]}; the finest comes first, with unit 1")
    for grid, unit in zip(grids, units, strict=True):
        same = (grid.dtype, grid.nodata) == (finest.dtype, finest.nodata)
        if not same or (grid.height * unit, grid.width * unit) != (finest.height, finest.width):
            raise Malformed(
                f"a grid of {grid.height} x {grid.width} px in units of {unit} does not lie on one of "
                f"{finest.height} x {finest.width} px; such grids are not joined"
            )
    phases = {(stated[number].row, stated[number].col) for number in numbers}
    if len(numbers) > 1 and (phases != {(0, 0)}):
        raise Malformed(f"joined grids begin their blocks at {sorted(phases)}; only (0, 0) is possible")
    natives = [
        (unit * stated[number].repeat(band), number, band, unit)
        for number, unit in zip(numbers, units, strict=True)
        for band in range(len(scene.grids[number].bands))
    ]
    (row, col) = next(iter(phases))
    out = []
    while natives:
        unit = min(native for native, *_ in natives)
        here = [entry for entry in natives if entry[0] in (unit, 2 * unit)]
        natives = [entry for entry in natives if entry not in here]
        members = tuple(Member(number, band, native // unit, pixel) for native, number, band, pixel in here)
        period = unit * max(member.factor for member in members)
        origin_row, origin_col = (-(-phase % period) if phase % period else 0 for phase in (row, col))
        grid = Grid(
            height=-(-(finest.height - origin_row) // unit),
            width=-(-(finest.width - origin_col) // unit),
            dtype=finest.dtype,
            bands=tuple(scene.grids[number].bands[band] for _, number, band, _ in here),
            nodata=finest.nodata,
        )
        out.append(Lattice(unit, origin_row, origin_col, grid, members))
    return out


def resolution_of(repeats: Sequence[Repeat]) -> Resolution:
    """The resolution of a grid by itself whose bands repeat so: bands whose blocks do not begin where most do count as
    not repeated."""
    for row, col in _phases(repeats):
        digits = "".join(
            str(repeat.factor if (row % repeat.factor, col % repeat.factor) == repeat[1:] else 1) for repeat in repeats
        )
        if digits.strip("1"):
            return Resolution(0, digits, row, col)
    return Resolution()


def _phases(repeats: Sequence[Repeat]) -> list[tuple[int, int]]:
    """Phases modulo 6, the one that agrees with most bands first."""
    places = [(row, col) for row in range(6) for col in range(6)]

    def agreeing(place: tuple[int, int]) -> int:
        return sum(r.factor > 1 and (place[0] % r.factor, place[1] % r.factor) == (r.row, r.col) for r in repeats)

    return sorted(places, key=lambda place: -agreeing(place))


def join(scene: Scene) -> tuple[Resolution, ...]:
    """Resolutions of a scene whose grids lie exactly on each other, finest first; () if they do not."""
    finest = scene.grids[0]
    if len(scene.grids) < 2 or finest.transform is None:
        return ()
    out = []
    for grid in scene.grids:
        unit = finest.height // max(1, grid.height)
        if grid.transform is None or unit not in UNITS:
            return ()
        a, b, c, d, e, f = finest.transform
        same_place = grid.transform == (a * unit, b * unit, c, d * unit, e * unit, f)
        same_size = (grid.height * unit, grid.width * unit) == (finest.height, finest.width)
        if not (same_place and same_size) or (grid.dtype, grid.nodata) != (finest.dtype, finest.nodata):
            return ()
        out.append(Resolution(unit))
    return tuple(out)


def coded_scene(scene: Scene, resolutions: Sequence[Resolution]) -> Scene:
    """The scene as its lattices see it: what tiles and chunks are laid out from."""
    return Scene(name=scene.name, grids=tuple(lattice.grid for lattice in lattices(scene, resolutions)))


def native_index(lattice: Lattice, member: Member, first: int, count: int, rows: bool) -> NDArray[np.intp]:
    """Rows (or columns) of a member's own grid that hold its native samples first .. first + count - 1 of the lattice,
    unclipped at the far edge."""
    origin = lattice.row if rows else lattice.col
    at = np.arange(first, first + count) * (lattice.unit * member.factor) + origin
    return at.clip(0, None) // member.pixel


def sample_index(lattice: Lattice, member: Member, first: int, count: int, rows: bool) -> NDArray[np.intp]:
    """Which native sample of a member each row (or column) first .. first + count - 1 of its own grid shows."""
    origin = lattice.row if rows else lattice.col
    return (np.arange(first, first + count) * member.pixel - origin) // (lattice.unit * member.factor)
