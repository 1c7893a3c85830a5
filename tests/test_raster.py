"""A grid becomes a COG that holds every pixel and every fact, and is never seen half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from downlink.scene import Band, Grid, Scene
from encoder_node.source import open_source
from tests import scenes

rasterio = pytest.importorskip("rasterio")
cogeo = pytest.importorskip("rio_cogeo.cogeo")

from decoder_node.raster import crs_of, output_paths, write_cog  # noqa: E402  # after the skips

PLACE = (10.0, 0.0, 453620.0, 0.0, -10.0, 5800020.0)


def strips(pixels: np.ndarray, rows: int = 256) -> Iterator[np.ndarray]:
    return (pixels[:, row : row + rows] for row in range(0, pixels.shape[1], rows))


def make(pixels: np.ndarray, **changes: Any) -> Scene:
    scene = scenes.scene(pixels)
    return msgspec.structs.replace(scene, grids=(msgspec.structs.replace(scene.grids[0], **changes),))


SHAPES = [(1, 1, 1), (4, 300, 200), (3, 512, 513), (13, 257, 1030), (218, 40, 70), (1, 2000, 2000)]
SLIVERS = [(2, 1, 2000), (2, 2000, 1), (1, 3, 2000), (1, 2000, 4), (1, 40000, 1)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("shape", SHAPES + SLIVERS)
def test_pixels_come_back_and_the_file_is_a_valid_cog(tmp_path: Path, shape: tuple[int, int, int], dtype: str) -> None:
    pixels = scenes.pixels(bands=shape[0], height=shape[1], width=shape[2], dtype=dtype)
    if dtype == "int16":
        pixels[:, ::7, ::3] *= -1
    path = tmp_path / "a.tif"
    write_cog(path, make(pixels), 0, strips(pixels), {})
    with rasterio.open(path) as dataset:
        assert np.array_equal(dataset.read(), pixels)
        assert set(dataset.dtypes) == {dtype}
    valid, errors, warnings = cogeo.cog_validate(path, strict=shape not in SLIVERS)  # strict wants overviews
    assert valid, (errors, warnings)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize(
    "place",
    [
        PLACE,
        (0.1, 0.0, 1 / 3, 0.0, -0.1, 2 / 3),
        (10.000000001, 0.25, 333333.3333333333, 0.5, -10.1, 5e6 + 1 / 3),  # rotated
        (30.0, 0.0, 1 / 3, 0.0, 30.0, 2 / 3),  # south up
        None,
    ],
)
@pytest.mark.parametrize("area_or_point", ["Area", "Point"])
def test_the_transform_keeps_every_bit(tmp_path: Path, place: Any, area_or_point: str) -> None:
    pixels = scenes.pixels(bands=2, height=300, width=310)
    scene = make(pixels, transform=place)
    scene = msgspec.structs.replace(scene, tags={"AREA_OR_POINT": area_or_point})
    write_cog(tmp_path / "a.tif", scene, 0, strips(pixels), {})
    source = open_source(tmp_path / "a.tif")
    assert source.scene.grids[0] == scene.grids[0]
    assert area_or_point in source.scene.tags.values()


def test_everything_a_scene_states_is_in_the_file(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=4, height=64, width=64, dtype="uint8")
    tags = {"BOA_ADD_OFFSET": "-1000", "scales": "0.0001", "offsets": "-0.1 0.0 0.0 0.25", "odd": 'ö <&>"'}
    scene = msgspec.structs.replace(make(pixels), tags=tags)
    write_cog(tmp_path / "a.tif", scene, 0, strips(pixels), {"DOWNLINK_BUNDLE": "universal"})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.descriptions == tuple(band.name for band in scene.grids[0].bands)
        assert float(dataset.tags(2, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) == 0.68
        assert dataset.scales == (0.0001,) * 4
        assert dataset.offsets == (-0.1, 0.0, 0.0, 0.25)
        assert dataset.tags()["DOWNLINK_BUNDLE"] == "universal"
        assert dataset.tags()["ACQUISITIONDATETIME"] == scene.acquired
        assert dataset.tags()["odd"] == 'ö <&>"'
        # four 8-bit bands are four bands, not red, green, blue and transparency
        assert rasterio.enums.ColorInterp.alpha not in dataset.colorinterp
    again = open_source(tmp_path / "a.tif").scene
    assert again.grids == scene.grids
    assert again.acquired == scene.acquired
    assert tags.items() <= again.tags.items()


def test_no_tag_of_the_source_is_lost_to_one_of_ours(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=1, height=9, width=9)
    tags = {"Scene_ID": "theirs", "source_scene_id": "older", "a=b": "1", "a:b": "2", "ACQUISITIONDATETIME": "a Monday"}
    scene = msgspec.structs.replace(make(pixels), tags=tags)
    write_cog(tmp_path / "a.tif", scene, 0, strips(pixels), {"scene_id": "ours"})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        found = dataset.tags()
    assert (found["scene_id"], found["ACQUISITIONDATETIME"]) == ("ours", scene.acquired)
    assert set(tags.values()) <= set(found.values())


@pytest.mark.parametrize(
    ("bands", "dtype", "rgb"),
    [
        ([Band("a", 665.0), Band("b", 560.0), Band("c", 490.0)], "uint8", True),
        ([Band("a", 490.0), Band("b", 560.0), Band("c", 665.0)], "uint8", False),
        ([Band("Red"), Band("Green"), Band("Blue")], "uint8", True),
        ([Band("nir"), Band("red"), Band("green")], "uint8", False),
        ([Band(), Band(), Band()], "uint8", True),
        ([Band(), Band(), Band()], "uint16", False),
    ],
)
def test_colours_are_marked_where_they_are_some(tmp_path: Path, bands: list[Band], dtype: str, rgb: bool) -> None:
    pixels = scenes.pixels(bands=3, height=600, width=600, dtype=dtype)
    write_cog(tmp_path / "a.tif", make(pixels, bands=tuple(bands)), 0, strips(pixels), {})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert ([colour.name for colour in dataset.colorinterp] == ["red", "green", "blue"]) == rgb
        assert np.array_equal(dataset.read(), pixels)
    assert open_source(tmp_path / "a.tif").scene.grids[0].bands == tuple(bands)


def test_wavelengths_have_no_invented_digits(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=1, height=9, width=9)
    write_cog(tmp_path / "a.tif", make(pixels, bands=(Band("a", 1613.7),)), 0, strips(pixels), {})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.tags(1, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"] == "1.6137"


def test_a_crs_in_wkt_comes_back_equal(tmp_path: Path) -> None:
    own = rasterio.crs.CRS.from_string("+proj=tmerc +lon_0=14.5 +k=0.9999 +x_0=500000 +datum=WGS84 +units=m")
    pixels = scenes.pixels(bands=1, height=9, width=9)
    write_cog(tmp_path / "a.tif", make(pixels, crs=own.to_wkt()), 0, strips(pixels), {})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.crs == own


def test_a_crs_that_geotiff_keys_cannot_hold_is_kept_whole_as_a_tag(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pole = "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433"
    own = rasterio.crs.CRS.from_string(f"{pole} +datum=WGS84")
    pixels = scenes.pixels(bands=1, height=9, width=9)
    write_cog(tmp_path / "a.tif", make(pixels, crs=own.to_wkt()), 0, strips(pixels), {})
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert rasterio.crs.CRS.from_wkt(dataset.tags()["crs_wkt"]) == own
        assert dataset.transform == rasterio.Affine(*make(pixels).grids[0].transform)
    assert "GeoTIFF cannot hold the CRS" in caplog.text


@pytest.mark.parametrize("crs", ["EPSG:999999", "no crs", "https://example.invalid/crs", "/etc/passwd", "PROJCS["])
def test_a_crs_that_is_none_costs_the_place_but_not_the_pixels(tmp_path: Path, crs: str) -> None:
    pixels = scenes.pixels(bands=1, height=9, width=9)
    write_cog(tmp_path / "a.tif", make(pixels, crs=crs), 0, strips(pixels), {})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.crs is None
        assert dataset.tags()["crs_not_understood"] == crs
        assert np.array_equal(dataset.read(), pixels)


def test_overviews_leave_nodata_out(tmp_path: Path) -> None:
    pixels = np.full((1, 1024, 1024), 1000, np.uint16)
    pixels[:, ::2, ::2] = 0
    write_cog(tmp_path / "a.tif", make(pixels, nodata=0), 0, strips(pixels), {})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.overviews(1) == [2]
        assert np.unique(dataset.read(out_shape=(1, 512, 512))).tolist() == [1000]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda pixels: strips(pixels[:, :-1]),
        lambda pixels: strips(np.concatenate([pixels, pixels], axis=1)),
        lambda pixels: strips(pixels[:1]),
        lambda pixels: strips(pixels.astype(np.int16)),
    ],
)
def test_strips_that_do_not_make_the_grid_leave_nothing(tmp_path: Path, wrong: Any) -> None:
    pixels = scenes.pixels(bands=2, height=300, width=50)
    with pytest.raises(ValueError, match="strip"):
        write_cog(tmp_path / "a.tif", make(pixels), 0, wrong(pixels), {})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_decoder_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=2, height=600, width=50)
    write_cog(tmp_path / "a.tif", make(pixels), 0, strips(pixels), {})
    before = (tmp_path / "a.tif").read_bytes()

    def breaking() -> Iterator[np.ndarray]:
        yield pixels[:, :256]
        raise RuntimeError("chunk 3 is corrupt")

    with pytest.raises(RuntimeError):
        write_cog(tmp_path / "a.tif", make(pixels), 0, breaking(), {})
    assert (tmp_path / "a.tif").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


WRITER = """
import sys, time, numpy as np
from pathlib import Path
from tests import scenes
from decoder_node.raster import write_cog
pixels = scenes.pixels(bands=2, height=600, width=50)
def slow():
    for row in range(0, 600, 200):
        print("writing", flush=True)
        yield pixels[:, row:row + 200]
        time.sleep(60 if row else 0)
write_cog(Path(sys.argv[1]), scenes.scene(pixels), 0, slow(), {})
"""


def test_what_a_killed_writer_left_is_cleared_by_the_next_and_a_living_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "a[1]*.tif"  # no pattern may be made of a name
    pixels = scenes.pixels(bands=2, height=600, width=50)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 1
        write_cog(target, scenes.scene(pixels), 0, strips(pixels), {})
        assert len(list(tmp_path.iterdir())) == 2, "the folder of a living writer must stay"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(list(tmp_path.iterdir())) == 2
    write_cog(target, scenes.scene(pixels), 0, strips(pixels), {})
    assert [file.name for file in tmp_path.iterdir()] == [target.name]


REWRITER = """
import sys
from pathlib import Path
from tests import scenes
from decoder_node.raster import write_cog
pixels = scenes.pixels(bands=3, height=500, width=400)
for _ in range(20):
    write_cog(Path(sys.argv[1]), scenes.scene(pixels), 0, [pixels], {})
"""


def test_a_watcher_never_sees_half_a_file(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=3, height=500, width=400)
    target = tmp_path / "a.tif"
    seen = 0
    writer = subprocess.Popen([sys.executable, "-c", REWRITER, str(target)])
    while writer.poll() is None:
        if target.exists():
            with rasterio.open(target) as dataset:
                assert np.array_equal(dataset.read(), pixels)
            seen += 1
        time.sleep(0.001)
    assert writer.returncode == 0
    assert seen > 3


def test_no_tag_of_a_peer_is_more_than_a_tag(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=1, height=9, width=9)
    odd = {
        "ns": "IMAGERY",
        "bidx": "7",
        "self": "x",
        "a=b": "c=d",
        "": "empty",
        "k:l": "m",
        "TIFFTAG_DATETIME": "never",
    }
    scene = msgspec.structs.replace(make(pixels), tags=odd)
    write_cog(tmp_path / "a.tif", scene, 0, strips(pixels), {})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert np.array_equal(dataset.read(), pixels)
        tags = dataset.tags()
    assert {
        "ns_": "IMAGERY",
        "bidx_": "7",
        "self_": "x",
        "a_b": "c=d",
        "_": "empty",
        "k_l": "m",
    }.items() <= tags.items()


def grid(res: float, crs: str | None = "EPSG:32633") -> Grid:
    return Grid(2, 2, "uint8", (Band(),), None, crs, (res, 0, 0, 0, -res, 0))


@pytest.mark.parametrize(
    ("grids", "names"),
    [
        ((grid(10),), ["OUT.tif"]),
        ((grid(10), grid(20), grid(60)), ["OUT_10m.tif", "OUT_20m.tif", "OUT_60m.tif"]),
        ((grid(0.5), grid(2)), ["OUT_0.5m.tif", "OUT_2m.tif"]),
        ((grid(10), grid(10)), ["OUT_g0.tif", "OUT_g1.tif"]),
        ((grid(10, None), grid(20)), ["OUT_g0.tif", "OUT_g1.tif"]),
        ((grid(0.1, "EPSG:4326"), grid(0.2, "EPSG:4326")), ["OUT_g0.tif", "OUT_g1.tif"]),
    ],
)
def test_each_grid_has_a_path_of_its_own(grids: tuple[Grid, ...], names: list[str]) -> None:
    paths = output_paths(Path("/x/OUT.tif"), Scene("../../etc", grids))
    assert paths == [Path("/x") / name for name in names]


def test_memory_follows_the_strips_not_the_scene(tmp_path: Path) -> None:
    """A scene of 8 x 4000 x 4000 (256 MB) in strips passes through a process that may hold far less."""
    script = f"""
import resource, numpy as np
from pathlib import Path
from downlink.scene import Band, Grid, Scene
from decoder_node.raster import write_cog
grid = Grid(4000, 4000, "uint16", (Band(),) * 8, 0, "EPSG:32633", {PLACE})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_cog(Path({str(tmp_path / "a.tif")!r}), Scene("big", (grid,)), 0,
          (np.full((8, min(256, 4000 - row), 4000), row, np.uint16) for row in range(0, 4000, 256)), {{}})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    environment = os.environ | {"GDAL_CACHEMAX": "64"}
    grown = int(subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True).stdout)
    assert grown < 200, f"{grown} MiB"


def test_crs_of_takes_codes_and_wkt_only() -> None:
    assert crs_of(None) == (None, {})
    assert crs_of("EPSG:32633")[0].to_epsg() == 32633
    assert crs_of("+proj=longlat")[0] is None  # a PROJ string is neither
