"""What a session asks of whoever runs it: say this, store that, end the stream.

Values, made by `downlink.session` and carried out by the nodes in the order given. Those that say "answer with" are
done when the named method of the session has been called with the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from downlink.frame import Answer, Ask, BundlePart, EdgeFrame, GroundFrame, Refusal, Report
from downlink.incoming import Incoming
from downlink.ranges import Range

Frame = TypeVar("Frame", bound=EdgeFrame | GroundFrame)


class Status(StrEnum):
    """Why a stream ends before its time; the names are gRPC's."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"  # the peer broke the protocol
    FAILED_PRECONDITION = "FAILED_PRECONDITION"  # the peer speaks another revision
    UNAUTHENTICATED = "UNAUTHENTICATED"  # the peer's certificate does not say who it is
    PERMISSION_DENIED = "PERMISSION_DENIED"  # the peer is known, and not let in
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"  # nothing more can be stored
    DATA_LOSS = "DATA_LOSS"  # too much arrives damaged
    INTERNAL = "INTERNAL"  # a bug of ours
    UNAVAILABLE = "UNAVAILABLE"  # nothing is heard from the peer


@dataclass(frozen=True, slots=True)
class Send(Generic[Frame]):
    """Say this to the peer."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class Close:
    """End the stream. The edge may come back, with back-off."""

    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The ground has the scene, durably: the outbox may forget its chunks."""

    scene_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The ground does not take the scene."""

    scene_id: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Kept:
    """The ground has, synced, all that is to be sent of the scene for now. It is not whole: keep its chunks."""

    scene_id: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A scene that the outbox holds."""

    scene_id: str
    manifest: bytes  # packed
    lengths: NDArray[np.uint32]  # of all chunks; 0: there is nothing to send
    priority: int = 0
    order: int = 0  # among scenes of one priority, in one layer, the smaller goes first
    lacks_from: int | None = None  # the ground lacks this chunk and all after it, and none before it; None: not known
    layer: int = 0  # that the ground is known to lack, as a first guess
    layers: int | None = None  # send so many, at least 1; None: all
    first: tuple[Range, ...] = ()  # chunks to send before others, whatever their layer
    ahead: tuple[Range, ...] = ()  # chunks of tiles that stand out, in this order: see `downlink.layer.turns`


@dataclass(frozen=True, slots=True)
class Paused:
    """The scene's turn has passed: it is to be offered again later, when it is this layer's turn. `lacks_from` as in
    `Outgoing`, if all that was sent on this stream arrives."""

    outgoing: Outgoing
    layer: int
    lacks_from: int | None


@dataclass(frozen=True, slots=True)
class Transmit:
    """Chunks to send now, in one frame."""

    scene_id: str
    indexes: tuple[int, ...]
    flush: bool


@dataclass(frozen=True, slots=True)
class Open:
    """Look the scene up, or take it in. Answer with `opened`. The incoming scene is given as its offer states it,
    nothing stored."""

    incoming: Incoming
    priority: int


@dataclass(frozen=True, slots=True)
class Arrival:
    incoming: Incoming
    index: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """Write these chunks and sync them, all or none. Answer with `committed` or `failed`."""

    arrivals: tuple[Arrival, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """All chunks are there: verify the payload's hash over the stored bytes and make the scene durable. Answer with
    `finished`."""

    incoming: Incoming


@dataclass(frozen=True, slots=True)
class Asked:
    """The ground asks for something, or sends a part of a bundle: carry it out, once, and say what has become of it."""

    frame: Ask | BundlePart


EdgeAction = Send[EdgeFrame] | Delivered | Kept | Paused | Refused | Asked | Close


@dataclass(frozen=True, slots=True)
class Reject:
    """Give the scene up: it can never become complete. Whatever is stored of it may go; keep the reason."""

    incoming: Incoming
    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits to be answered. `bundle_bytes` is the size of the bundle that is to be installed, else 0."""

    ask: Ask
    bundle_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """Find what waits for this node: the oldest request that is no installation, and the oldest installation, leaving
    these out. Answer with `found`."""

    without: frozenset[str]


@dataclass(frozen=True, slots=True)
class Answered:
    """The edge has said what has become of a request: keep it."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class ReadPart:
    """Read this part of the bundle that a request is about. Answer with `part`."""

    ask_id: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Reported:
    """The edge has said how it stands: note it."""

    report: Report


GroundAction = Send[GroundFrame] | Open | Commit | Finish | Reject | Look | Answered | ReadPart | Reported | Close
