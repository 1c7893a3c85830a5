"""A decoded scene as a cube: the same pixels, read when they are looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
xarray = pytest.importorskip("xarray", reason="the cube extra is not installed")

import decoder_node  # noqa: E402  # after the skips
from decoder_node import cube  # noqa: E402
from decoder_node.catalogue import add_item  # noqa: E402
from decoder_node.cube import CubeError, open_scene, write_zarr  # noqa: E402
from decoder_node.raster import output_paths, write_cog  # noqa: E402
from downlink.scene import Band, Grid, Scene  # noqa: E402
from tests.test_catalogue import FACTS, manifest_of  # noqa: E402

PLACE = (10.0, 0.0, 453620.0, 0.0, -10.0, 5800020.0)


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two grids, of 10 and 20 m, with Sentinel-2's offset."""
    archive = tmp_path_factory.mktemp("archive")
    grids = tuple(
        Grid(
            120 // unit, 100 // unit, "uint16", tuple(Band(name, 400.0 + 10 * len(name)) for name in names), 0,
            "EPSG:32633", (10.0 * unit, 0.0, PLACE[2], 0.0, -10.0 * unit, PLACE[5]),
        )
        for unit, names in ((1, ("B02", "B08")), (2, ("B11",)))
    )  # fmt: skip
    scene = Scene("two", grids, "2026-11-20T09:30:31Z", {"scales": "0.0001", "offsets": "-0.1"})
    folder = archive / "scenes" / ("5ce0" * 16)
    folder.mkdir(parents=True)
    paths = output_paths(folder / "scene.tif", scene)
    for number, (grid, path) in enumerate(zip(scene.grids, paths, strict=True)):
        write_cog(path, scene, number, iter([pixels_of(grid, number)]), {})
    return add_item(archive, "5ce0" * 16, manifest_of(scene), paths, FACTS)


def pixels_of(grid: Grid, number: int) -> np.ndarray:
    values = np.random.default_rng(number).integers(1, 9999, grid.shape, dtype=np.uint16)
    values[:, :3] = 0
    return values


def test_bands_have_their_names_places_and_pixels(item: Path) -> None:
    scene = decoder_node.open_scene(item.parent)
    assert list(scene.data_vars) == ["B02", "B08", "B11"]
    assert scene["B02"].dims == ("y_10m", "x_10m")
    assert scene["B11"].shape == (60, 50)
    assert scene["B08"].dtype == np.uint16
    assert scene["x_20m"].values[:2].tolist() == [453630.0, 453650.0]
    assert scene["y_10m"].values[0] == 5800015.0
    assert scene["B11"].attrs["offset"] == -0.1
    assert scene["B11"].attrs["nodata"] == 0
    assert "32633" in scene.attrs["crs"]
    with rasterio.open(item.parent / "scene_10m.tif") as dataset:
        assert (scene["B08"].values == dataset.read(2)).all()


@pytest.mark.parametrize(
    "key",
    [
        (slice(5, 9), slice(7, 20)), (3, slice(None)), (-1, -1), (slice(None, None, 7), slice(99, 2, -3)),
        (slice(5, 5), slice(None)), ([4, 1, 9], slice(0, 4)),
    ],
)  # fmt: skip
def test_any_part_is_the_same_part(item: Path, key: Any) -> None:
    scene = open_scene(item)
    found = scene["B02"][key].values
    with rasterio.open(item.parent / "scene_10m.tif") as dataset:
        assert np.array_equal(found, dataset.read(1)[key])


def test_nothing_is_read_before_it_is_looked_at(item: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = []
    read = cube._Pixels._read
    monkeypatch.setattr(cube._Pixels, "_read", lambda self, key: windows.append(key) or read(self, key))
    scene = open_scene(item)
    part = scene["B08"].isel(x_10m=slice(0, 4), y_10m=slice(10, 12))
    assert windows == []
    assert part.values.shape == (2, 4)
    assert windows == [(slice(10, 12, 1), slice(0, 4, 1))]


def test_zarr_holds_the_same_and_takes_the_place_of_what_was_there(item: Path, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    pytest.importorskip("dask")
    path = write_zarr(tmp_path / "scene.zarr", item)
    (path / "stale").write_text("of before")
    write_zarr(path, item)
    assert not (path / "stale").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.zarr"]
    again = open_scene(path)
    for name, band in open_scene(item).data_vars.items():
        assert np.array_equal(again[name].values, band.values)
        assert again[name].attrs["offset"] == -0.1
    assert again.attrs["title"] == "two"


def test_one_geotiff_is_a_scene_too(item: Path) -> None:
    assert list(open_scene(item.parent / "scene_20m.tif").data_vars) == ["B11"]


def test_what_is_no_scene_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"type": "Collection"}))
    (tmp_path / "b.tif").write_text("no picture")
    for wrong in (tmp_path, tmp_path / "a.json", tmp_path / "b.tif"):
        with pytest.raises(CubeError):
            open_scene(wrong)
