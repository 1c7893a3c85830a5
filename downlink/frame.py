"""What the two ends of the link say to each other, as values.

The messages of proto/downlink/v1/link.proto, where each field's meaning is written, with scene ids as 64 hex digits.
The sessions know these and no protobuf; `downlink.framing` converts at the rim and checks what a peer may not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from downlink.ranges import Range

REVISION: Final = 1  # of the protocol; a ground that does not speak the edge's revision says so and ends the stream
GROUP_CHUNKS: Final = 64  # the ground commits after so many chunks ...
GROUP_S: Final = 0.250  # ... or this long after the first of them, whichever comes first
FRAME_CONTENT_BYTES_MAX: Final = (
    512 * 1024
)  # chunk bytes in one frame: far enough below gRPC's 1 MiB, two of the largest chunks
FRAME_CHUNKS_MAX: Final = 1024  # chunks in one frame: some 20 ms of checksums while others wait
FRAME_RANGES_MAX: Final = 4096  # ranges in one frame: at most 13 bytes each on the wire
OPEN_SCENES_MAX: Final = 4  # per stream: each may cost the ground some 9 MiB of chunk list and bitmap
RETRY_S_MAX: Final = 3600  # a ground never sends an edge away for longer; a damaged frame might
REASON_BYTES_MAX: Final = 1024  # a sentence or two for a person
ASK_ID_BYTES: Final = 16
PART_BYTES_MAX: Final = 32 * 1024  # of a bundle in one frame: 4 s at 64 kbit/s
PARTS_AHEAD_BYTES: Final = 64 * 1024  # of a bundle under way: acknowledgements wait behind it


class State(IntEnum):
    """Where a scene stands on the ground, as far as the edge needs to know. Numbers as on the wire."""

    RECEIVING = 1
    DURABLE = 2
    REFUSED = 3


class RefusalCode(IntEnum):
    """Why a scene is not taken. Numbers as on the wire."""

    MALFORMED = 1
    CORRUPT = 2
    UNSUPPORTED = 3
    TOO_LARGE = 4
    EXHAUSTED = 5
    BUSY = 6
    FORBIDDEN = 7
    REFERENCE = 8


class Verdict(IntEnum):
    """What has become of a request. Numbers as on the wire, where one flipped bit makes none of them of another."""

    DONE = 1
    REFUSED = 2
    UNKNOWN_SCENE = 4


@dataclass(frozen=True, slots=True)
class Refusal:
    code: RefusalCode
    message: str
    retry_after_s: int = 0  # 0: never without an operator's word
    reference: str = ""  # with REFERENCE: the id of the scene that the ground lacks


@dataclass(frozen=True, slots=True)
class Hello:
    revision: int
    software: str


@dataclass(frozen=True, slots=True)
class Offer:
    scene_id: str
    manifest: bytes  # packed
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    index: int
    crc32c: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Chunks:
    scene_id: str
    chunks: tuple[Chunk, ...]
    flush: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    scene_id: str


@dataclass(frozen=True, slots=True)
class Welcome:
    revision: int
    software: str
    open_scenes_max: int = OPEN_SCENES_MAX
    reports: bool = False  # does it take `Report`?
    references: bool = False  # does it take scenes that are coded against another?


@dataclass(frozen=True, slots=True)
class SceneState:
    scene_id: str
    state: State
    missing: tuple[Range, ...] = ()
    refusal: Refusal | None = None
    payload_sha256: bytes = b""  # with DURABLE: what was verified over the stored bytes


@dataclass(frozen=True, slots=True)
class Ack:
    scene_id: str
    committed: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Resend:
    scene_id: str
    ranges: tuple[Range, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    ask_id: str  # 32 hex digits
    request: bytes  # packed: `downlink.request`


@dataclass(frozen=True, slots=True)
class Answer:
    ask_id: str
    verdict: Verdict
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    ask_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class BundlePart:
    ask_id: str
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """How the edge stands."""

    waiting_scenes: int
    waiting_bytes: int
    kept_scenes: int
    next_contact: int = 0  # seconds since 1970, UTC; 0: none is known


EdgeFrame = Hello | Offer | Chunks | Pause | Answer | Progress | Report
GroundFrame = Welcome | SceneState | Ack | Resend | Ask | BundlePart
