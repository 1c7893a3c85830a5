"""The two ends as processes that can be stopped at any operation: the real sessions on the real outbox, inbox and
ledger, over a disk, a database, a network and a clock that are not real."""

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
from downlink.frame import Answer, Ask
from downlink.framing import edge_frame, edge_message, ground_frame, ground_message
from downlink.request import Request
from downlink.session import EdgeSession, GroundSession
from downlink.window import Window
from downlink.wire import link_pb2 as pb
from encoder_node.contact import DRAIN_S, Contact
from encoder_node.outbox import Outbox, OutboxError
from encoder_node.pace import Backoff
from tests.sim.disk import Database, SimDisk, Stop, Trouble
from tests.sim.judge import Judge
from tests.sim.network import Direction, Time, Weather
from tests.streams import Stream

PATIENCE_S = 30.0
LOOK_S = 4.0  # without news, an edge looks at its outbox and its watch so often
LISTEN_S = 15.0  # a stream with nothing to send listens for so long ...
LISTEN_AGAIN_S = 200.0  # ... and so often
ASKS_S = 60.0  # how often the ground looks for requests
SILENT_S = 600.0  # the ground ends a stream that says nothing
NOWHERE = Path("/tmp")  # a folder that exists; nothing is written there


class Wire:
    """One connection. Each end learns of a cut by itself, the ground's perhaps never."""

    def __init__(self, edge: EdgeMachine, ground: GroundMachine, weather: Weather, source: random.Random) -> None:
        time = edge.time
        self.down = Direction(time, weather, source, lambda message: ground.hear(self, message))
        self.up = Direction(time, weather, source, edge.hear)
        self.delay_s = weather.delay_s


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


ASKABLE = (  # what requests may change
    "SELECT scene_id, state, priority, layers, first FROM scenes UNION ALL SELECT name, value, 0, 0, 0 FROM settings"
)


class _Outbox(Outbox):
    judge: Judge
    database: Database

    def answer(self, ask: Ask) -> Answer:
        before = self.database.surviving(ASKABLE)
        found = super().answer(ask)
        self.judge.answered(self.database, ask, found, changed=self.database.surviving(ASKABLE) != before)
        return found

    def delivered(self, name: str) -> None:
        self.judge.forgotten(name)
        super().delivered(name)


class EdgeMachine:
    """An encoder node that has a few scenes to send."""

    def __init__(
        self, time: Time, source: random.Random, ground: GroundMachine, weather: Weather, frame_bytes: int, window: int
    ) -> None:
        self.time, self.source, self.ground, self.weather = time, source, ground, weather
        self.trouble = Trouble()
        self.database = Database(self.trouble)
        self.scenes: list[Stream] = []
        self.passes: tuple[float, float] | None = None  # every so many seconds the ground is in sight for so many
        self.up = False
        self.wire: Wire | None = None
        self.carried = 0  # bytes of streams that have ended
        self._frame_bytes, self.window = frame_bytes, Window(window, 2000)
        self._contact: Contact | None = None
        self._outbox: _Outbox
        self._backoff = Backoff(seed=source.randrange(1 << 30))
        self._patience_s = PATIENCE_S
        self._due = 0  # the one waiting wake-up that counts
        self._busy_at = 0.0  # when there was last something to do on the stream
        self._listened_at = 0.0

    def start(self) -> None:
        if self.up:
            return
        try:
            self._outbox = _Outbox(NOWHERE, create=True, connect=self.database.connect)
            self._outbox.judge, self._outbox.database = self.ground.judge, self.database
        except Stop:
            self.stop(power_cut=self.source.random() < 0.5)
            return
        except OutboxError:
            self.time.after(5.0, self.start)
            return
        self.up = True
        self.ground.judge.check_outbox(self._outbox, self.scenes)
        self._wake(0.0)

    def submit(self, made: Stream, priority: int, layers: int | None = None) -> None:
        """Encoded and kept, by a process of its own; when it is killed, nothing was promised and it is run again."""
        if not self.up:
            self.time.after(3.0, lambda: self.submit(made, priority, layers))
            return
        try:
            self._outbox.submit(made.packed, made.chunks, priority=priority, layers=layers)
        except Stop:
            self.stop(power_cut=self.source.random() < 0.5)
        except OutboxError:
            pass
        else:
            self.scenes.append(made)
            return
        self.time.after(3.0, lambda: self.submit(made, priority, layers))

    def stop(self, power_cut: bool) -> None:
        self.up = False
        self._hang_up()
        if self.database.in_transaction:
            self.database.execute("ROLLBACK")
        if power_cut:
            self.database.after_power_cut()
        self.time.after(self.source.uniform(0.1, 20), self.start)

    def cut(self) -> None:
        """The connection breaks. What is under way may still arrive; the ground may learn of it late."""
        if self.wire is not None:
            self._ended("UNAVAILABLE: cut")

    def hear(self, message: bytes) -> None:
        if self._contact is None:
            return
        contact = self._contact
        try:
            frame = ground_frame(pb.GroundFrame.FromString(message))
            if frame is not None:
                contact.hear(frame, self.time.now)
        except Stop:
            self.stop(power_cut=self.source.random() < 0.5)
        except (DecodeError, LinkError, OutboxError) as error:
            self._ended(str(error))
        else:
            self._wake(0.0)

    def undelivered(self) -> list[str]:
        return [entry.name for entry in self._outbox.undelivered()] if self.up else ["down"]

    def check(self) -> None:
        self.ground.judge.check_outbox(self._outbox, self.scenes)

    def _wake(self, seconds: float) -> None:
        self._due += 1
        number = self._due
        self.time.after(seconds, lambda: self._step() if number == self._due else None)

    def _step(self) -> None:
        if not self.up:
            return
        try:
            self._wake(self._connect() if self.wire is None else self._talk())
        except Stop:
            self.stop(power_cut=self.source.random() < 0.5)
        except (LinkError, OutboxError) as error:
            self._ended(str(error))

    def _connect(self) -> float:
        """As `Sender.run` does it. Returns when to look again."""
        if not self._outbox.due(1, now=self.time.now) and self.time.now < self._listened_at + LISTEN_AGAIN_S:
            return LOOK_S
        ends_at = None
        if self.passes is not None:
            period, length = self.passes
            since = self.time.now % period
            if since + 2 * DRAIN_S >= length:
                return period - since + 0.001
            ends_at = self.time.now + length - since
        wire = Wire(self, self.ground, self.weather, self.source)
        if not self.ground.accept(wire, lambda reason: self._told(wire, reason)):
            return self._backoff.next_s()
        session = EdgeSession("edge", window=self.window, patience_s=self._patience_s)
        self.wire = wire
        self._contact = Contact(self._outbox, session, self._frame_bytes, lambda: self.time.now, ends_at)
        self._contact.start(self.time.now)
        self._busy_at = self.time.now
        return 0.0

    def _talk(self) -> float:
        contact, wire = self._contact, self.wire
        assert contact is not None
        assert wire is not None
        if wire.down.backlog_s > 1.0:  # its buffers are full
            return wire.down.backlog_s - 1.0
        contact.tick(self.time.now)
        if frame := contact.next(self.time.now):
            if isinstance(frame, Answer):
                self.ground.judge.said_answer(self.database, frame)
            wire.down.send(edge_message(frame).SerializeToString())
            self._busy_at = self.time.now
            return 0.0
        if contact.over(self.time.now):  # the last acknowledgements may still come
            self.time.after(wire.down.backlog_s + wire.delay_s, lambda: self.ground.half_closed(wire))
            return 1000.0  # the ground ends the stream then
        if not contact.idle:
            self._busy_at = self.time.now
        elif self.time.now > self._busy_at + LISTEN_S:
            self._listened_at = self.time.now
            self._hang_up()
            self.time.after(wire.down.backlog_s + wire.delay_s, lambda: self.ground.half_closed(wire))
        return LOOK_S

    def _told(self, wire: Wire, reason: str) -> None:
        if wire is self.wire:
            self._ended(reason)

    def _ended(self, reason: str) -> None:
        """A stream has ended before its time."""
        progress = self._contact is not None and self._contact.progress_at is not None
        if progress:
            self._backoff.reset()
            self._patience_s = PATIENCE_S
        elif reason.startswith("nothing heard"):
            self._patience_s = min(3600.0, 2 * self._patience_s)
        wire = self.wire
        self._hang_up()
        if wire is not None and self.source.random() < 0.7:  # else the ground never learns of it
            self.time.after(self.source.uniform(0, 60), lambda: self.ground._end(wire, ""))
        self._wake(self._backoff.next_s())

    def _hang_up(self) -> None:
        if self.wire is not None:
            self.wire.up.open = False
            self.carried += self.wire.down.carried
        self.wire = self._contact = None
