"""What a scene looks like: map tiles, previews and heat maps as PNG, by rio-tiler.

A composite is one band (grey) or three (red, green, blue), each named by its grid and its place in it. Colours are
stretched between two percentiles of each band over the whole scene, the same for all of its tiles, so that no tile
shows a seam. A scene without a place on Earth has no tiles, only a preview. Files are opened anew for each picture: a
partial scene is replaced by a finer one at any time. Refused, with `PictureError`: bands that a scene does not have.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rasterio.errors import NotGeoreferencedWarning
from rio_tiler.errors import TileOutsideBounds
from rio_tiler.io import Reader
from rio_tiler.models import ImageData

from decoder_node.quicklook import choose_bands
from downlink.errors import DownlinkError
from downlink.scene import Grid, Scene

TILE_PX: Final = 256
STATISTICS_PX: Final = 384
PREVIEW_PX: Final = 1024
FALSE_COLOUR_NM: Final = ((842.0, 60.0), (665.0, 40.0), (560.0, 40.0))  # near infrared, red, green
SWIR_NM: Final = ((2200.0, 120.0), (842.0, 60.0), (665.0, 40.0))
# names with a leading zero are Sentinel-2's alone; what it calls B8A and B12 nobody else does
SENTINEL_2_NM: Final = {"B02": 492.0, "B03": 560.0, "B04": 665.0, "B08": 833.0, "B8A": 865.0, "B11": 1614.0,
                        "B12": 2202.0}  # fmt: skip
EVEN: Final = 0.3
_BANDS: Final = re.compile(r"\d{1,3}\.\d{1,3}(,\d{1,3}\.\d{1,3}){0,2}")
# "inferno", at nine places: what was cheap stays dark, what was dear glows.
HEAT: Final = ((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
               (249, 201, 50), (252, 255, 164))  # fmt: skip


class PictureError(DownlinkError):
    """There is no such picture."""

    code = "picture"


@dataclass(frozen=True)
class Look:
    """How to show a scene: `bands` as (grid, band) from 0, and the percentiles that become black and white."""

    bands: tuple[tuple[int, int], ...]
    low: float = 2.0
    high: float = 98.0

    @property
    def text(self) -> str:
        return ",".join(f"{grid}.{band}" for grid, band in self.bands)


@dataclass(frozen=True)
class Composite:
    """A composite that a person may choose by name."""

    name: str
    look: Look
    says: str = ""


def parse_look(text: str, stretch: str, scene: Scene) -> Look:
    """`0.3,0.2,0.1` and `2,98`, checked against the scene."""
    if not _BANDS.fullmatch(text) or text.count(",") == 1:
        raise PictureError(f"{text[:40]!r} are no bands; one or three, each GRID.BAND, for example 0.3,0.2,0.1")
    bands = tuple((int(grid), int(band)) for grid, band in (part.split(".") for part in text.split(",")))
    for grid, band in bands:
        if grid >= len(scene.grids) or band >= len(scene.grids[grid].bands):
            raise PictureError(f"the scene has no band {grid}.{band}")
    try:
        low, high = (float(number) for number in stretch.split(","))
    except ValueError:
        low, high = -1.0, -1.0
    if not 0 <= low < high <= 100:
        raise PictureError(f"{stretch[:40]!r} is no stretch; two percentiles, for example 2,98")
    return Look(bands, low, high)


def composites(scene: Scene) -> list[Composite]:
    """Those that make sense for this scene, the first to be shown at once."""
    number, chosen = choose_bands(scene)
    natural = Look(tuple((number, band) for band in chosen))
    found = [Composite("Natural" if len(chosen) == 3 else "Grey", natural, "as eyes would see it, or the first bands")]
    for name, wanted, says in (
        ("Infrared", FALSE_COLOUR_NM, "near infrared, red, green: plants are red"),
        ("Short-wave", SWIR_NM, "short-wave infrared, near infrared, red: fires and bare soil stand out"),
    ):
        bands = [_nearest(scene, *one) for one in wanted]
        if all(bands) and len(set(bands)) == 3:
            found.append(Composite(name, Look(tuple(band for band in bands if band)), says))
    return found


def _nearest(scene: Scene, nm: float, within_nm: float) -> tuple[int, int] | None:
    """The band (grid, place) nearest to a wavelength: its own, else that which Sentinel-2's name for it means."""
    known = []
    for grid, one in enumerate(scene.grids):
        for place, band in enumerate(one.bands):
            found = band.wavelength_nm or SENTINEL_2_NM.get(band.name.upper())
            if found is not None and abs(found - nm) <= within_nm:
                known.append((abs(found - nm), grid, place))
    return min(known)[1:] if known else None


def band_name(grid: Grid, band: int) -> str:
    """What a person calls a band."""
    name = grid.bands[band].name or f"band {band + 1}"
    nm = grid.bands[band].wavelength_nm
    return name if nm is None else f"{name} · {nm:.0f} nm"


def tile(cogs: Sequence[str], look: Look, version: int, x: int, y: int, z: int) -> bytes | None:
    """A map tile (Web Mercator) as PNG; None where the scene is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            parts = []
            for grid, bands in _by_grid(look):
                with Reader(cogs[grid]) as reader:
                    found = reader.tile(x, y, z, tilesize=TILE_PX, indexes=[band + 1 for band in bands])
                parts.append((grid, bands, found.array))
        except TileOutsideBounds:
            return None
    return _painted(parts, cogs, look, version)


def preview(cogs: Sequence[str], look: Look, version: int) -> bytes:
    """The whole scene, small, in its own geometry, as PNG."""
    parts: list[tuple[int, list[int], Any]] = []
    size: tuple[int, int] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for grid, bands in _by_grid(look):
            with Reader(cogs[grid]) as reader:
                if size is None:
                    found = reader.preview(indexes=[band + 1 for band in bands], max_size=PREVIEW_PX)
                    size = found.height, found.width
                else:
                    found = reader.preview(indexes=[band + 1 for band in bands], height=size[0], width=size[1])
            parts.append((grid, bands, found.array))
    return _painted(parts, cogs, look, version)


def heat_tile(bits: str, version: int, cog: str, x: int, y: int, z: int) -> bytes | None:
    """A map tile of the bits raster, coloured, where the scene `cog` has pixels; None where the scene is not."""
    try:
        with Reader(bits) as reader, Reader(cog) as scene:
            low, high = _heat_range(bits, version)
            values = reader.tile(x, y, z, tilesize=TILE_PX).array
            shown = np.ma.getmaskarray(scene.tile(x, y, z, tilesize=TILE_PX, indexes=[1]).array)
            return _heated(np.ma.MaskedArray(values, np.ma.getmaskarray(values) | shown), low, high)
    except TileOutsideBounds:
        return None


def heat(bits: str, version: int) -> bytes:
    """The whole bits raster, coloured, a pixel per tile of the scene."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with Reader(bits) as reader:
            low, high = _heat_range(bits, version)
            return _heated(reader.preview(max_size=PREVIEW_PX).array, low, high)


def heat_range(bits: str, version: int) -> tuple[float, float]:
    """Bits per sample that are dark, and that glow: of the cheapest and the dearest tile, but at least `EVEN` of their
    mean apart, so that a scene whose tiles are all alike does not look as if one of them were on fire."""
    return _heat_range(bits, version)


@lru_cache(maxsize=256)
def _heat_range(path: str, _version: int) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with Reader(path) as reader:
            found = reader.preview(max_size=PREVIEW_PX).array.compressed()
    if not found.size:
        return 0.0, 0.0
    low, high = float(found.min()), float(found.max())
    wider = max(0.0, EVEN * (low + high) / 2 - (high - low)) / 2
    return low - wider, high + wider


def _heated(values: Any, low: float, high: float) -> bytes:
    share = np.clip((np.ma.filled(values[0], low) - low) / max(high - low, 1e-9), 0, 1) * (len(HEAT) - 1)
    colours = np.array(HEAT, np.float32)
    below = np.minimum(share.astype(int), len(HEAT) - 2)
    mixed = colours[below] + (colours[below + 1] - colours[below]) * (share - below)[..., None]
    shown = ImageData(np.ma.MaskedArray(np.moveaxis(mixed, -1, 0).astype(np.uint8), _mask3(values)))
    return bytes(shown.render(img_format="PNG"))


def _mask3(values: Any) -> npt.NDArray[np.bool_]:
    return np.repeat(np.ma.getmaskarray(values)[:1], 3, axis=0)


def _by_grid(look: Look) -> list[tuple[int, list[int]]]:
    """The bands to read of each grid, once each."""
    grids: dict[int, list[int]] = {}
    for grid, band in look.bands:
        found = grids.setdefault(grid, [])
        if band not in found:
            found.append(band)
    return list(grids.items())


def _painted(parts: Sequence[tuple[int, list[int], Any]], cogs: Sequence[str], look: Look, version: int) -> bytes:
    read = {(grid, band): array[at] for grid, bands, array in parts for at, band in enumerate(bands)}
    shown = []
    hidden = np.zeros(next(iter(read.values())).shape, bool)
    for grid, band in look.bands:
        values = read[grid, band]
        low, high = _range(cogs[grid], version, band, look.low, look.high)
        scaled = (np.ma.getdata(values).astype(np.float32) - low) / max(high - low, 1e-9) * 255
        shown.append(np.clip(scaled, 0, 255).astype(np.uint8))
        hidden |= np.ma.getmaskarray(values)
    picture = np.ma.MaskedArray(np.stack(shown), np.repeat(hidden[None], len(shown), axis=0))
    return bytes(ImageData(picture).render(img_format="PNG"))


@lru_cache(maxsize=1024)
def _range(path: str, _version: int, band: int, low: float, high: float) -> tuple[float, float]:
    """The values at these percentiles of one band, from an overview."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with Reader(path) as reader:
            values = reader.preview(indexes=[band + 1], max_size=STATISTICS_PX).array.compressed()
    if not values.size:
        return 0.0, 1.0
    found = [float(number) for number in np.percentile(values, (low, high))]
    return (found[0], found[1]) if all(map(math.isfinite, found)) else (0.0, 1.0)
