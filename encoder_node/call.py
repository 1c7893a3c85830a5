"""One gRPC stream to the ground: a talker, a listener, a watchdog, and whoever tries new bundles.

They carry what a `Contact` says and hears; the clock, the pace and the disk are the sender's.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio

from downlink.errors import LinkError
from downlink.framing import edge_message, ground_frame
from encoder_node.channel import to_its_end
from encoder_node.contact import POLL_S, Contact
from encoder_node.log import log
from encoder_node.trial import trial

if TYPE_CHECKING:
    from encoder_node.sender import Sender

LISTEN_S = 300.0  # a stream with nothing to send listens for requests; after so long a new one takes its place
GRACE_S = 4.0  # at shutdown, for the frame being written and again for the last acknowledgements
TEST_S = 0.5  # how often it is looked whether a bundle waits for its test
TEST_AGAIN_S = 30.0  # when no process can be started for it


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until `event`, but not longer. Not by asyncio.wait_for: before Python 3.12 that may swallow a cancellation which
    comes together with the event, and whoever has cancelled waits for ever."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Call:
    """A contact's gRPC stream: a talker, a listener and a watchdog."""

    def __init__(self, call: Any, contact: Contact, sender: Sender, ends_at: float | None) -> None:
        self._ends_at = ends_at
        self._call = call
        self._contact = contact
        self._sender = sender
        self._news = asyncio.Event()  # the ground has said something, or we are to stop

    async def run(self, until_empty: bool) -> None:
        """Until there is nothing to send, or `stop`. Raises AioRpcError or LinkError when the stream ends otherwise."""
        talker = asyncio.create_task(self._talk(until_empty))
        listener = asyncio.create_task(self._listen())
        watchdog = asyncio.create_task(self._watch())
        tester = asyncio.create_task(self._test())
        stopping = asyncio.create_task(self._sender.stopping.wait())
        try:
            all_tasks = {talker, listener, watchdog, tester, stopping}
            await asyncio.wait(all_tasks, timeout=self._left_s(math.inf), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                self._news.set()
                await asyncio.wait({talker, listener}, timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
            if talker.done() and not talker.exception() and not listener.done():
                await to_its_end(self._call.done_writing())
                grace_s = self._left_s(GRACE_S)
                await asyncio.wait({listener, watchdog}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            elif talker.done() and talker.exception():
                await asyncio.wait({listener}, timeout=1.0)  # it knows better why writing has failed
            for task in (listener, watchdog, talker, tester):
                if task.done():
                    task.result()  # raises what ended it
            if listener.done() and not talker.done():
                raise LinkError("the ground has ended the stream early")
        finally:
            self._call.cancel()
            stopping.cancel()
            for task in (talker, listener, watchdog, tester):
                task.cancel()
            await asyncio.gather(talker, listener, watchdog, tester, stopping, return_exceptions=True)

    def _left_s(self, most_s: float) -> float | None:
        """Seconds until the ground is out of sight; None: no bound."""
        left_s = most_s if self._ends_at is None else max(0.1, self._ends_at - time.monotonic())
        return None if left_s == math.inf else left_s

    async def _talk(self, until_empty: bool) -> None:
        contact, sender = self._contact, self._sender
        await sender.disk(lambda: contact.start(time.monotonic()))
        idle_since = time.monotonic()
        while not sender.stopping.is_set():
            now = time.monotonic()
            if contact.over(now):
                log.info("end of contact", extra={"unacknowledged": contact.session.unacked})
                return
            if delay := sender.bucket.delay(now):
                await sender.pause(min(delay, POLL_S))
                continue
            self._news.clear()
            frame = await sender.disk(lambda: contact.next(time.monotonic()))
            if frame is not None:
                message = edge_message(frame)
                sender.bucket.spend(message.ByteSize())
                sender.sent_bytes += message.ByteSize()
                await to_its_end(self._call.write(message))
            if frame is not None or not contact.idle:
                idle_since = now
            elif until_empty or now - idle_since > LISTEN_S:
                return
            if frame is None:
                await wait(self._news, POLL_S)

    async def _listen(self) -> None:
        contact, sender = self._contact, self._sender
        while (message := await to_its_end(self._call.read())) is not grpc.aio.EOF:
            if message is None:  # gRPC's word for bytes that are no message
                raise LinkError("the ground's last message cannot be read: it was damaged on its way")
            frame = ground_frame(message)
            if frame is not None:
                await sender.disk(partial(contact.hear, frame, time.monotonic()))
                sender.progress_at = max(sender.progress_at, contact.progress_at or 0.0)
                self._news.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self._sender.disk(lambda: self._contact.tick(time.monotonic()))

    async def _test(self) -> None:
        """Try a bundle that the ground has installed, before it becomes active."""
        sender = self._sender
        while sender.models is not None:
            folder = await sender.disk(sender.models.to_test)
            if folder is None:
                await asyncio.sleep(TEST_S)
                continue
            log.info("trying bundle", extra={"bundle": folder.name})
            try:
                reason = await trial(folder)
            except OSError as error:
                log.error("cannot try bundle", extra={"bundle": folder.name, "reason": str(error)})
                await asyncio.sleep(TEST_AGAIN_S)
                continue
            await sender.disk(partial(self._contact.tested, reason))
            self._news.set()
        await asyncio.Event().wait()
