"""The ground's end of one stream: `GroundSession`. What it promises is in `downlink.session`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from downlink import manifest as manifests
from downlink.action import Arrival, Close, Commit, Finish, GroundAction, Open, Reject, Reported, Send, Status, Waiting
from downlink.asking import LOOK_S, Asking
from downlink.errors import StreamError
from downlink.frame import (
    GROUP_CHUNKS,
    GROUP_S,
    OPEN_SCENES_MAX,
    REVISION,
    Ack,
    Answer,
    Chunk,
    Chunks,
    EdgeFrame,
    GroundFrame,
    Hello,
    Offer,
    Pause,
    Progress,
    Refusal,
    RefusalCode,
    Report,
    Resend,
    SceneState,
    State,
    Welcome,
)
from downlink.incoming import Incoming
from downlink.ranges import runs_of

DAMAGED_MAX: Final = 256  # damaged chunks in one stream: past this the line is broken, and a new stream is better
AGAIN_S: Final = 1  # when an offer came damaged
SETTLED_KEPT: Final = 256  # settled scenes that a stream remembers, for chunks that were on their way by then


class GroundSession:
    """The ground's end of one stream. Memory is bounded: `places` scenes are open, and `GROUP_CHUNKS` chunks not yet
    committed.

    An `Incoming` may be shared by several sessions (a node that reconnects before its old stream is known to be
    dead): what one has committed, the others no longer miss.
    """

    def __init__(self, software: str, places: int = OPEN_SCENES_MAX, look_s: float = LOOK_S) -> None:
        self._asking = Asking(look_s)
        self._software = software
        self._places = places
        self._greeted = False
        self._opening: dict[str, Incoming] = {}
        self._open: dict[str, Incoming] = {}
        self._settled: dict[str, SceneState] = {}
        self._held: list[Arrival] = []  # judged, not committed
        self._busy: set[tuple[str, int]] = set()  # held, or being committed
        self._finishing: set[str] = set()
        self._damaged = 0
        self._commit_at: float | None = None

    @property
    def deadline(self) -> float | None:
        """When `tick` must be called at the latest."""
        return min((at for at in (self._commit_at, self._asking.deadline) if at is not None), default=None)

    def receive(self, frame: EdgeFrame, now: float) -> list[GroundAction]:
        match frame:
            case Hello() if not self._greeted:
                if frame.revision != REVISION:
                    reason = f"the edge speaks revision {frame.revision}, the ground {REVISION}; update the older one"
                    return [Close(Status.FAILED_PRECONDITION, reason)]
                self._greeted = True
                welcome = Welcome(REVISION, self._software, self._places, reports=True, references=True)
                return [Send(welcome), *self._asking.look(now)]
            case Offer() if self._greeted:
                return self._offer(frame)
            case Chunks() if self._greeted:
                return self._chunks(frame, now)
            case Pause(scene_id) if self._greeted:
                self._open.pop(scene_id, None)
                return []
            case Answer() if self._greeted:
                return self._asking.answered(frame, now)
            case Progress() if self._greeted:
                return self._asking.progress(frame, now)
            case Report() if self._greeted:
                return [Reported(frame)]
            case _:
                what = f"a second {type(frame).__name__}" if self._greeted else f"{type(frame).__name__} before Hello"
                return [Close(Status.INVALID_ARGUMENT, f"{what}: a stream begins with Hello, once")]

    def opened(self, scene_id: str, found: Incoming | SceneState, now: float) -> list[GroundAction]:
        """The store's answer to `Open`: the scene as far as it is stored, or the state in which it is settled."""
        offered = self._opening.pop(scene_id)
        if isinstance(found, SceneState):
            return [self._settle(found, offered)]
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
        return [self._settle(state, incoming)]

    def found(self, waiting: Sequence[Waiting], now: float) -> list[GroundAction]:
        """The store's answer to `Look`."""
        return self._asking.found(waiting, now)

    def part(self, ask_id: str, offset: int, content: bytes | None) -> list[GroundAction]:
        """The store's answer to `ReadPart`; None: it is not asked for any more."""
        return self._asking.part(ask_id, offset, content)

    def tick(self, now: float) -> list[GroundAction]:
        due = self._commit_at is not None and now >= self._commit_at
        return [*(self._commit() if due else []), *self._asking.tick(now)]

    def end(self, now: float) -> list[GroundAction]:
        """The edge has half-closed, or the ground is about to stop: keep what has come."""
        return self._commit()

    def _offer(self, offer: Offer) -> list[GroundAction]:
        scene_id = offer.scene_id
        self._settled.pop(scene_id, None)  # what was refused may be taken now
        if scene_id in self._opening:
            return []
        if known := self._open.get(scene_id):
            return [Send(SceneState(scene_id, State.RECEIVING, known.missing_ranges()))]
        if len(self._opening) + len(self._open) >= self._places:
            reason = f"{self._places} scenes are open on this stream, as many as the ground allows; finish one first"
            return [self._settle(SceneState(scene_id, State.REFUSED, (), Refusal(RefusalCode.BUSY, reason, 10)))]
        if (found := manifests.scene_id(offer.manifest)) != scene_id:  # damaged on its way: not the scene's fault
            reason = f"scene {scene_id[:12]}… came with a manifest of the SHA-256 {found[:12]}…; send it again"
            return [
                self._settle(SceneState(scene_id, State.REFUSED, (), Refusal(RefusalCode.CORRUPT, reason, AGAIN_S)))
            ]
        try:
            incoming = Incoming(scene_id, offer.manifest)
        except StreamError as error:
            return [self._settle(refused(scene_id, error))]
        self._opening[scene_id] = incoming
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
            actions += self._finish(incoming)  # another stream may have brought the last chunk, and be dead by now
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
                self._commit_at = now + GROUP_S
            self._held.append(Arrival(incoming, chunk.index, chunk.content))
            self._busy.add((incoming.scene_id, chunk.index))
        return fault

    def _commit(self) -> list[GroundAction]:
        held, self._held, self._commit_at = tuple(self._held), [], None
        return [Commit(held)] if held else []

    def _finish(self, incoming: Incoming) -> list[GroundAction]:
        scene_id = incoming.scene_id
        if not incoming.complete or scene_id in self._finishing or scene_id in self._settled:
            return []
        self._finishing.add(scene_id)
        return [Finish(incoming)]

    def _settle(self, state: SceneState, incoming: Incoming | None = None) -> Send[GroundFrame]:
        if state.state is State.DURABLE:
            assert incoming is not None, "a scene cannot be durable without a manifest"
            state = replace(state, payload_sha256=incoming.manifest.payload_sha256)
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
