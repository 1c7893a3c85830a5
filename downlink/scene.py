"""What a scene is: one or more grids of bands, each with its place on Earth, and what its source says about it.

A grid is a stack of bands of one pixel size and dtype; Sentinel-2 is one scene of three grids. Arrays are
(bands, height, width). The structs are the wire form too (positional, `docs/format.md`): never reorder their fields.

**`Scene.name` is for people. It is never a path, nor any part of one**: it comes from the peer, may hold `/` or `..`,
and two scenes may share it. Files are named by the scene id, which is hex. The same goes for every string here.

`validate` refuses what `downlink.limits` forbids, strings that could mislead a terminal, values that are not finite,
and nodata values that the dtype cannot hold.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Annotated, Final, Literal

import numpy as np
from msgspec import Meta, Struct

from downlink import limits
from downlink.errors import Malformed, Unsupported

DType = Literal["uint8", "uint16", "int16"]
Transform = tuple[float, float, float, float, float, float]

DTYPES: Final = ("uint8", "uint16", "int16")

# C0 and C1 controls, line and paragraph separators, and the marks that reorder or hide text. Spelt out rather than
# taken from str.isprintable(), whose answer changes with each Unicode release: old streams must stay valid.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


class Band(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A band's name as its source gives it, and its centre wavelength."""

    name: str = ""
    wavelength_nm: float | None = None


class Grid(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A stack of bands of equal size.

    `transform` is affine (a, b, c, d, e, f): x = a*col + b*row + c, y = d*col + e*row + f; whole numbers are corners.
    """

    height: int
    width: int
    dtype: DType
    bands: Annotated[tuple[Band, ...], Meta(max_length=limits.BANDS_MAX)]
    nodata: int | None = None
    crs: str | None = None  # "EPSG:32633" when it is exactly that, else WKT
    transform: Transform | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        return len(self.bands), self.height, self.width

    @property
    def samples(self) -> int:
        return len(self.bands) * self.height * self.width

    @property
    def raw_bytes(self) -> int:
        return self.samples * np.dtype(self.dtype).itemsize


class Scene(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All that is known about a scene but its pixels. `name` must never become a path (see the module's text)."""

    name: str
    grids: Annotated[tuple[Grid, ...], Meta(max_length=limits.GRIDS_MAX)]
    acquired: str | None = None  # ISO 8601, as the source states it
    tags: Annotated[dict[str, str], Meta(max_length=limits.TAGS_MAX)] = {}

    @property
    def samples(self) -> int:
        return sum(grid.samples for grid in self.grids)

    @property
    def raw_bytes(self) -> int:
        return sum(grid.raw_bytes for grid in self.grids)


def printable(text: str, bytes_max: int = limits.TEXT_BYTES_MAX) -> str:
    """`text` made fit for a scene: what `validate` would refuse becomes a space or is cut off.

    >>> printable("Blue\\n(B02)\\x00")
    'Blue (B02)'
    """
    cleaned = _UNPRINTABLE.sub(" ", text).strip()
    return cleaned.encode()[:bytes_max].decode(errors="ignore").strip()


def check_text(text: str, what: str, bytes_max: int = limits.TEXT_BYTES_MAX) -> None:
    """Refuse text that is too long, is not UTF-8, or holds control or direction marks."""
    limits.at_most(len(text), bytes_max, f"{what}: characters", "shorten it")  # before encoding: cheap on hostile input
    found = _UNPRINTABLE.search(text)
    if found:
        raise Malformed(f"{what}: character U+{ord(found[0]):04X} at {found.start()} is not printable; remove it")
    limits.at_most(len(text.encode()), bytes_max, f"{what}: bytes in UTF-8", "shorten it")


def validate(scene: Scene) -> None:
    """Raise `TooLarge`, `Malformed` or `Unsupported` unless every value is within `downlink.limits` and makes sense."""
    check_text(scene.name, "scene name")
    if not scene.grids:
        raise Malformed("scene has 0 grids; it needs at least 1")
    limits.at_most(len(scene.grids), limits.GRIDS_MAX, "grids of the scene", "split the scene by resolution")
    bands = sum(len(grid.bands) for grid in scene.grids)
    limits.at_most(bands, limits.BANDS_MAX, "bands of the scene", "split the scene by bands")
    for number, grid in enumerate(scene.grids):
        _validate_grid(grid, f"grid {number}")
    limits.at_most(scene.raw_bytes, limits.SCENE_RAW_BYTES_MAX, "bytes of raw pixels", "cut the scene into several")
    if scene.acquired is not None:
        check_text(scene.acquired, "acquired")
        try:
            datetime.fromisoformat(scene.acquired)
        except ValueError as error:
            raise Malformed(
                f"acquired: {scene.acquired!r} is not an ISO 8601 date or time; leave it out if unknown"
            ) from error
    limits.at_most(len(scene.tags), limits.TAGS_MAX, "tags of the scene", "drop some")
    for key, value in scene.tags.items():
        check_text(key, "tag key")
        check_text(value, f"tag {key!r}")
    tag_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in scene.tags.items())
    limits.at_most(tag_bytes, limits.TAGS_BYTES_MAX, "bytes of all tags", "drop some")


def _validate_grid(grid: Grid, what: str) -> None:
    if grid.dtype not in DTYPES:
        raise Unsupported(f"{what}: dtype {grid.dtype!r} is none of {', '.join(DTYPES)}; convert the scene")
    for side, px in (("height", grid.height), ("width", grid.width)):
        if px < 1:
            raise Malformed(f"{what}: {side} is {px} px; it must be at least 1")
        limits.at_most(px, limits.SIDE_PX_MAX, f"{what}: {side} in px", "cut the scene into several")
    if not grid.bands:
        raise Malformed(f"{what}: has 0 bands; it needs at least 1")
    row_samples = grid.width * len(grid.bands)
    limits.at_most(row_samples, limits.ROW_SAMPLES_MAX, f"{what}: width x bands", "cut it into narrower scenes")
    for number, band in enumerate(grid.bands):
        check_text(band.name, f"{what}: name of band {number}")
        wavelength = band.wavelength_nm
        if wavelength is not None and not 0 < wavelength <= 1e12:
            raise Malformed(
                f"{what}: band {number} has wavelength {wavelength} nm; it must be above 0 and at most 1e12"
            )
    if grid.nodata is not None:
        bounds = np.iinfo(grid.dtype)
        if not bounds.min <= grid.nodata <= bounds.max:
            raise Malformed(
                f"{what}: nodata {grid.nodata} is no {grid.dtype} ({bounds.min} to {bounds.max}); leave it out"
            )
    if grid.crs is not None:
        check_text(grid.crs, f"{what}: crs", limits.CRS_BYTES_MAX)
    if grid.transform is not None:
        a, b, _, d, e, _ = grid.transform
        if not all(math.isfinite(number) for number in grid.transform) or a * e - b * d == 0:
            raise Malformed(
                f"{what}: transform {grid.transform} does not map pixels to places; leave it out if unknown"
            )
