"""`--skip-clouds P`: cloudy tiles cost next to nothing, come back as nodata, and the manifest says which they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from downlink.errors import SceneError
from downlink.scene import Band, Grid, Scene
from downlink.tile import Window
from encoder_node.cli import main
from encoder_node.clouds import CloudFree
from encoder_node.source_array import ArraySource
from encoder_node.survey import Survey, released_head
from tests.scenes import GridsSource, grids_source

NAMES = ("B02", "B03", "B04", "B08")
CLEAR, CLOUD = (500, 700, 600, 2800), (5200, 5300, 5400, 5600)


def pixels(side: int = 512, cloudy: int = 256) -> Any:
    """Fields of four bands, whose upper left `cloudy` px are cloud."""
    random = np.random.default_rng(1)
    out = np.array(CLEAR, np.float64)[:, None, None] + random.normal(scale=30, size=(4, side, side))
    out[:, :cloudy, :cloudy] = np.array(CLOUD)[:, None, None] + random.normal(scale=200, size=(4, cloudy, cloudy))
    return out.round().astype(np.uint16)


def source(array: Any, nodata: int | None = 0, names: tuple[str, ...] = NAMES) -> ArraySource:
    height, width = array.shape[1:]
    grid = Grid(height, width, array.dtype.name, tuple(map(Band, names)), nodata)
    return ArraySource(Scene("fields", (grid,)), array)


def free_of(array: Any, percent: float = 50, **how: Any) -> tuple[CloudFree, Survey]:
    survey = Survey(released_head())
    return CloudFree(source(array, **how), percent, survey), survey


def test_cloudy_tiles_read_as_nodata_in_every_window() -> None:
    array = pixels(1024, 256)
    free, survey = free_of(array)
    assert survey.cloud_percent == pytest.approx(100 / 16, abs=0.3)
    whole = free.read(0, Window(0, 0, 1024, 1024))
    assert (whole[:, :256, :256] == 0).all()
    assert (whole[:, 256:] == array[:, 256:]).all()
    assert (free.read(0, Window(250, 100, 20, 30))[:, 6:] == array[:, 256:270, 100:130]).all()
    kept, _ = free_of(pixels(768, 100))  # cloud, but less than half of its tile
    assert (kept.read(0, Window(0, 0, 768, 768)) > 0).all()


def test_skipped_tiles_are_skipped_in_all_grids(tmp_path: Path) -> None:
    """Of a product of 10 and 20 m, by the bands of 10 m; tiles of both are nodata where the cloud is."""
    fine = pixels(768, 256)
    coarse = fine[:2, ::2, ::2].copy()
    made = grids_source(fine, coarse, nodata=0)
    grids = tuple(
        msgspec.structs.replace(grid, bands=tuple(map(Band, names)))
        for grid, names in zip(made.scene.grids, (NAMES, ("B05", "B06")), strict=True)
    )
    survey = Survey(released_head())
    free = CloudFree(GridsSource((fine, coarse), msgspec.structs.replace(made.scene, grids=grids)), 50, survey)
    assert (free.read(0, Window(0, 0, 768, 768))[0] == 0).sum() == 256 * 256
    assert (free.read(1, Window(0, 0, 384, 384))[0, :128, :128] == 0).all()
    assert (free.read(1, Window(0, 0, 384, 384))[0] == 0).sum() == 128 * 128


def test_what_cannot_be_judged_is_refused_with_what_to_do() -> None:
    with pytest.raises(SceneError, match="no nodata value"):
        free_of(pixels(64, 32), nodata=None)
    with pytest.raises(SceneError, match=r"bands B02, B03, B04, B08 are needed at one resolution, .* a, b, c, d"):
        free_of(pixels(64, 32), names=("a", "b", "c", "d"))
    with pytest.raises(SceneError, match="8-bit"):
        free_of(pixels(64, 32).astype(np.uint8))


def test_a_cloudy_scene_is_smaller_and_its_manifest_says_why(tmp_path: Path) -> None:
    array = pixels(768)
    array.tofile(tmp_path / "fields.raw")
    card = {"bands": list(NAMES), "height": 768, "width": 768, "dtype": "uint16", "nodata": 0}
    (tmp_path / "fields.raw.json").write_text(json.dumps(card))

    def encoded(name: str, *options: str) -> dict[str, Any]:
        out = tmp_path / name
        arguments = ["encode", str(tmp_path / "fields.raw"), str(out), "--quality", "30", "--effort", "fast", "--json"]
        ran = CliRunner().invoke(main, [*arguments, *options])
        assert ran.exit_code == 0, ran.output
        facts: dict[str, Any] = json.loads(ran.stdout)
        return facts

    plain, skipped = encoded("plain.dl"), encoded("skipped.dl", "--skip-clouds", "50")
    assert skipped["bytes"] < 0.8 * plain["bytes"]
    assert skipped["settings"]["clouds_skipped"] == "1 of 9 tiles: 0,0"
    assert skipped["settings"]["cloud_percent"] == pytest.approx(100 / 9, abs=0.5)
    assert "clouds_skipped" not in plain["settings"]
