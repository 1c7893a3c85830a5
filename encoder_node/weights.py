"""How much each band's error counts, as the user says it.

    equal               an error of one DN counts the same in every band: least mean squared error over all samples
    balanced            an error counts relative to the band's own deviation in the scene: dark bands, such as the
                        visible ones beside near infrared, keep as much of their contrast as bright ones
    noise               an error counts relative to the band's noise (what deviates in its highest frequencies): bands
                        are kept as far as they can be trusted
    visible             red, green and blue count four times: for pictures to look at, at low rates above all
    B04=4,B03=4,2=0.5   named bands (or numbers from 1) count so many times an error of one DN; others count once

Weights are scaled so that the mean squared error over all bands stays about what the step promises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from downlink.errors import SceneError
from downlink.scene import Band

EQUAL, BALANCED, NOISE, VISIBLE = "equal", "balanced", "noise", "visible"
BY_NAME = (EQUAL, BALANCED, NOISE, VISIBLE)
LOOKED_AT = 4.0
"""How many times a visible band counts."""
_COLOURS_NM = ((464.0, 530.0), (531.0, 600.0), (620.0, 700.0))
"""Centre wavelengths of blue, green and red: hyperspectral sensors have many of each, Sentinel-2 and Landsat one;
coastal (443 nm) and red-edge (705 nm) bands lie outside."""
_COLOUR_NAMES = (
    "red",
    "green",
    "blue",
    "b02",
    "b03",
    "b04",
    "b2",
    "b3",
    "b4",
    "sr_b2",
    "sr_b3",
    "sr_b4",
    "r",
    "g",
    "b",
)
RANGE = 1 / 256, 256.0
"""No band may count less, or more: beyond it another scene would be meant."""


def parse(text: str) -> None:
    """Refuse what can be no weights, before any scene is read."""
    if text in BY_NAME:
        return
    for part in text.split(","):
        _pair(part)


def _pair(part: str) -> tuple[str, float]:
    name, separator, value = part.strip().partition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = 0.0
    if not (separator and name and RANGE[0] <= weight <= RANGE[1]):
        raise SceneError(
            f"weights: {part.strip()!r} is not BAND=WEIGHT with a weight from 1/256 to 256; write "
            f"{', '.join(BY_NAME)}, or for example B04=4,B03=4"
        )
    return name, weight


def band_weights(
    text: str,
    bands: Sequence[Band],
    numbers: Sequence[int],
    deviations: NDArray[np.float64],
    noises: NDArray[np.float64],
) -> NDArray[np.float32] | None:
    """Weights of a lattice's bands; None for equal ones. `numbers` are the bands' own in the scene, from 1;
    `deviations` and `noises` (bands) theirs, in DN."""
    if text == EQUAL:
        return None
    if text in (BALANCED, NOISE):
        measure = deviations if text == BALANCED else noises
        loudest = max(float(measure.max(initial=0.0)), 1e-6)
        weights = loudest / np.maximum(measure, loudest * RANGE[0])
    elif text == VISIBLE:
        weights = np.where([is_visible(band) for band in bands], LOOKED_AT, 1.0)
    else:
        weights = np.ones(len(bands))
        for name, weight in map(_pair, text.split(",")):
            chosen = [i for i, band in enumerate(bands) if band.name == name]
            chosen = chosen or [i for i, number in enumerate(numbers) if name == str(number)]
            weights[chosen] = weight
    return np.asarray(weights * np.sqrt(np.mean(1 / weights**2)), np.float32)


def is_visible(band: Band) -> bool:
    """Whether a band is red, green or blue, by its wavelength or, where that is not known, by its name."""
    if band.wavelength_nm is not None:
        return any(low <= band.wavelength_nm <= high for low, high in _COLOURS_NM)
    return band.name.lower() in _COLOUR_NAMES


def check_names(text: str, bands: Sequence[Band]) -> None:
    """Refuse names that no band of the scene has."""
    if text == VISIBLE and not any(map(is_visible, bands)):
        raise SceneError(
            "weights: no band is known to be red, green or blue, by its wavelength or its name; "
            "say which, for example 3=4,2=4,1=4"
        )
    if text in BY_NAME:
        return
    known = {band.name for band in bands} | {str(number) for number in range(1, len(bands) + 1)}
    for name, _ in map(_pair, text.split(",")):
        if name not in known:
            names = ", ".join(band.name or str(number) for number, band in enumerate(bands, 1))
            raise SceneError(f"weights: the scene has no band {name!r}; it has {names}")
