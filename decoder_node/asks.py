"""What the ground asks of its nodes: requests in the ledger, from when an operator makes one until a node has answered.

    ARCHIVE/ledger.sqlite       one row per request, kept for ever (table `asks`)
    ARCHIVE/asks/<ask id>       the bundle that an installation waits to send: its files, one after the other

A request waits for the node that it is for, however long that is away, and is said to no other one: requests about a
scene are for the node that the scene belongs to. Rows are written by `decoder-node ask`, answered by `decoder-node
serve`; a bundle is copied here, synced, before its row is written, and goes when the row is answered.

Refused: requests about scenes that are not here (`LedgerError`), and that no node takes (`LinkError`). An answer counts
only from the node that was asked.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from decoder_node.durable import make_folder, write_whole
from decoder_node.ledger import Ledger
from decoder_node.ledger_file import LedgerError
from downlink.action import Waiting
from downlink.frame import Answer, Ask, Verdict
from downlink.request import Cancel, Install, Refine, Request, Rollback, SetPriority, SetTarget, pack, scene_of, unpack

FOLDER: Final = "asks"
COLUMNS: Final = "ask_id, node, scene_id, what, state, message, asked_at, answered_at"


@dataclass(frozen=True, slots=True)
class Entry:
    """One request, as `ask list` shows it."""

    ask_id: str
    node: str  # empty without TLS
    scene_id: str | None
    what: str
    state: str  # waiting, done, refused
    message: str | None
    asked_at: float
    answered_at: float | None

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: getattr(self, name) for name in self.__slots__}


class Asks:
    """The requests of an archive, on an open ledger, and in its thread."""

    def __init__(self, archive: Path, ledger: Ledger) -> None:
        self._ledger = ledger
        self._folder = archive / FOLDER

    def add(self, request: Request, node: str = "", content: Sequence[bytes] = ()) -> Entry:
        """Ask for this: durable when it returns. About a scene, the node is the scene's own. `content` are the files of
        the bundle that is to be installed."""
        scene_id, packed = scene_of(request), pack(request)
        unpack(packed)  # what the node would refuse
        if scene_id is not None:
            entry = self._ledger.find(scene_id)
            if entry is None:
                raise LedgerError(f"the archive holds no scene {scene_id}; see `decoder-node list`")
            node = entry.node
        ask_id = uuid.uuid4().hex
        if isinstance(request, Install):
            make_folder(self._folder)
            write_whole(self._folder / ask_id, b"".join(content))
        size = request.size if isinstance(request, Install) else 0
        values = (ask_id, node, scene_id, described(request), packed, size, time.time())
        with self._ledger.writing() as db:
            query = "INSERT INTO asks (ask_id, node, scene_id, what, request, bundle_bytes, asked_at, state)"
            db.execute(f"{query} VALUES (?, ?, ?, ?, ?, ?, ?, 'waiting')", values)
        [added] = self._entries("WHERE ask_id = ?", (ask_id,))
        return added

    def waiting(self, node: str, without: frozenset[str]) -> list[Waiting]:
        """The oldest request for this node that is no installation, and the oldest installation, leaving these out."""
        marks = ",".join("?" * len(without))
        query = (
            "SELECT ask_id, request, bundle_bytes FROM asks WHERE state = 'waiting' AND node = ?"
            f" AND (bundle_bytes > 0) = ? AND ask_id NOT IN ({marks}) ORDER BY number LIMIT 1"
        )
        with self._ledger.reading() as db:
            rows = [db.execute(query, (node, bulk, *without)).fetchone() for bulk in (0, 1)]
        return [Waiting(Ask(row[0], row[1]), row[2]) for row in rows if row]

    def answered(self, node: str, answer: Answer) -> Entry | None:
        """The node has answered: durable when this returns. None if it was not asked.

        That it has no such scene is the last word of a node with a name; of one without, another may have it.
        """
        if answer.verdict is Verdict.UNKNOWN_SCENE and not node:
            return None
        state = "done" if answer.verdict is Verdict.DONE else "refused"
        values = (state, answer.message, time.time(), answer.ask_id, node)
        with self._ledger.writing() as db:
            query = "UPDATE asks SET state = ?, message = ?, answered_at = ?"
            changed = db.execute(f"{query} WHERE ask_id = ? AND node = ? AND state = 'waiting'", values).rowcount
            if not changed:
                return None
            row = db.execute("SELECT request FROM asks WHERE ask_id = ?", (answer.ask_id,)).fetchone()
            request = unpack(row[0])
            if isinstance(request, Cancel) and state == "done":
                query = "UPDATE scenes SET reason = 'called off' WHERE scene_id = ? AND durable_at IS NULL"
                db.execute(query, (request.scene_id,))
            if isinstance(request, SetPriority) and state == "done":  # for decoding as well
                query = "UPDATE scenes SET priority = ? WHERE scene_id = ?"
                db.execute(query, (request.priority, request.scene_id))
        if isinstance(request, Install):
            (self._folder / answer.ask_id).unlink(missing_ok=True)
        [found] = self._entries("WHERE ask_id = ?", (answer.ask_id,))
        return found

    def withdraw(self, ask_id: str, reason: str = "withdrawn") -> Entry:
        """Ask for it no longer. A node that has heard it already may carry it out all the same. The id may be shortened
        to its first digits."""
        found = [entry for entry in self.entries() if entry.ask_id.startswith(ask_id.lower())]
        if len(found) != 1:
            which = f"{len(found)} requests have an id that begins with {ask_id!r}"
            raise LedgerError(f"{which}; see `decoder-node ask list`")
        with self._ledger.writing() as db:
            query = "UPDATE asks SET state = 'refused', message = ?, answered_at = ?"
            db.execute(f"{query} WHERE ask_id = ? AND state = 'waiting'", (reason, time.time(), found[0].ask_id))
        (self._folder / found[0].ask_id).unlink(missing_ok=True)
        [after] = self._entries("WHERE ask_id = ?", (found[0].ask_id,))
        return after

    def part(self, ask_id: str, offset: int, length: int) -> bytes | None:
        """A part of the bundle that an installation waits to send; None if it is not asked for any more, or cannot be
        read, which ends the request."""
        try:
            with (self._folder / f"{int(ask_id, 16):032x}").open("rb") as file:
                file.seek(offset)
                content = file.read(length)
        except OSError:
            content = b""
        if len(content) == length:
            return content
        self.withdraw(ask_id, "its bundle cannot be read on the ground any more; ask again")
        return None

    def recover(self) -> None:
        """After a start: bundles that no request waits to send go."""
        if not self._folder.is_dir():
            return
        wanted = {entry.ask_id for entry in self._entries("WHERE state = 'waiting'", ())}
        for path in self._folder.iterdir():
            if path.name not in wanted and time.time() - path.stat().st_mtime > 3600:  # else it is being asked for
                path.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All requests, oldest first."""
        return self._entries("ORDER BY number", ())

    def _entries(self, where: str, values: Sequence[object]) -> list[Entry]:
        with self._ledger.reading() as db:
            return [Entry(*row) for row in db.execute(f"SELECT {COLUMNS} FROM asks {where}", values)]


def described(request: Request) -> str:
    """A request in a few words."""
    match request:
        case Refine(_, layers, first):
            chunks = sum(item.count for item in first)
            return "refine: " + (f"{chunks} chunks of a region" if first else f"{layers} layers")
        case SetPriority(_, priority):
            return f"priority {priority}"
        case Cancel():
            return "cancel"
        case SetTarget(target, value, layers):
            how = f"{target} {value:g}" if target else "as the operator wants"
            return f"target: {how}" + (f", {layers} layers" if layers else "")
        case Install(bundle_id, _, signature):
            return f"install bundle {bundle_id[:12]}" + (", signed" if signature else "")
        case Rollback():
            return "roll back to the bundle of before"
