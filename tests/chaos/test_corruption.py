"""A bit flipped on the wire, anywhere, in either direction: the scene arrives as it was sent, or later.

TCP's checksum lets one of 65536 damaged segments pass, and a middlebox that computes it anew lets all of them pass;
without TLS gRPC passes them on (reliability notes, hazard 1). Real gRPC over real sockets, both ends in this process,
so that the patience of the edge can be two seconds instead of two minutes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import encoder_node.sender
from encoder_node.outbox import Outbox
from encoder_node.pace import Backoff
from encoder_node.sender import Options, Sender
from tests.chaos.proxy import Fate, Flip, Proxy
from tests.chaos.rig import chance, rounds
from tests.streams import Stream, stream
from tests.test_link import ground

pytestmark = pytest.mark.chaos


async def delivered(box: Outbox, address: str, made: Stream) -> None:
    """Submit a scene and let a sender run until it is delivered."""
    box.submit(made.packed, made.chunks)
    sender = Sender(box, Options(ground=address, patience_s=2.0))
    running = asyncio.create_task(sender.run())
    try:
        async with asyncio.timeout(60):
            while True:
                entry = box.entry(made.id)
                assert entry.state in ("queued", "delivered"), f"{entry.state}: {entry.reason}"
                if entry.state == "delivered":
                    return
                assert not running.done(), running.result()
                await asyncio.sleep(0.01)
    finally:
        sender.stop()
        await asyncio.wait_for(running, 10)


@pytest.mark.parametrize("direction", ["down", "up"])
def test_one_flipped_bit_anywhere_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    monkeypatch.setattr(encoder_node.sender, "Backoff", lambda: Backoff(0.02, 1.0))
    random = chance(f"flip {direction}")
    flips = rounds(12, 400)
    damaged: list[str] = []

    async def main() -> None:
        box = Outbox(tmp_path / "outbox", create=True)
        async with ground(tmp_path) as (address, durable):
            with Proxy(address) as proxy:
                for number in range(flips):
                    made = stream(number, name="flipped", side=96, chunk_bytes=300)
                    size = len(made.file) + 800 if direction == "down" else 400
                    place, bits = int(random.integers(0, size)), 1 << int(random.integers(0, 8))
                    fates = iter([Flip(place, bits)])
                    setattr(proxy, direction, lambda _, fates=fates: next(fates, Fate()))
                    try:
                        await delivered(box, proxy.address, made)
                    except BaseException as error:
                        where = f"scene {number}, byte {place} ^ {bits:#04x} {direction}"
                        raise AssertionError(f"{where}: {error!r}") from error
                    archived = tmp_path / "archive" / "streams" / f"{made.id}.dl"
                    if archived.read_bytes() != made.file:
                        damaged.append(f"byte {place} ^ {bits:#04x}")
                assert proxy.connections > flips  # so some flips were noticed by ending the stream
        assert len(durable) == flips  # each once

    asyncio.run(main())
    assert damaged == []
