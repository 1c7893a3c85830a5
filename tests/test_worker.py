"""Decoding tasks: each scene once, failures counted, crashes blamed on the right scene."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from decoder_node import bounds, decoding
from decoder_node.decoding import Outcome, archive_scene
from decoder_node.ledger import FAILURES_MAX, Ledger
from decoder_node.worker import Workers
from downlink.errors import BundleError
from downlink.manifest import Manifest
from downlink.ranges import Range
from tests.streams import Stream, stream


def task(archive: Path, scene_id: str, model_folders: Sequence[Path], received_at: float, there: Any = None) -> Outcome:
    """Does to a scene what the file `<archive>/<scene id>` says."""
    with (archive / "tried").open("a") as tried:
        tried.write(f"{scene_id}\n")
    match (archive / scene_id).read_text():
        case "decode" if there is not None:
            return Outcome(result={"assets": ["part.tif"], "decode_s": 0.0, "missing": 0.5, "there": len(there)})
        case "decode":
            return Outcome(result={"assets": ["a.tif"], "decode_s": 0.0})
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            return Outcome(failure="ValueError: no")
        case "wait":
            return Outcome(waits="no model")
        case "sleep":
            time.sleep(60)
        case "hoard":
            hoard = bytearray(3 * 2**30)
            return Outcome(failure=f"got {len(hoard)} bytes")
        case "spin":
            bounds.allow(0.1)
            while True:
                pass
    raise AssertionError


def durable(ledger: Ledger, archive: Path, made: Stream, fate: str) -> str:
    ledger.begin(made.id, Manifest.unpack(made.packed), made.packed, 0, len(made.file))
    ledger.durable(made.id)
    (archive / made.id).write_text(fate)
    return made.id


def run(archive: Path, fates: Sequence[str], until: dict[str, int], count: int = 1, **options: Any) -> dict[str, str]:
    """Let workers loose on scenes with these fates until so many scenes have these states; each one's state."""
    ledger = Ledger(archive, create=True)
    for number, fate in enumerate(fates):
        durable(ledger, archive, stream(number), fate)

    async def main() -> None:
        with ThreadPoolExecutor(1) as disk:
            workers = Workers(archive, ledger, disk, [], count, task=task, **options)
            await workers.start()
            for _ in range(6000):
                states = [
                    entry.state for entry in await asyncio.get_running_loop().run_in_executor(disk, ledger.entries)
                ]
                if all(states.count(state) >= number for state, number in until.items()):
                    break
                await asyncio.sleep(0.02)
            else:
                raise AssertionError(states)
            await workers.stop()

    asyncio.run(main())
    entries = {entry.scene_id: entry.state for entry in ledger.entries()}
    found = {f"{fate} {number}": entries[stream(number).id] for number, fate in enumerate(fates)}
    ledger.close()
    return found


def tries(archive: Path, number: int) -> int:
    return (archive / "tried").read_text().split().count(stream(number).id)


def test_scenes_are_decoded_once(tmp_path: Path) -> None:
    assert set(run(tmp_path, ["decode"] * 4, {"decoded": 4}, count=2).values()) == {"decoded"}
    assert [tries(tmp_path, number) for number in range(4)] == [1] * 4


def test_a_scene_that_kills_its_worker_is_quarantined_and_the_others_are_not(tmp_path: Path) -> None:
    states = run(tmp_path, ["crash", "decode", "decode"], {"quarantined": 1, "decoded": 2}, count=2)
    assert states == {"crash 0": "quarantined", "decode 1": "decoded", "decode 2": "decoded"}
    assert tries(tmp_path, 0) == FAILURES_MAX
    assert tries(tmp_path, 1) == 1


def test_a_scene_that_fails_is_quarantined_with_the_reason(tmp_path: Path) -> None:
    run(tmp_path, ["fail", "decode"], {"quarantined": 1, "decoded": 1})
    ledger = Ledger(tmp_path, read_only=True)
    reasons = [entry.reason for entry in ledger.entries() if entry.state == "quarantined"]
    ledger.close()
    assert reasons == ["ValueError: no"]
    assert tries(tmp_path, 0) == FAILURES_MAX


def reasons(archive: Path) -> dict[str, str | None]:
    ledger = Ledger(archive, read_only=True)
    found = {entry.scene_id: entry.reason for entry in ledger.entries()}
    ledger.close()
    return found


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("hoard", "MemoryError"),
        ("spin", "died of SIGXCPU: it took more CPU time than its size allows"),
        ("crash", "died of SIGKILL"),
    ],
)
def test_a_scene_that_takes_too_much_is_quarantined_and_the_next_is_decoded(
    tmp_path: Path, fate: str, reason: str
) -> None:
    states = run(tmp_path, [fate, "decode"], {"quarantined": 1, "decoded": 1}, memory=2**31)
    assert states == {f"{fate} 0": "quarantined", "decode 1": "decoded"}
    assert tries(tmp_path, 0) == FAILURES_MAX
    assert reason in str(reasons(tmp_path)[stream(0).id])


def test_a_scene_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "CLOCK_PER_CPU", 2.0 / bounds.CPU_S)
    states = run(tmp_path, ["sleep", "decode"], {"quarantined": 1, "decoded": 1})
    assert states == {"sleep 0": "quarantined", "decode 1": "decoded"}
    assert tries(tmp_path, 0) == FAILURES_MAX
    assert "no end after 2 s" in str(reasons(tmp_path)[stream(0).id])


def test_a_scene_of_a_bundle_that_is_not_trusted_is_kept_and_not_decoded(tmp_path: Path) -> None:
    bundle = Manifest.unpack(stream(0).packed).bundle
    assert run(tmp_path, ["decode"], {"durable": 1}, trusts=lambda found: found != bundle) == {"decode 0": "durable"}
    assert not (tmp_path / "tried").exists()
    assert f"bundle {bundle.hex()} is not among those" in str(reasons(tmp_path)[stream(0).id])
    assert set(run(tmp_path, ["decode"], {"decoded": 1}).values()) == {"decoded"}


def test_a_scene_that_became_complete_meanwhile_is_not_decoded_in_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its part is not where it was: no failure, and nothing for the operator to look at."""
    (tmp_path / "inbox").mkdir()
    outcome = decoding.task(tmp_path, stream(0).id, [], 0.0, [Range(0, 3)])
    assert outcome == Outcome(waits="it is complete by now, or was given up")
    assert caplog.records == []


def test_what_a_scene_may_take_follows_from_its_size() -> None:
    assert bounds.cpu_s(0) == bounds.CPU_S
    assert bounds.cpu_s(10**9) == bounds.CPU_S + 1000 * bounds.CPU_S_PER_MSAMPLE
    assert bounds.memory_bytes(10**9) == bounds.MEMORY_MIN
    assert bounds.memory_bytes(1) >= bounds.memory_bytes(2) >= bounds.MEMORY_MIN


def test_a_scene_without_its_model_waits_for_the_next_start(tmp_path: Path) -> None:
    run(tmp_path, ["wait", "decode"], {"decoded": 1})
    assert tries(tmp_path, 0) == 1
    run(tmp_path, ["decode"], {"decoded": 2})  # the model is there now
    assert tries(tmp_path, 0) == 2


def test_a_stop_in_the_middle_is_nobodys_fault(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    scene_id = durable(ledger, tmp_path, stream(), "sleep")

    async def main() -> None:
        with ThreadPoolExecutor(1) as disk:
            workers = Workers(tmp_path, ledger, disk, [], 1, task=task)
            await workers.start()
            while not (tmp_path / "tried").exists():
                await asyncio.sleep(0.02)
            await workers.stop(0.1)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 10
    assert ledger.recover() == []
    entry = ledger.find(scene_id)
    assert entry is not None
    assert (entry.state, entry.failures, ledger.undecoded()) == ("durable", 0, scene_id)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    made = stream()
    (tmp_path / "streams").mkdir()
    made.write(tmp_path / "streams" / f"{made.id}.dl")
    with pytest.raises(BundleError, match=bytes(range(32)).hex()):
        archive_scene(tmp_path, made.id, [], 0.0)


def coming(ledger: Ledger, archive: Path, made: Stream, fate: str) -> str:
    ledger.begin(made.id, Manifest.unpack(made.packed), made.packed, 0, len(made.file))
    ledger.commit([(made.id, Range(0, 5)), (made.id, Range(7, 5))])
    (archive / made.id).write_text(fate)
    return made.id


async def until(ledger: Ledger, disk: ThreadPoolExecutor, check: Any) -> None:
    for _ in range(1000):
        entries = await asyncio.get_running_loop().run_in_executor(disk, ledger.entries)
        if check(entries[0]):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(entries)


def test_what_has_come_of_a_scene_is_decoded_and_then_all_of_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    scene_id = coming(ledger, tmp_path, stream(), "decode")

    async def main() -> None:
        with ThreadPoolExecutor(1) as disk:
            workers = Workers(tmp_path, ledger, disk, [], 1, task=task, partial_after_s=0.2)
            await workers.start()
            await until(ledger, disk, lambda entry: entry.state == "partial")
            [entry] = ledger.entries()
            assert (entry.result["assets"], entry.result["there"]) == (["part.tif"], 2)
            await asyncio.sleep(1.5)  # nothing more has come: nothing is done
            assert tries(tmp_path, 0) == 1
            await asyncio.get_running_loop().run_in_executor(disk, ledger.durable, scene_id)
            workers.wake()
            await until(ledger, disk, lambda entry: entry.state == "decoded")
            await workers.stop()

    asyncio.run(main())
    [entry] = ledger.entries()
    assert entry.result["assets"] == ["a.tif"]
    assert tries(tmp_path, 0) == 2


@pytest.mark.parametrize("partial_after_s", [None, 60.0])
def test_parts_are_left_alone_before_their_time(tmp_path: Path, partial_after_s: float | None) -> None:
    ledger = Ledger(tmp_path, create=True)
    coming(ledger, tmp_path, stream(), "decode")

    async def main() -> None:
        with ThreadPoolExecutor(1) as disk:
            workers = Workers(tmp_path, ledger, disk, [], 1, task=task, partial_after_s=partial_after_s)
            await workers.start()
            await asyncio.sleep(1.5)
            await workers.stop()

    asyncio.run(main())
    assert not (tmp_path / "tried").exists()
    assert ledger.entries()[0].state == "receiving"


@pytest.mark.parametrize("fate", ["crash", "fail", "wait"])
def test_a_part_that_cannot_be_decoded_is_nobodys_fault(tmp_path: Path, fate: str) -> None:
    """It is tried again when more has come, and when all has."""
    ledger = Ledger(tmp_path, create=True)
    scene_id = coming(ledger, tmp_path, stream(), fate)

    async def main() -> None:
        with ThreadPoolExecutor(1) as disk:
            workers = Workers(tmp_path, ledger, disk, [], 1, task=task, partial_after_s=0.2)
            await workers.start()
            while not (tmp_path / "tried").exists():
                await asyncio.sleep(0.02)
            await asyncio.sleep(1.5)
            assert tries(tmp_path, 0) == 1
            (tmp_path / scene_id).write_text("decode")
            more = [(scene_id, Range(12, 5))]
            await asyncio.get_running_loop().run_in_executor(disk, ledger.commit, more)
            await until(ledger, disk, lambda entry: entry.state == "partial")
            await workers.stop()

    asyncio.run(main())
    [entry] = ledger.entries()
    assert (entry.failures, entry.reason) == (0, None)


def test_a_stop_while_a_part_is_decoded_is_made_up_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, create=True)
    scene_id = coming(ledger, tmp_path, stream(), "sleep")

    async def main(stop_after_s: float, state: str) -> None:
        with ThreadPoolExecutor(1) as disk:
            workers = Workers(tmp_path, ledger, disk, [], 1, task=task, partial_after_s=0.1)
            await workers.start()
            while not (tmp_path / "tried").exists():
                await asyncio.sleep(0.02)
            if state == "partial":
                await until(ledger, disk, lambda entry: entry.state == state)
            await workers.stop(stop_after_s)

    asyncio.run(main(0.1, "receiving"))
    assert ledger.entries()[0].state == "receiving"
    (tmp_path / scene_id).write_text("decode")
    asyncio.run(main(5.0, "partial"))
    assert ledger.entries()[0].state == "partial"
