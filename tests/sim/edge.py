"""An edge as a process that can be stopped at any operation: the real session on the real outbox, over a database, a
network and a clock that are not real."""

from __future__ import annotations

import random
from pathlib import Path

from google.protobuf.message import DecodeError

from downlink.errors import LinkError
from downlink.frame import Answer, Ask
from downlink.framing import edge_message, ground_frame
from downlink.manifest import Manifest
from downlink.region import tile_chunks
from downlink.session import EdgeSession
from downlink.window import Window
from downlink.wire import link_pb2 as pb
from encoder_node.contact import DRAIN_S, Contact
from encoder_node.outbox import Outbox, OutboxError
from encoder_node.pace import Backoff
from tests.sim.disk import Database, Stop, Trouble
from tests.sim.ground import GroundMachine
from tests.sim.judge import Judge
from tests.sim.network import Time, Weather
from tests.sim.wire import Wire
from tests.streams import Stream

PATIENCE_S = 30.0
LOOK_S = 4.0  # without news, an edge looks at its outbox and its watch so often
LISTEN_S = 15.0  # a stream with nothing to send listens for so long ...
LISTEN_AGAIN_S = 200.0  # ... and so often
NOWHERE = Path("/tmp")  # a folder that exists; nothing is written there
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

    def delivered(self, name: str, references: bool = False) -> None:
        self.judge.forgotten(name)
        super().delivered(name, references)


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
            ahead = tile_chunks(Manifest.unpack(made.packed), (7, 4)) if priority else ()  # its tiles that stand out
            self._outbox.submit(made.packed, made.chunks, priority=priority, layers=layers, ahead=ahead)
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
