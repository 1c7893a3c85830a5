"""The edge's end of one stream: `EdgeSession`. What it promises is in `downlink.session`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from downlink import limits
from downlink.action import Close, Delivered, EdgeAction, Outgoing, Refused, Send, Status, Transmit
from downlink.frame import (
    FRAME_CHUNKS_MAX,
    FRAME_CONTENT_BYTES_MAX,
    OPEN_SCENES_MAX,
    REVISION,
    Ack,
    GroundFrame,
    Hello,
    Offer,
    Refusal,
    RefusalCode,
    Resend,
    SceneState,
    State,
    Welcome,
)
from downlink.manifest import Manifest
from downlink.ranges import Range, bitmap


@dataclass(slots=True)
class _Scene:
    outgoing: Outgoing
    payload_sha256: bytes
    answered: bool = False  # has the ground said what is missing?
    todo: list[int] = field(default_factory=list)  # chunk indexes still to send, the next one last
    flying: set[int] = field(default_factory=set)  # sent, not acknowledged


class EdgeSession:
    """The edge's end of one stream.

    At most `window_chunks` chunks are un-acknowledged at any time: that much is sent twice, at worst, after a cut. If
    anything is outstanding and nothing is heard for `patience_s`, the session gives the stream up.
    """

    def __init__(
        self, software: str, *, window_chunks: int = limits.UNACKED_CHUNKS_MAX, patience_s: float = 120.0
    ) -> None:
        self._software = software
        self._window = window_chunks
        self._patience_s = patience_s
        self._scenes: dict[str, _Scene] = {}
        self._room = OPEN_SCENES_MAX
        self._unflushed = 0
        self._waiting_since: float | None = None  # last word from the ground while something is outstanding
        self.acknowledged = 0  # chunks, over the whole stream: tells a stream that got somewhere from one that did not

    @property
    def open(self) -> frozenset[str]:
        """Ids of the scenes that were offered and are not settled."""
        return frozenset(self._scenes)

    @property
    def room(self) -> int:
        """How many more scenes may be offered now."""
        return max(0, self._room - len(self._scenes))

    @property
    def urgency(self) -> int | None:
        """The highest priority among open scenes; None if none is open."""
        return max((scene.outgoing.priority for scene in self._scenes.values()), default=None)

    @property
    def unacked(self) -> int:
        return sum(len(scene.flying) for scene in self._scenes.values())

    @property
    def deadline(self) -> float | None:
        return None if self._waiting_since is None else self._waiting_since + self._patience_s

    def start(self, now: float) -> list[EdgeAction]:
        return [Send(Hello(REVISION, self._software))]

    def offer(self, outgoing: Outgoing, now: float) -> list[EdgeAction]:
        """Bring a scene up. The caller keeps to `room`, and offers no scene that is open."""
        self._scenes[outgoing.scene_id] = _Scene(outgoing, Manifest.unpack(outgoing.manifest).payload_sha256)
        self._watch(now)
        return [Send(Offer(outgoing.scene_id, outgoing.manifest, outgoing.priority))]

    def withdraw(self, scene_id: str, now: float) -> None:
        """Send nothing more of a scene: its chunks cannot be read."""
        self._scenes.pop(scene_id, None)
        self._watch(now)

    def take(self, bytes_max: int, now: float) -> Transmit | None:
        """The next chunks to send, at least one and then as many as fit `bytes_max`; None when nothing may go now.

        Scenes go by priority, then in their order; chunks by index, so that every prefix is a coarser whole scene.
        """
        ready = [scene for scene in self._scenes.values() if scene.todo]
        free = self._window - self.unacked
        if not ready or free < 1:
            return None
        scene = min(ready, key=lambda scene: (-scene.outgoing.priority, scene.outgoing.order))
        indexes: list[int] = []
        room = min(bytes_max, FRAME_CONTENT_BYTES_MAX)
        while scene.todo and len(indexes) < min(free, FRAME_CHUNKS_MAX):
            room -= int(scene.outgoing.lengths[scene.todo[-1]])
            if room < 0 and indexes:
                break
            indexes.append(scene.todo.pop())
        scene.flying.update(indexes)
        self._unflushed += len(indexes)
        # Half a window at a time: one half is acknowledged while the other is on its way.
        last = len(indexes) == free or not any(other.todo for other in ready)
        flush = last or 2 * self._unflushed >= self._window
        if flush:
            self._unflushed = 0
        self._watch(now)
        return Transmit(scene.outgoing.scene_id, tuple(indexes), flush)

    def receive(self, frame: GroundFrame, now: float) -> list[EdgeAction]:
        if self._waiting_since is not None:
            self._waiting_since = now
        actions: list[EdgeAction] = []
        match frame:
            case Welcome():
                self._room = min(OPEN_SCENES_MAX, frame.open_scenes_max)
            case SceneState():
                actions = self._scene_state(frame)
            case Ack(scene_id, committed):
                if scene := self._scenes.get(scene_id):
                    known = {index for index in scene.flying if _holds(committed, index)}
                    scene.flying -= known
                    self.acknowledged += len(known)
            case Resend(scene_id, ranges):
                if scene := self._scenes.get(scene_id):
                    again = [index for index in scene.flying if _holds(ranges, index)]
                    scene.flying.difference_update(again)
                    scene.todo = sorted({*scene.todo, *again}, reverse=True)
        self._watch(now)
        return actions

    def tick(self, now: float) -> list[EdgeAction]:
        if self.deadline is None or now < self.deadline:
            return []
        return [Close(Status.UNAVAILABLE, f"nothing heard from the ground for {self._patience_s:.0f} s")]

    def _scene_state(self, frame: SceneState) -> list[EdgeAction]:
        scene = self._scenes.get(frame.scene_id)
        if scene is None:
            return []
        if frame.state is State.DURABLE:
            if frame.payload_sha256 != scene.payload_sha256:
                reason = f"scene {frame.scene_id[:12]}… is called durable with another hash than its manifest states"
                return [Close(Status.DATA_LOSS, f"{reason}: a damaged frame, nothing is forgotten for it")]
            del self._scenes[frame.scene_id]
            return [Delivered(frame.scene_id)]
        if frame.state is State.REFUSED:
            del self._scenes[frame.scene_id]
            return [Refused(frame.scene_id, frame.refusal or Refusal(RefusalCode.UNSUPPORTED, "no reason given"))]
        scene.answered = True
        lengths = scene.outgoing.lengths
        wanted = np.flatnonzero(bitmap(len(lengths), frame.missing) & (lengths > 0))
        scene.todo = [index for index in wanted[::-1].tolist() if index not in scene.flying]
        if frame.missing and not scene.todo and not scene.flying:
            del self._scenes[frame.scene_id]
            reason = f"the ground misses chunks from {frame.missing[0].first} on, and the outbox has none of them"
            return [Refused(frame.scene_id, Refusal(RefusalCode.MALFORMED, reason))]
        return []

    def _watch(self, now: float) -> None:
        """The ground owes a word while any scene has chunks in flight, or nothing to send but its state to hear."""
        owed = any(scene.flying or not scene.todo for scene in self._scenes.values())
        if not owed:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now


def _holds(ranges: Iterable[Range], index: int) -> bool:
    return any(item.first <= index < item.end for item in ranges)
