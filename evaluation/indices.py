"""What users make of the pixels: vegetation and water indices, and a land cover by fixed rules.

    NDVI = (nir - red) / (nir + red)            Rouse et al. 1974
    NDWI = (green - nir) / (green + nir)        McFeeters 1996
    NDSI = (green - swir) / (green + swir)      Dozier 1989

from the digital numbers as they are stored (an offset that a product's metadata state is not applied: it is the same on
both sides). Errors are mean absolute differences over valid pixels whose darker sum is above `DARK` of the peak: an
index of two numbers near zero is noise before anything is compressed.

The classifier is a decision tree with published thresholds and no training, so it favours no codec: snow (NDSI > 0.4
and green > 0.11), water (NDWI > 0), dense vegetation (NDVI > 0.6), vegetation (> 0.3), sparse vegetation (> 0.15),
bright (green > 0.25: cloud, sand, roofs), bare or built-up. It is no land-cover map; its agreement says how many pixels
a fixed rule treats otherwise after compression.

Bands are found by their centre wavelength, or by Sentinel-2's names; a scene that lacks them has no figures (None).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.quality import valid_pixels
from downlink.scene import Grid, Scene

DARK: Final = 0.02
CLASSES: Final = (
    "bare or built-up", "sparse vegetation", "vegetation", "dense vegetation", "bright", "water", "snow",
)  # fmt: skip
# Name of a role -> wavelengths in nm that qualify, the one that is best, and Sentinel-2's bands of that role.
_ROLES: Final = {
    "green": (520.0, 600.0, 560.0, ("B03",)),
    "red": (620.0, 690.0, 665.0, ("B04",)),
    "nir": (760.0, 900.0, 842.0, ("B08", "B8A")),
    "swir": (1550.0, 1690.0, 1610.0, ("B11",)),
}

Floats = NDArray[np.float64]


class Indices(NamedTuple):
    """Mean absolute errors of the indices, and the share of pixels that keep their class."""

    ndvi_error: float | None
    ndwi_error: float | None
    land_cover_agreement: float | None


NONE: Final = Indices(None, None, None)


def indices(scene: Scene, original: Sequence[NDArray[Any]], decoded: Sequence[NDArray[Any]], peak: float) -> Indices:
    """Over the first grid that has red and near infrared; arrays (bands, height, width) per grid."""
    for grid, one, other in zip(scene.grids, original, decoded, strict=True):
        bands = roles(grid)
        if "red" in bands and "nir" in bands:
            return _compared(grid, bands, one, other, peak)
    return NONE


def roles(grid: Grid) -> dict[str, int]:
    """Which band is green, red, near and short-wave infrared, where there is one."""
    found = {}
    for role, (low, high, best, names) in _ROLES.items():
        by_wave = [
            (abs(band.wavelength_nm - best), number)
            for number, band in enumerate(grid.bands)
            if band.wavelength_nm is not None and low <= band.wavelength_nm <= high
        ]
        by_name = [(names.index(band.name), number) for number, band in enumerate(grid.bands) if band.name in names]
        if by_wave or by_name:
            found[role] = min(by_wave or by_name)[1]
    return found


def _compared(grid: Grid, bands: dict[str, int], one: NDArray[Any], other: NDArray[Any], peak: float) -> Indices:
    chosen = list(bands.values())
    valid = valid_pixels(one[chosen], grid.nodata)
    where = np.ones(one.shape[1:], np.bool_) if valid is None else valid.all(axis=0)
    before, after = (
        {role: pixels[number].astype(np.float64) / peak for role, number in bands.items()} for pixels in (one, other)
    )
    agreement = None
    if {"green", "swir"} <= bands.keys() and where.any():
        agreement = float((classes(before) == classes(after))[where].mean())
    water = _error(before, after, "green", "nir", where) if "green" in bands else None
    return Indices(_error(before, after, "nir", "red", where), water, agreement)


def _error(
    before: dict[str, Floats], after: dict[str, Floats], high: str, low: str, where: NDArray[np.bool_]
) -> float | None:
    counted = where & (before[high] + before[low] > DARK)
    if not counted.any():
        return None
    difference = index(before[high], before[low]) - index(after[high], after[low])
    return float(np.abs(difference[counted]).mean())


def index(high: Floats, low: Floats) -> Floats:
    """Their normalised difference, within -1 and 1; 0 where there is nothing to divide by."""
    total = high + low
    return np.divide(high - low, total, out=np.zeros_like(total), where=total > 0).clip(-1, 1)


def classes(bands: dict[str, Floats]) -> NDArray[np.uint8]:
    """The number in `CLASSES` of every pixel, from reflectances (0 to 1) of green, red, nir and swir."""
    green, vegetation = bands["green"], index(bands["nir"], bands["red"])
    found = np.digitize(vegetation, (0.15, 0.3, 0.6)).astype(np.uint8)
    found[(green > 0.25) & (vegetation <= 0.3)] = 4
    found[index(green, bands["nir"]) > 0] = 5
    found[(index(green, bands["swir"]) > 0.4) & (green > 0.11)] = 6
    return found
