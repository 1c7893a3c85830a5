"""The sender: runs `EdgeSession` over grpc.aio, from the outbox to the ground, for as long as there is anything to
send.

It carries frames, sleeps and looks at the clock, so that the session need not. After a cut it comes back with
exponential back-off and goes on where the ground says. With `rate_kbps` it keeps to that rate, protocol buffers
included (not HTTP/2's own few bytes per frame). With a schedule it sends only while the ground is in sight, and ends
each contact in time for all to be acknowledged that is under way. It never decides that a scene is safe: only the
ground's word, passed on by the session, lets the outbox forget one.

Raises `LinkError` when asked to stop with an empty outbox and that cannot be had.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
import grpc.aio

from downlink import limits
from downlink.errors import LinkError
from downlink.session import EdgeSession
from downlink.window import START_BYTES, Window
from downlink.wire import link_pb2_grpc
from encoder_node.call import Call, wait
from encoder_node.channel import Tls, channel
from encoder_node.config import ConfigError
from encoder_node.contact import DRAIN_S, POLL_S, Contact
from encoder_node.log import log
from encoder_node.models import Models
from encoder_node.outbox import Outbox, OutboxError
from encoder_node.pace import Backoff, Bucket
from encoder_node.schedule import Contacts, Pass

FRAME_BYTES = 256 * 1024  # chunk bytes per frame, when there is no rate limit
PATIENCE_S_MAX = 3600.0
PASS_RETRY_S = 2.0  # at most, between streams while a pass lasts
LOOK_S = 5.0  # how often the schedule is looked at
ROUND_TRIP_S = 5.0  # until it is measured: a rate that is kept fills no buffers, whatever the window
# trying the same again changes nothing
HOPELESS_TRIES = 3
HOPELESS = ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """How to send."""

    ground: str  # HOST:PORT
    tls: Tls | None = None  # None: plain, anybody may read along
    rate_kbps: float | None = None  # 1000 bits per second; None: as fast as it goes
    window_bytes: int = limits.UNACKED_BYTES_MAX  # un-acknowledged at most; less where less fills the link
    patience_s: float = 120.0  # a stream on which nothing is heard for so long is given up
    give_up_s: float = 60.0  # with `until_empty`: without any progress for so long
    software: str = "encoder-node"
    contacts: Contacts = field(default_factory=Contacts)  # when the ground is in sight

    @property
    def strange(self) -> bool:
        """May anybody play the ground?"""
        host = self.ground.rpartition(":")[0].strip("[]")
        with contextlib.suppress(ValueError):
            return self.tls is None and not ipaddress.ip_address(host).is_loopback
        return self.tls is None and host != "localhost"

    @property
    def rate(self) -> float | None:
        """Bytes per second."""
        return None if self.rate_kbps is None else self.rate_kbps * 125.0


def frame_bytes(rate: float | None) -> int:
    """Frames of at most half a second at `rate` bytes per second, so that a slow link is not held up by its own
    buffers."""
    return FRAME_BYTES if rate is None else int(min(FRAME_BYTES, max(4096.0, rate / 2)))


class Sender:
    """Sends an outbox to one ground."""

    def __init__(self, outbox: Outbox, options: Options, models: Models | None = None) -> None:
        self.outbox = outbox
        self.models = models
        if models is not None and options.strange and not models.signed_only:
            models.fix("anybody may play the ground of this node: it takes bundles over TLS, or signed (--model-key)")
        self.options = options
        self.bucket = Bucket(options.rate, time.monotonic())  # one for all streams: a cut must not refill it
        start = START_BYTES if options.rate is None else max(START_BYTES, int(options.rate * ROUND_TRIP_S))
        self.window = Window(options.window_bytes, start)
        self.stopping = asyncio.Event()
        self.progress_at = time.monotonic()
        self.sent_bytes = 0  # said to the ground, by all streams
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._patience_s = options.patience_s
        self._hopeless = 0
        self._waiting_for: float | None = 0.0

    def stop(self) -> None:
        """Finish what is in flight and return from `run`."""
        self.stopping.set()

    async def run(self, *, until_empty: bool = False) -> None:
        """Send whatever the outbox holds until `stop`; with `until_empty`, until all of it is durable on the ground."""
        backoff = Backoff()
        trouble = ""
        self.progress_at = time.monotonic()
        seen: Pass | None = None
        while not self.stopping.is_set():
            in_sight, now_in = await self._in_sight(until_empty)
            if not in_sight:
                self.progress_at = time.monotonic()
                continue
            if now_in != seen:
                backoff.reset()  # what went wrong in the last pass says nothing about this one
                seen, self.progress_at = now_in, time.monotonic()
            if not until_empty or await self.disk(lambda: bool(self.outbox.due(1))):  # the ground may have a request
                began = time.monotonic()
                trouble = await self._contact(until_empty, now_in)
                if trouble and not self.stopping.is_set():
                    if self.progress_at >= began:
                        backoff.reset()
                        self._patience_s = self.options.patience_s
                    delay = backoff.next_s(math.inf if now_in is None else PASS_RETRY_S)
                    facts = {"ground": self.options.ground, "reason": trouble, "retry_s": round(delay, 2)}
                    log.warning("link down", extra=facts)
                    await self.pause(delay)
            elif until_empty and await self.disk(self.outbox.next_due_at) is None:
                break
            else:
                await self.pause(POLL_S)
            if until_empty and time.monotonic() - self.progress_at > self.options.give_up_s:
                why = trouble or "the ground asks to come back later"
                raise LinkError(
                    f"gave up after {self.options.give_up_s:g} s without progress: {why}; {await self._left()}"
                )
        if until_empty and (left := await self._left()):
            raise LinkError(left)

    async def _left(self) -> str:
        """What is not safe on the ground, in a sentence; empty if all is."""
        entries = await self.disk(self.outbox.undelivered)
        if not entries:
            return ""
        first = entries[0]
        why = f" ({first.reason})" if first.reason else ""
        what = f"{len(entries)} scenes are" if len(entries) > 1 else "1 scene is"
        return f"{what} not delivered: {first.name} {first.scene_id[:12]}… is {first.state}{why}"

    async def _in_sight(self, until_empty: bool) -> tuple[bool, Pass | None]:
        """Is the ground in sight now, and by which pass? If not, some time has been waited."""
        try:
            schedule = self.options.contacts.schedule()
        except ConfigError as error:  # being written, perhaps; a pass must not be missed for it
            log.error("no schedule", extra={"reason": str(error)})
            await self.pause(LOOK_S)
            return False, None
        if schedule is None:
            return True, None
        now = time.time()
        if (current := schedule.current(now)) is not None:
            if current.end - now > 2 * DRAIN_S:
                return True, current
            await self.pause(current.end - now)
            return False, None
        start = schedule.next_start(now)
        if until_empty and (left := await self._left()) and start is None:
            raise LinkError(f"there is no contact after {_shown(now)}; {left}")
        if until_empty and not left:
            return True, None  # there is nothing to do
        if start != self._waiting_for:
            self._waiting_for = start
            log.info("waiting for contact", extra={"start": None if start is None else _shown(start)})
        await self.pause(min(LOOK_S, max(0.0, (now + LOOK_S if start is None else start) - now)))
        return False, None

    async def _contact(self, until_empty: bool, now_in: Pass | None) -> str:
        """One stream, from its opening to its end. Returns what went wrong, or nothing."""
        options = self.options
        rate = now_in.rate_kbps * 125.0 if now_in and now_in.rate_kbps else options.rate
        self.bucket.change(rate, time.monotonic())
        ends_at = None if now_in is None else time.monotonic() + now_in.end - time.time()
        chunk_s = limits.CHUNK_BYTES_MAX / rate if rate else 0.0  # nothing is heard while one is on its way
        settings = [
            ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_S * 1000)),
            ("grpc.keepalive_timeout_ms", int(max(20.0, 3 * chunk_s) * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),  # a new connection each time: gRPC's own back-off would add to ours
        ]
        patience_s = max(self._patience_s, 4 * chunk_s)
        session = EdgeSession(options.software, window=self.window, patience_s=patience_s)
        contact = Contact(
            self.outbox, session, frame_bytes(rate), ends_at=ends_at, models=self.models, next_contact=self._next_start
        )
        stub: Any = link_pb2_grpc.LinkServiceStub
        try:
            connection = channel(options.ground, settings, options.tls)
        except (LinkError, OSError) as error:  # while its files are being renewed, say: `run` has seen them good
            return str(error)
        async with connection:
            try:
                await Call(stub(connection).Deliver(), contact, self, ends_at).run(until_empty)
            except grpc.aio.AioRpcError as error:
                trouble = f"{error.code().name}: {error.details()}"
                # Not at once: a flipped bit in what we have said looks like that too.
                self._hopeless = self._hopeless + 1 if error.code().name in HOPELESS else 0
                if until_empty and self._hopeless >= HOPELESS_TRIES:
                    raise LinkError(
                        f"the ground {options.ground} ends the stream: {trouble}; {await self._left()}"
                    ) from error
                return trouble
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                return f"the stream broke: {error}"
            except LinkError as error:
                self._patience_s = min(
                    PATIENCE_S_MAX, 2 * self._patience_s
                )  # even a link slower than thought gets through
                return str(error)
            except OutboxError as error:  # a disk that is full for a while, say: nothing was forgotten
                return str(error)
        return ""

    def _next_start(self) -> int:
        """When the next pass begins, in seconds since 1970; 0 if none is known."""
        with contextlib.suppress(ConfigError):
            schedule = self.options.contacts.schedule()
            return int((schedule and schedule.next_start(time.time())) or 0)
        return 0

    async def disk(self, work: Callable[[], Result]) -> Result:
        """Run something on the outbox, in its own thread and in order."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not through a `stop`."""
        await wait(self.stopping, seconds)


def _shown(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
