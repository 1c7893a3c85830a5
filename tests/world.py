"""Both sessions of the link and a network between them that loses, repeats, reorders, damages and cuts."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from downlink.action import (
    Close,
    Commit,
    Delivered,
    EdgeAction,
    Finish,
    GroundAction,
    Kept,
    Open,
    Paused,
    Refused,
    Reject,
    Send,
)  # fmt: skip
from downlink.checksum import crc32c
from downlink.errors import Corrupt
from downlink.frame import (
    GROUP_S,
    REVISION,
    Ack,
    Chunk,
    Chunks,
    EdgeFrame,
    GroundFrame,
    Hello,
    Offer,
    Refusal,
    SceneState,
    State,
)  # fmt: skip
from downlink.incoming import Incoming
from downlink.manifest import Manifest
from downlink.ranges import Range
from downlink.region import tile_chunks
from downlink.session import EdgeSession, GroundSession, refused
from downlink.window import Window
from tests.streams import Stream

PATIENCE_S = 5.0


class Store:
    """What the ground has on disk. A commit is all or nothing; everything else is forgotten in a crash."""

    def __init__(self) -> None:
        self.chunks: dict[str, dict[int, bytes]] = {}
        self.durable: dict[str, bytes] = {}
        self.quarantined: dict[str, str] = {}

    def open(self, offered: Incoming) -> Incoming | SceneState:
        scene_id = offered.scene_id
        if scene_id in self.durable:
            return SceneState(scene_id, State.DURABLE)
        stored = self.chunks.setdefault(scene_id, {})
        for index in sorted(stored):
            if index < offered.pages:
                offered.learn(index, stored[index])
        offered.commit(stored)
        return offered

    def commit(self, commit: Commit) -> None:
        for arrival in commit.arrivals:
            assert arrival.content, "an empty chunk travelled"
            self.chunks.setdefault(arrival.incoming.scene_id, {})[arrival.index] = arrival.content

    def finish(self, incoming: Incoming) -> SceneState:
        stored = self.chunks[incoming.scene_id]
        payload = b"".join(stored[index] for index in sorted(stored))
        if hashlib.sha256(payload).digest() != incoming.manifest.payload_sha256:
            self.reject(incoming, "hash")
            return refused(incoming.scene_id, Corrupt("hash"))
        self.durable[incoming.scene_id] = payload
        return SceneState(incoming.scene_id, State.DURABLE)

    def reject(self, incoming: Incoming, reason: str) -> None:
        self.quarantined[incoming.scene_id] = reason
        self.chunks.pop(incoming.scene_id, None)


class World:
    """An edge with an outbox, a ground with a store, and two queues between them. Checks the promises at every step."""

    def __init__(self, streams: list[Stream], window: int = 200) -> None:
        self.streams = streams
        self.outbox = {made.id: made for made in streams}
        self.window = window
        self.store = Store()
        self.now = 0.0
        self.refusals: dict[str, Refusal] = {}
        self.ahead: dict[str, tuple[Range, ...]] = {}
        self.sent_chunks = self.sent_bytes = 0
        self.connect()

    def connect(self) -> None:
        """A new stream; nothing of the old one is left but the outbox and the store."""
        self.edge = EdgeSession("edge", window=Window(self.window), patience_s=PATIENCE_S)
        self.ground = GroundSession("ground")
        self.down: list[EdgeFrame] = []
        self.up: list[GroundFrame] = []
        self.open = True
        self.do_edge(self.edge.start(self.now))

    def do_edge(self, actions: list[EdgeAction]) -> None:
        for action in actions:
            match action:
                case Send(frame):
                    self.down.append(frame)
                case Delivered(scene_id):
                    assert scene_id in self.store.durable, "the edge forgets what the ground has not"
                    self.outbox.pop(scene_id, None)
                case Refused(scene_id, refusal):
                    self.refusals[scene_id] = refusal
                    if not refusal.retry_after_s:
                        self.outbox.pop(scene_id, None)
                case Paused() | Kept():
                    pass
                case Close():
                    self.open = False

    def do_ground(self, actions: list[GroundAction]) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            match action:
                case Send(frame):
                    if isinstance(frame, Ack):
                        self.check_ack(frame)
                    self.up.append(frame)
                case Open(incoming, _):
                    waiting += self.ground.opened(incoming.scene_id, self.store.open(incoming), self.now)
                case Commit():
                    self.store.commit(action)
                    waiting += self.ground.committed(action, self.now)
                case Finish(incoming):
                    waiting += self.ground.finished(incoming, self.store.finish(incoming), self.now)
                case Reject(incoming, reason):
                    self.store.reject(incoming, reason)
                case Close():
                    self.open = False

    def check_ack(self, ack: Ack) -> None:
        """An acknowledged chunk is in the store, with the right bytes."""
        if ack.scene_id in self.store.durable:
            return
        for item in ack.committed:
            for index in range(item.first, item.end):
                assert self.store.chunks[ack.scene_id].get(index) == self.outbox[ack.scene_id].chunks[index]

    def talk(self) -> bool:
        """The edge offers a scene or sends a frame of chunks, if it may."""
        for number, (scene_id, made) in enumerate(self.outbox.items()):
            if scene_id not in self.edge.known and self.edge.wants((0, 0, number)):
                outgoing = replace(made.outgoing(order=number), ahead=self.ahead.get(scene_id, ()))
                self.do_edge(self.edge.offer(outgoing, self.now))
                return True
        transmit = self.edge.take(100, self.now)
        assert self.edge.unacked <= max(self.window, max(made.lengths.max() for made in self.streams))
        if transmit is None:
            return False
        contents = self.outbox[transmit.scene_id].chunks
        parts = tuple(Chunk(index, crc32c(contents[index]), contents[index]) for index in transmit.indexes)
        self.sent_chunks += len(parts)
        self.sent_bytes += sum(len(part.content) for part in parts)
        self.down.append(Chunks(transmit.scene_id, parts, transmit.flush))
        return True

    def hear(self) -> bool:
        """Each end takes one frame from its queue."""
        busy = bool(self.down or self.up)
        if self.down:
            self.do_ground(self.ground.receive(self.down.pop(0), self.now))
        if self.up:
            self.do_edge(self.edge.receive(self.up.pop(0), self.now))
        return busy

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.do_ground(self.ground.tick(self.now))
        self.do_edge(self.edge.tick(self.now))

    def heal(self) -> None:
        """No more faults: everything must arrive in bounded time."""
        for _ in range(5000):
            if not self.outbox:
                return
            if not self.open:
                self.connect()
            if not (self.talk() | self.hear()):
                self.tick(GROUP_S)
        raise AssertionError(f"{len(self.outbox)} scenes never arrived")

    def check_arrived(self, streams: list[Stream]) -> None:
        assert self.store.durable == {made.id: b"".join(made.chunks) for made in streams}


def standing_out(made: Stream) -> tuple[Range, ...]:
    """Chunks of two of its nine tiles."""
    return tile_chunks(Manifest.unpack(made.packed), (7, 4))


def greeted() -> tuple[GroundSession, Store]:
    ground = GroundSession("ground", look_s=math.inf)  # nobody asks for anything
    ground.receive(Hello(REVISION, "edge"), 0.0)
    return ground, Store()


def opened(made: Stream) -> tuple[GroundSession, Store, Incoming]:
    ground, store = greeted()
    [action] = ground.receive(Offer(made.id, made.packed), 0.0)
    assert isinstance(action, Open)
    ground.opened(made.id, store.open(action.incoming), 0.0)
    return ground, store, action.incoming


def chunk(made: Stream, index: int) -> Chunk:
    return Chunk(index, crc32c(made.chunks[index]), made.chunks[index])


def full(made: Stream, count: int) -> list[Chunk]:
    return [chunk(made, index) for index in sorted(made.sent)[:count]]
