"""One bad node cannot starve the others."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from tests.chaos.rig import long_only, submit
from tests.nodes import Node, send, serve
from tests.streams import stream

pytestmark = pytest.mark.chaos

RATE_KBPS = 800.0
HONEST = 3


def moment(node: Node, event: str) -> float:
    """When it was logged, in seconds."""
    [found] = [line for line in node.events() if line["event"] == event]
    return datetime.fromisoformat(found["time"]).timestamp()


@long_only
def test_honest_nodes_keep_four_fifths_of_their_rate_beside_a_flood(tmp_path: Path) -> None:
    """Three edges at 800 kbit/s each, and a peer that sends and opens streams as fast as the ground lets it."""
    ground, address = serve(tmp_path)
    flood = Node(tmp_path / "flood.log", "tests.chaos.flood", address)
    edges = []
    try:
        ground.wait_for("stream opened")
        made = [stream(number, name="honest", side=512, chunk_bytes=2200) for number in range(HONEST)]
        for number, scene in enumerate(made):
            (tmp_path / f"{number}").mkdir()
            submit(tmp_path / f"{number}", [scene])
        for number in range(HONEST):
            edges.append(send(tmp_path / f"{number}", address, "--rate-kbps", str(RATE_KBPS), "--once"))
        for scene, edge in zip(made, edges, strict=True):
            assert edge.wait(60) == 0
            seconds = moment(edge, "delivered") - moment(edge, "offered")
            assert len(scene.file) / seconds > 0.8 * RATE_KBPS * 125, f"{seconds:.1f} s for {len(scene.file)} bytes"
            assert (tmp_path / "archive" / "streams" / f"{scene.id}.dl").read_bytes() == scene.file
        assert flood.process.poll() is None
    finally:
        for node in (flood, ground, *edges):
            node.kill()
