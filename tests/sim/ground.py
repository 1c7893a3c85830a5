"""The ground as a process that can be stopped at any operation: the real sessions on the real inbox and ledger, over
a disk, a database, a network and a clock that are not real."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from decoder_node.asks import Asks
from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger, LedgerError
from downlink.action import Answered, Close, Commit, Finish, GroundAction, Look, Open, Reject, Send, Status
from downlink.errors import LinkError
from downlink.framing import edge_frame, ground_message
from downlink.request import Request
from downlink.session import GroundSession
from downlink.wire import link_pb2 as pb
from tests.sim.disk import Database, SimDisk, Stop, Trouble
from tests.sim.judge import Judge
from tests.sim.network import Time
from tests.sim.wire import Wire

ASKS_S = 60.0  # how often the ground looks for requests
SILENT_S = 600.0  # the ground ends a stream that says nothing
NOWHERE = Path("/tmp")  # a folder that exists; nothing is written there


class GroundMachine:
    """A decoder node without its decoder."""

    def __init__(self, time: Time, source: random.Random, archive: Path, capacity: int) -> None:
        self.time, self.source, self.archive = time, source, archive
        self.trouble = Trouble()
        self.disk = SimDisk(self.trouble, capacity)
        self.database = Database(self.trouble)
        self.judge: Judge
        self.places = 4
        self.up = False
        self.ledger: Ledger
        self._inbox: Inbox
        self._streams: dict[Wire, GroundSession] = {}
        self._edges: dict[Wire, Callable[[str], None]] = {}  # what tells each edge that its stream has ended
        self._ticks: dict[Wire, float] = {}  # when each session is woken
        self._heard: dict[Wire, float] = {}
        self.asks: Asks
        self.asked = 0  # requests that are in the ledger
        self._life = 0

    def start(self) -> None:
        if self.up:
            return
        try:
            self.ledger = Ledger(NOWHERE, create=True, connect=self.database.connect)
            self._inbox = Inbox(self.archive, self.ledger, disk=self.disk, free_bytes_min=0)
            self._inbox.recover()
            self.asks = Asks(NOWHERE, self.ledger)
        except Stop:
            self.stop(power_cut=self.source.random() < 0.5)
            return
        except (OSError, LedgerError):
            self.time.after(5.0, self.start)  # its service manager tries again
            return
        self.up = True
        self.judge.step()

    def ask(self, request: Request) -> None:
        """An operator asks for something, until it is in the ledger."""
        try:
            if self.up:
                self.asks.add(request)
                self.asked += 1
                return
        except Stop:
            self.stop(power_cut=self.source.random() < 0.5)
        except LedgerError:  # its disk fails, or the scene has not been offered yet
            pass
        self.time.after(3.0, lambda: self.ask(request))

    def stop(self, power_cut: bool) -> None:
        """Nothing but the disk and the database is left; of those, after a power cut, what was synced."""
        self.up = False
        self._life += 1
        if self.database.in_transaction:
            self.database.execute("ROLLBACK")
        if power_cut:
            self.disk.after_power_cut(self.source)
            self.database.after_power_cut()
        for wire in [*self._streams]:
            self._end(wire, "UNAVAILABLE: connection reset")
        self.time.after(self.source.uniform(0.1, 20), self.start)

    def accept(self, wire: Wire, tell: Callable[[str], None]) -> bool:
        if not self.up:
            return False
        self._streams[wire] = GroundSession("ground", self.places, ASKS_S)
        self._heard[wire] = self.time.now
        self._edges[wire] = tell
        return True

    def hear(self, wire: Wire, message: bytes) -> None:
        if wire not in self._streams:
            return
        self._heard[wire] = self.time.now
        try:
            frame = edge_frame(pb.EdgeFrame.FromString(message))
        except (DecodeError, LinkError) as error:
            self._end(wire, f"INVALID_ARGUMENT: {error}")
            return
        self._do(wire, lambda session: session.receive(frame, self.time.now))

    def half_closed(self, wire: Wire) -> None:
        """The edge has said all."""
        self._do(wire, lambda session: session.end(self.time.now))
        self._end(wire, "")

    def _tick(self, wire: Wire) -> None:
        self._ticks.pop(wire, None)
        if self.time.now - self._heard.get(wire, 0.0) > SILENT_S:
            self._end(wire, "UNAVAILABLE: nothing was heard for too long")
        self._do(wire, lambda session: session.tick(self.time.now))

    def _end(self, wire: Wire, reason: str) -> None:
        wire.down.open = False
        self._streams.pop(wire, None)
        self._heard.pop(wire, None)
        if tell := self._edges.pop(wire, None):
            self.time.after(wire.delay_s, lambda: tell(reason))

    def _do(self, wire: Wire, event: Callable[[GroundSession], Sequence[GroundAction]]) -> None:
        session = self._streams.get(wire)
        if session is None:
            return
        try:
            waiting = deque(event(session))
            while waiting and wire in self._streams:
                waiting += self._perform(wire, session, waiting.popleft())
        except Stop:
            self.stop(power_cut=self.source.random() < 0.5)
            return
        self.judge.step()
        deadline = session.deadline
        if deadline is not None and deadline < self._ticks.get(wire, float("inf")):
            self._ticks[wire] = deadline
            self.time.at(deadline, lambda: self._tick(wire) if self._ticks.get(wire) == deadline else None)

    def _perform(self, wire: Wire, session: GroundSession, action: GroundAction) -> Sequence[GroundAction]:
        """As `decoder_node.receiver` does it."""
        now = self.time.now
        try:
            match action:
                case Send(frame):
                    self.judge.said(frame)
                    wire.up.send(ground_message(frame).SerializeToString())
                case Open(incoming, priority):
                    return session.opened(incoming.scene_id, self._inbox.open(incoming, priority), now)
                case Commit(arrivals):
                    self._inbox.commit(arrivals)
                    return session.committed(action, now)
                case Finish(incoming):
                    fault, life = self._inbox.verify(incoming), self._life

                    def seal() -> None:  # verified beside other work: more may have happened meanwhile
                        if life == self._life:
                            self._do(wire, lambda _: self._sealed(session, action, fault))

                    self.time.after(self.source.choice([0.0, 0.1, 3.0]), seal)
                case Reject(incoming, reason):
                    self._inbox.reject(incoming, reason)
                case Look(without):
                    return session.found(self.asks.waiting("", without), now)
                case Answered(answer):
                    self.asks.answered("", answer)
                case Close(status, reason):
                    self._end(wire, f"{status}: {reason}")
        except (OSError, LedgerError) as error:
            return session.failed(Status.RESOURCE_EXHAUSTED, str(error), now)
        return ()

    def _sealed(self, session: GroundSession, action: Finish, fault: object) -> Sequence[GroundAction]:
        try:
            state = self._inbox.seal(action.incoming, fault)  # type: ignore[arg-type]
        except (OSError, LedgerError) as error:
            return session.failed(Status.RESOURCE_EXHAUSTED, str(error), self.time.now)
        return session.finished(action.incoming, state, self.time.now)
