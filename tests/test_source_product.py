"""Sentinel-2 products and folders of band files: one scene, a grid per pixel size, nothing resampled."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from downlink.errors import SceneError
from downlink.scene import Band
from downlink.tile import Window
from encoder_node.source import Source, open_source
from tests import scenes
from tests.test_source import write

METADATA = """<?xml version="1.0"?>
<n1:Level-2A_User_Product xmlns:n1="x"><n1:General_Info><Product_Info>
<PRODUCT_START_TIME>2022-06-18T10:05:59.024Z</PRODUCT_START_TIME><PROCESSING_BASELINE>04.00</PROCESSING_BASELINE>
<Datatake><SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME></Datatake></Product_Info>
<Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX>
</Special_Values>
<BOA_ADD_OFFSET_VALUES_LIST><BOA_ADD_OFFSET band_id="0">-1000</BOA_ADD_OFFSET>
<BOA_ADD_OFFSET band_id="1">-1000</BOA_ADD_OFFSET>
</BOA_ADD_OFFSET_VALUES_LIST>
<Spectral_Information bandId="1" physicalBand="B2"><Wavelength><CENTRAL unit="nm">492.1</CENTRAL></Wavelength>
</Spectral_Information>
<Spectral_Information bandId="8" physicalBand="B8A"><Wavelength><CENTRAL unit="nm">864.0</CENTRAL></Wavelength>
</Spectral_Information></Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>
"""


@pytest.fixture
def safe(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A small Level-2A product: real JPEG 2000 files where a real one has them, and decoys."""
    product = tmp_path / "S2B_MSIL2A_20220618T100559_N0400_R022_T33UUU_20220618T131540.SAFE"
    images = product / "GRANULE" / "L2A_T33UUU" / "IMG_DATA"
    expected = {}
    for res, bands in {
        10: ("B02", "B03", "TCI"),
        20: ("B02", "B05", "B8A", "B11", "SCL"),
        60: ("B01", "B02", "B09"),
    }.items():
        folder = images / f"R{res}m"
        folder.mkdir(parents=True)
        side = 240 // (res // 10)
        for number, band in enumerate(bands):
            pixels = scenes.pixels(seed=res + number, bands=1, height=side, width=side)
            place = (float(res), 0.0, 300000.0, 0.0, -float(res), 5800020.0)
            write(
                folder / f"T33UUU_20220618T100559_{band}_{res}m.jp2", pixels, driver="JP2OpenJPEG",
                crs="EPSG:32633", transform=place, QUALITY=100, REVERSIBLE="YES",
            )  # fmt: skip
            expected[f"{band}_{res}"] = pixels[0]
    quality = product / "GRANULE" / "L2A_T33UUU" / "QI_DATA"
    quality.mkdir()
    (quality / "MSK_DETFOO_B02.jp2").write_bytes(b"decoy")
    (product / "MTD_MSIL2A.xml").write_text(METADATA)
    return product, expected


def check_safe(source: Source, expected: dict[str, np.ndarray]) -> None:
    scene = source.scene
    names = [[band.name for band in grid.bands] for grid in scene.grids]
    assert names == [["B02", "B03"], ["B05", "B8A", "B11"], ["B01", "B09"]]
    for number, (grid, res) in enumerate(zip(scene.grids, (10, 20, 60), strict=True)):
        assert grid.transform == (float(res), 0.0, 300000.0, 0.0, -float(res), 5800020.0)
        assert (grid.crs, grid.nodata) == ("EPSG:32633", 0)
        window = Window(3, 5, 20, 16)
        pixels = source.read(number, window)
        for band, got in zip(names[number], pixels, strict=True):
            assert np.array_equal(got, expected[f"{band}_{res}"][window.slices]), band
    assert scene.grids[0].bands[0].wavelength_nm == 492.1  # the product's own
    assert scene.grids[0].bands[1].wavelength_nm == 559.8  # the nominal one
    assert scene.acquired == "2022-06-18T10:05:59.024Z"
    assert scene.tags["BOA_ADD_OFFSET"] == "-1000"
    assert scene.tags["PROCESSING_BASELINE"] == "04.00"
    assert scene.name == "S2B_MSIL2A_20220618T100559_N0400_R022_T33UUU_20220618T131540"


def test_a_safe_product_is_one_scene_of_native_grids(safe: tuple[Path, dict[str, np.ndarray]]) -> None:
    source = open_source(safe[0])
    check_safe(source, safe[1])
    source.close()


def test_a_zipped_safe_product_is_the_same(safe: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    product, expected = safe
    zipped = tmp_path / f"{product.name}.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in product.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(product.parent))
    check_safe(open_source(zipped), expected)


def test_two_granules_are_not_mixed(safe: tuple[Path, dict[str, np.ndarray]]) -> None:
    other = safe[0] / "GRANULE" / "L2A_T33UVU"
    other.mkdir()
    (other / "T33UVU_20220618T100559_B02_10m.jp2").write_bytes(b"x")
    with pytest.raises(SceneError, match="of two scenes"):
        open_source(safe[0])


def test_a_folder_of_band_files_is_a_scene(tmp_path: Path) -> None:
    for band, res in (("B8A", 20), ("B09", 60), ("B02", 10), ("B12", 20)):
        pixels = scenes.pixels(bands=1, height=120 * 10 // res, width=120 * 10 // res)
        write(
            tmp_path / f"S2B_MSIL2A_20170924T93020_69_24_{band}.tif", pixels,
            crs="EPSG:32633", transform=(res, 0, 404400, 0, -res, 5342400),
        )  # fmt: skip
    (tmp_path / "S2B_MSIL2A_20170924T93020_69_24_labels_metadata.json").write_text("{}")
    scene = open_source(tmp_path).scene
    assert [[band.name for band in grid.bands] for grid in scene.grids] == [["B02"], ["B8A", "B12"], ["B09"]]
    assert scene.name == "S2B_MSIL2A_20170924T93020_69_24"
    assert scene.acquired == "2017-09-24T09:30:20Z"
    assert scene.grids[1].bands[0].wavelength_nm == 864.7


def test_landsat_bands_keep_their_names_and_get_no_sentinel_wavelengths(tmp_path: Path) -> None:
    for band in ("B1", "B10"):
        write(
            tmp_path / f"LC08_L1TP_224077_20200518_20200820_02_T1_{band}.TIF", scenes.pixels(bands=1, height=9, width=9)
        )
    scene = open_source(tmp_path).scene
    assert scene.grids[0].bands == (Band("B1"), Band("B10"))
    assert scene.acquired == "2020-05-18"


def test_a_folder_without_bands_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="without a Sentinel-2 product or band files"):
        open_source(tmp_path)
