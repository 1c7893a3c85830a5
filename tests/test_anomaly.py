"""`submit --priority anomaly`: a scene with a tile unlike its others goes first, and its manifest says where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from encoder_node.anomaly import ALERT_CHARS, TileScore, alert_of
from encoder_node.cli import main
from encoder_node.outbox import Outbox

SIDE = 3 * 256


def scene(seed: int, odd: bool) -> np.ndarray:
    """A calm scene of nine tiles; with `odd`, one of them is rough."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    pixels = 1500 + 300 * np.sin(x / 40 + seed) + 200 * np.cos(y / 50) + random.normal(scale=15, size=(SIDE, SIDE))
    if odd:
        pixels[256:512, 512:768] += random.normal(scale=400, size=(256, 256))
    return pixels.clip(1, 60000).astype(np.uint16)[None]


def test_the_scene_that_stands_out_goes_first_with_its_alert(tmp_path: Path) -> None:
    paths = []
    for name, odd in (("calm", False), ("odd", True)):
        paths.append(tmp_path / f"{name}.npy")
        np.save(paths[-1], scene(1, odd))
    box = tmp_path / "outbox"
    arguments = ["submit", *map(str, paths), "--outbox", str(box), "--quality", "20", "--effort", "fast", "--json"]
    ran = CliRunner().invoke(main, [*arguments, "--priority", "anomaly"])
    assert ran.exit_code == 0, ran.output
    with Outbox(box, read_only=True) as opened:
        first, second = opened.entries()
        assert (first.name, second.name) == ("odd", "calm")
        assert first.priority >= 4
        assert second.priority == 0
    rows = {row["name"]: row for row in map(json.loads, ran.stdout.splitlines())}
    assert rows["odd"]["settings"]["alert"].startswith("1 of 9 tiles: ")
    assert rows["odd"]["settings"]["alert"].endswith(" at 512,256")
    assert "alert" not in rows["calm"]["settings"]
    assert rows["odd"]["scene_id"] == first.scene_id  # the id of the manifest that says so


def test_an_alert_is_short_and_names_the_loudest() -> None:
    quiet = [TileScore(1.0, 0, 0)] * 60
    assert alert_of(quiet) is None
    loud = [TileScore(30.0 - n, 256 * n, 10240) for n in range(20)]
    text = alert_of(loud + quiet)
    assert text is not None
    assert text.startswith("20 of 80 tiles: 30.0 at 0,10240; 29.0 at 256,10240")
    assert len(text) <= ALERT_CHARS


def test_other_words_than_anomaly_are_refused(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["submit", "x.npy", "--outbox", str(tmp_path), "--priority", "soon"])
    assert ran.exit_code == 2
    assert "neither a number" in ran.output
