"""kill -9 of either node in the middle of a transfer: the scene arrives complete, byte for byte as undisturbed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from decoder_node.ledger import Ledger
from downlink.stream import StreamReader
from encoder_node.outbox import Outbox
from tests.nodes import listed, run, send, serve
from tests.streams import Stream, stream

RATE_KBPS = "1600"  # 200 kB/s: the stream below takes some 2 s


def submitted(folder: Path) -> Stream:
    made = stream(7, side=320, chunk_bytes=4000)
    assert 400_000 < len(made.file) < 600_000
    done = run("encoder_node", "submit", made.write(folder / "scene.dl"), "--outbox", folder / "outbox")
    assert (done.returncode, done.stdout.split()) == (0, [made.id])
    return made


def progress(folder: Path) -> int:
    """Chunks in the ledger, as a look from outside finds them."""
    ledger = Ledger(folder / "archive", read_only=True)
    try:
        return sum(entry.chunks_committed for entry in ledger.entries())
    finally:
        ledger.close()


def check_arrived(folder: Path, made: Stream) -> None:
    [row] = listed(folder)
    assert (row["scene_id"], row["state"]) == (made.id, "durable")
    archived = folder / "archive" / "streams" / f"{made.id}.dl"
    assert row["path"] == str(archived)
    assert archived.read_bytes() == made.file
    assert list((folder / "archive" / "inbox").iterdir()) == []
    with archived.open("rb") as file:
        StreamReader(file).verify()
    with Outbox(folder / "outbox") as box:
        assert [entry.state for entry in box.entries()] == ["delivered"]


def test_the_edge_is_killed_again_and_again(tmp_path: Path) -> None:
    made = submitted(tmp_path)
    ground, address = serve(tmp_path)
    random = np.random.default_rng(0)
    marks = [0]
    try:
        for _ in range(3):
            edge = send(tmp_path, address, "--rate-kbps", RATE_KBPS, "--once")
            edge.wait_for("offered")
            time.sleep(float(random.uniform(0.1, 0.4)))
            edge.kill()
            marks.append(progress(tmp_path))
        assert any(0 < mark < len(made.chunks) for mark in marks)  # so kills came in the middle
        assert marks == sorted(marks)
        assert send(tmp_path, address, "--once").wait() == 0
        check_arrived(tmp_path, made)
    finally:
        ground.kill()


def test_the_ground_is_killed_again_and_again(tmp_path: Path) -> None:
    made = submitted(tmp_path)
    ground, address = serve(tmp_path)
    random = np.random.default_rng(1)
    edge = send(tmp_path, address, "--rate-kbps", RATE_KBPS, "--once")
    marks = [0]
    try:
        for _ in range(3):
            ground.wait_for("stream opened")
            time.sleep(float(random.uniform(0.1, 0.4)))
            ground.kill()
            marks.append(progress(tmp_path))
            ground, _ = serve(tmp_path, address)
        assert any(0 < mark < len(made.chunks) for mark in marks)  # so kills came in the middle
        assert marks == sorted(marks), "an acknowledged chunk was lost"
        assert edge.wait() == 0
        check_arrived(tmp_path, made)
    finally:
        ground.kill()
        edge.kill()


def test_sigterm_ends_both_within_ten_seconds_without_loss(tmp_path: Path) -> None:
    made = submitted(tmp_path)
    ground, address = serve(tmp_path)
    edge = send(tmp_path, address, "--rate-kbps", RATE_KBPS)
    try:
        ground.wait_for("stream opened")
        time.sleep(0.6)
        began = time.monotonic()
        assert edge.terminate() == 0
        assert time.monotonic() - began < 10
        kept = progress(tmp_path)
        assert kept > 0
        edge = send(tmp_path, address, "--rate-kbps", RATE_KBPS)
        edge.wait_for("offered")
        time.sleep(0.4)
        began = time.monotonic()
        assert ground.terminate() == 0
        assert time.monotonic() - began < 10
        assert progress(tmp_path) >= kept
        ground, _ = serve(tmp_path, address)
        edge.wait_for("delivered")
        assert edge.terminate() == 0
        check_arrived(tmp_path, made)
    finally:
        ground.kill()
        edge.kill()
