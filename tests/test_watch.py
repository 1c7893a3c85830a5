"""A watched folder: no file in it, whatever its name or state, ends the watching."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downlink.frame import Ask
from downlink.request import SetTarget, pack
from encoder_node import watch
from encoder_node.cli import main
from encoder_node.cli_encode import submit
from encoder_node.cli_run import run, standing_of, typed
from encoder_node.outbox import Outbox
from encoder_node.sender import Options, Sender
from encoder_node.target import Target
from encoder_node.watch import Standing, Watch, candidates


def put_strange(folder: Path) -> Path:
    strange = folder / os.fsdecode(b"b\xff.npy")
    np.save(folder / "a.npy", np.zeros((1, 8, 8), np.uint8))
    (folder / "a.npy").rename(strange)
    return strange


def test_names_that_are_not_utf8_are_left_out_with_the_reason(tmp_path: Path) -> None:
    strange = put_strange(tmp_path)
    (tmp_path / "loop.tif").symlink_to("loop.tif")
    (tmp_path / "good.tif").touch()
    unusable: dict[Path, str] = {}
    assert list(candidates(tmp_path, unusable)) == [tmp_path / "good.tif"]
    assert "not UTF-8; rename it" in unusable[strange]


def test_they_are_said_once_and_watching_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    incoming = tmp_path / "in"
    incoming.mkdir()
    put_strange(incoming)

    async def look() -> tuple[list[str], list[str]]:
        with Outbox(tmp_path / "box", create=True) as box:
            sender = Sender(box, Options("127.0.0.1:1"))
            watched = Watch(incoming, sender, Standing())
            running = asyncio.create_task(watched.run())
            await asyncio.sleep(0.3)
            before = list(watched.failed)
            incoming.rename(tmp_path / "away")
            await asyncio.sleep(0.3)
            assert not running.done()
            sender.stop()
            await running
            return before, watched.failed

    before, after = asyncio.run(look())
    assert len(before) == 1
    assert "not UTF-8" in before[0]
    assert [line for line in after if "cannot be read" in line] == after[1:]
    assert len(after) == 2


def test_an_encoder_that_cannot_be_started_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8), np.uint8))

    async def no(*_: Any, **__: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no)

    async def look() -> list[str]:
        with Outbox(tmp_path / "box", create=True) as box:
            watched = Watch(tmp_path, Sender(box, Options("127.0.0.1:1")), Standing(), settle_s=0)
            await watched._look()
            await watched._look()
            assert box.seen(str(tmp_path / "a.npy")) is None  # tried again
            return watched.failed

    [said] = asyncio.run(look())
    assert "cannot be started" in said


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        (SetTarget(), ["--threads=1", "--quality=40", "--layers=3"]),
        (SetTarget("psnr_db", 45.0), ["--threads=1", "--layers=3"]),
        (SetTarget(layers=2), ["--threads=1", "--quality=40"]),
    ],
)
def test_what_the_ground_asks_for_stands_before_the_standing_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: SetTarget, options: list[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8), np.uint8))
    commands: list[tuple[str, ...]] = []

    async def note(*command: str, **_: Any) -> None:
        commands.append(command)
        raise OSError(11, "not now")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", note)

    async def look() -> None:
        with Outbox(tmp_path / "box", create=True) as box:
            box.answer(Ask("ab" * 16, pack(asked)))
            standing = Standing(["--threads=1"], ["--quality=40"], ["--layers=3"])
            await Watch(tmp_path, Sender(box, Options("127.0.0.1:1")), standing, settle_s=0)._look()

    asyncio.run(look())
    assert [word for word in commands[0] if word.startswith(("--threads", "--quality", "--layers"))] == options


def test_standing_targets_are_typed_as_submit_knows_them(tmp_path: Path) -> None:
    asked = ({"quality": 40}, {"bits_per_sample": 0.5}, {"psnr_db": 44}, {"stream_bytes": 9000}, {"max_error": 0})
    for target in (Target(**one) for one in asked):
        [(name, value)] = target.settings.items()
        context = submit.make_context("submit", [typed(name, value), "--outbox", str(tmp_path), "a.npy"])
        given = {"psnr": "psnr_db"}
        found = {given.get(key, key): number for key, number in context.params.items() if number is not None}
        assert found[name] == value


@pytest.mark.parametrize("configured", [False, True])
def test_what_is_asked_of_every_scene_is_asked_of_each(tmp_path: Path, configured: bool) -> None:
    """Typed after `run`, or in the configuration file, and understood by `submit`."""
    needed = ["--outbox", str(tmp_path), "--ground", "127.0.0.1:1"]
    wanted = {"priority": "anomaly", "skip_clouds": 80.0, "outbox_mb": 4000.0, "effort": "fast", "land_cover": True}
    if configured:
        (tmp_path / "edge.toml").write_text(
            'priority = "anomaly"\nskip_clouds = 80\noutbox_mb = 4000\nland_cover = true'
        )
        above = main.make_context("encoder-node", ["--config", str(tmp_path / "edge.toml"), "run"])
        context = run.make_context("run", [*needed, "--effort=fast"], parent=above)
    else:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in wanted.items() if value is not True]
        options.append("--land-cover")
        context = run.make_context("run", [*needed, *options])
    with context:
        standing = standing_of()
    given = submit.make_context("submit", [*standing.always, *standing.target, "--outbox", str(tmp_path), "a.npy"])
    assert given.params["priority"] is None  # what its tiles give it
    assert {name: given.params[name] for name in wanted} == {**wanted, "priority": None}


def test_a_priority_is_passed_on_as_well(tmp_path: Path) -> None:
    with run.make_context("run", ["--outbox", str(tmp_path), "--ground", "127.0.0.1:1", "--priority=-5"]):
        assert "--priority=-5" in standing_of().always
