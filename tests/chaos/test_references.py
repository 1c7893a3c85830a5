"""kill -9 of either node between a scene and the one it is coded against, and the ground's archive deleted between
the two: all arrive, the reference again where it was lost, and the pixels are those of an undisturbed decoding."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.chaos.rig import LONG, chance, intact, rounds
from tests.nodes import WITHIN_S, listed, run, send, serve

pytestmark = pytest.mark.chaos


def day(folder: Path, number: int) -> Path:
    """A place that stays, under light that does not."""
    ground = np.random.default_rng(5).normal(2000, 250, (3, 96, 96))
    for axis in (1, 2):
        ground = (np.roll(ground, 1, axis) + 2 * ground + np.roll(ground, -1, axis)) / 4
    noise = np.random.default_rng(number).normal(0, 8, ground.shape)
    path = folder / f"day{number}.npy"
    np.save(path, ((1 + 0.02 * number) * ground + noise).astype(np.uint16))
    return path


def submitted(folder: Path, number: int) -> dict[str, str]:
    """What `submit --reference last --json` says."""
    done = run(
        "encoder_node", "submit", day(folder, number), "--outbox", folder / "outbox", "--reference", "last",
        "--quality", "56", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_whatever_is_killed_or_deleted_between_a_scene_and_its_reference(tmp_path: Path) -> None:
    random = chance("references")
    ground, address = serve(tmp_path, workers=1)
    try:
        first = submitted(tmp_path, 0)
        assert first["reference"] is None
        assert send(tmp_path, address, "--once").wait() == 0
        second = submitted(tmp_path, 1)
        assert second["reference"] == first["scene_id"]
        ground.kill()
        shutil.rmtree(tmp_path / "archive")
        ground, address = serve(tmp_path, workers=1)
        for number in range(rounds(1, 40)):
            edge = send(tmp_path, address, "--rate-kbps", "60")
            time.sleep(float(random.uniform(0.6, 1.6)))
            edge.kill()
            assert intact(tmp_path / "outbox" / "outbox.sqlite")
            if number % 2 or not LONG:
                ground.kill()
                ground, address = serve(tmp_path, workers=1)
        assert send(tmp_path, address, "--once").wait() == 0
        scenes = [first, second]
        if LONG:  # one more of the chain
            scenes.append(submitted(tmp_path, 2))
            assert scenes[2]["reference"] == second["scene_id"]
            assert send(tmp_path, address, "--once").wait() == 0
        until = time.monotonic() + WITHIN_S
        rows = listed(tmp_path)
        while [row["state"] for row in rows] != ["decoded"] * len(scenes):
            assert time.monotonic() < until, rows
            time.sleep(0.2)
            rows = listed(tmp_path)
    finally:
        ground.kill()
    for number, scene in enumerate(scenes):
        [row] = [row for row in rows if row["scene_id"] == scene["scene_id"]]
        assert row["facts"].get("reference") == scene["reference"]
        with rasterio.open(row["path"]) as found:
            pixels = found.read()
        truth = np.load(tmp_path / f"day{number}.npy").astype(float)
        assert np.sqrt(((pixels - truth) ** 2).mean()) < 25  # of a signal of 94
        item = json.loads((Path(row["path"]).parent / f"{scene['scene_id']}.json").read_text())
        assert item["properties"].get("downlink:reference") == scene["reference"]
        assert [link["href"] for link in item["links"] if link["rel"] == "derived_from"] == [
            f"../{scene['reference']}/{scene['reference']}.json" for _ in range(number > 0)
        ]
