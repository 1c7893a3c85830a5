"""The outbox: what was submitted and is not known to be safe on the ground. One SQLite file, `DIR/outbox.sqlite`.

When `submit` has returned, the scene is on disk, whole, and survives a power cut: WAL with `synchronous=FULL`, one
transaction for the manifest and all chunks. Its chunks go only when the ground has said that the scene is durable;
the row stays, so that a watched scene that is found again is answered from it. Several processes may use one outbox:
`submit` while `run` sends.

States: queued (to be sent), kept (as many layers as are wanted are safe on the ground, the others wait here to be asked
for), delivered (durable on the ground, chunks gone), refused (the ground does not take it; chunks are kept until an
operator decides), damaged (a stored chunk fails its checksum; submit the scene again), dropped (called off by the
ground, or kept until there was no more room; chunks gone).

Refused, with `OutboxError`: outboxes written by a later program, folders that hold none where one is expected, a full
disk, and chunks that do not match their manifest (`StreamError`). Instances belong to one thread at a time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from downlink.action import Outgoing
from downlink.frame import Answer, Ask, Chunk, Refusal, RefusalCode
from downlink.manifest import Manifest, scene_id
from downlink.ranges import Range
from downlink.request import SetTarget
from encoder_node import outbox_asked, outbox_chunks, room
from encoder_node.durable import make_folder
from encoder_node.outbox_entry import Entry, due, entries, pack_ranges
from encoder_node.outbox_file import (
    FILE,
    OutboxError,
    OutboxFull,
    guarded,
    missing,
    open_outbox,
    open_to_read,
    transaction,
)
from encoder_node.reference_outbox import ReferenceGone, References, prune, remember, retain, stream
from encoder_node.room import Reserve

__all__ = ["FILE", "Entry", "Outbox", "OutboxError", "OutboxFull"]

GONE: Final = ("delivered", "dropped")  # states without chunks


class Outbox:
    """An open outbox. `create` makes the folder and the file when they are missing. With `read_only`, entries can be
    listed without the right to write; nothing else works then. `connect` opens the database, which a test may let
    fail. `bytes_max` bounds the scenes that are not delivered yet, together. With `reserve`, some space is laid aside
    for the day when the disk is full (`encoder_node.room`)."""

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
        bytes_max: int | None = None,
        reserve: bool = False,
    ) -> None:
        path = folder / FILE
        self.folder = folder
        self._bytes_max = bytes_max
        self._fresh: set[str] = set()  # marked as offered, and not offered yet by this process
        self._reserve = Reserve(folder) if reserve else None
        with guarded(folder):
            if read_only:
                self._db = open_to_read(path)
                return
            if create:
                make_folder(folder)
            elif not path.exists():
                raise missing(folder)
        self._despite_full_disk(lambda: self._open(path, connect))

    def _open(self, path: Path, connect: Callable[[Path], sqlite3.Connection] | None) -> None:
        self._db = open_outbox(path, connect)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def submit(
        self,
        packed: bytes,
        chunks: Iterable[bytes],
        *,
        priority: int = 0,
        again: bool = False,
        layers: int | None = None,
        ahead: Sequence[Range] = (),
        anchored: bool = False,
    ) -> Entry:
        """Keep a scene: its packed manifest and all its chunks, pages first. Durable when this returns. With `layers`,
        only so many are sent; the others wait to be asked for. Chunks in `ahead` go before others, in that order
        (`downlink.layer.turns`).

        A scene that is here already stays as it is, but for its priority and its layers, which are raised to those
        given if these are higher, and for `ahead`, if it is given. With three exceptions: one that the ground refused
        is queued again, one whose chunks are damaged gets them anew, and so does a delivered or dropped one if it is to
        go `again`: the ground may have lost it since, and answers at once if it has not. Raises `OutboxFull` when there
        is no room; nothing that is to be sent is dropped for it. With `anchored`, `ReferenceGone` if the scene was
        coded against one whose stream is not here any more.
        """
        manifest = Manifest.unpack(packed)
        name = scene_id(packed)
        size = len(packed) + manifest.payload_bytes
        with guarded(self.folder), transaction(self._db):
            query = "SELECT number, state, priority FROM scenes WHERE scene_id = ?"
            row = self._db.execute(query, (name,)).fetchone()
            if row is not None and row[1] == "refused":
                self._requeue(name)
            if row is not None and row[1] != "damaged" and not (again and row[1] in GONE):
                if row[1] not in GONE:
                    query = "UPDATE scenes SET priority = max(priority, ?) WHERE number = ?"
                    self._db.execute(query, (priority, row[0]))
                    self._raise_layers(name, layers)
                    if ahead:
                        query = "UPDATE scenes SET ahead = ? WHERE number = ?"
                        self._db.execute(query, (pack_ranges(ahead), row[0]))
                return self.entry(name)
            if row is not None:
                if row[1] == "damaged":
                    priority = max(priority, row[2])
                outbox_chunks.delete(self._db, row[0])
                self._db.execute("DELETE FROM scenes WHERE number = ?", (row[0],))
            if anchored and manifest.reference and stream(self._db, manifest.reference.hex()) is None:
                raise ReferenceGone(f"scene {manifest.reference.hex()} was dropped; encode the scene again")
            self._make_room(size)
            facts = (priority, packed, size, time.time(), row is not None, layers, pack_ranges(ahead))
            number = self._db.execute(
                "INSERT INTO scenes (scene_id, name, priority, state, manifest, lengths, chunks, bytes, submitted_at,"
                " offered, layers, ahead) VALUES (?, ?, ?, 'queued', ?, x'', 0, ?, ?, ?, ?, ?)",
                (name, manifest.scene.name, *facts),
            ).lastrowid
            assert number is not None
            lengths = outbox_chunks.insert(self._db, number, manifest, chunks)
            counted = (lengths.tobytes(), int(np.count_nonzero(lengths)), number)
            self._db.execute("UPDATE scenes SET lengths = ?, chunks = ? WHERE number = ?", counted)
            remember(self._db, number, manifest)
            return self.entry(name)

    @property
    def references(self) -> References:
        """Delivered scenes that others may be coded against."""
        return References(self._db, self.folder)

    def check_room(self, size: int = 1) -> None:
        """Raise `OutboxFull` unless a scene of `size` bytes may be taken in, for which kept ones may go, and retained
        ones that nothing depends on."""
        with guarded(self.folder):
            for _ in range(2):
                if not (reason := room.lack(self._db, self.folder, self._bytes_max, size, without_kept=True)):
                    return
                prune(self._db, 0)
            raise OutboxFull(reason)

    def _make_room(self, size: int) -> None:
        self.check_room(size)
        while room.lack(self._db, self.folder, self._bytes_max, size, without_kept=False):
            query = "SELECT scene_id FROM scenes WHERE state = 'kept' ORDER BY settled_at LIMIT 1"
            [oldest] = self._db.execute(query).fetchone()
            outbox_chunks.drop(self._db, oldest, "its finer layers made room for newer scenes", time.time())

    def entry(self, name: str) -> Entry:
        """One scene."""
        with guarded(self.folder):
            found = entries(self._db, "WHERE scene_id = ?", (name,))
        if not found:
            raise OutboxError(f"{self.folder} holds no scene {name}; `encoder-node status` lists what it holds")
        return found[0]

    def entries(self) -> list[Entry]:
        """All scenes, the next to be sent first, the delivered last."""
        with guarded(self.folder):
            return entries(self._db, "ORDER BY state = 'delivered', priority DESC, number")

    def due(
        self, most: int, *, without: frozenset[str] = frozenset(), now: float | None = None, references: bool = True
    ) -> list[Outgoing]:
        """At most `most` scenes to be sent now, leaving out those in `without`: the highest priority first, then the
        lowest layer, as far as `progress` has told, then the oldest. Without `references`, none that has one."""
        moment = time.time() if now is None else now
        for name, reason in self.references.stranded():
            self.refused(name, Refusal(RefusalCode.REFERENCE, reason))
        with guarded(self.folder):
            return due(self._db, most, without, self._fresh, moment, references)

    def offering(self, scenes: Iterable[Outgoing]) -> None:
        """These are about to be offered: from now on, also after a crash, the ground may have something of them."""
        fresh = [scene for scene in scenes if scene.lacks_from == 0 and scene.scene_id not in self._fresh]
        if fresh:
            with guarded(self.folder), transaction(self._db):
                query = "UPDATE scenes SET offered = 1 WHERE number = ?"
                self._db.executemany(query, [(scene.order,) for scene in fresh])
            self._fresh.update(scene.scene_id for scene in fresh)

    def offered(self, name: str) -> None:
        """The ground may have something of it by now."""
        self._fresh.discard(name)

    def begin_contact(self) -> None:
        """What was under way when the last contact ended may be lost."""
        with guarded(self.folder):
            self._db.execute("UPDATE temp.progress SET lacks_from = NULL")

    def progress(self, scene: Outgoing, layer: int, lacks_from: int | None) -> None:
        """The scene was sent up to this layer, and this chunk. Forgotten at the end of the process."""
        with guarded(self.folder):
            row = (scene.order, layer, lacks_from)
            self._db.execute("INSERT OR REPLACE INTO temp.progress VALUES (?, ?, ?)", row)

    def waiting(self) -> tuple[int, int, int]:
        """(scenes that wait to be sent, their bytes, scenes whose finer layers wait to be asked for)."""
        query = "SELECT state = 'kept', count(*), sum(bytes) FROM scenes WHERE state IN ('queued', 'kept') GROUP BY 1"
        with guarded(self.folder):
            found = {kept: (count, size) for kept, count, size in self._db.execute(query)}
        return (*found.get(0, (0, 0)), found.get(1, (0, 0))[0])

    def totals(self) -> list[tuple[str, int, int, float]]:
        """(state, scenes, bytes of their streams, when the first of them was submitted)."""
        query = "SELECT state, count(*), sum(bytes), min(submitted_at) FROM scenes GROUP BY state"
        with guarded(self.folder):
            return self._db.execute(query).fetchall()

    def undelivered(self) -> list[Entry]:
        """Scenes that should be on the ground and are not known to be safe there."""
        return [entry for entry in self.entries() if entry.state in ("queued", "refused", "damaged")]

    def load(self, name: str, indexes: Sequence[int]) -> list[Chunk]:
        """Chunks, read back and checked. `Corrupt` when the disk has changed one."""
        with guarded(self.folder):
            return outbox_chunks.load(self._db, self._number(name), indexes, f"scene {name[:12]}… in {self.folder}")

    def delivered(self, name: str, references: bool = False) -> None:
        """The ground has the scene, durably: forget its chunks, unless others may be coded against it, and the ground
        knows `references`."""
        self._despite_full_disk(lambda: self._delivered(name, references))

    def _delivered(self, name: str, references: bool) -> None:
        with guarded(self.folder):
            with transaction(self._db):
                query = "UPDATE scenes SET state = 'delivered', reason = NULL, settled_at = ? WHERE scene_id = ?"
                self._db.execute(query, (time.time(), name))
                if not (references and retain(self._db, name)):
                    outbox_chunks.delete(self._db, self._number(name))
            if not self._db.execute("SELECT 1 FROM chunks LIMIT 1").fetchone():
                # Nothing to move: gives the disk back at once. As a script: `execute` would stop after one page.
                self._db.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")

    def kept(self, name: str) -> None:
        """The ground has, durably, what is to be sent of the scene for now."""
        with guarded(self.folder), transaction(self._db):
            query = "UPDATE scenes SET state = 'kept', reason = NULL, settled_at = ? WHERE scene_id = ?"
            self._db.execute(f"{query} AND state = 'queued'", (time.time(), name))
            self._db.execute("DELETE FROM temp.progress WHERE number = ?", (self._number(name),))

    def answer(self, ask: Ask) -> Answer:
        """Carry a request of the ground out that is about scenes, once: durable when this returns. The same request
        again gets the same answer."""

        def work() -> None:
            with guarded(self.folder), transaction(self._db):
                found.append(outbox_asked.answer(self._db, ask))

        found: list[Answer] = []
        self._despite_full_disk(work)
        return found[-1]

    def answered(self, ask_id: str) -> Answer | None:
        """What became of a request, if it was heard before."""
        with guarded(self.folder):
            return outbox_asked.answered(self._db, ask_id)

    def record(self, answer: Answer) -> None:
        """What has become of a request that is carried out elsewhere: durable when this returns."""

        def work() -> None:
            with guarded(self.folder), transaction(self._db):
                outbox_asked.record(self._db, answer)

        self._despite_full_disk(work)

    def target(self) -> SetTarget:
        """How the ground asks scenes to be encoded and sent."""
        with guarded(self.folder):
            return outbox_asked.target(self._db)

    def refused(self, name: str, refusal: Refusal, now: float | None = None) -> None:
        """The ground does not take the scene: for now, if it named a time to come back, else until `resend`."""
        moment = time.time() if now is None else now
        reason = f"{refusal.code.name.lower()}: {refusal.message}"
        with guarded(self.folder), transaction(self._db):
            later = refusal.retry_after_s > 0
            not_before, settled_at = (moment + refusal.retry_after_s, None) if later else (0.0, moment)
            row = ("queued" if later else "refused", reason, not_before, settled_at, name)
            query = "UPDATE scenes SET state = ?, reason = ?, not_before = ?, settled_at = ? WHERE scene_id = ?"
            self._db.execute(f"{query} AND state = 'queued'", row)

    def damaged(self, name: str, reason: str) -> None:
        """A stored chunk cannot be used: do not try to send the scene again."""
        with guarded(self.folder), transaction(self._db):
            query = "UPDATE scenes SET state = 'damaged', reason = ?, settled_at = ? WHERE scene_id = ?"
            self._db.execute(query, (reason, time.time(), name))

    def resend(self, names: Sequence[str]) -> list[Entry]:
        """Queue refused scenes again, now: those whose ids begin with one of `names`, or all of them when none is
        given."""
        chosen = []
        for name in names:
            found = [entry for entry in self.entries() if entry.scene_id.startswith(name.lower())]
            if len(found) != 1:
                raise OutboxError(
                    f"{len(found)} scenes have an id that begins with {name!r}; see `encoder-node status`"
                )
            if found[0].state in (*GONE, "damaged", "kept"):
                raise OutboxError(f"scene {found[0].scene_id} is {found[0].state}: submit the scene itself again")
            chosen += found
        if not names:
            waiting = (entry for entry in self.entries() if entry.state in ("queued", "refused"))
            chosen = [entry for entry in waiting if entry.reason]
        with guarded(self.folder), transaction(self._db):
            for entry in chosen:
                self._requeue(entry.scene_id)
        return [self.entry(entry.scene_id) for entry in chosen]

    def next_due_at(self) -> float | None:
        """When the next queued scene may be sent (wall clock), or None if none is queued."""
        with guarded(self.folder):
            found = self._db.execute("SELECT min(not_before) FROM scenes WHERE state = 'queued'").fetchone()[0]
        return None if found is None else float(found)

    def seen(self, path: str) -> tuple[str, str | None] | None:
        """(signature, reason of failure or None) of a watched file that was taken before."""
        with guarded(self.folder):
            row = self._db.execute("SELECT signature, reason FROM watched WHERE path = ?", (path,)).fetchone()
        return None if row is None else (row[0], row[1])

    def note(self, path: str, signature: str, reason: str | None) -> None:
        """Remember that a watched file, in this state, was submitted, or why it could not be."""
        with guarded(self.folder), transaction(self._db):
            self._db.execute(
                "INSERT INTO watched (path, signature, reason) VALUES (?, ?, ?)"
                " ON CONFLICT (path) DO UPDATE SET signature = excluded.signature, reason = excluded.reason",
                (path, signature, reason),
            )

    def _number(self, name: str) -> int:
        row = self._db.execute("SELECT number FROM scenes WHERE scene_id = ?", (name,)).fetchone()
        if row is None:
            raise OutboxError(f"{self.folder} holds no scene {name}; `encoder-node status` lists what it holds")
        return int(row[0])

    def _raise_layers(self, name: str, layers: int | None) -> None:
        """Send so many layers at least; None: all."""
        query = (
            "UPDATE scenes SET layers = ?1, state = CASE state WHEN 'kept' THEN 'queued' ELSE state END"
            " WHERE scene_id = ?2 AND layers IS NOT NULL AND (?1 IS NULL OR ?1 > layers)"
        )
        self._db.execute(query, (layers, name))

    def _requeue(self, name: str) -> None:
        query = (
            "UPDATE scenes SET state = 'queued', reason = NULL, not_before = 0, settled_at = NULL WHERE scene_id = ?"
        )
        self._db.execute(query, (name,))

    def _despite_full_disk(self, work: Callable[[], None]) -> None:
        """Do what must not fail for want of space: when it does, the reserve is given up for it."""
        try:
            work()
        except OutboxError as error:
            if self._reserve is None or not room.disk_full(error.__cause__) or not self._reserve.give():
                raise
            work()
        if self._reserve is not None:
            self._reserve.take()
