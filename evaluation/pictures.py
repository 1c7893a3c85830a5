"""What codecs make of a scene at equal bits, for eyes: a detail in its own colours, and where the error lies.

Every codec is set, by a few more encodings between its measured settings, to the bits that the reference needs for
`PSNR_DB`. Colours are red, green and blue where the scene has them, stretched by the original's percentiles and alike
for all. The error of a pixel is the root mean square over its bands, on one scale for all codecs of a scene. Pictures
are PNG: what is shown is what was decoded.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import imagecodecs
import matplotlib
import numpy as np
from numpy.typing import NDArray

from downlink.errors import DownlinkError
from downlink.quality import default_peak, valid_pixels
from downlink.scene import Grid, Scene
from evaluation import cache, scenes
from evaluation.bdrate import Curve
from evaluation.cache import Cache
from evaluation.codecs import Contestant
from evaluation.codecs.base import Image
from evaluation.evaluate import row
from evaluation.indices import roles
from evaluation.picture import liveliest
from evaluation.scenes import Entry
from evaluation.summary import Row
from evaluation.tile_bits import CELL, tile_bits
from evaluation.worker import Runner, Task

PSNR_DB: Final = 45.0
SIDE: Final = 224
SCENES_MAX: Final = 3
TRIALS: Final = 6
CLOSE: Final = 0.01
"""How near to the bits asked for is near enough."""
MAP = "magma"
"""Light means more: its lightness grows evenly, so it reads in grey."""


@dataclass(frozen=True)
class View:
    """How a grid is shown: bands of the three colours, the detail, and the stretch."""

    bands: tuple[int, int, int]
    detail: tuple[slice, slice]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, grid: Grid, pixels: NDArray[Any]) -> View:
        bands = colours(grid)
        shown = pixels[list(bands)].astype(np.float64)
        valid = valid_pixels(pixels[list(bands)], grid.nodata)
        known = shown if valid is None or not valid.any() else np.where(valid, shown, np.nan)
        low, high = np.nanpercentile(known, (1, 99), axis=(1, 2), keepdims=True)
        # beyond the stretch there is nothing to see
        return cls(bands, liveliest(shown.clip(low, high), min(SIDE, *pixels.shape[1:])), low, high)

    def png(self, pixels: NDArray[Any]) -> str:
        part = pixels[list(self.bands)][:, *self.detail]
        shown = ((part - self.low) / np.maximum(self.high - self.low, 1)).clip(0, 1) ** 0.8
        return png(np.moveaxis(shown, 0, -1))


def colours(grid: Grid) -> tuple[int, int, int]:
    """Bands for red, green and blue: by wavelength or name, else the first three, else one three times."""
    found = roles(grid)
    blue = [
        number
        for number, band in enumerate(grid.bands)
        if band.name == "B02" or (band.wavelength_nm is not None and 450 <= band.wavelength_nm <= 515)
    ]
    if {"red", "green"} <= found.keys() and blue:
        return found["red"], found["green"], blue[0]
    return (0, 1, 2) if len(grid.bands) >= 3 else (0, 0, 0)


def png(shown: NDArray[np.float64]) -> str:
    """A data URI of (height, width, 3) within 0 and 1."""
    packed = imagecodecs.png_encode(np.ascontiguousarray(np.rint(255 * shown), np.uint8), level=9)
    return "data:image/png;base64," + base64.b64encode(bytes(packed)).decode()


def choose(entries: Sequence[Entry]) -> list[Entry]:
    """The largest scenes of different sources (what stands before `__` in their labels)."""
    by_size = sorted(entries, key=lambda entry: -scenes.describe(entry.path).samples)
    chosen: dict[str, Entry] = {}
    for entry in by_size:
        chosen.setdefault(entry.label.partition("__")[0], entry)
    return list(chosen.values())[:SCENES_MAX]


def pictures(
    entry: Entry,
    contestants: Sequence[Contestant],
    rows: Sequence[Row],
    peak: float | None,
    runner: Runner,
    kept: Cache,
) -> dict[str, Any] | None:
    """Pictures of one scene; the first contestant is the reference. None where it has no curve on this scene."""
    scene, grids = scenes.describe(entry.path), scenes.read(entry.path)
    against = default_peak(scene) if peak is None else peak
    mine = [one for one in rows if one["scene"] == entry.label]
    curve = Curve(
        (one["bits_per_sample"], one["psnr_db"] or math.inf)
        for one in mine
        if one["codec"] == contestants[0].spec.label
    )
    if len(curve.points) < 2:
        return None
    psnr = min(max(PSNR_DB, curve.psnr[0]), curve.psnr[-1])
    bits = curve.bits_at(psnr) or curve.bits[0]
    codecs = [cache.of_codec(contestant.spec) for contestant in contestants]
    sources = cache.sources("evaluation/pictures.py", "evaluation/tile_bits.py", "evaluation/picture.py")
    key = cache.key_of("pictures", codecs, cache.of_measuring(), cache.of_scene(scene, grids), bits, against, sources)
    found: dict[str, Any] | None = kept.get(key)
    if found is None:
        view = View.of(scene.grids[0], grids[0])
        shots = _shots(scene, grids, contestants, mine, bits, against, runner)
        # one scale for all: what 99.5 % of the pixels of all but the worst stay below
        scale = sorted(float(np.percentile(error, 99.5)) for _, _, error in shots)[max(0, len(shots) - 2)]
        found = {
            "psnr_db": psnr,
            "bits_per_sample": bits,
            "bands": [scene.grids[0].bands[band].name or f"band {band + 1}" for band in view.bands],
            "size": [view.detail[0].stop - view.detail[0].start, view.detail[1].stop - view.detail[1].start],
            "scale": scale,
            "original": view.png(grids[0]),
            "codecs": [
                {**facts, "picture": view.png(decoded), "error": _error_png(error[view.detail], scale)}
                for facts, decoded, error in shots
            ],
            "tiles": _tiles(scene, grids, contestants[0], shots[0][0]["setting"], against),
        }
        kept.put(key, found)
    return {"scene": entry.label, **found}


Shot = tuple[Row, NDArray[Any], NDArray[np.float64]]


def _shots(
    scene: Scene,
    grids: tuple[NDArray[Any], ...],
    contestants: Sequence[Contestant],
    rows: Sequence[Row],
    bits: float,
    peak: float,
    runner: Runner,
) -> list[Shot]:
    """Per codec that can be had at these bits: its row, the first grid decoded, and that grid's error per pixel."""
    shots = []
    with tempfile.TemporaryDirectory(prefix="downlink-pictures-") as folder:
        pixels = tuple(Path(folder) / f"pixels{number}.npy" for number in range(len(grids)))
        decoded = tuple(Path(folder) / f"decoded{number}.npy" for number in range(len(grids)))
        for path, grid in zip(pixels, grids, strict=True):
            np.save(path, grid)
        for contestant in contestants:
            whole = contestant.unit.startswith("largest")  # bounds on integers
            own = [one for one in rows if one["codec"] == contestant.spec.label and one["setting"] > 0]
            tried = [(one["bits_per_sample"], one["setting"]) for one in own]
            found = None
            for _ in range(TRIALS):
                setting = _between(tried, bits)
                if setting is None:
                    break
                setting = float(round(setting)) if whole else setting
                known = any(setting == other for _, other in tried)
                if known and found is not None:
                    break  # between two whole numbers there is none
                try:
                    outcome = runner.run(Task(contestant.spec, scene, peak, setting, pixels, decoded))
                except (DownlinkError, RuntimeError, ValueError, MemoryError):
                    break  # its failures on the scene are listed where it was measured
                found = outcome, setting
                tried.append((8 * outcome.bytes / scene.samples, setting))
                if abs(tried[-1][0] / bits - 1) < CLOSE:
                    break
            if found is None:
                continue
            back = [np.load(path) for path in decoded]
            facts = row(scene, "", contestant.spec.label, found[1], grids, back, found[0], peak)
            shots.append((facts, back[0], _error(scene.grids[0], grids[0], back[0]) / peak))
    return shots


def _between(tried: Sequence[tuple[float, float]], bits: float) -> float | None:
    """The setting expected to give so many bits: on the line through the two tries around them, over the logarithms of
    both. None where no two tries lie around them, or nothing lies between the two."""
    below = max((one for one in tried if one[0] <= bits), default=None)
    above = min((one for one in tried if one[0] > bits), default=None)
    if below is None or above is None or below[1] == above[1]:
        return None
    share = math.log(bits / below[0]) / math.log(above[0] / below[0])
    return math.exp((1 - share) * math.log(below[1]) + share * math.log(above[1]))


def _error(grid: Grid, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    difference = one.astype(np.float64) - other
    valid = valid_pixels(one, grid.nodata)
    if valid is not None:
        difference[~valid] = 0
    found: NDArray[np.float64] = np.sqrt(np.square(difference).mean(axis=0))
    return found


def _error_png(error: NDArray[np.float64], scale: float) -> str:
    return png(matplotlib.colormaps[MAP](error / max(scale, 1e-12))[..., :3])


def _tiles(
    scene: Scene, grids: tuple[NDArray[Any], ...], reference: Contestant, setting: float, peak: float
) -> dict[str, Any] | None:
    """Bits per pixel by tile; None for another codec than ours, or a scene of one tile."""
    if reference.spec.model is None:
        return None
    codec = reference.spec.open()
    codec.load("encode")
    found = tile_bits(codec.encode(Image(scene, grids, peak), setting))
    if found.per_tile.size < 2:
        return None
    return {"cell_px": CELL, "bits_per_pixel": found.per_tile.round(4).tolist(), "common_bits": found.common_bits}
