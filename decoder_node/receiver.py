"""The receiver: runs one `GroundSession` per stream over grpc.aio, on top of the inbox.

It carries frames and deadlines; what a peer may say is decided in `downlink.framing` and `downlink.session`, what is
safe in `decoder_node.inbox`. Everything that touches the ledger or commits runs in one thread, in order; reading a
finished scene back runs beside it. Messages to a peer hold no paths and no tracebacks; the log does.

Who the peer is comes from its certificate (`decoder_node.identity`), what it may from `decoder_node.admission`. Streams
that say nothing for too long, or do not read what they are told, are ended. Refuses to start, with `LinkError`, on an
address that cannot be bound, or that strangers could reach when there is no TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from decoder_node.admission import Admission, Denied, Seat, TooBusy
from decoder_node.asks import Asks
from decoder_node.calls import to_its_end
from decoder_node.identity import NOBODY, Tls, node_name
from decoder_node.inbox import RETRY_S, Inbox, is_full
from decoder_node.ledger import LedgerError
from decoder_node.log import log
from decoder_node.nodes import Nodes
from decoder_node.server import Server
from downlink import limits
from downlink.action import (
    Answered,
    Close,
    Commit,
    Finish,
    GroundAction,
    Look,
    Open,
    ReadPart,
    Reject,
    Reported,
    Send,
    Status,
    Waiting,
)
from downlink.errors import LinkError
from downlink.frame import Answer, Hello, Refusal, RefusalCode, Report, SceneState, State
from downlink.framing import edge_frame, ground_message
from downlink.incoming import Incoming
from downlink.session import GroundSession
from downlink.wire import link_pb2

GRACE_S = 4.0  # at shutdown, for streams to commit and acknowledge what they hold
FIRST_WORD_S = 1.0  # for a peer that is not let in

Result = TypeVar("Result")


class Receiver:
    """The server of one archive. `on_durable` is called, in the event loop, with the id of every scene that becomes
    durable."""

    def __init__(
        self,
        inbox: Inbox,
        disk: ThreadPoolExecutor,
        on_durable: Callable[[str], object],
        software: str,
        admission: Admission | None = None,
        asks: Asks | None = None,
        nodes: Nodes | None = None,
        committed: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        self.inbox = inbox
        self.committed = committed  # is told how long each commit took
        self.asks = asks
        self._nodes = nodes
        self.software = software
        self.admission = admission or Admission()
        self.on_durable = on_durable
        self.stopping = asyncio.Event()
        self._disk = disk  # the one thread that ledger and inbox belong to
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="verify")
        self._server: Server
        self._seats: set[Seat] = set()
        self._named = False  # do peers have certificates?

    async def start(self, listen: str, tls: Tls | None = None, *, insecure: bool = False) -> str:
        """Begin to serve; returns HOST:PORT as bound (port 0 takes a free one).

        Without `tls`, an address beyond loopback is refused unless `insecure` says that this is wanted.
        """
        self._named = tls is not None
        self._server = Server(self, listen, tls, insecure=insecure)
        return await self._server.start()

    async def failed(self) -> None:
        """Returns never; raises `LinkError` when nothing can be received any more."""
        await self._server.failed()

    async def stop(self) -> None:
        """Take no new streams; let the open ones commit and acknowledge what they hold."""
        await self._server.leaving()
        self.stopping.set()
        await self._server.stop(GRACE_S)
        self._reading.shutdown(wait=False, cancel_futures=True)

    def cut(self) -> None:
        """Let all streams end, whose server has died: nobody else would tell their peers."""
        for seat in self._seats:
            seat.wanted.set()

    async def Deliver(self, requests: object, context: Any) -> None:
        """One stream."""
        facts = {"peer": context.peer()}
        seat = None
        try:
            node = node_name(context.auth_context()) if self._named else NOBODY
            facts |= {"node": node} if node else {}
            seat = self.admission.enter(node, context.peer().rpartition(":")[0], time.monotonic())
            self._seats.add(seat)
            log.info("stream opened", extra=facts)
            await self._note(lambda nodes: nodes.came(seat.node, seat.address))
            close = await _Stream(self, context, seat).run()
        except asyncio.CancelledError:
            log.info("stream cut", extra=facts)
            raise
        except TooBusy as error:
            close = Close(Status.RESOURCE_EXHAUSTED, str(error))
        except Denied as error:
            close = Close(Status.PERMISSION_DENIED, str(error))
        except LinkError as error:
            close = Close(Status.UNAUTHENTICATED, str(error))
        except Exception:
            log.exception("stream failed", extra=facts)
            close = Close(Status.INTERNAL, "the ground has failed; its log says how")
        finally:
            if seat is not None:
                self._seats.discard(seat)
                self.admission.leave(seat)
                await self._note(lambda nodes: nodes.went(seat.node))
        if seat is None:  # a client that is cut off in its first words hears INTERNAL from its own gRPC instead
            with contextlib.suppress(Exception):
                async with asyncio.timeout(FIRST_WORD_S):
                    await to_its_end(context.read())
        if close is None:
            log.info("stream ended", extra=facts)
            return
        log.warning("stream closed", extra={**facts, "status": str(close.status), "reason": close.reason})
        await context.abort(grpc.StatusCode[close.status], close.reason)

    async def disk(self, work: Callable[[], Result]) -> Result:
        """Run something on the inbox or the ledger, in their thread and in order."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    async def open(self, incoming: Incoming, priority: int, node: str) -> Incoming | SceneState:
        """Look a scene up for `node`, or take it in, unless its bundle is not trusted here."""
        bundle = incoming.manifest.bundle
        if not self.admission.trusts(bundle):
            reason = f"the scene's model bundle {bundle.hex()[:12]}… is not among those that this ground takes"
            return SceneState(incoming.scene_id, State.REFUSED, (), Refusal(RefusalCode.FORBIDDEN, reason))
        try:
            return await self.disk(partial(self.inbox.open, incoming, priority, node))
        except OSError as error:
            return self._failed(incoming, error)

    async def finish(self, action: Finish) -> SceneState | None:
        """Verify a scene beside the other work, then seal it."""
        inbox, incoming = self.inbox, action.incoming
        try:
            fault = await asyncio.get_running_loop().run_in_executor(self._reading, inbox.verify, incoming)
            state = await self.disk(partial(inbox.seal, incoming, fault))
        except OSError as error:
            return self._failed(incoming, error)
        facts = {"scene": incoming.scene_id, "title": incoming.manifest.scene.name}
        if state is None:
            log.error("damaged on disk", extra={**facts, "reason": str(fault)})
        elif state.state is State.DURABLE:
            log.info("durable", extra={**facts, "bytes": incoming.manifest.payload_bytes})
            self.on_durable(incoming.scene_id)
        elif state.refusal is not None and state.refusal.retry_after_s:
            log.error("damaged on disk", extra={**facts, "reason": state.refusal.message})
        else:
            log.error("quarantined", extra={**facts, "reason": str(fault)})
        return state

    async def _note(self, what: Callable[[Nodes], None]) -> None:
        """Write down how a node is, for people. A disk that does not take it is no reason to end a stream."""
        nodes = self._nodes
        if nodes is not None:
            with contextlib.suppress(LedgerError, RuntimeError):  # RuntimeError: the disk's thread has ended
                await self.disk(lambda: what(nodes))

    async def introduced(self, node: str, software: str) -> None:
        """A node has said what it runs."""
        await self._note(lambda nodes: nodes.introduced(node, software))

    async def reported(self, node: str, report: Report) -> None:
        """A node has said how it stands."""
        await self._note(lambda nodes: nodes.reported(node, report))

    async def waiting(self, node: str, without: frozenset[str]) -> list[Waiting]:
        """What the ground asks of a node."""
        return [] if self.asks is None else await self.disk(partial(self.asks.waiting, node, without))

    async def answered(self, node: str, answer: Answer) -> None:
        """A node has answered a request."""
        if self.asks is None or (entry := await self.disk(partial(self.asks.answered, node, answer))) is None:
            return
        facts = {"ask": entry.ask_id, "what": entry.what, "scene": entry.scene_id, "node": node}
        log.info("answered", extra={**facts, "state": entry.state, "reason": answer.message})

    async def part(self, ask_id: str, offset: int, length: int) -> bytes | None:
        """A part of the bundle that a node is asked to install."""
        assert self.asks is not None, "a bundle is sent that nobody has asked for"
        return await self.disk(partial(self.asks.part, ask_id, offset, length))

    @staticmethod
    def _failed(incoming: Incoming, error: OSError) -> SceneState:
        """The disk fails for one scene: it must not hold up the others, which a stream that ends would do. A full disk
        concerns all of them."""
        if is_full(error):
            raise error
        log.error("cannot store", extra={"scene": incoming.scene_id, "reason": str(error)})
        reason = "the ground's disk fails for this scene; what was acknowledged is kept"
        return SceneState(incoming.scene_id, State.REFUSED, (), Refusal(RefusalCode.EXHAUSTED, reason, RETRY_S))


class _Stream:
    """One session and its connection."""

    def __init__(self, receiver: Receiver, context: Any, seat: Seat) -> None:
        self._receiver = receiver
        self._context = context
        self._seat = seat
        self._session = GroundSession(receiver.software)
        self._software: str | None = None  # of the edge, until it is noted

    @property
    def node(self) -> str:
        """Who is at the other end; empty without TLS."""
        return self._seat.node

    async def run(self) -> Close | None:
        """Until the edge has said all, or the stream must end before."""
        session = self._session
        reading = to_its_end(self._context.read())
        stopping = asyncio.create_task(self._receiver.stopping.wait())
        wanted = asyncio.create_task(self._seat.wanted.wait())
        silent_at = time.monotonic() + limits.IDLE_STREAM_S
        try:
            while True:
                deadline = silent_at if session.deadline is None else min(silent_at, session.deadline)
                timeout = max(0.0, deadline - time.monotonic())
                tasks = {reading, stopping, wanted}
                await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                if stopping.done():
                    return await self._leave("the ground is shutting down")
                if wanted.done():
                    return await self._leave(
                        "a newer stream of the same node, or a new server, takes the place of this"
                    )
                if reading.done():
                    try:
                        message = reading.result()
                    except DecodeError:  # gRPC passes on what protobuf cannot read
                        reason = "a message that is no frame: damaged on its way, or not of this schema"
                        return await self._leave(reason, Status.DATA_LOSS)
                    if message is grpc.aio.EOF:
                        return await self._perform(session.end(now))
                    close = await self._perform(self._hear(message, now))
                    if self._software is not None:
                        await self._receiver.introduced(self.node, self._software)
                        self._software = None
                    silent_at = time.monotonic() + limits.SILENT_STREAM_S
                    reading = to_its_end(self._context.read())
                elif now >= silent_at:
                    return await self._leave("nothing was heard for too long")
                else:
                    close = await self._perform(session.tick(now))
                if close is not None:
                    return close
        finally:
            for task in (reading, stopping, wanted):
                task.cancel()

    async def _leave(self, reason: str, status: Status = Status.UNAVAILABLE) -> Close:
        """Commit what has come, acknowledge it if the peer still listens, and end the stream."""
        try:
            async with asyncio.timeout(GRACE_S):
                close = await self._perform(self._session.end(time.monotonic()))
        except TimeoutError:
            close = None
        return close or Close(status, reason)

    def _hear(self, message: link_pb2.EdgeFrame, now: float) -> list[GroundAction]:
        try:
            frame = edge_frame(message)
            if isinstance(frame, Hello):
                self._software = frame.software
            return self._session.receive(frame, now)
        except LinkError as error:
            return [Close(Status.INVALID_ARGUMENT, str(error))]

    async def _perform(self, actions: Sequence[GroundAction]) -> Close | None:
        """Carry actions out in order, with those that their outcomes bring about. Stops at a Close."""
        session, receiver = self._session, self._receiver
        waiting = deque(actions)
        while waiting:
            action = waiting.popleft()
            try:
                match action:
                    case Send(frame):
                        async with asyncio.timeout(limits.SILENT_STREAM_S):  # a peer may take, and never read
                            await to_its_end(self._context.write(ground_message(frame)))
                    case Open(incoming, priority):
                        found = await receiver.open(incoming, priority, self.node)
                        waiting += session.opened(incoming.scene_id, found, time.monotonic())
                    case Commit(arrivals):
                        began = time.monotonic()
                        await receiver.disk(partial(receiver.inbox.commit, arrivals))
                        receiver.committed(time.monotonic() - began)
                        waiting += session.committed(action, time.monotonic())
                    case Finish(incoming):
                        state = await receiver.finish(action)
                        waiting += session.finished(incoming, state, time.monotonic())
                    case Reject(incoming, reason):
                        log.error("quarantined", extra={"scene": incoming.scene_id, "reason": reason})
                        await receiver.disk(partial(receiver.inbox.reject, incoming, reason))
                    case Look(without):
                        found_asks = await receiver.waiting(self.node, without)
                        waiting += session.found(found_asks, time.monotonic())
                    case Answered(answer):
                        await receiver.answered(self.node, answer)
                    case Reported(report):
                        await receiver.reported(self.node, report)
                    case ReadPart(ask_id, offset, length):
                        waiting += session.part(ask_id, offset, await receiver.part(ask_id, offset, length))
                    case Close():
                        return action
            except TimeoutError:
                return Close(Status.UNAVAILABLE, "the edge does not read what it is told")
            except (OSError, LedgerError) as error:
                log.error("cannot store", extra={"peer": self._context.peer(), "reason": str(error)})
                full = is_full(error) if isinstance(error, OSError) else True
                reason = "the ground's disk is full" if full else "the ground's disk fails"
                waiting += session.failed(
                    Status.RESOURCE_EXHAUSTED, f"{reason}; what was acknowledged is kept", time.monotonic()
                )
        return None
