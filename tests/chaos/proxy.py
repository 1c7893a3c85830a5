"""A TCP proxy between edge and ground that does harm on purpose. Runs in a thread; needs no rights.

What happens to the bytes of one direction of one connection is up to a `Fate`: it is given each piece that comes, and
says what goes on. It may change pieces, hold them up, or raise `Cut`, which ends the connection in both directions with
a RST after what it says is still to go.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

PIECE = 4096


class Cut(Exception):
    """End the connection after these bytes."""

    def __init__(self, last: bytes = b"") -> None:
        self.last = last


class Fate:
    """What becomes of one direction of a connection. This one lets all through, unchanged."""

    async def piece(self, piece: bytes) -> bytes:
        """What goes on instead of `piece`; may sleep; may raise `Cut`."""
        return piece


class CutAfter(Fate):
    """Cuts after exactly so many bytes."""

    def __init__(self, count: int) -> None:
        self._left = count

    async def piece(self, piece: bytes) -> bytes:
        if len(piece) >= self._left:
            raise Cut(piece[: self._left])
        self._left -= len(piece)
        return piece


class CutAt(Fate):
    """Cuts `beyond` bytes after the end of `mark` (before it, if negative), the first time that it comes by."""

    def __init__(self, mark: bytes, beyond: int) -> None:
        self._mark, self._beyond = mark, beyond
        self._tail = b""
        self._left: int | None = None

    async def piece(self, piece: bytes) -> bytes:
        if self._left is None:
            seen = self._tail + piece
            place = seen.find(self._mark)
            if place < 0:
                self._tail = seen[-len(self._mark) + 1 :]
                return piece
            # The last byte of the mark is in this piece, else it would have been found before.
            self._left = place + len(self._mark) - len(self._tail) + self._beyond
        if len(piece) >= self._left:
            raise Cut(piece[: max(0, self._left)])
        self._left -= len(piece)
        return piece


class Flip(Fate):
    """Flips bits of the byte at `place`."""

    def __init__(self, place: int, bits: int) -> None:
        self._place, self._bits = place, bits

    async def piece(self, piece: bytes) -> bytes:
        if 0 <= self._place < len(piece):
            at = self._place
            piece = piece[:at] + bytes([piece[at] ^ self._bits]) + piece[at + 1 :]
        self._place -= len(piece)
        return piece


class Stall(Fate):
    """Takes everything and passes nothing on for `seconds`, once, after `count` bytes."""

    def __init__(self, count: int, seconds: float) -> None:
        self._left, self._seconds = count, seconds

    async def piece(self, piece: bytes) -> bytes:
        if 0 <= self._left < len(piece):
            await asyncio.sleep(self._seconds)
        self._left -= len(piece)
        return piece


class Throttle(Fate):
    """`rate` bytes per second, on average exactly."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def piece(self, piece: bytes) -> bytes:
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + len(piece) / self._rate
        await asyncio.sleep(self._free_at - now)
        return piece


Choose = Callable[[int], Fate]


def unharmed(_: int) -> Fate:
    return Fate()


class Proxy:
    """Listens on `address` and talks to `ground`; `down` (edge to ground) and `up` give the fate of the n-th
    connection's two directions, n from 0. All counters are over all connections."""

    def __init__(self, ground: str, down: Choose = unharmed, up: Choose = unharmed) -> None:
        self._ground = ground
        self.down, self.up = down, up  # may be replaced at any time, for connections to come
        self.connections = self.bytes_down = self.bytes_up = 0
        self.cuts = 0
        self._loop = asyncio.new_event_loop()
        self._ends: set[asyncio.StreamWriter] = set()
        started: asyncio.Future[str] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(_value(started), self._loop).result(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def drop(self) -> None:
        """Cut all connections now."""
        self._loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        for end in self._ends:
            end.transport.abort()

    def _run(self, started: asyncio.Future[str]) -> None:
        asyncio.set_event_loop(self._loop)

        async def start() -> None:
            server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
            started.set_result(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")

        self._loop.create_task(start())
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connect(self, edge_in: asyncio.StreamReader, edge_out: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        host, _, port = self._ground.rpartition(":")
        try:
            ground_in, ground_out = await asyncio.open_connection(host, int(port))
        except OSError:
            edge_out.transport.abort()
            return
        ends = {edge_out, ground_out}
        self._ends |= ends
        carrying = [
            asyncio.ensure_future(self._carry(edge_in, ground_out, self.down(number), True)),
            asyncio.ensure_future(self._carry(ground_in, edge_out, self.up(number), False)),
        ]
        try:
            await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in carrying:
                task.cancel()
            for end in ends:
                end.transport.abort()
            self._ends -= ends

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, fate: Fate, down: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await source.read(PIECE):
                try:
                    out = await fate.piece(piece)
                except Cut as cut:
                    self.cuts += 1
                    self._count(len(cut.last), down)
                    sink.write(cut.last)
                    await sink.drain()
                    await asyncio.sleep(0.005)  # for the last bytes to leave before the RST
                    return
                self._count(len(piece), down)
                sink.write(out)
                await sink.drain()

    def _count(self, size: int, down: bool) -> None:
        if down:
            self.bytes_down += size
        else:
            self.bytes_up += size


async def _value(future: asyncio.Future[str]) -> str:
    return await future
