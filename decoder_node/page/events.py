"""Server-sent events: which parts of the page have something new to show.

One look at the ledger a second for all listeners together, and only while somebody listens. An event carries nothing
but the name of a part (`flight`, `scenes`, `nodes`, `asks`): the browser fetches what it shows of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from decoder_node.page.shelf import Shelf
from downlink.errors import DownlinkError

LOOK_S: Final = 1.0
ALIVE_S: Final = 15.0  # a comment after so long, so that nobody in between gives the connection up
LISTENERS_MAX: Final = 64


class Crowded(DownlinkError):
    """There are too many listeners."""

    code = "crowded"


class Events:
    """What is new, for all who listen."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._listeners: set[asyncio.Queue[str]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let all listeners end."""
        self._stopping.set()
        for queue in self._listeners:
            queue.put_nowait("")

    async def listen(self) -> AsyncIterator[bytes]:
        """Events as they are written to one listener. Raises `Crowded`."""
        if len(self._listeners) >= LISTENERS_MAX:
            raise Crowded(f"{LISTENERS_MAX} pages are open; close some")
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._listeners.add(queue)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield b"retry: 2000\n\n"
            while not self._stopping.is_set():
                try:
                    async with asyncio.timeout(ALIVE_S):
                        name = await queue.get()
                except TimeoutError:
                    yield b": alive\n\n"
                    continue
                if name:
                    yield f"event: {name}\ndata: new\n\n".encode()
        finally:
            self._listeners.discard(queue)
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        before: dict[str, str] | None = None
        while True:
            with contextlib.suppress(Exception):  # a ledger that is busy is looked at again
                now = await asyncio.to_thread(self._shelf.pulse)
                if before is not None:
                    for name in (name for name in now if now[name] != before[name]):
                        for queue in self._listeners:
                            queue.put_nowait(name)
                before = now
            await asyncio.sleep(LOOK_S)
