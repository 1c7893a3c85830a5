"""Where a scene matters: maps are read or refused, tiles are coded as finely as they matter, and the ground agrees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests
from downlink.bundle import find
from downlink.errors import SceneError
from downlink.plane import GAIN_MAX
from downlink.scene import Band, Grid
from downlink.tile import TileGrid
from encoder_node.encoder import PlaneEncoder
from encoder_node.importance import Importance, ImportanceFile
from encoder_node.pipeline import encode_scene
from encoder_node.target import Target
from tests import scenes
from tests.scenes import GridsSource, grids_source, repeated

GRID = Grid(800, 400, "uint16", (Band(),))
UTM = Grid(800, 400, "uint16", (Band(),), crs="EPSG:32633", transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5300000.0))


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(find("universal"))


@pytest.fixture(scope="module")
def decoder() -> PlaneDecoder:
    return PlaneDecoder(find("universal"))


def square(west: float, south: float, side: float) -> list[list[list[float]]]:
    east, north = west + side, south + side
    return [[[west, south], [east, south], [east, north], [west, north], [west, south]]]


def drawn(path: Path, *features: dict, **more: object) -> ImportanceFile:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return ImportanceFile(path, **more)


def feature(rings: list, **properties: float) -> dict:
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": rings}}


def test_gains_are_quarter_octaves_below_the_most_important_place():
    values = np.array([[8.0, 4.0], [1.0, 0.0]])
    gains = Importance(values).gains(TileGrid(200, 100, 50))
    assert gains is not None
    # 4 x 2 tiles over a map of 2 x 2 cells
    assert gains.reshape(4, 2).tolist() == [[0, 4], [0, 4], [12, GAIN_MAX], [12, GAIN_MAX]]
    assert Importance(np.full((3, 5), 7.0)).gains(TileGrid(200, 100, 50)) is None


def test_a_tile_is_as_important_as_the_most_important_place_in_it():
    values = np.full((100, 100), 0.25)
    values[33, 66] = 1.0
    gains = Importance(values).gains(TileGrid(1000, 1000, 250))
    assert gains is not None
    assert np.argwhere(gains.reshape(4, 4) == 0).tolist() == [[1, 2]]
    # a cell that a tile shares with its neighbour counts in both
    gains = Importance(np.array([[1.0, 0.5, 0.25]])).gains(TileGrid(64, 400, 100))
    assert gains is not None
    assert gains.tolist() == [0, 0, 4, 8]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1000, 900)])
def test_maps_of_any_size_cover_every_tile(shape: tuple[int, int]):
    values = np.random.default_rng(1).random(shape) + 0.01
    gains = Importance(values).gains(TileGrid(777, 333, 64))
    assert gains is None or len(gains) == 13 * 6


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros((2, 2)), "more somewhere"),
        (np.array([[1.0, -1.0]]), "from -1 to 1"),
        (np.array([[1.0, np.nan]]), "0 or more"),
        (np.ones(4), "rows and columns"),
        (np.ones((0, 4)), "rows and columns"),
    ],
)
def test_what_is_no_map_is_refused(values: np.ndarray, says: str):
    with pytest.raises(SceneError, match=says):
        Importance(values)


def test_polygons_are_columns_and_rows_where_a_scene_has_no_coordinates(tmp_path: Path):
    found = drawn(tmp_path / "a.geojson", feature(square(80, 160, 80)), outside=0.25).on(GRID)
    rows, columns = found.values.shape
    assert (rows, columns) == (100, 50)
    inside = found.values == 1
    assert inside[20:30, 10:20].all()
    assert not inside[:19].any()
    assert not inside[32:].any()
    assert not inside[:, :9].any()
    assert not inside[:, 22:].any()
    assert (found.values[~inside] == 0.25).all()


def test_polygons_are_placed_by_longitude_and_latitude(tmp_path: Path):
    warp = pytest.importorskip("rasterio.warp")
    east, north = [500800.0, 501600.0], [5298400.0, 5297600.0]  # columns 80 to 160, rows 160 to 240
    longitude, latitude = warp.transform("EPSG:32633", "EPSG:4326", east + east[::-1], [north[0]] * 2 + [north[1]] * 2)
    ring = [list(point) for point in zip(longitude, latitude, strict=True)]
    found = drawn(tmp_path / "a.json", feature([ring])).on(UTM)
    inside = np.argwhere(found.values == 1)
    assert np.abs(inside.min(axis=0) - [20, 10]).max() <= 1
    assert np.abs(inside.max(axis=0) - [29, 19]).max() <= 1
    with pytest.raises(SceneError, match="cannot be placed on EPSG:32633"):
        drawn(tmp_path / "b.json", feature(square(400, 500, 1))).on(UTM)


def test_holes_several_polygons_and_their_importances(tmp_path: Path):
    ring = feature([*square(80, 160, 160), *square(120, 200, 80)], importance=0.5)
    found = drawn(tmp_path / "a.json", ring, feature(square(0, 0, 40))).on(GRID).values
    assert found[2, 2] == 1
    assert found[22, 12] == 0.5
    assert found[30, 20] == 0.125  # in the hole
    small = drawn(tmp_path / "b.json", feature(square(203, 401, 2)), outside=0.0).on(GRID).values
    assert np.argwhere(small == 1).tolist() == [[50, 25]]  # smaller than a cell, and there


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as GeoJSON"),
        ("[]", "is no polygon"),
        ('{"type": "Point", "coordinates": [1, 2]}', "Point is no polygon"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        ('{"type": "Polygon"}', "is not GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}', "three are the least"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [3, "x"], [5, 6]]]}', "not a list of points"),
        ('{"type": "Polygon", "coordinates": [[[9000, 9000], [9001, 9000], [9001, 9001]]]}', "outside of the scene"),
    ],
)
def test_what_is_no_drawing_is_refused(tmp_path: Path, text: str, says: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SceneError, match=says):
        ImportanceFile(tmp_path / "a.json").on(GRID)


def test_files_that_are_not_there_or_hold_something_else_are_refused(tmp_path: Path):
    with pytest.raises(SceneError, match="no such file"):
        ImportanceFile(tmp_path / "a.json")
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(SceneError, match="cannot be read as an importance map"):
        ImportanceFile(tmp_path / "a.npy").on(GRID)
    np.save(tmp_path / "b.npy", np.array([["x"]]))
    with pytest.raises(SceneError, match="holds numbers"):
        ImportanceFile(tmp_path / "b.npy").on(GRID)
    with pytest.raises(SceneError, match="must be from 0 to 1"):
        ImportanceFile(tmp_path / "a.npy", 2.0)
    with pytest.raises(SceneError, match="give one"):
        Target(max_error=1, importance=Importance(np.ones((1, 1))))


def test_rasters_are_maps(tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    values = np.random.default_rng(0).integers(1, 200, (30, 20), np.uint8)
    profile = {"driver": "GTiff", "count": 1, "height": 30, "width": 20, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as dataset:
        dataset.write(values[None])
    np.save(tmp_path / "a.npy", values[None].astype(np.float32))
    for name in ("a.tif", "a.npy"):
        found = ImportanceFile(tmp_path / name).on(GRID)
        assert np.allclose(found.values, values / values.max())
        assert found.name == name


def squares(source: GridsSource, encoder: PlaneEncoder, decoder: PlaneDecoder, target: Target) -> list[np.ndarray]:
    """Squared errors of every grid, and a check that the digest's own way through the stream ends well."""
    with encode_scene(source, encoder, target) as encoded:
        rows = list(decode_rows(encoded.manifest, encoded.chunk, decoder))
        assert all(row.missing == 0 for row in rows)
        assert all(part["count"] for part in grid_digests(encoded.manifest, encoded.chunk, decoder))
        settings = encoded.manifest.settings
        assert settings.get("importance") == (None if target.importance is None else "map")
    found = []
    for number, array in enumerate(source.arrays):
        back = np.concatenate([row.pixels for row in rows if row.grid == number], axis=1)
        found.append((back.astype(np.float64) - array) ** 2)
    return found


@pytest.mark.parametrize("kind", ["one grid", "repeated bands", "joined grids"])
def test_what_matters_comes_back_as_if_all_mattered_and_the_rest_coarser(encoder, decoder, kind: str):
    pixels = scenes.pixels(3, 3, 576, 600, nodata=None)
    if kind == "repeated bands":
        source = grids_source(np.stack([pixels[0], repeated(pixels[1], 2), repeated(pixels[2], 6)]))
    elif kind == "joined grids":
        coarse = pixels[1:].reshape(2, 288, 2, 300, 2).mean(axis=(2, 4)).astype(np.uint16)
        source = grids_source(pixels[:1], coarse)
    else:
        source = grids_source(pixels)
    values = np.full((3, 3), 0.25)
    values[1, 1] = 1.0  # rows 192 to 384, columns 200 to 400: parts of four tiles
    values[0, 0] = 0.0
    whole = squares(source, encoder, decoder, Target(quality=70))
    drawn = squares(source, encoder, decoder, Target(quality=70, importance=Importance(values)))
    for before, after in zip(whole, drawn, strict=True):
        high, wide = before.shape[1:]
        middle = np.s_[:, high * 5 // 12 : high * 7 // 12, wide * 5 // 12 : wide * 7 // 12]
        assert after[middle].mean() == pytest.approx(before[middle].mean(), rel=0.1)
        corner = np.s_[:, -high // 16 :, -wide // 16 :]
        assert 6 < after[corner].mean() / before[corner].mean() < 30  # a step four times as large
    assert len(set(TileGrid(576, 600).tile(0).window)) > 1


def test_a_rate_is_met_with_a_map_and_the_important_part_gains(encoder, decoder):
    pixels = scenes.pixels(4, 2, 512, 1024, nodata=None)
    values = np.full((2, 4), 1 / 8)
    values[0, 0] = 1
    source = grids_source(pixels)
    plain = squares(source, encoder, decoder, Target(bits_per_sample=0.5))[0]
    target = Target(bits_per_sample=0.5, importance=Importance(values))
    with encode_scene(source, encoder, target) as encoded:
        assert 8 * encoded.stream_bytes / pixels.size == pytest.approx(0.5, rel=0.02)
    drawn = squares(source, encoder, decoder, target)[0]
    assert drawn[:, :250, :250].mean() < 0.5 * plain[:, :250, :250].mean()


def test_tiles_of_different_gains_leave_no_seam(encoder, decoder):
    """A border between a fine and a coarse tile: beside it, errors are those of each side."""
    pixels = scenes.pixels(6, 2, 256, 512, nodata=None)
    target = Target(quality=60, importance=Importance(np.array([[1.0, 0.25]])))
    error = squares(grids_source(pixels), encoder, decoder, target)[0]
    coarse = error[:, :, 260:].mean()
    assert error[:, :, 248:256].mean() < coarse
    assert error[:, :, 256:264].mean() < 1.3 * coarse
