"""The same place on several days: time series of the corpus, or made of one scene where there is none.

A series is (days, 12, height, width) in DN. Series to train on: the four seasons of SSL4EO-S12 places; to test on:
Lahinch (Ireland), Slovenia, Boadella (Spain), which are other places, other products and days to months apart.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.lab.places import Place, Places, read_place

Series = NDArray[np.float32]
TEST = ("lahinch", "eolearn_slovenia", "boadella")
TEST_PIXELS = 96


def _stacked(places: list[Place]) -> Series:
    height, width = (min(place.pixels.shape[axis] for place in places) for axis in (1, 2))
    return np.stack([place.pixels[:, :height, :width] for place in places])


def _clear(series: Series) -> bool:
    return bool(np.isfinite(series).all())


def training_series(places: Places) -> list[Series]:
    """Places whose names differ only in the number behind the last underscore."""
    groups: dict[str, list[Place]] = defaultdict(list)
    for place in (*places.train, *places.validation):
        if place.name.startswith("ssl4eo"):
            groups[place.name.rpartition("_")[0]].append(place)
    found = [_stacked(sorted(group, key=lambda place: place.name)) for group in groups.values() if len(group) > 1]
    return found or [made_series(place) for place in places.train[:4]]


def test_series(places: Places) -> list[Series]:
    """Whole series of the corpus, or made ones."""
    out = []
    for name in TEST if places.folder else ():
        paths = sorted((Path(places.folder or ".") / "timeseries" / name).glob("*.tif"))
        days = [place for path in paths if (place := read_place(path)) is not None]
        if len(days) > 1:
            out.append(_stacked(days)[:, :, :TEST_PIXELS, :TEST_PIXELS])
    return [one for one in out if _clear(one)] or [made_series(place) for place in places.test[:2]]


def made_series(place: Place, days: int = 4) -> Series:
    """A place under changing light: gains and noise of a few per cent. Where there is no real series, to try things."""
    random = np.random.default_rng(sum(place.name.encode()))
    cut = place.pixels[:, :TEST_PIXELS, :TEST_PIXELS]
    gains = random.uniform(0.85, 1.15, (days, len(cut), 1, 1)).astype(np.float32)
    noise = random.normal(scale=8.0, size=(days, *cut.shape)).astype(np.float32)
    return gains * cut + noise
