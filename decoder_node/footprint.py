"""Where on Earth a scene lies: `footprint`, in longitude and latitude, for the catalogue."""

from __future__ import annotations

import math
from typing import Any

import rasterio.warp

from decoder_node.raster import crs_of
from downlink.scene import Grid, Scene

Json = dict[str, Any]


def footprint(scene: Scene) -> tuple[Json | None, list[float] | None]:
    """(GeoJSON geometry in longitude and latitude, bounding box) of the first grid that lies on Earth, or (None, None).

    A footprint that crosses the antimeridian comes as two polygons, and its box has west > east, as GeoJSON wants it.
    """
    for grid in scene.grids:
        crs, _ = crs_of(grid.crs)
        if crs is None or grid.transform is None:
            continue
        try:
            geometry: Json = rasterio.warp.transform_geom(crs, "EPSG:4326", _outline(grid), precision=7)
        except Exception:  # a CRS without a way to longitude and latitude; what rasterio raises has no public base
            continue
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        points = [point for polygon in polygons for ring in polygon for point in ring]
        if not points or not all(math.isfinite(x) and math.isfinite(y) and abs(y) <= 90 for x, y in points):
            continue
        south, north = min(y for _, y in points), max(y for _, y in points)
        west, east = min(x for x, _ in points), max(x for x, _ in points)
        if len(polygons) > 1:
            west = min(x for x, _ in points if x > 0)
            east = max(x for x, _ in points if x < 0)
        return {"type": geometry["type"], "coordinates": geometry["coordinates"]}, [west, south, east, north]
    return None, None


def _outline(grid: Grid) -> Json:
    """The grid's edge in its own CRS, with points between the corners, because straight there is not straight here."""
    assert grid.transform is not None
    a, b, c, d, e, f = grid.transform
    steps = [step / 8 for step in range(8)]
    around = (
        [(t, 0.0) for t in steps]
        + [(1.0, t) for t in steps]
        + [(1 - t, 1.0) for t in steps]
        + [(0.0, 1 - t) for t in steps]
    )
    pixels = [(x * grid.width, y * grid.height) for x, y in (*around, around[0])]
    ring = [(a * col + b * row + c, d * col + e * row + f) for col, row in pixels]
    # counter-clockwise on the ground (RFC 7946) where rows run downwards
    return {"type": "Polygon", "coordinates": [ring if a * e - b * d > 0 else ring[::-1]]}
