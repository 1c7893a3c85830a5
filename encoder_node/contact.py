"""One contact with the ground, but for the wire: an `EdgeSession` on top of the outbox.

What to say next, and what to do about what the ground has said, as plain calls with the time given:
`encoder_node.sender` makes them around a gRPC stream, `tests/sim` around a network of its own. Calls touch the disk
and belong to one thread.

`hear` and `tick` raise `LinkError` when the stream must end. Errors of the outbox (`OutboxError`) pass through:
nothing was forgotten then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from downlink.action import Asked, Close, Delivered, EdgeAction, Kept, Outgoing, Paused, Refused, Send
from downlink.errors import Corrupt, LinkError
from downlink.frame import (
    Answer,
    Ask,
    BundlePart,
    Chunks,
    EdgeFrame,
    GroundFrame,
    Refusal,
    RefusalCode,
    Report,
    Resend,
    Verdict,
    Welcome,
)
from downlink.manifest import scene_id as id_of
from downlink.request import Install, Rollback, scene_of, unpack
from downlink.session import EdgeSession
from encoder_node.log import log
from encoder_node.models import Models
from encoder_node.outbox import Outbox

POLL_S = 0.5  # how often the outbox is asked for news from other processes
DRAIN_S = 0.3  # at least so long before the end of a pass nothing new is sent
REPORT_S = 15.0  # how often the ground is told how the outbox stands, if that has changed
WELCOME_S = 120.0  # by then a ground has introduced itself
CANDIDATES = 4  # scenes that are looked at in advance; a large one has a list of lengths of 4 MiB


class Contact:
    """A stream's worth of sending. `wall` is the clock of the outbox's times to come back. `ends_at` is when the ground
    is out of sight, on the clock of the calls. Without `models`, none is installed. `next_contact` gives when the next
    pass begins, in seconds since 1970, or 0."""

    def __init__(
        self,
        outbox: Outbox,
        session: EdgeSession,
        frame_bytes: int,
        wall: Callable[[], float] = time.time,
        ends_at: float | None = None,
        models: Models | None = None,
        next_contact: Callable[[], int] = lambda: 0,
    ) -> None:
        self.session = session
        self.models = models
        self._next_contact = next_contact
        self._reported: Report | None = None
        self._report_at = 0.0
        self._ends_at = ends_at
        self.progress_at: float | None = None  # when the ground last had something new
        self._outbox = outbox
        self._frame_bytes = frame_bytes
        self._wall = wall
        self._said: deque[EdgeFrame] = deque()  # to be said before any chunk
        self._candidates: deque[Outgoing] = deque()  # the next to be offered
        self._exhausted = False  # has the outbox no more than these?
        self._look_at = 0.0
        self._dependants: list[str] = []  # when the contact began
        self._welcome_by = 0.0

    @property
    def idle(self) -> bool:
        """Is there nothing to send, nothing to hear about, and no bundle to be tested?"""
        if self._dependants and self.session.references is None:
            return False  # some scenes wait to hear whether this ground knows references
        testing = self.models is not None and self.models.to_test() is not None
        return not self.session.known and not self._said and not testing

    @property
    def _just_empty(self) -> bool:
        """Is nothing under way any more, and the ground thinks otherwise?"""
        return bool(self._reported and self._reported.waiting_scenes and not self.session.known)

    def over(self, now: float) -> bool:
        """Is it time to stop, so that what is under way is acknowledged while the ground is in sight?"""
        if self._ends_at is None:
            return False
        return now + max(DRAIN_S, 1.2 * self.session.window.took_s) >= self._ends_at

    def start(self, now: float) -> None:
        self._look_at = now
        self._outbox.begin_contact()
        self._dependants = self._outbox.references.dependants()
        self._welcome_by = now + WELCOME_S
        self._do(self.session.start(now), now)

    def next(self, now: float) -> EdgeFrame | None:
        """What to say now; None: nothing before the ground's next word, or before `POLL_S` has passed."""
        if self.over(now):
            return None
        if self.session.reports and (now >= self._report_at or self._just_empty):
            self._report(now)
        if not self._said:
            self._offer(now)
        if self._said:
            return self._said.popleft()
        while transmit := self.session.take(self._frame_bytes, now):
            scene_id = transmit.scene_id
            try:
                return Chunks(scene_id, tuple(self._outbox.load(scene_id, transmit.indexes)), transmit.flush)
            except Corrupt as error:
                self._damaged(scene_id, str(error))
                self._do(self.session.withdraw(scene_id, now), now)
        return None

    def hear(self, frame: GroundFrame, now: float) -> None:
        """The ground has said this."""
        if isinstance(frame, Welcome) and self.session.references is None:
            self._welcomed(frame, now)
        before = self.session.acknowledged
        actions = self.session.receive(frame, now)
        if self.session.acknowledged > before or any(isinstance(action, Delivered | Kept) for action in actions):
            self.progress_at = now
        if isinstance(frame, Resend):
            count = sum(item.count for item in frame.ranges)
            log.warning("sent again", extra={"scene": frame.scene_id, "chunks": count, "reason": frame.reason})
        self._do(actions, now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._dependants and self.session.references is None and now >= self._welcome_by:
            raise LinkError(f"the ground has not said within {WELCOME_S:.0f} s what it knows")
        self._do(self.session.tick(now), now)

    def _welcomed(self, welcome: Welcome, now: float) -> None:
        """It is known whether scenes that have a reference may be offered."""
        self._exhausted, self._look_at = False, now
        for scene_id in [] if welcome.references else self._outbox.references.dependants():
            self._refuse(
                scene_id,
                "this ground does not know scenes that are coded against others; update it and `resend`, or submit "
                "the scene itself again",
            )

    def _refuse(self, scene_id: str, reason: str) -> None:
        """Give a scene up that no ground has refused."""
        self._outbox.refused(scene_id, Refusal(RefusalCode.REFERENCE, reason), self._wall())
        log.error("refused", extra={"scene": scene_id, "code": "reference", "reason": reason, "retry_s": 0})

    def _lacking(self, scene_id: str, refusal: Refusal, now: float) -> None:
        """The ground lacks a reference: it goes first."""
        if reason := self._outbox.references.lost(scene_id, refusal.reference):
            self._refuse(scene_id, reason)
        else:
            log.warning("reference lost", extra={"scene": scene_id, "reference": refusal.reference})
        self._candidates.clear()
        self._exhausted, self._look_at = False, now

    def tested(self, reason: str) -> None:
        """The bundle that `models` has to test works here, or this is wrong with it."""
        if self.models is not None:
            self._answer(self._changing(partial(self.models.tested, reason)))

    def _asked(self, frame: Ask | BundlePart, now: float) -> None:
        """Carry out what the ground asks for, once."""
        if isinstance(frame, BundlePart):
            self._answer(self._taking(frame.ask_id, lambda models: models.part(frame)))
            return
        try:
            request = unpack(frame.request)
        except LinkError:
            request = None  # the outbox says why
        if not isinstance(request, Install | Rollback):
            answer = self._outbox.answer(frame)
            if request is not None and answer.verdict is Verdict.DONE and (scene_id := scene_of(request)) is not None:
                self._changed(scene_id, now)
            self._answer(answer, recorded=True)
        elif (before := self._outbox.answered(frame.ask_id)) is not None:
            self._answer(before, recorded=True)
        elif self.models is None:
            self._answer(Answer(frame.ask_id, Verdict.REFUSED, "this node installs no bundles"))
        elif isinstance(request, Install):
            wanted = request
            self._answer(self._taking(frame.ask_id, lambda models: models.begin(frame.ask_id, wanted)))
        else:
            self._answer(self._changing(partial(self.models.rollback, frame.ask_id)))

    def _taking(self, ask_id: str, what: Callable[[Models], EdgeFrame | None]) -> EdgeFrame | None:
        """Take something of a bundle in: a disk that fails or is full ends the installation, not the stream."""
        if self.models is None:
            return None
        try:
            return what(self.models)
        except OSError as error:
            self.models.give_up()
            return Answer(ask_id, Verdict.REFUSED, f"this node's disk does not take the bundle: {error.strerror}")

    def _changing(self, what: Callable[[], EdgeFrame | None]) -> EdgeFrame | None:
        """Make another bundle active. If the disk fails, nobody knows whether it is: the ground asks again."""
        try:
            return what()
        except OSError as error:
            raise LinkError(f"which bundle is active cannot be written: {error.strerror}") from error

    def _answer(self, said: EdgeFrame | None, recorded: bool = False) -> None:
        """Say it to the ground; an answer is recorded before."""
        if said is None:
            return
        if isinstance(said, Answer):
            if not recorded:
                self._outbox.record(said)
            facts = {"ask": said.ask_id, "verdict": said.verdict.name.lower(), "reason": said.message}
            log.info("answered", extra=facts)
        self._said.append(said)

    def _changed(self, scene_id: str, now: float) -> None:
        """A scene is to be sent in another way, or not at all: it is taken up anew, as the outbox has it now."""
        self._do(self.session.withdraw(scene_id, now), now)
        self._candidates.clear()
        self._exhausted = False
        self._look_at = now

    def _report(self, now: float) -> None:
        """Tell the ground how the outbox stands, unless it knows."""
        report = Report(*self._outbox.waiting(), self._next_contact())
        self._report_at = now + REPORT_S
        if report != self._reported:
            self._reported = report
            self._said.append(report)

    def _offer(self, now: float) -> None:
        """Bring up the scenes whose turn it is."""
        while scene := self._candidate(now):
            if not self.session.wants((-scene.priority, scene.layer, scene.order)):
                return
            self._candidates.popleft()
            if id_of(scene.manifest) != scene.scene_id:
                reason = f"the manifest of scene {scene.scene_id[:12]}… has changed on disk; submit the scene again"
                self._damaged(scene.scene_id, reason)
                continue
            log.info("offered", extra={"scene": scene.scene_id, "chunks": int((scene.lengths > 0).sum())})
            self._do(self.session.offer(scene, now), now)
            self._outbox.offered(scene.scene_id)

    def _candidate(self, now: float) -> Outgoing | None:
        """The most urgent scene that is not known to the session."""
        while self._candidates and self._candidates[0].scene_id in self.session.known:
            self._candidates.popleft()
        if now >= self._look_at or not (self._candidates or (self._exhausted and self.session.known)):
            knows = bool(self.session.references)
            due = self._outbox.due(CANDIDATES, without=self.session.known, now=self._wall(), references=knows)
            self._candidates = deque(due)
            self._outbox.offering(self._candidates)
            self._exhausted = len(self._candidates) < CANDIDATES  # else there are more
            self._look_at = now + POLL_S
        return self._candidates[0] if self._candidates else None

    def _damaged(self, scene_id: str, reason: str) -> None:
        log.error("damaged", extra={"scene": scene_id, "reason": reason})
        self._outbox.damaged(scene_id, reason)

    def _do(self, actions: Sequence[EdgeAction], now: float) -> None:
        for action in actions:
            match action:
                case Send(frame):
                    self._said.append(frame)
                case Delivered(scene_id):
                    self._outbox.delivered(scene_id, references=bool(self.session.references))
                    log.info("delivered", extra={"scene": scene_id})
                case Kept(scene_id):
                    self._outbox.kept(scene_id)
                    log.info("kept", extra={"scene": scene_id})
                case Paused(outgoing, layer, lacks_from):
                    self._outbox.progress(outgoing, layer, lacks_from)
                    self._exhausted = False  # its turn comes again
                case Refused(scene_id, refusal) if refusal.reference:
                    self._lacking(scene_id, refusal, now)
                case Refused(scene_id, refusal):
                    self._outbox.refused(scene_id, refusal, self._wall())
                    facts = {"scene": scene_id, "code": refusal.code.name.lower(), "reason": refusal.message}
                    log.error("refused", extra={**facts, "retry_s": refusal.retry_after_s})
                case Asked(asked):
                    self._asked(asked, now)
                case Close(_, reason):
                    raise LinkError(reason)
