"""What must never happen, checked after every step of a run: the promises of docs/link.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from decoder_node.ledger import Ledger
from downlink.frame import Ack, Answer, Ask, GroundFrame, SceneState, State, Verdict
from downlink.ranges import bitmap
from downlink.request import Cancel, Refine, SetPriority, SetTarget, unpack
from downlink.stream import head
from encoder_node.outbox import Outbox
from tests.sim.disk import Database, SimDisk
from tests.streams import Stream


class Broken(AssertionError):
    """A promise is broken."""


class Judge:
    """Knows what was submitted, acknowledged and called durable, and compares it with what is on the media."""

    def __init__(self, archive: Path, disk: SimDisk, database: Database, scenes: list[Stream]) -> None:
        self.scenes = {made.id: made for made in scenes}
        self.acked: dict[str, set[int]] = defaultdict(set)
        self.durable: set[str] = set()  # called so by the ground
        self.called_off: set[str] = set()  # scenes that may be given up, because the ground has asked for it
        self._answers: dict[tuple[int, str], Answer] = {}  # said, by which edge
        self._disk, self._database = disk, database
        self._streams = {made.id: archive / "streams" / f"{made.id}.dl" for made in scenes}
        self._parts = {made.id: archive / "inbox" / f"{made.id}.part" for made in scenes}
        self._seen = (-1, -1)
        self._starts = {}
        for made in scenes:
            position, starts = len(head(made.packed)), []
            for chunk in made.chunks:
                starts.append(position)
                position += len(chunk)
            self._starts[made.id] = starts

    def said(self, frame: GroundFrame) -> None:
        """The ground says this, now."""
        if getattr(frame, "scene_id", None) not in self.scenes:  # Welcome, or an answer to an offer that came damaged
            return
        match frame:
            case Ack(scene_id, committed):
                indexes = {index for item in committed for index in range(item.first, item.end)}
                self.acked[scene_id] |= indexes & self.scenes[scene_id].sent
                self._check_acked(scene_id)
            case SceneState(scene_id, State.DURABLE):
                self.durable.add(scene_id)
                self._check_durable(scene_id)
            case SceneState(scene_id, State.RECEIVING, missing):
                if scene_id in self.durable and missing:  # none: another stream has finished it
                    raise Broken(f"{scene_id[:8]} was durable and is received again: its tombstone is forgotten")
                made = self.scenes[scene_id]
                wanted = bitmap(len(made.chunks), missing)
                if again := [index for index in self.acked[scene_id] if wanted[index]]:
                    raise Broken(f"{scene_id[:8]}: chunks {again} were acknowledged and are missing again")

    def step(self) -> None:
        """Something has happened: nothing that was acknowledged may be at risk."""
        seen = (self._disk.changes, self._database.changes)
        if seen != self._seen:
            self._seen = seen
            for scene_id in self.scenes:
                self._check_durable(scene_id) if scene_id in self.durable else self._check_acked(scene_id)

    def forgotten(self, scene_id: str) -> None:
        """The edge deletes its copy, now."""
        if self._content(scene_id, [self._streams[scene_id]]) != {self.scenes[scene_id].file}:
            raise Broken(f"the edge forgets {scene_id[:8]}, which the ground does not have, or not safely")

    def answered(self, database: Database, ask: Ask, found: Answer, changed: bool) -> None:
        """An edge has dealt with a request: what it says is done survives a power cut; once is enough."""
        if (before := self._answers.get((id(database), ask.ask_id))) is not None:
            if found != before or changed:
                raise Broken(f"request {ask.ask_id[:8]} is carried out twice: {before}, {found}")
            return
        if found.verdict is not Verdict.DONE:
            return
        request = unpack(ask.request)
        if isinstance(request, SetTarget):
            rows = database.surviving("SELECT value FROM settings WHERE name = 'target'")
            if not rows or str(request.value) not in rows[0][0]:
                raise Broken(f"{request} is said to be done, and a power cut would undo it: {rows}")
            return
        assert isinstance(request, Refine | SetPriority | Cancel)
        query = "SELECT state, priority, layers, first FROM scenes WHERE scene_id = ?"
        [(state, priority, layers, first)] = database.surviving(query, (request.scene_id,))
        match request:
            case _ if state == "delivered":
                fine = not isinstance(request, Cancel)
            case Cancel():
                fine = state == "dropped"
            case SetPriority():
                fine = priority == request.priority
            case Refine():
                fine = (
                    state == "queued"
                    and (layers is None or layers >= request.layers)
                    and len(first) >= len(request.first)
                )
        if not fine:
            raise Broken(f"{request} is said to be done, and a power cut would leave {(state, priority, layers)}")

    def said_answer(self, database: Database, answer: Answer) -> None:
        """An edge says this, now: it must know it for ever."""
        if answer.verdict is Verdict.UNKNOWN_SCENE:
            return
        rows = database.surviving("SELECT verdict, message FROM answered WHERE ask_id = ?", (answer.ask_id,))
        self._answers[id(database), answer.ask_id] = answer
        if rows != [(int(answer.verdict), answer.message)]:
            raise Broken(
                f"request {answer.ask_id[:8]} is answered {answer.verdict.name}, of which a power cut leaves {rows}"
            )

    def check_outbox(self, outbox: Outbox, scenes: list[Stream]) -> None:
        """After a start of the edge, and at the end: what was submitted is there, whole, or is safe on the ground."""
        states = {entry.scene_id: entry.state for entry in outbox.entries()}
        for made in scenes:
            match states.get(made.id):
                case "queued" | "kept":
                    indexes = sorted(made.sent)
                    found = [chunk.content for chunk in outbox.load(made.id, indexes)]
                    if found != [made.chunks[index] for index in indexes]:
                        raise Broken(f"the outbox has other bytes of {made.id[:8]} than it was given")
                case "delivered":
                    self.forgotten(made.id)
                case "dropped" if made.id in self.called_off:
                    pass
                case state:
                    raise Broken(f"{made.id[:8]} is {state} in the outbox, though nobody refused or damaged it")

    def check_end(self, ledger: Ledger) -> None:
        """All is delivered but what was called off, of which some may have come, or all."""
        rows = {entry.scene_id: entry.state for entry in ledger.entries()}
        whole = {scene_id for scene_id in self.scenes if scene_id not in self.called_off or rows[scene_id] == "durable"}
        for scene_id in whole:
            self.forgotten(scene_id)
        if rows != {scene_id: "durable" if scene_id in whole else "receiving" for scene_id in self.scenes}:
            raise Broken(f"the ledger has {rows}")
        names = sorted(path for path in self._disk.names)
        if names != sorted((self._streams if made in whole else self._parts)[made] for made in self.scenes):
            raise Broken(f"the archive has {[str(path) for path in names]}")

    def _check_acked(self, scene_id: str) -> None:
        if not self.acked[scene_id]:
            return
        made, starts = self.scenes[scene_id], self._starts[scene_id]
        rows = self._database.execute("SELECT first, count FROM committed WHERE scene_id = ?", (scene_id,)).fetchall()
        known = {index for first, count in rows for index in range(first, first + count)}
        settled = self._database.execute("SELECT durable_at FROM scenes WHERE scene_id = ?", (scene_id,)).fetchone()
        outcomes = self._disk.outcomes([self._streams[scene_id], self._parts[scene_id]])
        if known >= self.acked[scene_id] and all(found and {*found} == {made.file} for found in outcomes):
            return
        for index in self.acked[scene_id]:
            if index not in known and not settled[0]:
                raise Broken(f"{scene_id[:8]}: chunk {index} was acknowledged and is not in the ledger")
            start, content = starts[index], made.chunks[index]
            for found in outcomes:
                if found is None or any(part[start : start + len(content)] != content for part in found):
                    raise Broken(f"{scene_id[:8]}: chunk {index} was acknowledged and a power cut would lose it")

    def _check_durable(self, scene_id: str) -> None:
        if self._content(scene_id, [self._streams[scene_id]]) != {self.scenes[scene_id].file}:
            raise Broken(f"{scene_id[:8]} was called durable, and its stream is not safe on disk, byte for byte")

    def _content(self, scene_id: str, paths: list[Path]) -> set[bytes | None]:
        """All that may be found under the first of `paths` after a power cut."""
        found: set[bytes | None] = set()
        for outcome in self._disk.outcomes(paths):
            found |= {None} if outcome is None else {*outcome}
        return found
