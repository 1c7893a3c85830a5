"""Scenes come in with every pixel, place and tag of the file; what cannot come in is refused with a way out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downlink import limits
from downlink.errors import SceneError
from downlink.scene import Band
from downlink.tile import Window
from encoder_node import source_facts, source_raster
from encoder_node.source import Source, open_source
from tests import scenes

rasterio = pytest.importorskip("rasterio")
CORPUS = Path(__file__).parents[2] / "shared" / "corpus"
UTM = {"crs": "EPSG:32633", "transform": (10.0, 0.0, 453620.0, 0.0, -10.0, 5800020.0)}


def whole(source: Source, grid: int = 0) -> np.ndarray:
    return source.read(grid, Window(0, 0, *source.scene.grids[grid].shape[1:]))


def write(path: Path, pixels: np.ndarray, driver: str = "GTiff", **profile: Any) -> Path:
    if "transform" in profile:
        profile["transform"] = rasterio.Affine(*profile["transform"])
    bands, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver=driver, count=bands, height=height, width=width, dtype=pixels.dtype, **profile
    ) as dataset:
        dataset.write(pixels)
    return path


# ---- without GDAL


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", ">u2", ">i2"])
def test_npy_comes_back_as_it_was_in_native_byte_order(tmp_path: Path, dtype: str) -> None:
    pixels = scenes.pixels(bands=3, height=40, width=50).clip(0, 255).astype(dtype)
    np.save(tmp_path / "a.npy", pixels)
    source = open_source(tmp_path / "a.npy")
    assert np.array_equal(whole(source), pixels)
    assert whole(source).dtype.isnative
    window = Window(7, 11, 20, 30)
    assert np.array_equal(source.read(0, window), pixels[:, *window.slices])
    assert source.scene.name == "a"


def test_a_2d_npy_is_one_band(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert open_source(tmp_path / "a.npy").scene.grids[0].shape == (1, 3, 4)


def test_a_fortran_ordered_npy_is_read_right(tmp_path: Path) -> None:
    pixels = np.asfortranarray(scenes.pixels(bands=3, height=9, width=8))
    np.save(tmp_path / "a.npy", pixels)
    assert np.array_equal(whole(open_source(tmp_path / "a.npy")), pixels)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 4), np.float32), "float32 pixels.*astype"),
        (np.zeros((2, 3, 4), bool), "bool pixels.*astype"),
        (np.zeros((2, 3, 4), np.uint32), "uint32 pixels.*astype"),
        (np.zeros((2, 3, 4, 5), np.uint8), r"shape \(2, 3, 4, 5\)"),
        (np.zeros((0, 3, 4), np.uint8), r"shape \(0, 3, 4\)"),
        (np.array([{"a": 1}], dtype=object), "cannot be read as .npy"),
    ],
)
def test_npy_that_is_no_scene_is_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(SceneError, match=words):
        open_source(tmp_path / "a.npy")


def side_car(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values))


def test_raw_pixels_with_a_side_car(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=2, height=30, width=20)
    (tmp_path / "s.bsq").write_bytes(b"head" + pixels.astype(">u2").tobytes())
    described: dict[str, Any] = {
        "bands": ["B02", {"name": "B03", "wavelength_nm": 560}],
        "height": 30, "width": 20, "dtype": "uint16", "byte_order": "big", "offset": 4, "nodata": 0,
        "acquired": "2017-02-16T10:21:01Z", "tags": {"baseline": "02.04"}, **UTM,
    }  # fmt: skip
    side_car(tmp_path / "s.bsq.json", **described)
    source = open_source(tmp_path / "s.bsq")
    grid = source.scene.grids[0]
    assert np.array_equal(whole(source), pixels)
    assert grid.bands == (Band("B02"), Band("B03", 560.0))
    assert (grid.nodata, grid.crs, grid.transform) == (0, UTM["crs"], UTM["transform"])
    assert (source.scene.acquired, source.scene.tags) == ("2017-02-16T10:21:01Z", {"baseline": "02.04"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 31}, "has 1200 bytes, s.json describes 1240"),
        ({"dtype": None}, "lacks dtype"),
        ({"dtype": "float32"}, "float32"),
        ({"hight": 30}, "unknown field"),
        ({"height": -30, "width": -20}, "must be positive"),
        ({"acquired": "yesterday"}, "ISO 8601"),
        ({"transform": [1, 2]}, "length"),
    ],
)
def test_a_wrong_side_car_is_refused_with_what_disagrees(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "s.raw").write_bytes(bytes(1200))
    side_car(tmp_path / "s.json", **({"bands": 1, "height": 30, "width": 20, "dtype": "uint16"} | change))
    with pytest.raises(SceneError, match=words):
        open_source(tmp_path / "s.raw")


def test_an_npy_may_have_a_side_car_that_must_agree(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", scenes.pixels(bands=2, height=8, width=9))
    side_car(tmp_path / "a.npy.json", bands=["red", "nir"], nodata=0, **UTM)
    grid = open_source(tmp_path / "a.npy").scene.grids[0]
    assert (grid.bands, grid.nodata, grid.crs) == ((Band("red"), Band("nir")), 0, "EPSG:32633")
    side_car(tmp_path / "a.npy.json", bands=["red"])
    with pytest.raises(SceneError, match=r"states \(1, 8, 9\) uint16, a.npy holds \(2, 8, 9\)"):
        open_source(tmp_path / "a.npy")


def test_a_missing_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="no such file"):
        open_source(tmp_path / "nothing.tif")


# ---- with GDAL: one file


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 33, 65), (12, 300, 200)])
def test_a_geotiff_comes_in_exactly(tmp_path: Path, dtype: str, shape: tuple[int, int, int]) -> None:
    pixels = scenes.pixels(bands=shape[0], height=shape[1], width=shape[2], dtype=dtype)
    place = (10.000000001, 0.25, 333333.3333333333, 0.5, -10.1, 5e6 + 1 / 3)
    path = write(tmp_path / "a.tif", pixels, crs="EPSG:32633", transform=place, nodata=0)
    source = open_source(path)
    grid = source.scene.grids[0]
    assert np.array_equal(whole(source), pixels)
    assert (grid.dtype, grid.shape, grid.nodata, grid.crs, grid.transform) == (dtype, shape, 0, "EPSG:32633", place)
    assert not [note for note in source.notes if "alpha" not in note]  # GDAL takes a fourth 8-bit band for alpha


def test_names_wavelengths_tags_scales_and_time_are_carried(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scenes.pixels(bands=2, height=8, width=8))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B02", "B03")
        dataset.update_tags(1, ns="IMAGERY", CENTRAL_WAVELENGTH_UM="0.4924")
        dataset.update_tags(2, wavelength="0.56", wavelength_units="Micrometers")
        dataset.update_tags(BOA_ADD_OFFSET="-1000", TIFFTAG_DATETIME="2017:02:16 10:21:01")
        dataset.scales, dataset.offsets = (0.0001, 0.0001), (-0.1, 0.0)
    scene = open_source(path).scene
    assert scene.grids[0].bands == (Band("B02", 492.4), Band("B03", 560.0))
    assert scene.acquired == "2017-02-16T10:21:01"
    assert scene.tags["BOA_ADD_OFFSET"] == "-1000"
    assert (scene.tags["scales"], scene.tags["offsets"]) == ("0.0001", "-0.1 0.0")


def test_a_crs_is_epsg_only_when_it_is_exactly_that(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=1, height=8, width=8)
    own = "+proj=tmerc +lon_0=14.5 +k=0.9999 +x_0=500000 +datum=WGS84 +units=m"
    source = open_source(write(tmp_path / "own.tif", pixels, crs=own, transform=UTM["transform"]))
    crs = source.scene.grids[0].crs
    assert crs is not None
    assert crs.startswith("PROJCS")
    with rasterio.open(tmp_path / "own.tif") as dataset:
        assert rasterio.crs.CRS.from_wkt(crs) == dataset.crs
    assert open_source(write(tmp_path / "geo.tif", pixels, crs="EPSG:4326")).scene.grids[0].crs == "EPSG:4326"
    assert open_source(write(tmp_path / "none.tif", pixels)).scene.grids[0].crs is None


@pytest.mark.parametrize("nodata", [70000.0, -1.0, 0.5, float("nan")])
def test_nodata_no_pixel_can_have_is_a_tag_and_said(tmp_path: Path, nodata: float) -> None:
    assert source_facts.nodata_value(nodata, "uint16")[0] is None
    assert source_facts.nodata_value(nodata, "uint16")[1] == {"nodata": f"{nodata:g}"}
    assert "kept as a tag" in source_facts.nodata_value(nodata, "uint16")[2][0]


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.linspace(-3.5, 9.25, 60, dtype=np.float32), r"float32 pixels.*from -3.5 to 9.25.*-scale -3.5 9.25 0 65535"),
        (np.arange(60, dtype=np.float64), "float64 pixels.*whole numbers from 0 to 59.*as uint16.*-ot UInt16 IN"),
        (np.arange(-5, 55, dtype=np.int32), "int32 pixels.*whole numbers from -5 to 54.*-ot Int16 IN"),
        (np.arange(60, dtype=np.uint32) * 2000, "uint32 pixels.*from 0 to 118000.*-scale 0 118000"),
        (np.array([np.nan] * 60, np.float32), "float32 pixels.*-scale LOW HIGH"),
        (np.zeros(60, np.complex64), "complex64 pixels.*amplitude"),
        (np.zeros(60, np.int8), "int8 pixels.*-ot Int16"),
    ],
)  # fmt: skip
def test_other_types_are_refused_with_what_to_do(tmp_path: Path, pixels: np.ndarray, words: str) -> None:
    path = write(tmp_path / "a.tif", pixels.reshape(1, 6, 10))
    with pytest.raises(SceneError, match=words):
        open_source(path)


def test_what_is_not_carried_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", scenes.pixels(bands=1, height=8, width=8))
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = ([rasterio.control.GroundControlPoint(0, 0, 1.0, 2.0)], rasterio.crs.CRS.from_epsg(4326))
        dataset.update_tags(history="x" * (limits.TEXT_BYTES_MAX + 1), short="kept")
        dataset.write_mask(np.zeros((8, 8), bool))
    source = open_source(path)
    said = " ".join(source.notes)
    assert "1 ground control points are not carried" in said
    assert "tags not carried: history" in said
    assert "validity mask" in said
    assert source.scene.tags["short"] == "kept"
    assert "history" not in source.scene.tags


def test_drivers_outside_the_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.vrt").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    with pytest.raises(SceneError, match="cannot be opened as GTiff"):
        open_source(tmp_path / "a.vrt")
    (tmp_path / "b.tif").write_bytes(b"II*\0 and nothing more")
    with pytest.raises(SceneError, match="cannot be opened"):
        open_source(tmp_path / "b.tif")


def test_envi_comes_in(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=5, height=20, width=30, dtype="int16", nodata=None)
    path = write(tmp_path / "a.img", pixels, driver="ENVI", interleave="bil", **UTM)
    header = path.with_suffix(".hdr")
    header.write_text(
        header.read_text() + "\nwavelength units = Nanometers\nwavelength = {450, 550, 650, 850.5, 2200}\n"
    )
    source = open_source(path)
    assert np.array_equal(whole(source), pixels)
    assert [band.wavelength_nm for band in source.scene.grids[0].bands] == [450, 550, 650, 850.5, 2200]
    with pytest.raises(SceneError, match="name the file with the pixels"):
        open_source(header)


def test_a_window_outside_the_grid_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.tif", scenes.pixels(bands=1, height=8, width=9)))
    for window in (Window(0, 0, 9, 9), Window(-1, 0, 2, 2), Window(0, 5, 1, 5), Window(0, 0, 0, 1)):
        with pytest.raises(ValueError, match="does not lie inside"):
            source.read(0, window)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="../shared/corpus is not here")
def test_integer_files_of_the_corpus_come_in_and_floats_do_not() -> None:
    listed = json.loads((CORPUS / "manifest.json").read_text())
    for entry in sorted(listed, key=lambda entry: entry["file"])[::9] + [e for e in listed if e["dtype"] == "float32"]:
        path = CORPUS / entry["file"]
        if entry["dtype"] == "float32":
            with pytest.raises(SceneError, match="float32 pixels"):
                open_source(path)
            continue
        source = open_source(path)
        with rasterio.open(path) as dataset:
            grid = source.scene.grids[0]
            assert np.array_equal(whole(source), dataset.read()), path
            assert grid.nodata == dataset.nodata
            assert dataset.transform.is_identity or grid.transform == tuple(dataset.transform)[:6]
        source.close()


@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_a_name_that_is_not_utf8_is_said(tmp_path: Path, suffix: str) -> None:
    strange = tmp_path / os.fsdecode(b"b\xff." + suffix.encode())
    strange.touch()
    with pytest.raises(SceneError, match=r"not UTF-8.*rename it"):
        open_source(strange)
    with pytest.raises(SceneError, match=r"not UTF-8.*rename it"):
        source_raster.open_dataset(strange)


def test_advice_for_floats_leaves_nodata_out_of_the_range(tmp_path: Path) -> None:
    pixels = np.linspace(0.01, 0.26, 400, dtype=np.float32).reshape(1, 20, 20)
    pixels[0, :3] = -9999
    path = tmp_path / "reflectance.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 20, "width": 20, "dtype": "float32", "nodata": -9999}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)
    with pytest.raises(SceneError, match=r"-scale 0\.0475\d* 0\.26 1 65535 -a_nodata 0"):
        open_source(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04junk", b"\x93NUMPY\x01\x00v\x00{'descr': (((", b"\x93NUMPY"])
def test_a_corrupt_npy_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npy"
    path.write_bytes(content)
    with pytest.raises(SceneError):
        open_source(path)


def test_an_alpha_band_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rgba.tif"
    profile = {
        "driver": "GTiff",
        "count": 4,
        "height": 8,
        "width": 8,
        "dtype": "uint8",
        "photometric": "RGB",
        "alpha": "YES",
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(np.full((4, 8, 8), 200, np.uint8))
    assert any("band 4 is an alpha band" in note for note in open_source(path).notes)
