"""`--skip-clouds P`: cloudy tiles cost next to nothing, come back as nodata, and the manifest says which they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from downlink.errors import SceneError
from downlink.scene import Band, Grid, Scene
from downlink.tile import Window
from encoder_node.cli import main
from encoder_node.clouds import CloudFree, released_head
from encoder_node.source_array import ArraySource

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


def test_the_head_tells_cloud_from_field_and_says_how_well() -> None:
    head = released_head()
    array = pixels(64, 32)
    assert (head.cloudy(array) == (np.arange(8)[:, None] < 4) & (np.arange(8) < 4)).all()
    assert "ROC-AUC" in head.made


def test_cloudy_tiles_read_as_nodata_in_every_window() -> None:
    array = pixels()
    free = CloudFree(source(array), 50, released_head())
    assert free.cloud_percent == pytest.approx(25)
    whole = free.read(0, Window(0, 0, 512, 512))
    assert (whole[:, :256, :256] == 0).all()
    assert (whole[:, 256:] == array[:, 256:]).all()
    assert (free.read(0, Window(250, 100, 20, 30))[:, 6:] == array[:, 256:270, 100:130]).all()
    kept = CloudFree(source(pixels(512, 100)), 50, released_head())  # cloud, but less than half of its tile
    assert (kept.read(0, Window(0, 0, 512, 512)) > 0).all()


def test_what_cannot_be_judged_is_refused_with_what_to_do() -> None:
    head = released_head()
    with pytest.raises(SceneError, match="no nodata value"):
        CloudFree(source(pixels(64, 32), None), 50, head)
    with pytest.raises(SceneError, match="bands B02, B03, B04, B08 are needed"):
        CloudFree(source(pixels(64, 32), names=("a", "b", "c", "d")), 50, head)
    with pytest.raises(SceneError, match="8-bit"):
        CloudFree(source(pixels(64, 32).astype(np.uint8)), 50, head)


def test_a_cloudy_scene_is_smaller_and_its_manifest_says_why(tmp_path: Path) -> None:
    array = pixels()
    array.tofile(tmp_path / "fields.raw")
    card = {"bands": list(NAMES), "height": 512, "width": 512, "dtype": "uint16", "nodata": 0}
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
    assert skipped["settings"]["clouds_skipped"] == "1 of 4 tiles: 0,0"
    assert skipped["settings"]["cloud_percent"] == 25
    assert "clouds_skipped" not in plain["settings"]
