"""Where a scene matters: a map of importance, as the user gives it -> how much coarser each tile is coded.

A map covers the whole scene, whatever its own size. Where it says 1/4 an error counts a quarter, and the step is four
times as large; where it says 0, next to nothing is sent. A tile is as important as the most important place in it.
Maps are scaled so that the most important place has 1: rates and qualities are about the whole scene as ever, and
relations hold.

Read from a raster (its first band; any numbers of 0 and more: .npy, or what the encoder reads as a scene) or from
polygons (GeoJSON, longitude and latitude as RFC 7946 says; of scenes without a coordinate system columns and rows of
pixels). A polygon's property `importance` says what it has, 1 if it says nothing; elsewhere it is `outside`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from downlink.errors import SceneError
from downlink.plane import GAIN_MAX, GAINS_PER_OCTAVE
from downlink.scene import Grid
from downlink.tile import TileGrid, Window
from encoder_node.source import NEEDS_RASTERIO, open_source

OUTSIDE = 0.125
"""Importance outside of polygons, if nothing else is said."""
CELLS = 2048
"""Most cells of a map along a side: 6 pixels each of a Sentinel-2 tile."""

Values = NDArray[np.float64]
Ring = NDArray[np.float64]
"""(points, 2): columns and rows, as shares of the scene's width and height."""


class Importance:
    """A map (rows, columns) of numbers from 0 to 1, the largest 1. `name` is for people."""

    def __init__(self, values: Values, name: str = "map") -> None:
        if values.ndim != 2 or not values.size:
            raise SceneError(f"{name}: an importance map has rows and columns, this has the shape {values.shape}")
        if not np.isfinite(values).all() or values.min() < 0 or values.max() <= 0:
            raise SceneError(
                f"{name}: importance goes from {values.min():g} to {values.max():g}; it must be 0 or more, and more "
                "somewhere"
            )
        self.values, self._name = values / values.max(), name

    @property
    def name(self) -> str:
        return self._name

    def on(self, grid: Grid) -> Importance:
        """Itself: it covers any scene."""
        return self

    def gains(self, tiles: TileGrid) -> NDArray[np.uint8] | None:
        """How much coarser each tile is coded, in quarter octaves of the step: (tiles). None where no tile is."""
        rows, columns = self.values.shape
        out = np.zeros(len(tiles), np.uint8)
        for number, tile in enumerate(tiles):
            window = tile.window
            down = _cells(window.row, window.height, tiles.height, rows)
            across = _cells(window.col, window.width, tiles.width, columns)
            most = float(self.values[down, across].max())
            out[number] = min(GAIN_MAX, round(-GAINS_PER_OCTAVE * math.log2(most))) if most > 0 else GAIN_MAX
        return out if out.any() else None


def _cells(start: int, size: int, whole: int, cells: int) -> slice:
    """Cells of a map that lie, wholly or in part, along pixels [start, start + size) of `whole`."""
    return slice(start * cells // whole, max(start * cells // whole + 1, -(-(start + size) * cells // whole)))


@dataclass(frozen=True)
class ImportanceFile:
    """A file that says it, for whatever scene comes; `outside`: how important it is outside of polygons."""

    path: Path
    outside: float = OUTSIDE

    def __post_init__(self) -> None:
        if not 0 <= self.outside <= 1:
            raise SceneError(f"importance outside of polygons is {self.outside:g}; it must be from 0 to 1")
        if not self.path.is_file():
            raise SceneError(f"{self.path}: no such file; --importance wants a raster, or GeoJSON with polygons")

    @property
    def name(self) -> str:
        return self.path.name

    def on(self, grid: Grid) -> Importance:
        """The map for a scene whose finest grid is `grid`. Raises SceneError where there is none."""
        return _read(self.path, grid, self.outside)


class Drawn(Protocol):
    """What an encoding may be told about where its scene matters."""

    @property
    def name(self) -> str: ...
    def on(self, grid: Grid) -> Importance: ...


def _read(path: Path, grid: Grid, outside: float) -> Importance:
    if path.suffix.lower() in (".json", ".geojson"):
        return Importance(_drawn(path, grid, outside), path.name)
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SceneError(f"{path}: cannot be read as an importance map: {error}") from error
        if values.dtype.kind not in "buif":
            raise SceneError(f"{path}: an importance map holds numbers, this holds {values.dtype}")
        return Importance(np.squeeze(values).astype(np.float64), path.name)
    source = open_source(path)
    try:
        found = source.scene.grids[0]
        values = source.read(0, Window(0, 0, found.height, found.width))[0]
    finally:
        source.close()
    return Importance(values.astype(np.float64), path.name)


def _drawn(path: Path, grid: Grid, outside: float) -> Values:
    """Polygons of a GeoJSON file as a map of cells; a cell is as important as any polygon that touches it."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SceneError(f"{path}: cannot be read as GeoJSON: {error}") from error
    shape = min(CELLS, -(-grid.height // 8)), min(CELLS, -(-grid.width // 8))
    out = np.full(shape, outside)
    drawn = 0
    for importance, polygon in _polygons(tree, path):
        rings = [_placed(ring, grid, path) for ring in polygon]
        np.maximum(out, importance * _covered(rings, shape), out=out)
        drawn += 1
    if not drawn:
        raise SceneError(f"{path}: holds no polygon; draw one around what matters")
    if (out == outside).all():
        raise SceneError(f"{path}: its polygons lie outside of the scene; are they in longitude and latitude?")
    return out


def _polygons(tree: Any, path: Path) -> Iterator[tuple[float, list[Any]]]:
    """(importance, rings) of every polygon of a GeoJSON object."""
    kind = tree.get("type") if isinstance(tree, dict) else None
    try:
        if kind == "FeatureCollection":
            for feature in tree["features"]:
                yield from _polygons(feature, path)
        elif kind == "Feature":
            importance = float((tree.get("properties") or {}).get("importance", 1.0))
            for _, rings in _polygons(tree["geometry"], path):
                yield importance, rings
        elif kind == "GeometryCollection":
            for geometry in tree["geometries"]:
                yield from _polygons(geometry, path)
        elif kind in ("Polygon", "MultiPolygon"):
            for rings in [tree["coordinates"]] if kind == "Polygon" else tree["coordinates"]:
                yield 1.0, rings
        else:
            raise SceneError(f"{path}: {kind or 'this'} is no polygon; importance is said with Polygon or MultiPolygon")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SceneError(f"{path}: is not GeoJSON: {error!r}") from error


def _placed(ring: Sequence[Sequence[float]], grid: Grid, path: Path) -> Ring:
    """A ring of a polygon on the scene, as shares of its width and height."""
    try:
        points = np.array([point[:2] for point in ring], np.float64)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{path}: a ring is not a list of points: {error}") from error
    if points.ndim != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise SceneError(f"{path}: a ring has {len(points)} points; three are the least")
    if grid.crs is not None and grid.transform is not None:
        if grid.crs != "EPSG:4326":
            try:
                from encoder_node.source_raster import placed
            except ImportError as error:
                raise SceneError(f"{path}: placing polygons on {grid.crs} needs rasterio; {NEEDS_RASTERIO}") from error
            points = placed(points, grid.crs)
        a, b, c, d, e, f = grid.transform
        points = (points - [c, f]) @ np.linalg.inv([[a, b], [d, e]]).T
    return np.asarray(points / [grid.width, grid.height])


def _covered(rings: list[Ring], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Cells (rows, columns) whose centre is inside (even-odd rule), or that an edge runs through."""
    rows, columns = shape
    x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    inside = np.zeros(shape, np.bool_)
    touched = np.zeros(shape, np.bool_)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            crossed = (y0 <= y) != (y1 <= y)
            if crossed.any():
                at = x0 + (y[crossed] - y0) * (x1 - x0) / (y1 - y0)
                inside[crossed] ^= x[None] < at[:, None]
            steps = int(2 * max(abs(x1 - x0) * columns, abs(y1 - y0) * rows)) + 2
            along = np.linspace(0, 1, min(steps, 8 * CELLS))
            col, row = (x0 + along * (x1 - x0)) * columns, (y0 + along * (y1 - y0)) * rows
            there = (col >= 0) & (col < columns) & (row >= 0) & (row < rows)
            touched[row[there].astype(int), col[there].astype(int)] = True
    return inside | touched
