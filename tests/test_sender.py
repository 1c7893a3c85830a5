"""The sender's pace, and the folder it watches. How it sends is in test_link.py."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder_node.call import wait
from encoder_node.log import JsonLines
from encoder_node.pace import BURST_S, Backoff, Bucket
from encoder_node.sender import FRAME_BYTES, frame_bytes
from encoder_node.watch import Settling, candidates


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=50), st.floats(1000, 1e7))
def test_the_bucket_keeps_the_rate_whatever_the_messages(sizes: list[int], rate: float) -> None:
    bucket, now = Bucket(rate, 0.0), 0.0
    for size in sizes:
        now += bucket.delay(now)
        bucket.spend(size)
    now += bucket.delay(now)
    assert sum(sizes) <= rate * (now + BURST_S) * 1.000001
    assert sum(sizes) >= rate * now * 0.999999  # and wastes nothing of it


def test_a_pause_is_made_up_for_by_one_burst_only() -> None:
    bucket = Bucket(1000.0, 0.0)
    assert bucket.delay(3600.0) == 0.0
    bucket.spend(int(1000 * BURST_S) + 100)
    assert bucket.delay(3600.0) == pytest.approx(0.1)


def test_a_change_of_rate_counts_from_then_on() -> None:
    bucket = Bucket(None, 0.0)
    bucket.spend(10**9)
    bucket.change(1000.0, 5.0)
    assert bucket.delay(5.0) == 0.0
    bucket.spend(1000)
    assert bucket.delay(5.0) == pytest.approx(1.0)
    bucket.change(1000.0, 5.5)  # the same: nothing is forgotten
    assert bucket.delay(5.5) == pytest.approx(0.5)
    bucket.change(None, 5.5)
    assert bucket.delay(5.5) == 0.0


def test_without_a_rate_nothing_waits() -> None:
    bucket = Bucket(None, 0.0)
    bucket.spend(10**9)
    assert bucket.delay(0.0) == 0.0


def test_the_back_off_doubles_up_to_a_bound_and_starts_again() -> None:
    backoff = Backoff(0.5, 60.0, seed=1)
    waits = [backoff.next_s() for _ in range(40)]
    for number, seconds in enumerate(waits):
        full = min(60.0, 0.5 * 2.0**number)
        assert full / 2 <= seconds <= full
    backoff.reset()
    assert backoff.next_s() <= 0.5


def test_many_nodes_do_not_come_back_at_once() -> None:
    assert len({Backoff(seed=seed).next_s() for seed in range(100)}) == 100


def test_a_cancellation_that_comes_with_the_news_is_not_swallowed() -> None:
    """asyncio.wait_for does so before Python 3.12, and then a stream that was given up never ends."""

    async def main() -> None:
        for turns in range(5):  # of the loop between the news and the cancellation
            event = asyncio.Event()
            waiting = asyncio.create_task(wait(event, 60.0))
            await asyncio.sleep(0.01)
            event.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            if not waiting.done():
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting

    asyncio.run(main())


def test_waiting_ends_with_the_news_or_the_time() -> None:
    async def main() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, event.set)
        began = time.monotonic()
        await wait(event, 60.0)
        await wait(asyncio.Event(), 0.05)
        assert 0.06 < time.monotonic() - began < 2.0

    asyncio.run(main())


def test_frames_are_short_on_a_slow_link() -> None:
    assert frame_bytes(None) == FRAME_BYTES
    assert frame_bytes(1200.0) == 4096
    assert frame_bytes(100_000.0) == 50_000


def test_a_file_is_taken_when_it_has_stopped_changing() -> None:
    settling, path, other = Settling(2.0), Path("a.tif"), Path("b.tif")
    assert settling.settled({path: "10 bytes"}, 0.0) == []
    assert settling.settled({path: "20 bytes"}, 1.5) == []
    assert settling.settled({path: "20 bytes", other: "5 bytes"}, 3.4) == []
    assert settling.settled({path: "20 bytes", other: "5 bytes"}, 3.5) == [path]
    assert settling.settled({other: "5 bytes"}, 5.4) == [other]
    assert settling.settled({path: "20 bytes"}, 6.0) == []  # gone and back: from the start


def test_scenes_are_recognised_by_their_names(tmp_path: Path) -> None:
    for name in ("a.tif", "b.TIFF", "c.jp2", "d.npy", "e.dl", "f.zip", "raw.bsq", "raw.bsq.json", "lonely.bsq",
                 ".hidden.tif", "notes.txt", "half.tif.part"):  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
    product = tmp_path / "S2A.SAFE" / "GRANULE"
    product.mkdir(parents=True)
    (product / "B02.jp2").write_bytes(b"x")
    (tmp_path / "folder.tif").mkdir()
    found = candidates(tmp_path)
    assert [path.name for path in found] == [
        "S2A.SAFE", "a.tif", "b.TIFF", "c.jp2", "d.npy", "e.dl", "f.zip", "raw.bsq",
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["size", "time", "a file of the product", "the side-car"])
def test_every_change_of_a_scene_shows(tmp_path: Path, change: str) -> None:
    product = tmp_path / "S2A.SAFE"
    product.mkdir()
    files = [tmp_path / "raw.bsq", tmp_path / "raw.bsq.json", product / "B02.jp2", tmp_path / "a.tif"]
    for path in files:
        path.write_bytes(b"x")
    before = candidates(tmp_path)
    match change:
        case "size":
            files[3].write_bytes(b"xy")
        case "time":
            os.utime(files[3], ns=(1, 1))
        case "a file of the product":
            (product / "B03.jp2").write_bytes(b"x")
        case "the side-car":
            files[1].write_bytes(b"xyz")
    after = candidates(tmp_path)
    assert sum(before[path] != after[path] for path in before) == 1


def test_the_log_has_our_tracebacks_and_not_those_of_grpc() -> None:
    """What gRPC stumbles over is a peer's bytes, and no bug of ours."""
    try:
        raise ValueError("broken")
    except ValueError:
        for name, expected in (("encoder_node", True), ("grpc._cython.cygrpc", False)):
            record = logging.LogRecord(name, logging.ERROR, "file", 1, "an event", None, sys.exc_info())
            line = json.loads(JsonLines().format(record))
            assert line["event"] == "an event"
            assert ("traceback" in line) is expected
