"""Clouds are left on board: `--skip-clouds P` sends nothing of tiles of which more than P per cent is cloud.

A small head (logistic regression, `cloud.json`, made by `python -m training.cloud_head`) looks at each block of
8 x 8 pixels: mean and deviation of reflectance (DN / 10000) in the blue, green, red and near infrared, which is what
the block's lowest latent and the energy of the others say. A tile's cloud is the share of its blocks that the head
calls cloud or snow: it does not tell these apart, nor thin cloud from ground.

Skipped tiles become nodata, in all grids of the scene, and cost next to nothing; the manifest's settings say which:

    cloud_percent = 37.2     of the scene          clouds_skipped = "3 of 64 tiles: 0,0; 256,0; 512,256"

Refused (`SceneError`): scenes without bands of those names, 8-bit ones (whose values are no reflectances), and grids
without a nodata value.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from downlink.errors import SceneError
from downlink.scene import Scene
from downlink.tile import TileGrid, Window
from encoder_node.source import Pixels, Source
from encoder_node.spool import EncodedScene

TILE: Final = 256
BLOCK: Final = 8
REFLECTANCE: Final = 10000.0
LISTED_CHARS: Final = 200


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A logistic regression: probability = sigmoid(bias + mean_weights . means + deviation_weights . deviations)."""

    bands: tuple[str, ...]
    mean_weights: tuple[float, ...]
    deviation_weights: tuple[float, ...]
    bias: float
    made: str
    """Where it comes from, and how well it did."""

    def cloudy(self, pixels: Pixels) -> NDArray[np.bool_]:
        """(bands, height, width) in DN, sides whole blocks -> which blocks are cloud, (height / 8, width / 8)."""
        bands, height, width = pixels.shape
        blocks = (pixels / REFLECTANCE).reshape(bands, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        mean, deviation = blocks.mean(axis=(2, 4)), blocks.std(axis=(2, 4))
        found = self.bias + np.tensordot(self.mean_weights, mean, 1)
        return np.asarray(found + np.tensordot(self.deviation_weights, deviation, 1) > 0)


def released_head() -> Head:
    """The head that comes with this program."""
    return msgspec.json.decode(resources.files("encoder_node").joinpath("cloud.json").read_bytes(), type=Head)


class CloudFree:
    """A source without its cloudy tiles: they read as nodata."""

    def __init__(self, source: Source, percent: float, head: Head) -> None:
        self.source, self.percent = source, percent
        scene = source.scene
        self._grid, bands = _grid_of(scene, head)
        grid = scene.grids[self._grid]
        self._tiles = TileGrid(grid.height, grid.width, TILE)
        self._skipped: list[Window] = []
        total = clouds = 0
        for number in range(len(self._tiles)):
            window = self._tiles.tile(number).window
            cloudy = head.cloudy(_whole_blocks(source.read(self._grid, window)[bands]))
            share = float(cloudy.mean())
            total, clouds = total + cloudy.size, clouds + int(cloudy.sum())
            if 100 * share > percent:
                self._skipped.append(window)
        self.cloud_percent = 100 * clouds / total

    @property
    def scene(self) -> Scene:
        return self.source.scene

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    def read(self, grid: int, window: Window) -> Pixels:
        """As the source, but for cloudy tiles."""
        pixels = self.source.read(grid, window)
        own, first = self.scene.grids[grid], self.scene.grids[self._grid]
        down, across = own.height / first.height, own.width / first.width
        for hole in self._skipped:
            top, bottom = (round(edge * down) - window.row for edge in (hole.row, hole.row + hole.height))
            left, right = (round(edge * across) - window.col for edge in (hole.col, hole.col + hole.width))
            pixels[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = own.nodata
        return pixels

    def close(self) -> None:
        self.source.close()

    def note_in(self, encoded: EncodedScene) -> None:
        """Write into the manifest what was left out, and how cloudy the scene is."""
        found: dict[str, str | float] = {"cloud_percent": round(self.cloud_percent, 1)}
        if self._skipped:
            text = f"{len(self._skipped)} of {len(self._tiles)} tiles: "
            for number, window in enumerate(self._skipped):
                part = ("; " if number else "") + f"{window.col},{window.row}"
                if len(text) + len(part) > LISTED_CHARS:
                    text += "; …"
                    break
                text += part
            found["clouds_skipped"] = text
        encoded.annotate(found)


def _grid_of(scene: Scene, head: Head) -> tuple[int, list[int]]:
    """The first grid with all bands that the head looks at, and where they are in it."""
    for number, grid in enumerate(scene.grids):
        names = [band.name for band in grid.bands]
        if all(name in names for name in head.bands):
            if grid.dtype == "uint8":
                raise SceneError("clouds: 8-bit pixels are no reflectances; give a 16-bit product, or no --skip-clouds")
            lacking = next((g for g in scene.grids if g.nodata is None), None)
            if lacking is not None:
                raise SceneError(
                    f"clouds: a grid of {lacking.height} x {lacking.width} px has no nodata value, which skipped tiles "
                    "would become; set one (gdal_translate -a_nodata 0), or leave --skip-clouds out"
                )
            return number, [names.index(name) for name in head.bands]
    has = ", ".join(str(band.name) for grid in scene.grids for band in grid.bands[:16])
    raise SceneError(f"clouds: bands {', '.join(head.bands)} are needed in one grid, the scene has {has}")


def _whole_blocks(pixels: Pixels) -> Any:
    """Sides extended to whole blocks."""
    short = [(0, 0), *((0, -side % BLOCK) for side in pixels.shape[1:])]
    return np.pad(pixels, short, mode="edge").astype(np.float32)
