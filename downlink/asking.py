"""The ground's requests on one stream: which is said when, and what becomes of a bundle that is sent.

`Asking` is a part of `GroundSession`, apart from the scenes. Of the requests that wait for this node it has at most
two under way: the oldest that is no installation, and the oldest installation, which may take hours. Each is said again
when nothing is heard of it for `AGAIN_S`; the edge carries it out once. Of a bundle at most `PARTS_AHEAD_BYTES` are
sent ahead of what the edge has. Pure; an answer to what was not asked is ignored, progress over a bundle's end ends the
stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from downlink.action import Answered, Close, GroundAction, Look, ReadPart, Send, Status, Waiting
from downlink.frame import PART_BYTES_MAX, PARTS_AHEAD_BYTES, Answer, BundlePart, Progress, Verdict

LOOK_S: Final = 2.0  # how often the store is asked for new requests
AGAIN_S: Final = 30.0  # without a word about a request, and it is said again


@dataclass(slots=True)
class _Asked:
    waiting: Waiting
    heard_at: float  # or said
    sent: int | None = None  # bytes of the bundle; None until the edge says how much it has


class Asking:
    """The requests under way. `look_s`: how often to look for new ones."""

    def __init__(self, look_s: float = LOOK_S) -> None:
        self._look_s = look_s
        self._look_at: float | None = None
        self._asked: dict[str, _Asked] = {}
        self._unknown: set[str] = set()  # about scenes that the edge does not have: not said to it again

    @property
    def deadline(self) -> float | None:
        """When `tick` must be called; None before the edge has greeted."""
        if self._look_at is None:
            return None
        return min([self._look_at, *(asked.heard_at + AGAIN_S for asked in self._asked.values())])

    def look(self, now: float) -> list[GroundAction]:
        """Ask the store for requests."""
        self._look_at = now + self._look_s
        if {True, False} <= {asked.waiting.bundle_bytes > 0 for asked in self._asked.values()}:
            return []
        return [Look(frozenset(self._asked) | self._unknown)]

    def found(self, waiting: Sequence[Waiting], now: float) -> list[GroundAction]:
        """The store's answer to `Look`."""
        actions: list[GroundAction] = []
        for one in waiting:
            bulk = one.bundle_bytes > 0
            if all((asked.waiting.bundle_bytes > 0) is not bulk for asked in self._asked.values()):
                self._asked[one.ask.ask_id] = _Asked(one, now)
                actions.append(Send(one.ask))
        return actions

    def answered(self, answer: Answer, now: float) -> list[GroundAction]:
        """The edge says what has become of a request."""
        if self._asked.pop(answer.ask_id, None) is None:
            return []
        if answer.verdict is Verdict.UNKNOWN_SCENE:
            self._unknown.add(answer.ask_id)
        return [Answered(answer), *self.look(now)]

    def progress(self, frame: Progress, now: float) -> list[GroundAction]:
        """The edge has so much of a bundle."""
        asked = self._asked.get(frame.ask_id)
        if asked is None or not asked.waiting.bundle_bytes:
            return []
        total = asked.waiting.bundle_bytes
        if frame.offset > total:
            reason = f"progress of {frame.offset} bytes for a bundle of {total}"
            return [Close(Status.INVALID_ARGUMENT, reason)]
        asked.heard_at = now
        asked.sent = max(asked.sent or 0, frame.offset)
        actions: list[GroundAction] = []
        while asked.sent < min(total, frame.offset + PARTS_AHEAD_BYTES):
            length = min(PART_BYTES_MAX, total - asked.sent)
            actions.append(ReadPart(frame.ask_id, asked.sent, length))
            asked.sent += length
        return actions

    def part(self, ask_id: str, offset: int, content: bytes | None) -> list[GroundAction]:
        """The store's answer to `ReadPart`; None: it is not asked for any more."""
        if content is None:
            self._asked.pop(ask_id, None)
            return []
        return [Send(BundlePart(ask_id, offset, content))] if ask_id in self._asked else []

    def tick(self, now: float) -> list[GroundAction]:
        """Time has passed."""
        actions: list[GroundAction] = []
        for asked in self._asked.values():
            if now >= asked.heard_at + AGAIN_S:
                asked.heard_at, asked.sent = now, None
                actions.append(Send(asked.waiting.ask))
        if self._look_at is not None and now >= self._look_at:
            actions += self.look(now)
        return actions
