"""A quicklook shows the visible bands, leaves nodata transparent, and is small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from downlink.scene import Band, Grid, Scene
from tests import scenes

rasterio = pytest.importorskip("rasterio")

from decoder_node.quicklook import choose_bands, paint, write_quicklook  # noqa: E402  # after the skip
from decoder_node.raster import write_cog  # noqa: E402


def scene_of(*grids: list[Band]) -> Scene:
    return Scene("s", tuple(Grid(4, 4, "uint16", tuple(bands)) for bands in grids))


@pytest.mark.parametrize(
    ("scene", "chosen"),
    [
        (scene_of([Band("a", 492.4), Band("b", 559.8), Band("c", 664.6), Band("d", 832.8)]), (0, (2, 1, 0))),
        (scene_of([Band("x", 1600.0)], [Band("", 480.0), Band("", 550.0), Band("", 650.0)]), (1, (2, 1, 0))),
        (scene_of([Band(name) for name in ("B01", "B02", "B03", "B04")]), (0, (3, 2, 1))),
        (scene_of([Band("Blue"), Band("green"), Band("RED"), Band("nir")]), (0, (2, 1, 0))),
        (scene_of([Band(), Band(), Band(), Band()]), (0, (0, 1, 2))),
        (scene_of([Band("VV"), Band("VH")]), (0, (0,))),
        (scene_of([Band("a", 850.0), Band("b", 1600.0), Band("c", 2200.0)]), (0, (0, 1, 2))),
    ],
)
def test_the_visible_bands_are_found(scene: Scene, chosen: tuple[int, tuple[int, ...]]) -> None:
    assert choose_bands(scene) == chosen


def test_a_quicklook_is_a_small_png_with_transparent_nodata(tmp_path: Path) -> None:
    pixels = scenes.pixels(bands=4, height=600, width=900)
    scene = scenes.scene(pixels)
    write_cog(tmp_path / "a.tif", scene, 0, [pixels], {})
    path = write_quicklook(tmp_path / "a.png", scene, [tmp_path / "a.tif"], side_px=300)
    with rasterio.open(path) as dataset:
        picture = dataset.read()
        assert dataset.driver == "PNG"
    assert picture.shape == (4, 200, 300)
    assert picture[3, 0, 0] == 0, "the nodata corner"
    assert picture[3, -1, -1] == 255
    assert picture[:3, picture[3] > 0].std() > 20, "stretched"
    assert {file.name for file in tmp_path.iterdir()} == {"a.tif", "a.png"}


def test_odd_scenes_have_a_quicklook_too(tmp_path: Path) -> None:
    for number, pixels in enumerate(
        [np.zeros((1, 1, 1), np.uint8), np.full((3, 5, 700), -5, np.int16), np.zeros((2, 900, 2), np.uint16)]
    ):
        scene = scenes.scene(pixels)
        write_cog(tmp_path / "a.tif", scene, 0, [pixels], {})
        path = write_quicklook(tmp_path / f"{number}.png", scene, [tmp_path / "a.tif"], side_px=100)
        assert path.stat().st_size > 0


def test_a_flat_band_and_an_empty_scene_do_not_divide_by_zero() -> None:
    flat = np.full((3, 4, 4), 7, np.uint16)
    assert paint(flat, np.ones((3, 4, 4), bool))[3].min() == 255
    assert paint(flat, np.zeros((3, 4, 4), bool)).max() == 0
