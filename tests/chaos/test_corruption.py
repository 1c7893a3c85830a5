"""A bit flipped on the wire, anywhere, in either direction: the scene arrives as it was sent, or later.

TCP's checksum lets one of 65536 damaged segments pass, and a middlebox that computes it anew lets all of them pass;
without TLS gRPC passes them on (reliability notes, hazard 1). Real processes; the edge has less patience than usual
(`tests.chaos.edge`), or every second flip would take two minutes.

grpcio 1.85 itself ends the edge's process for some damage (a GOAWAY with an unknown code is `UNREACHABLE CODE` to it).
That is a crash like any other: nothing is lost, and whoever supervises the node starts it again, which is done here.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from encoder_node.outbox import Outbox
from tests.chaos.proxy import Fate, Flip, Proxy
from tests.chaos.rig import chance, check_archived, rounds
from tests.nodes import Node, serve
from tests.streams import stream

pytestmark = pytest.mark.chaos

WITHIN_S = 180.0


@pytest.mark.parametrize("direction", ["down", "up"])
def test_one_flipped_bit_anywhere_changes_nothing(tmp_path: Path, direction: str) -> None:
    random = chance(f"flip {direction}")
    flips = rounds(6, 400)
    made = [stream(number, name="flipped", side=96, chunk_bytes=300) for number in range(flips)]
    aborted = 0
    ground, address = serve(tmp_path)
    with Outbox(tmp_path / "outbox", create=True) as box, Proxy(address) as proxy:

        def begin() -> Node:
            return Node(tmp_path / "edge.log", "tests.chaos.edge", tmp_path / "outbox", proxy.address)

        edge = begin()
        try:
            for scene in made:
                size = len(scene.file) + 800 if direction == "down" else 400
                place, bits = int(random.integers(0, size)), 1 << int(random.integers(0, 8))
                what = f"{scene.id[:12]}: byte {place} ^ {bits:#04x} {direction}"
                fates = iter([Flip(place, bits)])
                setattr(proxy, direction, lambda _, fates=fates: next(fates, Fate()))
                proxy.drop()
                box.submit(scene.packed, scene.chunks)
                until = time.monotonic() + WITHIN_S
                while (entry := box.entry(scene.id)).state != "delivered":
                    assert entry.state == "queued", f"{what}: {entry.state}, {entry.reason}"
                    assert ground.process.poll() is None, f"{what}: the ground died:\n{ground.log.read_text()[-3000:]}"
                    assert time.monotonic() < until, f"{what}: stuck:\n{edge.log.read_text()[-3000:]}"
                    if edge.process.poll() is not None:
                        assert edge.process.returncode == -signal.SIGABRT, f"{what}:\n{edge.log.read_text()[-3000:]}"
                        aborted += 1
                        edge = begin()
                    time.sleep(0.01)
            assert proxy.connections >= flips
            assert aborted <= flips // 50 + 1
        finally:
            edge.kill()
            ground.kill()
    check_archived(tmp_path, made)
    for log in (ground.log, edge.log):
        assert "Traceback" not in log.read_text().replace("Fatal Python error", "")
