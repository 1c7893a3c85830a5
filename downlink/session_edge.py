"""The edge's end of one stream: `EdgeSession`. What it promises is in `downlink.session`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink import limits
from downlink.action import Asked, Close, Delivered, EdgeAction, Kept, Outgoing, Paused, Refused, Send, Status, Transmit
from downlink.frame import (
    FRAME_CHUNKS_MAX,
    FRAME_CONTENT_BYTES_MAX,
    OPEN_SCENES_MAX,
    REVISION,
    Ack,
    Ask,
    BundlePart,
    GroundFrame,
    Hello,
    Offer,
    Pause,
    Refusal,
    RefusalCode,
    Resend,
    SceneState,
    State,
    Welcome,
)
from downlink.layer import layer_ends, layer_of, turns
from downlink.manifest import Manifest
from downlink.ranges import Range, bitmap, holder, runs_of
from downlink.window import Mark, Window

FLYING_CHUNKS_MAX: Final = 16_384  # chunks not yet acknowledged, however small they are
FAR_S: Final = 0.1  # from this round trip on, what the ground lacks is assumed where it is known; else it is asked
SETTLING_MAX: Final = 256  # scenes that have been sent and whose fate is not known

Rank = tuple[int, int, int]  # the smaller goes first: minus priority, layer, order
_Bits = NDArray[np.bool_]


@dataclass(slots=True)
class _Scene:
    outgoing: Outgoing
    payload_sha256: bytes
    ends: tuple[int, ...]  # of its layers
    turns: tuple[NDArray[np.int32], tuple[int, int]] | None  # None: in their order
    placed: bool = True  # does it hold one of the places on the stream?
    heard: bool = False  # has the ground answered the offer?
    answered: bool = False  # is it known what is missing? It may be from the start
    whole: bool = True  # will the ground have all of it when all that is planned has arrived?
    todo: list[int] = field(default_factory=list)  # chunk indexes still to send, the next one last
    flying: dict[int, Mark] = field(default_factory=dict)  # sent, not acknowledged

    @property
    def layer(self) -> int:
        """The one that the next chunk goes with: 0 for chunks that the ground asks for first of all, 1 for tiles that
        stand out."""
        if not self.todo:
            return len(self.ends) if self.answered else self.outgoing.layer
        index = self.todo[-1]
        if self.turns is not None:
            turn, (second, own) = self.turns
            if turn[index] < own:
                return int(turn[index] >= second)
        return layer_of(self.ends, index)

    @property
    def rank(self) -> Rank:
        return (-self.outgoing.priority, self.layer, self.outgoing.order)

    @property
    def sent(self) -> bool:
        """Is there nothing left to send of it, as far as we know?"""
        return self.answered and not self.todo

    def plan(self, wanted: Iterable[int]) -> None:
        """These are to be sent: in their order, or in their turns."""
        self.todo = sorted(wanted, reverse=True)
        if self.turns is not None:
            turn = self.turns[0]
            self.todo.sort(key=lambda index: -int(turn[index]))  # stable: the order within stays


class EdgeSession:
    """The edge's end of one stream.

    At most `window.limit` bytes are un-acknowledged at any time (or one chunk, if that is larger): so much is sent
    twice, at worst, after a cut. If anything is outstanding and nothing is heard for `patience_s`, the session gives
    the stream up.

    Scenes take turns: what goes next is always the chunk of the smallest rank, that is of the highest priority, then of
    the lowest layer, then of the oldest scene. A scene whose turn has passed is paused, so that another can have
    its place.
    """

    def __init__(self, software: str, *, window: Window | None = None, patience_s: float = 120.0) -> None:
        self.window = window or Window(limits.UNACKED_BYTES_MAX)
        self._software = software
        self._patience_s = patience_s
        self._scenes: dict[str, _Scene] = {}
        self._places = 1  # until the ground has said how many there are
        self._unacked = 0  # bytes
        self._flying = 0  # chunks
        self._unflushed = 0
        self._waiting_since: float | None = None  # last progress while something is outstanding
        self._started: float | None = None
        self._far = self.window.round_trip_s > FAR_S
        self._landed = 0.0  # when the latest chunk was sent that is known to have arrived
        self.reports = False  # does the ground want to know how we stand?
        self.references: bool | None = None  # does it take scenes that are coded against another? None: not heard yet
        self.acknowledged = 0  # chunks, over the whole stream: tells a stream that got somewhere from one that did not

    @property
    def known(self) -> frozenset[str]:
        """Ids of the scenes that were offered and are not done with."""
        return frozenset(self._scenes)

    @property
    def unacked(self) -> int:
        """Bytes of chunks."""
        return self._unacked

    @property
    def deadline(self) -> float | None:
        return None if self._waiting_since is None else self._waiting_since + self._patience_s

    def start(self, now: float) -> list[EdgeAction]:
        self._started = now
        return [Send(Hello(REVISION, self._software))]

    def wants(self, rank: Rank) -> bool:
        """May a scene of this rank be offered now: is there a place, or one to be had from a scene that can wait?"""
        if len(self._scenes) >= SETTLING_MAX + OPEN_SCENES_MAX:
            return False
        return self._free or self._last().rank > rank or self._last().sent

    def offer(self, outgoing: Outgoing, now: float) -> list[EdgeAction]:
        """Bring a scene up that is not known to this session. The caller has asked `wants`."""
        actions: list[EdgeAction] = []
        if not self._free:
            actions += self._pause(self._last())
        manifest = Manifest.unpack(outgoing.manifest)
        in_turns = turns(manifest, outgoing.first, outgoing.ahead) if outgoing.first or outgoing.ahead else None
        scene = _Scene(outgoing, manifest.payload_sha256, layer_ends(manifest), in_turns)
        self._scenes[outgoing.scene_id] = scene
        if outgoing.lacks_from is not None and self._far:  # to ask would cost a round trip
            missing = outgoing.lengths > 0
            missing[: outgoing.lacks_from] = False
            scene.answered = True
            self._plan(scene, missing)
        self._watch(now)
        return [*actions, Send(Offer(outgoing.scene_id, outgoing.manifest, outgoing.priority))]

    def withdraw(self, scene_id: str, now: float) -> list[EdgeAction]:
        """Send nothing more of a scene: its chunks cannot be read, or nobody wants them."""
        if (scene := self._scenes.get(scene_id)) is None:
            return []
        actions = self._pause(scene) if scene.placed else []
        self._forget(scene)
        self._watch(now)
        return actions

    def take(self, bytes_max: int, now: float) -> Transmit | None:
        """The next chunks to send, at least one and then as many as fit `bytes_max`; None when nothing may go now."""
        ready = [scene for scene in self._scenes.values() if scene.todo and scene.placed]
        if not ready:
            self.window.waits(full=False)
            return None
        scene = min(ready, key=lambda scene: scene.rank)
        layer, lengths = scene.layer, scene.outgoing.lengths
        room = min(bytes_max, FRAME_CONTENT_BYTES_MAX)
        most = min(FRAME_CHUNKS_MAX, FLYING_CHUNKS_MAX - self._flying)
        indexes: list[int] = []
        mark = self.window.sent(now)
        while scene.todo and len(indexes) < most and (len(ready) < 2 or scene.layer == layer):
            size = int(lengths[scene.todo[-1]])
            if (self._unacked and self._unacked + size > self.window.limit) or (indexes and size > room):
                break
            room -= size
            self._unacked += size
            self._unflushed += size
            scene.flying[scene.todo[-1]] = mark
            indexes.append(scene.todo.pop())
        if not indexes:
            self.window.waits(full=True)
            return None
        self._flying += len(indexes)
        # Half a window at a time: one half is acknowledged while the other is on its way.
        following = min((other for other in ready if other.todo), key=lambda scene: scene.rank, default=None)
        last = following is None or not self._fits(following)
        if following is None:
            self.window.waits(full=False)
        flush = last or 2 * self._unflushed >= self.window.limit
        if flush:
            self._unflushed = 0
        self._watch(now)
        return Transmit(scene.outgoing.scene_id, tuple(indexes), flush)

    def receive(self, frame: GroundFrame, now: float) -> list[EdgeAction]:
        actions: list[EdgeAction] = []
        match frame:
            case Welcome():
                self._get_on(now)
                if self._started is not None:
                    self._far = now - self._started > FAR_S
                self._places = max(1, min(OPEN_SCENES_MAX, frame.open_scenes_max))
                self.reports, self.references = frame.reports, frame.references
            case SceneState():
                actions = self._scene_state(frame, now)
            case Ack(scene_id, committed):
                if scene := self._scenes.get(scene_id):
                    self._land(scene, committed, now)
                    actions = self._rest(scene)
            case Resend(scene_id, ranges):
                if scene := self._scenes.get(scene_id):
                    again = self._land(scene, ranges, None)
                    scene.plan({*scene.todo, *again})
                    if not scene.placed:  # it will be offered again
                        self._forget(scene)
            case Ask() | BundlePart():
                actions = [Asked(frame)]
        self._watch(now)
        return actions

    def tick(self, now: float) -> list[EdgeAction]:
        self._find_lost()
        if self.deadline is None or now < self.deadline:
            return []
        return [Close(Status.UNAVAILABLE, f"nothing heard from the ground for {self._patience_s:.0f} s")]

    def _scene_state(self, frame: SceneState, now: float) -> list[EdgeAction]:
        scene = self._scenes.get(frame.scene_id)
        if scene is None:
            return []
        if frame.state is not State.REFUSED:
            self._get_on(now)
        if frame.state is State.DURABLE:
            if frame.payload_sha256 != scene.payload_sha256:
                reason = f"scene {frame.scene_id[:12]}… is called durable with another hash than its manifest states"
                return [Close(Status.DATA_LOSS, f"{reason}: a damaged frame, nothing is forgotten for it")]
            self._forget(scene)
            return [Delivered(frame.scene_id)]
        if frame.state is State.REFUSED:
            refusal = frame.refusal or Refusal(RefusalCode.UNSUPPORTED, "no reason given", 1)
            self._forget(scene)
            if refusal.code is RefusalCode.BUSY and scene.placed:  # a word of ours was lost: it knows of other places
                self._places = sum(other.placed for other in self._scenes.values())
                if not self._places:
                    return [Close(Status.UNAVAILABLE, f"the ground has no place on this stream: {refusal.message}")]
            return [Refused(frame.scene_id, refusal)]
        heard, scene.heard = scene.heard, True
        if not scene.placed:
            if heard and frame.missing:  # the ground's disk has lost chunks: the scene will be offered again
                self._forget(scene)
            return []
        scene.answered = True
        missing = bitmap(len(scene.outgoing.lengths), frame.missing) & (scene.outgoing.lengths > 0)
        if frame.missing and not missing.any() and not scene.flying:
            reason = f"the ground misses chunks of scene {frame.scene_id[:12]}… that it does not have"
            return [Close(Status.DATA_LOSS, f"{reason} (from {frame.missing[0].first} on): a damaged frame")]
        self._plan(scene, missing)
        return self._rest(scene)

    def _plan(self, scene: _Scene, missing: _Bits) -> None:
        """The ground has all chunks but these."""
        sendable = self._sendable(scene)
        scene.whole = not (missing & ~sendable).any()
        scene.plan(index for index in np.flatnonzero(missing & sendable).tolist() if index not in scene.flying)

    def _sendable(self, scene: _Scene) -> _Bits:
        """The chunks that are to be sent at all: of the layers that are wanted, and what is asked for."""
        outgoing = scene.outgoing
        if outgoing.layers is None or outgoing.layers >= len(scene.ends):
            return np.ones(len(outgoing.lengths), bool)
        return bitmap(len(outgoing.lengths), (Range(0, scene.ends[outgoing.layers - 1]), *outgoing.first))

    def _rest(self, scene: _Scene) -> list[EdgeAction]:
        """What follows when all that was to be sent of a scene has arrived, or when its turn had passed before that."""
        if scene.flying or not scene.answered:
            return []
        if not scene.placed and scene.todo:  # paused in the middle: its turn comes again
            self._forget(scene)
        elif not scene.todo and not scene.whole:
            actions = self._pause(scene) if scene.placed else []
            self._forget(scene)
            return [*actions, Kept(scene.outgoing.scene_id)]
        return []

    @property
    def _free(self) -> bool:
        return sum(scene.placed for scene in self._scenes.values()) < self._places

    def _last(self) -> _Scene:
        """Of the scenes that hold a place, the one that can wait best: sent already, else of the largest rank."""
        placed = (scene for scene in self._scenes.values() if scene.placed)
        return max(placed, key=lambda scene: (scene.sent, scene.rank))

    def _pause(self, scene: _Scene) -> list[EdgeAction]:
        scene.placed = False
        actions: list[EdgeAction] = [Send(Pause(scene.outgoing.scene_id))]
        if scene.todo:
            actions.append(Paused(scene.outgoing, scene.layer, self._lacks_from(scene)))
        if not scene.flying and not scene.sent:
            self._forget(scene)
        return actions

    def _lacks_from(self, scene: _Scene) -> int | None:
        """The chunk from which on all is still to be sent, if nothing after it was; else None."""
        if scene.turns is None:  # in their order, as they are sent, nothing is left out
            return scene.todo[-1]
        start = min(scene.todo)
        after = self._sendable(scene)[start:] & (scene.outgoing.lengths[start:] > 0)
        return start if np.count_nonzero(after) == len(scene.todo) else None

    def _fits(self, scene: _Scene) -> bool:
        return self._unacked + int(scene.outgoing.lengths[scene.todo[-1]]) <= self.window.limit

    def _land(self, scene: _Scene, ranges: Iterable[Range], now: float | None) -> list[int]:
        """Chunks in these ranges are under way no longer: acknowledged `now`, or lost."""
        held = holder(ranges)
        landed = [index for index in scene.flying if held(index)]
        marks = [(scene.flying.pop(index), int(scene.outgoing.lengths[index])) for index in landed]
        self._unacked -= sum(size for _, size in marks)
        self._flying -= len(landed)
        if now is not None and marks:
            self._get_on(now)
            self._landed = max(self._landed, *(mark.at for mark, _ in marks))
            self.acknowledged += len(landed)
            self.window.acknowledged(marks, now)
        return landed

    def _get_on(self, now: float) -> None:
        """The ground has said something that brings us further."""
        if self._waiting_since is not None:
            self._waiting_since = now

    def _find_lost(self) -> None:
        """Send again what was sent long before something that has arrived: a damaged word has hidden its fate."""
        before = self._landed - self._patience_s / 4
        for scene in [*self._scenes.values()]:
            lost = [index for index, mark in scene.flying.items() if mark.at < before]
            if lost:
                self._land(scene, runs_of(lost), None)
                scene.plan({*scene.todo, *lost})
                if not scene.placed:  # it will be offered again
                    self._forget(scene)

    def _forget(self, scene: _Scene) -> None:
        if self._scenes.pop(scene.outgoing.scene_id, None) is not None:
            self._land(scene, (Range(0, len(scene.outgoing.lengths)),), None)

    def _watch(self, now: float) -> None:
        """The ground owes a word while any scene has chunks in flight, or nothing to send but its state to hear."""
        owed = any(scene.flying or not scene.todo for scene in self._scenes.values())
        if not owed:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
