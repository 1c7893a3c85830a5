"""The rules of the link, one class per end. Both take (event, now) and return actions; neither knows a socket, a file
or a clock.

A session is one stream, from `Hello` to its end. What must outlive a stream (the edge's outbox, the ground's store)
lives with the caller, who carries out the actions in the order given and reports back:

    edge:    Send, Delivered, Refused, Close             and, pulled by whoever paces the link, `EdgeSession.take`
    ground:  Send, Open, Commit, Finish, Reject, Close   answered by `opened`, `committed` or `failed`, `finished`

`now` is any monotone clock in seconds; `deadline` says when `tick` must be called at the latest.

EdgeSession ignores what it does not expect from the ground: stale, repeated and reordered frames are harmless,
because each states a fact about the ground's store. GroundSession believes nothing: a frame out of order ends the
stream, and a chunk that is not what the manifest states is thrown away before anything else happens with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from downlink import limits
from downlink.action import (
    Arrival,
    Close,
    Commit,
    Delivered,
    EdgeAction,
    Finish,
    GroundAction,
    Open,
    Outgoing,
    Refused,
    Reject,
    Send,
    Status,
    Transmit,
)
from downlink.errors import StreamError
from downlink.frame import (
    FRAME_CONTENT_BYTES_MAX,
    GROUP_CHUNKS,
    GROUP_S,
    OPEN_SCENES_MAX,
    REVISION,
    Ack,
    Chunk,
    Chunks,
    EdgeFrame,
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
from downlink.incoming import Incoming
from downlink.ranges import Range, bitmap, runs_of

DAMAGED_MAX = 256  # damaged chunks in one stream: past this the line is broken, and a new stream is the better try
SETTLED_KEPT = (
    256  # settled scenes that a stream remembers, for chunks that were on their way when the scene was settled
)


@dataclass(slots=True)
class _Scene:
    outgoing: Outgoing
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
        self._scenes[outgoing.scene_id] = _Scene(outgoing)
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
        while scene.todo and len(indexes) < free:
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


class GroundSession:
    """The ground's end of one stream. Memory is bounded: `OPEN_SCENES_MAX` scenes, and `GROUP_CHUNKS` chunks not yet
    committed.

    An `Incoming` may be shared by several sessions (a node that reconnects before its old stream is known to be
    dead): what one has committed, the others no longer miss.
    """

    def __init__(self, software: str) -> None:
        self._software = software
        self._greeted = False
        self._opening: set[str] = set()
        self._open: dict[str, Incoming] = {}
        self._settled: dict[str, SceneState] = {}
        self._held: list[Arrival] = []  # judged, not committed
        self._busy: set[tuple[str, int]] = set()  # held, or being committed
        self._finishing: set[str] = set()
        self._damaged = 0
        self.deadline: float | None = None

    def receive(self, frame: EdgeFrame, now: float) -> list[GroundAction]:
        match frame:
            case Hello() if not self._greeted:
                if frame.revision != REVISION:
                    reason = f"the edge speaks revision {frame.revision}, the ground {REVISION}; update the older one"
                    return [Close(Status.FAILED_PRECONDITION, reason)]
                self._greeted = True
                return [Send(Welcome(REVISION, self._software))]
            case Offer() if self._greeted:
                return self._offer(frame)
            case Chunks() if self._greeted:
                return self._chunks(frame, now)
            case _:
                what = f"a second {type(frame).__name__}" if self._greeted else f"{type(frame).__name__} before Hello"
                return [Close(Status.INVALID_ARGUMENT, f"{what}: a stream begins with Hello, once")]

    def opened(self, scene_id: str, found: Incoming | SceneState, now: float) -> list[GroundAction]:
        """The store's answer to `Open`: the scene as far as it is stored, or the state in which it is settled."""
        self._opening.discard(scene_id)
        if isinstance(found, SceneState):
            return [self._settle(found)]
        self._open[scene_id] = found
        return [Send(SceneState(scene_id, State.RECEIVING, found.missing_ranges())), *self._finish(found)]

    def committed(self, commit: Commit, now: float) -> list[GroundAction]:
        """The store has synced these chunks."""
        actions: list[GroundAction] = []
        for incoming, indexes in _by_scene(commit.arrivals):
            incoming.commit(indexes)
            self._busy.difference_update((incoming.scene_id, index) for index in indexes)
            actions.append(Send(Ack(incoming.scene_id, runs_of(indexes))))
            actions += self._finish(incoming)
        return actions

    def failed(self, status: Status, reason: str, now: float) -> list[GroundAction]:
        """The store could not carry out an action. Nothing of it was acknowledged; the edge will come again."""
        return [Close(status, reason)]

    def finished(self, incoming: Incoming, state: SceneState | None, now: float) -> list[GroundAction]:
        """The store's answer to `Finish`: the state that settles the scene.

        None when stored chunks turned out to be damaged, and are missing again.
        """
        scene_id = incoming.scene_id
        self._finishing.discard(scene_id)
        if state is None:
            return [Send(SceneState(scene_id, State.RECEIVING, incoming.missing_ranges()))]
        self._open.pop(scene_id, None)
        return [self._settle(state)]

    def tick(self, now: float) -> list[GroundAction]:
        return self._commit() if self.deadline is not None and now >= self.deadline else []

    def end(self, now: float) -> list[GroundAction]:
        """The edge has half-closed, or the ground is about to stop: keep what has come."""
        return self._commit()

    def _offer(self, offer: Offer) -> list[GroundAction]:
        scene_id = offer.scene_id
        if scene_id in self._opening:
            return []
        if known := self._open.get(scene_id):
            return [Send(SceneState(scene_id, State.RECEIVING, known.missing_ranges()))]
        if len(self._opening) + len(self._open) >= OPEN_SCENES_MAX:
            reason = f"{OPEN_SCENES_MAX} scenes are open on this stream, as many as the ground allows; finish one first"
            return [Send(SceneState(scene_id, State.REFUSED, (), Refusal(RefusalCode.BUSY, reason, 10)))]
        try:
            incoming = Incoming(scene_id, offer.manifest)
        except StreamError as error:
            return [self._settle(refused(scene_id, error))]
        self._opening.add(scene_id)
        return [Open(incoming, offer.priority)]

    def _chunks(self, frame: Chunks, now: float) -> list[GroundAction]:
        scene_id = frame.scene_id
        if settled := self._settled.get(scene_id):
            return [Send(settled)]
        incoming = self._open.get(scene_id)
        if incoming is None:
            return [
                Close(
                    Status.INVALID_ARGUMENT, f"chunks of scene {scene_id[:12]}…, which was not offered on this stream"
                )
            ]
        actions: list[GroundAction] = []
        again: list[int] = []
        damaged: dict[int, str] = {}
        for chunk in frame.chunks:
            if chunk.index >= len(incoming.missing):
                reason = f"chunk {chunk.index} of scene {scene_id[:12]}…, which has {len(incoming.missing)} chunks"
                return [*actions, Close(Status.INVALID_ARGUMENT, reason)]
            if not incoming.missing[chunk.index]:
                again.append(chunk.index)
            elif (scene_id, chunk.index) not in self._busy:
                try:
                    if fault := self._keep(incoming, chunk, now):
                        damaged[chunk.index] = fault
                except StreamError as error:  # the chunk list is not valid: no copy of it will be better
                    self._drop(scene_id)
                    return [*actions, Reject(incoming, str(error)), self._settle(refused(scene_id, error))]
                if len(self._held) >= GROUP_CHUNKS:
                    actions += self._commit()
        if again:
            actions.append(Send(Ack(scene_id, runs_of(again))))
        if damaged:
            actions.append(Send(Resend(scene_id, runs_of(damaged), next(iter(damaged.values())))))
            self._damaged += len(damaged)
            if self._damaged > DAMAGED_MAX:
                actions.append(
                    Close(Status.DATA_LOSS, f"{self._damaged} damaged chunks in one stream; begin a new one")
                )
        # Nothing else will come for a scene that has all its chunks: do not wait for company.
        if frame.flush or int(incoming.missing.sum()) == sum(arrival.incoming is incoming for arrival in self._held):
            actions += self._commit()
        return actions

    def _keep(self, incoming: Incoming, chunk: Chunk, now: float) -> str | None:
        """Hold a chunk for the next commit, or say what is wrong with it."""
        fault = incoming.judge(chunk)
        if fault is None:
            if chunk.index < incoming.pages:
                incoming.learn(chunk.index, chunk.content)
            if not self._held:
                self.deadline = now + GROUP_S
            self._held.append(Arrival(incoming, chunk.index, chunk.content))
            self._busy.add((incoming.scene_id, chunk.index))
        return fault

    def _commit(self) -> list[GroundAction]:
        held, self._held, self.deadline = tuple(self._held), [], None
        return [Commit(held)] if held else []

    def _finish(self, incoming: Incoming) -> list[GroundAction]:
        if not incoming.complete or incoming.scene_id in self._finishing or incoming.scene_id not in self._open:
            return []
        self._finishing.add(incoming.scene_id)
        return [Finish(incoming)]

    def _settle(self, state: SceneState) -> Send[GroundFrame]:
        self._settled[state.scene_id] = state
        while len(self._settled) > SETTLED_KEPT:
            del self._settled[next(iter(self._settled))]
        return Send(state)

    def _drop(self, scene_id: str) -> None:
        self._open.pop(scene_id, None)
        self._held = [arrival for arrival in self._held if arrival.incoming.scene_id != scene_id]
        self._busy = {key for key in self._busy if key[0] != scene_id}


def refused(scene_id: str, error: StreamError) -> SceneState:
    """The answer to a scene whose manifest, chunk list or payload is not valid."""
    codes = {code.name.lower(): code for code in RefusalCode}
    return SceneState(scene_id, State.REFUSED, (), Refusal(codes.get(error.code, RefusalCode.MALFORMED), str(error)))


def _by_scene(arrivals: Iterable[Arrival]) -> list[tuple[Incoming, list[int]]]:
    grouped: dict[int, tuple[Incoming, list[int]]] = {}
    for arrival in arrivals:
        grouped.setdefault(id(arrival.incoming), (arrival.incoming, []))[1].append(arrival.index)
    return list(grouped.values())
