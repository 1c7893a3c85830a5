"""Sender and receiver over real gRPC on loopback, and through a proxy that cuts and corrupts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger
from decoder_node.receiver import Receiver
from downlink.errors import LinkError
from downlink.limits import CHUNKS_MAX
from downlink.manifest import Manifest
from encoder_node.outbox import FILE, Outbox
from encoder_node.schedule import Contacts
from encoder_node.sender import Options, Sender
from tests.streams import Stream, stream


@contextlib.asynccontextmanager
async def ground(folder: Path, listen: str = "127.0.0.1:0", **options: int) -> AsyncIterator[tuple[str, list[str]]]:
    """A receiver on `folder`/archive: its address, and the ids of scenes that become durable."""
    archive = folder / "archive"
    archive.mkdir(exist_ok=True)
    disk = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    ledger = await loop.run_in_executor(disk, partial(Ledger, archive, create=True))
    inbox = await loop.run_in_executor(disk, partial(Inbox, archive, ledger, **options))
    durable: list[str] = []
    receiver = Receiver(inbox, disk, durable.append, "ground in a test")
    address = await receiver.start(listen)
    try:
        yield address, durable
    finally:
        await receiver.stop()
        disk.shutdown()
        ledger.close()


class Proxy:
    """TCP between edge and ground. `meddle` gets each piece that goes down and the bytes before it; None cuts."""

    def __init__(self, ground: str, meddle: Callable[[bytes, int], bytes | None]) -> None:
        self._ground = ground
        self._meddle = meddle
        self.down = 0  # bytes that went from edge to ground, over all connections
        self.connections = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, _, port = self._ground.rpartition(":")
        ground_reader, ground_writer = await asyncio.open_connection(host, int(port))
        up = asyncio.create_task(self._carry(ground_reader, writer))
        try:
            while piece := await reader.read(4096):
                meddled = self._meddle(piece, self.down)
                self.down += len(piece)
                if meddled is None:
                    break
                ground_writer.write(meddled)
                await ground_writer.drain()
        except ConnectionError:
            pass
        finally:
            up.cancel()
            for end in (writer, ground_writer):
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(4096):
                writer.write(piece)
                await writer.drain()

    def close(self) -> None:
        self._server.close()


def outbox(folder: Path, *streams: Stream, priorities: tuple[int, ...] = ()) -> Outbox:
    box = Outbox(folder / "outbox", create=True)
    for number, made in enumerate(streams):
        box.submit(made.packed, made.chunks, priority=priorities[number] if priorities else 0)
    return box


def deliver(box: Outbox, address: str, **options: float) -> Awaitable[None]:
    return Sender(box, Options(ground=address, **options)).run(until_empty=True)  # type: ignore[arg-type]


def check_arrived(folder: Path, *streams: Stream) -> None:
    for made in streams:
        assert (folder / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file
    assert list((folder / "archive" / "inbox").iterdir()) == []


def test_scenes_arrive_byte_for_byte_the_urgent_ones_first(tmp_path: Path) -> None:
    streams = [stream(seed, side=160) for seed in range(7)]

    async def main() -> list[str]:
        box = outbox(tmp_path, *streams, priorities=(0, 0, 0, 0, 0, 0, 9))
        async with ground(tmp_path) as (address, durable):
            await deliver(box, address)
            assert box.undelivered() == []
            return durable

    durable = asyncio.run(main())
    assert sorted(durable) == sorted(made.id for made in streams)  # each once
    assert durable[0] == streams[6].id
    check_arrived(tmp_path, *streams)


def test_a_scene_of_large_chunks_arrives(tmp_path: Path) -> None:
    made = stream(3, side=160, chunk_bytes=262_144)

    async def main() -> None:
        async with ground(tmp_path) as (address, _):
            await deliver(outbox(tmp_path, made), address)

    asyncio.run(main())
    check_arrived(tmp_path, made)


def test_a_scene_that_is_there_already_costs_no_chunk(tmp_path: Path) -> None:
    made = stream(1, side=160, chunk_bytes=2000)

    async def main() -> int:
        async with ground(tmp_path) as (address, durable):
            await deliver(outbox(tmp_path, made), address)
            (tmp_path / "again").mkdir()
            proxy = Proxy(address, lambda piece, _: piece)
            await deliver(outbox(tmp_path / "again", made), await proxy.start())
            assert durable == [made.id]
            proxy.close()
            return proxy.down

    assert asyncio.run(main()) < 2000


def test_cuts_cost_at_most_a_window_each(tmp_path: Path) -> None:
    made = stream(2, side=320, chunk_bytes=4000)
    window, cuts = 16, 5
    places = [len(made.file) * (number + 1) // (cuts + 1) for number in range(cuts)]

    def meddle(piece: bytes, before: int) -> bytes | None:
        if places and before >= places[0]:
            places.pop(0)
            return None
        return piece

    async def main() -> tuple[int, int]:
        async with ground(tmp_path) as (address, _):
            proxy = Proxy(address, meddle)
            await deliver(outbox(tmp_path, made), await proxy.start(), window_bytes=window * 4000)
            proxy.close()
            return proxy.down, proxy.connections

    down, connections = asyncio.run(main())
    assert connections == cuts + 1
    assert down < 1.03 * len(made.file) + cuts * (window * 4000 + 3000) + 3000
    check_arrived(tmp_path, made)


def test_a_flipped_bit_on_the_wire_is_found_and_mended(tmp_path: Path) -> None:
    """gRPC without TLS passes it on: only our checksum sees it."""
    made = stream(4, side=160, chunk_bytes=40_000)
    assert len(made.file) > 400_000
    places = [60_000, 150_000, 300_000]

    def meddle(piece: bytes, before: int) -> bytes | None:
        if places and before >= places[0] and len(piece) > 1000:
            places.pop(0)
            return piece[:500] + bytes([piece[500] ^ 4]) + piece[501:]
        return piece

    async def main() -> None:
        async with ground(tmp_path) as (address, _):
            proxy = Proxy(address, meddle)
            await deliver(outbox(tmp_path, made), await proxy.start(), patience_s=2)
            proxy.close()

    asyncio.run(main())
    assert places == []
    check_arrived(tmp_path, made)


def test_the_rate_is_kept(tmp_path: Path) -> None:
    made = stream(2, side=160, chunk_bytes=2500)

    async def main() -> float:
        async with ground(tmp_path) as (address, _):
            box = outbox(tmp_path, made)
            began = time.monotonic()
            await deliver(box, address, rate_kbps=400)
            return time.monotonic() - began

    seconds, wanted = asyncio.run(main()), len(made.file) / 50_000
    assert 0.85 * wanted < seconds < 1.2 * wanted + 1.5


def test_a_ground_that_is_away_is_waited_for(tmp_path: Path) -> None:
    made = stream()

    async def main() -> None:
        async with ground(tmp_path) as (address, _):
            pass
        sending = asyncio.ensure_future(deliver(outbox(tmp_path, made), address))
        await asyncio.sleep(0.7)
        assert not sending.done()
        async with ground(tmp_path, address):
            await sending

    asyncio.run(main())
    check_arrived(tmp_path, made)


def test_without_a_ground_it_gives_up_with_the_reason(tmp_path: Path) -> None:
    async def main() -> None:
        await deliver(outbox(tmp_path, stream()), "127.0.0.1:1", give_up_s=0.6)

    with pytest.raises(LinkError, match=r"gave up .* UNAVAILABLE.*1 scene is not delivered: made up 0 .* is queued"):
        asyncio.run(main())


def test_a_refused_scene_does_not_hold_up_the_others(tmp_path: Path) -> None:
    good, other = stream(0), stream(1)
    truth = Manifest.unpack(other.packed)
    fields = {name: getattr(truth, name) for name in truth.__struct_fields__}
    liar = Stream(Manifest(**{**fields, "payload_sha256": bytes(32)}).pack(), other.chunks, b"")

    async def main() -> None:
        box = outbox(tmp_path, good)
        number = box._db.execute(  # `submit` would refuse it
            "INSERT INTO scenes (scene_id, name, priority, state, manifest, lengths, chunks, bytes, submitted_at)"
            " VALUES (?, 'liar', 5, 'queued', ?, ?, 1, 1, 0) RETURNING number",
            (liar.id, liar.packed, liar.lengths.tobytes()),
        ).fetchone()[0]
        from downlink.checksum import crc32c

        for index in liar.sent:
            row = (number * CHUNKS_MAX + index, crc32c(liar.chunks[index]), liar.chunks[index])
            box._db.execute("INSERT INTO chunks VALUES (?, ?, ?)", row)
        async with ground(tmp_path) as (address, durable):
            with pytest.raises(LinkError, match=r"liar .* is refused \(corrupt: .*sha256"):
                await deliver(box, address)
            assert durable == [good.id]

    asyncio.run(main())
    check_arrived(tmp_path, good)


def test_a_chunk_damaged_in_the_outbox_stops_its_scene_only(tmp_path: Path) -> None:
    good, bad = stream(0), stream(1)

    async def main() -> None:
        box = outbox(tmp_path, bad, good)
        with sqlite3.connect(tmp_path / "outbox" / FILE) as other:
            other.execute("UPDATE chunks SET content = zeroblob(length(content)) WHERE id = ?", (CHUNKS_MAX + 3,))
        other.close()
        async with ground(tmp_path) as (address, _):
            with pytest.raises(LinkError, match=r"is damaged .*submit the scene again"):
                await deliver(box, address)
        assert {entry.scene_id: entry.state for entry in box.entries()} == {good.id: "delivered", bad.id: "damaged"}

    asyncio.run(main())
    assert (tmp_path / "archive" / "streams" / f"{good.id}.dl").read_bytes() == good.file


def test_a_ground_without_space_is_asked_again_later(tmp_path: Path) -> None:
    made = stream()

    async def main() -> None:
        box = outbox(tmp_path, made)
        async with ground(tmp_path, free_bytes_min=1 << 60) as (address, _):
            with pytest.raises(LinkError, match=r"is queued \(exhausted: .*the ground's disk has"):
                await deliver(box, address, give_up_s=0.5)
        assert box.undelivered()[0].state == "queued"
        box.resend([])
        async with ground(tmp_path) as (address, _):
            await deliver(box, address)

    asyncio.run(main())
    check_arrived(tmp_path, made)


def test_scenes_submitted_while_it_runs_are_sent(tmp_path: Path) -> None:
    one, two = stream(0), stream(1)

    async def main() -> None:
        async with ground(tmp_path) as (address, durable):
            box = outbox(tmp_path, one)
            sender = Sender(box, Options(ground=address))
            running = asyncio.create_task(sender.run())
            while durable != [one.id]:
                await asyncio.sleep(0.02)
            with Outbox(tmp_path / "outbox") as other:
                other.submit(two.packed, two.chunks)
            while durable != [one.id, two.id]:
                await asyncio.sleep(0.02)
            while box.undelivered():
                await asyncio.sleep(0.02)
            sender.stop()
            await asyncio.wait_for(running, 5)

    asyncio.run(asyncio.wait_for(main(), 30))
    check_arrived(tmp_path, one, two)


def test_a_silent_ground_is_given_up_and_tried_again(tmp_path: Path) -> None:
    """Something that takes a connection and never says a word."""
    made = stream()

    async def main() -> None:
        async with ground(tmp_path) as (address, _):
            silent = True

            def meddle(piece: bytes, before: int) -> bytes:
                return b"" if silent and before > 200 else piece  # after HTTP/2's greetings: swallowed

            proxy = Proxy(address, meddle)
            sending = asyncio.ensure_future(deliver(outbox(tmp_path, made), await proxy.start(), patience_s=1))
            while proxy.connections < 2:
                await asyncio.sleep(0.05)
            silent = False
            await sending
            proxy.close()

    asyncio.run(asyncio.wait_for(main(), 30))
    check_arrived(tmp_path, made)


def soon(*spans: tuple[float, float]) -> Contacts:
    """Passes from so many seconds from now until so many."""
    now = datetime.now(UTC)
    return Contacts(
        [f"{(now + timedelta(seconds=a)).isoformat()}/{(now + timedelta(seconds=b)).isoformat()}" for a, b in spans]
    )


def test_it_sends_in_passes_only_and_stops_cleanly_at_their_ends(tmp_path: Path) -> None:
    made = stream(2, side=320, chunk_bytes=4000)
    seconds: list[float] = []
    logged: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    async def main() -> tuple[int, int]:
        async with ground(tmp_path) as (address, durable):
            box = outbox(tmp_path, made)
            began = time.monotonic()

            def meddle(piece: bytes, before: int) -> bytes:
                seconds.append(time.monotonic() - began)
                return piece

            proxy = Proxy(address, meddle)
            options = Options(
                ground=await proxy.start(), rate_kbps=600, contacts=soon((1.0, 3.5), (4.5, 7.0), (8.0, 30.0))
            )
            handler = Listener()
            logging.getLogger("encoder_node").addHandler(handler)
            logging.getLogger("encoder_node").setLevel("INFO")
            try:
                await Sender(box, options).run(until_empty=True)
            finally:
                logging.getLogger("encoder_node").removeHandler(handler)
            proxy.close()
            assert durable == [made.id]
            return proxy.down, proxy.connections

    down, connections = asyncio.run(main())
    check_arrived(tmp_path, made)
    assert connections == 3
    assert down < 1.03 * len(made.file) + 3 * 3000  # nothing was sent twice
    for second in seconds:
        assert 0.9 < second < 3.7 or 4.4 < second < 7.2 or second > 7.9, second
    assert max(second for second in seconds if second < 4) > 2.2  # and the passes are used
    assert logged.count("end of contact") == 2
    assert "link down" not in logged


def test_without_a_further_pass_it_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        options = Options(ground="127.0.0.1:1", contacts=soon((-20.0, -10.0)))
        await Sender(outbox(tmp_path, stream()), options).run(until_empty=True)

    with pytest.raises(LinkError, match=r"there is no contact after 20.*Z; 1 scene is not delivered"):
        asyncio.run(main())
