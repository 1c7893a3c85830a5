"""The archive's catalogue is STAC that other programs read; it says what is known, and nothing else."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from downlink.chunk import ChunkList, GridCoding, Layout
from downlink.manifest import Manifest
from downlink.scene import Band, Grid, Scene
from tests import scenes

rasterio = pytest.importorskip("rasterio")
pystac = pytest.importorskip("pystac")

from decoder_node.catalogue import add_item  # noqa: E402  # after the skips
from decoder_node.footprint import footprint  # noqa: E402
from decoder_node.item import interval  # noqa: E402
from decoder_node.raster import output_paths, write_cog  # noqa: E402

FACTS = {"state": "decoded", "received": "2026-11-20T12:00:00Z", "stream_bytes": 5000}


def manifest_of(scene: Scene) -> Manifest:
    codings = [GridCoding(planes=1, planes_per_chunk=1, groups=3, mask="shared", step=2.0) for _ in scene.grids]
    layout = Layout(scene, tuple(codings))
    chunks = [bytes([number % 251]) * 20 for number in range(len(layout) - layout.pages)]
    return Manifest.of(
        scene=scene,
        bundle=hashlib.sha256(b"bundle").digest(),
        bundle_name="universal",
        codings=codings,
        settings={"quality": 50.0},
        listed=ChunkList.of(chunks),
        chunks=chunks,
    )


def receive(archive: Path, scene: Scene, scene_id: str = "5ce0" * 16, **facts: Any) -> Path:
    """What the worker does once a scene is decoded, with made-up pixels."""
    outputs = output_paths(archive / "scenes" / scene_id / "scene.tif", scene)
    for number, (grid, path) in enumerate(zip(scene.grids, outputs, strict=True)):
        write_cog(path, scene, number, [np.ones(grid.shape, grid.dtype)], {})
    return add_item(archive, scene_id, manifest_of(scene), outputs, FACTS | facts)


def scene_with(**changes: Any) -> Scene:
    pixels = scenes.pixels(bands=2, height=40, width=60)
    base = scenes.scene(pixels)
    grid_changes = {key: changes.pop(key) for key in ("crs", "transform", "nodata") if key in changes}
    grid = msgspec.structs.replace(base.grids[0], **grid_changes)
    return msgspec.structs.replace(base, grids=(grid,), **changes)


def three_grids() -> Scene:
    grids = tuple(
        Grid(120 // (res // 10), 240 // (res // 10), "uint16", (Band(f"at{res}", 500.0 + res),), 0, "EPSG:32633",
             (float(res), 0.0, 330000.0, 0.0, -float(res), 5822040.0))
        for res in (10, 20, 60)
    )  # fmt: skip
    return Scene("three", grids, "2017-02-16T10:21:01Z", {"scales": "0.0001", "offsets": "-0.1"})


VARIANTS: dict[str, Scene] = {
    "plain": scene_with(),
    "grids": three_grids(),
    "no place": scene_with(crs=None, transform=None),
    "no time": scene_with(acquired=None),
    "a day": scene_with(acquired="2017-02-16"),
    "no zone": scene_with(acquired="2017-02-16 10:21:01"),
    "end of time": scene_with(acquired="0001-01-01T00:00:00+14:00"),
    "odd name": scene_with(name='../../"><script>', tags={"a": "<b>"}),
    "bad crs": scene_with(crs="nonsense"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_pystac_accepts_the_whole_catalogue(tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonschema")
    scene = VARIANTS[variant]
    path = receive(tmp_path, scene)
    catalogue = pystac.Catalog.from_file(str(tmp_path / "catalog.json"))
    items = list(catalogue.get_items(recursive=True))
    assert [item.id for item in items] == [path.stem]
    for thing in (catalogue, *catalogue.get_children(), *items):
        # the core schemas come with pystac; those of the extensions would have to be fetched
        without = thing.to_dict() | {"stac_extensions": []}
        pystac.validation.validate_dict(without)
    for asset in items[0].assets.values():
        file = Path(asset.get_absolute_href())
        assert file.is_file()
        assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(file.read_bytes()).hexdigest()
        assert asset.extra_fields["file:size"] == file.stat().st_size


def test_an_item_says_what_it_came_with(tmp_path: Path) -> None:
    item = json.loads(receive(tmp_path, three_grids()).read_text())
    properties = item["properties"]
    assert properties["datetime"] == "2017-02-16T10:21:01.000Z"
    assert properties["downlink:bundle"] == "universal"
    assert properties["downlink:bundle_id"] == hashlib.sha256(b"bundle").hexdigest()
    assert properties["downlink:settings"] == {"quality": 50.0}
    samples = 120 * 240 + 60 * 120 + 20 * 40
    assert properties["downlink:bits_per_sample"] == round(8 * 5000 / samples, 6)
    assert properties["downlink:state"] == "decoded"
    assert properties["proj:code"] == "EPSG:32633"
    assert list(item["assets"]) == ["data_10m", "data_20m", "data_60m"]
    asset = item["assets"]["data_20m"]
    assert asset["bands"] == [
        {"name": "at20", "eo:center_wavelength": 0.52, "raster:scale": 0.0001, "raster:offset": -0.1}
    ]
    assert asset["proj:shape"] == [60, 120]
    assert asset["proj:transform"] == [20.0, 0.0, 330000.0, 0.0, -20.0, 5822040.0]
    assert (asset["data_type"], asset["nodata"]) == ("uint16", 0)
    west, south, east, north = item["bbox"]
    assert 12.4 < west < east < 12.6
    assert 52.4 < south < north < 52.6


def test_a_scene_without_a_place_has_no_geometry(tmp_path: Path) -> None:
    item = json.loads(receive(tmp_path, VARIANTS["no place"]).read_text())
    assert item["geometry"] is None
    assert "bbox" not in item


def test_no_time_is_invented() -> None:
    received = "2026-11-20T12:00:00+02:00"
    assert interval("2017-02-16T10:21:01.5+02:00", received) == {"datetime": "2017-02-16T08:21:01.500Z"}
    assert interval("2017-02-16", received) == {
        "datetime": None,
        "start_datetime": "2017-02-16T00:00:00.000Z",
        "end_datetime": "2017-02-16T23:59:59.999Z",
    }
    assert interval(None, received) == {
        "datetime": None,
        "start_datetime": "1970-01-01T00:00:00.000Z",
        "end_datetime": "2026-11-20T10:00:00.000Z",
    }


def test_the_footprint_lies_where_the_grid_is_and_runs_counter_clockwise() -> None:
    geometry, box = footprint(scene_with())
    assert geometry is not None
    assert box is not None
    assert geometry["type"] == "Polygon"
    ring = geometry["coordinates"][0]
    assert ring[0] == ring[-1]
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring))
    assert area > 0
    corner = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [453620.0], [5800020.0])
    assert min(abs(x - corner[0][0]) + abs(y - corner[1][0]) for x, y in ring) < 1e-6


def test_a_footprint_across_the_antimeridian_is_two_polygons_and_a_box_that_runs_east() -> None:
    scene = scene_with(crs="EPSG:32601", transform=(1000.0, 0.0, 140000.0, 0.0, -1000.0, 100000.0))
    geometry, box = footprint(scene)
    assert geometry is not None
    assert box is not None
    assert geometry["type"] == "MultiPolygon"
    west, south, east, north = box
    assert west > 179 > -179 > east - 1
    assert south < north


@pytest.mark.parametrize("crs", ["nonsense", 'LOCAL_CS["engine room",UNIT["metre",1]]'])
def test_a_crs_without_longitudes_gives_no_footprint(crs: str) -> None:
    assert footprint(scene_with(crs=crs)) == (None, None)


def test_adding_twice_changes_nothing_but_what_is_new(tmp_path: Path) -> None:
    path = receive(tmp_path, scene_with())
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.json")}
    receive(tmp_path, scene_with())
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.json")} == before
    receive(tmp_path, scene_with(), state="partial")
    assert json.loads(path.read_text())["properties"]["downlink:state"] == "partial"
    collection = json.loads((tmp_path / "scenes" / "collection.json").read_text())
    assert [link["rel"] for link in collection["links"]].count("item") == 1


def test_the_collection_spans_its_scenes(tmp_path: Path) -> None:
    receive(tmp_path, VARIANTS["no place"], "aa" * 32)
    collection = tmp_path / "scenes" / "collection.json"
    assert json.loads(collection.read_text())["extent"]["spatial"]["bbox"] == [[-180.0, -90.0, 180.0, 90.0]]
    first = json.loads(receive(tmp_path, scene_with(), "bb" * 32).read_text())
    assert json.loads(collection.read_text())["extent"]["spatial"]["bbox"] == [first["bbox"]]
    second = json.loads(receive(tmp_path, three_grids(), "cc" * 32).read_text())
    extent = json.loads(collection.read_text())["extent"]
    both = list(zip(first["bbox"], second["bbox"], strict=True))
    assert extent["spatial"]["bbox"] == [[*map(min, both[:2]), *map(max, both[2:])]]
    assert extent["temporal"]["interval"] == [["2017-02-16T10:21:01.000Z", "2026-11-20T09:30:31.000Z"]]


def test_the_archive_can_be_moved(tmp_path: Path) -> None:
    receive(tmp_path / "here", scene_with())
    shutil.move(tmp_path / "here", tmp_path / "there")
    catalogue = pystac.Catalog.from_file(str(tmp_path / "there" / "catalog.json"))
    (item,) = catalogue.get_items(recursive=True)
    assert Path(item.assets["data"].get_absolute_href()).is_file()
    assert item.get_root().id == catalogue.id


def _add_one(archive: str, number: int) -> None:
    receive(Path(archive), scene_with(), f"{number:064x}")


def test_workers_at_once_lose_no_item(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_add_one, [(str(tmp_path), number) for number in range(12)])
    catalogue = pystac.Catalog.from_file(str(tmp_path / "catalog.json"))
    assert {item.id for item in catalogue.get_items(recursive=True)} == {f"{number:064x}" for number in range(12)}
    assert list(tmp_path.rglob("*.part")) == []


def test_what_a_power_cut_left_out_the_next_call_mends(tmp_path: Path) -> None:
    receive(tmp_path, scene_with())
    (tmp_path / "scenes" / "collection.json").unlink()
    (tmp_path / "catalog.json").unlink()
    receive(tmp_path, scene_with())
    assert len(list(pystac.Catalog.from_file(str(tmp_path / "catalog.json")).get_items(recursive=True))) == 1
