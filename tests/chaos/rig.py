"""What the chaos tests share: how long they run, and what must be true afterwards.

`make test` runs a few rounds of each; `make chaos` (CHAOS=long) runs as many as the promises name. CHAOS_SEED chooses
the moments and places; a failure names it. The same seed meets the same places, but a machine is never as busy twice:
what it cannot replay, `tests/sim` can.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from decoder_node.ledger import Ledger
from downlink.checksum import crc32c
from downlink.incoming import Incoming
from downlink.ranges import Range
from downlink.stream import StreamReader, head
from encoder_node.outbox import Outbox
from tests.nodes import WITHIN_S, Node, listed
from tests.streams import Stream, stream

LONG = os.environ.get("CHAOS") == "long"
SEED = int(os.environ.get("CHAOS_SEED", time.time_ns() % 2**32 if LONG else 1))


long_only = pytest.mark.skipif(not LONG, reason="only in `make chaos`")


def rounds(short: int, long: int) -> int:
    return long if LONG else short


def chance(what: str) -> np.random.Generator:
    """A generator of its own for each test."""
    print(f"CHAOS_SEED={SEED}")  # pytest shows it when the test fails
    return np.random.default_rng([SEED, *what.encode()])


def submit(folder: Path, streams: Iterable[Stream], priority: int = 0) -> None:
    with Outbox(folder / "outbox", create=True) as box:
        for made in streams:
            box.submit(made.packed, made.chunks, priority=priority)


def undelivered(folder: Path) -> int:
    with Outbox(folder / "outbox", read_only=True) as box:
        return len(box.undelivered())


def committed(folder: Path) -> dict[str, int]:
    """Chunks in the ledger, by scene, as a look from outside finds them while the ground runs."""
    ledger = Ledger(folder / "archive", read_only=True)
    try:
        return {entry.scene_id: entry.chunks_committed for entry in ledger.entries()}
    finally:
        ledger.close()


def wait_committed(folder: Path, count: int) -> None:
    """Until the ground has so many chunks of some scene, and not all of it."""
    until = time.monotonic() + WITHIN_S
    while not any(found > count for found in committed(folder).values()):
        assert time.monotonic() < until, committed(folder)
        time.sleep(0.01)


def wait_delivered(folder: Path, within_s: float, *nodes: Node) -> None:
    """Until the outbox has nothing left; an error if a node ends before, or it takes too long."""
    until = time.monotonic() + within_s
    while undelivered(folder):
        for node in nodes:
            assert node.process.poll() is None, f"{node.process.args} has ended:\n{node.log.read_text()[-4000:]}"
        assert time.monotonic() < until, f"{undelivered(folder)} scenes left:\n{nodes[0].log.read_text()[-4000:]}"
        time.sleep(0.02)


def check_archived(folder: Path, streams: Iterable[Stream], state: str = "durable") -> None:
    """Each scene once, byte for byte as it was submitted, and nothing else."""
    wanted = {made.id: made for made in streams}
    rows = listed(folder)
    assert sorted(row["scene_id"] for row in rows) == sorted(wanted)
    assert {row["state"] for row in rows} <= {state}, rows
    for scene_id, made in wanted.items():
        archived = folder / "archive" / "streams" / f"{scene_id}.dl"
        assert archived.read_bytes() == made.file
    assert sorted(path.stem for path in (folder / "archive" / "streams").iterdir()) == sorted(wanted)
    assert list((folder / "archive" / "inbox").iterdir()) == []


def intact(database: Path) -> bool:
    """SQLite's own word on a database that a kill may have hit."""
    with sqlite3.connect(database) as db:
        found = db.execute("PRAGMA integrity_check").fetchone()[0]
    db.close()
    return bool(found == "ok")


def on_disk(archive: Path, made: Stream, ranges: Iterable[Range]) -> bool:
    """Are these chunks in the archive as they were sent: in the part file, or in the finished stream?"""
    finished = archive / "streams" / f"{made.id}.dl"
    if finished.exists():
        with finished.open("rb") as file:
            StreamReader(file).verify()
        return finished.read_bytes() == made.file
    incoming = Incoming(made.id, made.packed)
    for index in range(incoming.pages):
        incoming.learn(index, made.chunks[index])
    content = (archive / "inbox" / f"{made.id}.part").read_bytes()
    start = len(head(made.packed))
    for item in ranges:
        for index in range(item.first, item.end):
            offset, length = incoming.span(index)
            if crc32c(content[start + offset : start + offset + length]) != crc32c(made.chunks[index]):
                return False
    return True


def many(count: int, side: int = 96, chunk_bytes: int = 30, first: int = 0) -> list[Stream]:
    return [stream(first + number, side=side, chunk_bytes=chunk_bytes, name="chaos") for number in range(count)]
