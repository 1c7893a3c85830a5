"""The outbox: what was submitted and is not known to be safe on the ground. One SQLite file, `DIR/outbox.sqlite`.

When `submit` has returned, the scene is on disk, whole, and survives a power cut: WAL with `synchronous=FULL`, one
transaction for the manifest and all chunks. Its chunks go only when the ground has said that the scene is durable;
the row stays, so that a watched scene that is found again is answered from it. Several processes may use one outbox:
`submit` while `run` sends.

States: queued (to be sent), delivered (durable on the ground, chunks gone), refused (the ground does not take it;
chunks are kept until an operator decides), damaged (a stored chunk fails its checksum; submit the scene again).

Refused, with `OutboxError`: outboxes written by a later program, folders that hold none where one is expected, a full
disk, and chunks that do not match their manifest (`StreamError`). Instances belong to one thread at a time.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from downlink import limits
from downlink.action import Outgoing
from downlink.checksum import crc32c
from downlink.chunk import check_chunk
from downlink.errors import Corrupt, DownlinkError
from downlink.frame import Chunk, Refusal
from downlink.manifest import Manifest, scene_id
from encoder_node import room
from encoder_node.durable import sync_folder
from encoder_node.room import Reserve

FILE: Final = "outbox.sqlite"
VERSION: Final = 1
BUSY_S: Final = 60.0  # another process may be committing a large scene

# A chunk's id is its scene's number * CHUNKS_MAX + its index: one B-tree in the order in which chunks are sent.
SCHEMA: Final = """
CREATE TABLE scenes (
  number       INTEGER PRIMARY KEY AUTOINCREMENT,
  scene_id     TEXT NOT NULL UNIQUE,
  name         TEXT NOT NULL,
  priority     INTEGER NOT NULL,
  state        TEXT NOT NULL CHECK (state IN ('queued', 'delivered', 'refused', 'damaged')),
  reason       TEXT,
  not_before   REAL NOT NULL DEFAULT 0,
  manifest     BLOB NOT NULL,
  lengths      BLOB NOT NULL,
  chunks       INTEGER NOT NULL,
  bytes        INTEGER NOT NULL,
  submitted_at REAL NOT NULL,
  settled_at   REAL
);
CREATE INDEX by_urgency ON scenes (state, priority DESC, number);
CREATE TABLE chunks (id INTEGER PRIMARY KEY, crc32c INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE watched (path TEXT PRIMARY KEY, signature TEXT NOT NULL, scene_id TEXT, reason TEXT);
"""


class OutboxError(DownlinkError):
    """The outbox cannot do what is asked."""

    code = "outbox"


class OutboxFull(OutboxError):
    """There is no room for another scene. Later there may be."""

    code = "outbox_full"


@dataclass(frozen=True, slots=True)
class Entry:
    """One scene, as `status` shows it."""

    scene_id: str
    name: str
    state: str
    priority: int
    chunks: int
    bytes: int
    submitted_at: float
    settled_at: float | None
    reason: str | None


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
        self._reserve = Reserve(folder) if reserve else None
        with _guarded(folder):
            if read_only:
                self._db = _open_to_read(path)
                return
            if create and not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)
            elif not create and not path.exists():
                raise _missing(folder)
        self._despite_full_disk(lambda: self._open(path, connect or _connect))

    def _open(self, path: Path, connect: Callable[[Path], sqlite3.Connection]) -> None:
        with _guarded(self.folder):
            self._db = connect(path)
            version = _version(self._db, path)
            if version == 0:
                self._db.execute("PRAGMA page_size = 16384")  # fewer, longer overflow pages for chunks
                self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # NORMAL may lose a commit in a power cut
            # A log longer than this is copied into the file and cut: on a full disk there is nothing but the reserve to
            # log a deletion in.
            self._db.execute(f"PRAGMA journal_size_limit = {limits.MIB}")
            self._db.execute(f"PRAGMA wal_autocheckpoint = {limits.MIB // 16384}")
            with self._transaction():
                if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    for statement in SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def submit(self, packed: bytes, chunks: Iterable[bytes], *, priority: int = 0, again: bool = False) -> Entry:
        """Keep a scene: its packed manifest and all its chunks, pages first. Durable when this returns.

        A scene that is here already stays as it is, but for its priority, which is raised to `priority` if that is
        higher. With three exceptions: one that the ground refused is queued again, one whose chunks are damaged gets
        them anew, and so does a delivered one if it is to go `again`: the ground may have lost it since, and answers
        at once if it has not. Raises `OutboxFull` when there is no room; nothing else is dropped for it.
        """
        manifest = Manifest.unpack(packed)
        name = scene_id(packed)
        size = len(packed) + manifest.payload_bytes
        with _guarded(self.folder), self._transaction():
            query = "SELECT number, state, priority FROM scenes WHERE scene_id = ?"
            row = self._db.execute(query, (name,)).fetchone()
            if row is not None and row[1] == "refused":
                self._requeue(name)
            if row is not None and row[1] != "damaged" and not (again and row[1] == "delivered"):
                if row[1] != "delivered":
                    query = "UPDATE scenes SET priority = max(priority, ?) WHERE number = ?"
                    self._db.execute(query, (priority, row[0]))
                return self.entry(name)
            if row is not None:
                if row[1] == "damaged":
                    priority = max(priority, row[2])
                self._delete_chunks(row[0])
                self._db.execute("DELETE FROM scenes WHERE number = ?", (row[0],))
            self.check_room(size)
            number = self._db.execute(
                "INSERT INTO scenes (scene_id, name, priority, state, manifest, lengths, chunks, bytes, submitted_at)"
                " VALUES (?, ?, ?, 'queued', ?, x'', 0, ?, ?)",
                (name, manifest.scene.name, priority, packed, size, time.time()),
            ).lastrowid
            assert number is not None
            lengths = self._insert(number, manifest, chunks)
            facts = (lengths.tobytes(), int(np.count_nonzero(lengths)), number)
            self._db.execute("UPDATE scenes SET lengths = ?, chunks = ? WHERE number = ?", facts)
            return self.entry(name)

    def check_room(self, size: int = 1) -> None:
        """Raise `OutboxFull` unless a scene of `size` bytes may be taken in."""
        if self._bytes_max is not None:
            with _guarded(self.folder):
                query = "SELECT coalesce(sum(bytes), 0), count(*) FROM scenes WHERE state != 'delivered'"
                held, scenes = self._db.execute(query).fetchone()
            if held + size > self._bytes_max:
                raise OutboxFull(
                    f"the outbox {self.folder} holds {held} bytes of {scenes} scenes, {size} more would pass its bound "
                    f"of {self._bytes_max}; wait until some are delivered, or raise --outbox-mb"
                )
        free = room.free_bytes(self.folder)
        if free < 2 * size + room.RESERVE_BYTES:
            raise OutboxFull(
                f"the disk of the outbox {self.folder} is full: {free} bytes are free, a scene of {size} bytes needs "
                f"{2 * size + room.RESERVE_BYTES}; free some space and try again"
            )

    def _insert(self, number: int, manifest: Manifest, chunks: Iterable[bytes]) -> NDArray[np.uint32]:
        """Check and store all chunks; their lengths."""
        lengths = np.zeros(manifest.chunk_count, "<u4")
        digest = hashlib.sha256()
        pages: list[bytes] = []
        listed = None
        index = -1
        for index, content in enumerate(chunks):
            if index < len(manifest.pages):
                length, crc = manifest.pages[index]
                pages.append(content)
            else:
                listed = listed or manifest.chunk_list(pages)
                length, crc = listed.length(index), int(listed.crcs[index - len(pages)])
            check_chunk(index, content, length, crc)
            digest.update(content)
            lengths[index] = length
            if content:
                row = (number * limits.CHUNKS_MAX + index, crc, content)
                self._db.execute("INSERT INTO chunks (id, crc32c, content) VALUES (?, ?, ?)", row)
        if index + 1 != manifest.chunk_count or digest.digest() != manifest.payload_sha256:
            raise Corrupt(
                f"{index + 1} chunks with sha256 {digest.hexdigest()[:12]}… given, the manifest states "
                f"{manifest.chunk_count} with {manifest.payload_sha256.hex()[:12]}…; encode the scene again"
            )
        return lengths

    def entry(self, name: str) -> Entry:
        """One scene."""
        found = self._entries("WHERE scene_id = ?", (name,))
        if not found:
            raise OutboxError(f"{self.folder} holds no scene {name}; `encoder-node status` lists what it holds")
        return found[0]

    def entries(self) -> list[Entry]:
        """All scenes, the next to be sent first, the delivered last."""
        return self._entries("ORDER BY state = 'delivered', priority DESC, number", ())

    def _entries(self, where: str, values: Sequence[object]) -> list[Entry]:
        columns = "scene_id, name, state, priority, chunks, bytes, submitted_at, settled_at, reason"
        with _guarded(self.folder):
            rows = self._db.execute(f"SELECT {columns} FROM scenes {where}", values).fetchall()
        return [Entry(*row) for row in rows]

    def due(self, most: int, *, without: frozenset[str] = frozenset(), now: float | None = None) -> list[Outgoing]:
        """At most `most` scenes to be sent now, the most urgent first, leaving out those in `without`."""
        moment = time.time() if now is None else now
        query = (
            "SELECT scene_id, manifest, lengths, priority, number FROM scenes"
            " WHERE state = 'queued' AND not_before <= ? ORDER BY priority DESC, number LIMIT ?"
        )
        with _guarded(self.folder):
            rows = self._db.execute(query, (moment, most + len(without))).fetchall()
        scenes = [Outgoing(row[0], row[1], np.frombuffer(row[2], "<u4"), row[3], row[4]) for row in rows]
        return [scene for scene in scenes if scene.scene_id not in without][:most]

    def undelivered(self) -> list[Entry]:
        """Scenes that are not known to be safe on the ground."""
        return [entry for entry in self.entries() if entry.state != "delivered"]

    def load(self, name: str, indexes: Sequence[int]) -> list[Chunk]:
        """Chunks, read back and checked. `Corrupt` when the disk has changed one."""
        with _guarded(self.folder):
            number = self._number(name)
            chunks = []
            for index in indexes:
                key = number * limits.CHUNKS_MAX + index
                row = self._db.execute("SELECT crc32c, content FROM chunks WHERE id = ?", (key,)).fetchone()
                if row is None or crc32c(row[1]) != row[0]:
                    what = "is gone" if row is None else "does not match its checksum any more"
                    raise Corrupt(
                        f"chunk {index} of scene {name[:12]}… in {self.folder} {what}; submit the scene again"
                    )
                chunks.append(Chunk(index, row[0], row[1]))
            return chunks

    def delivered(self, name: str) -> None:
        """The ground has the scene, durably: forget its chunks."""
        self._despite_full_disk(lambda: self._delivered(name))

    def _delivered(self, name: str) -> None:
        with _guarded(self.folder):
            with self._transaction():
                query = "UPDATE scenes SET state = 'delivered', reason = NULL, settled_at = ? WHERE scene_id = ?"
                self._db.execute(query, (time.time(), name))
                self._delete_chunks(self._number(name))
            if not self._db.execute("SELECT 1 FROM chunks LIMIT 1").fetchone():
                # Nothing to move: gives the disk back at once. As a script: `execute` would stop after one page.
                self._db.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")

    def refused(self, name: str, refusal: Refusal, now: float | None = None) -> None:
        """The ground does not take the scene: for now, if it named a time to come back, else until `resend`."""
        moment = time.time() if now is None else now
        reason = f"{refusal.code.name.lower()}: {refusal.message}"
        with _guarded(self.folder), self._transaction():
            later = refusal.retry_after_s > 0
            not_before, settled_at = (moment + refusal.retry_after_s, None) if later else (0.0, moment)
            row = ("queued" if later else "refused", reason, not_before, settled_at, name)
            query = "UPDATE scenes SET state = ?, reason = ?, not_before = ?, settled_at = ? WHERE scene_id = ?"
            self._db.execute(f"{query} AND state = 'queued'", row)

    def damaged(self, name: str, reason: str) -> None:
        """A stored chunk cannot be used: do not try to send the scene again."""
        with _guarded(self.folder), self._transaction():
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
            if found[0].state in ("delivered", "damaged"):
                raise OutboxError(f"scene {found[0].scene_id} is {found[0].state}: submit the scene itself again")
            chosen += found
        if not names:
            waiting = (entry for entry in self.entries() if entry.state in ("queued", "refused"))
            chosen = [entry for entry in waiting if entry.reason]
        with _guarded(self.folder), self._transaction():
            for entry in chosen:
                self._requeue(entry.scene_id)
        return [self.entry(entry.scene_id) for entry in chosen]

    def next_due_at(self) -> float | None:
        """When the next queued scene may be sent (wall clock), or None if none is queued."""
        with _guarded(self.folder):
            found = self._db.execute("SELECT min(not_before) FROM scenes WHERE state = 'queued'").fetchone()[0]
        return None if found is None else float(found)

    def seen(self, path: str) -> tuple[str, str | None] | None:
        """(signature, reason of failure or None) of a watched file that was taken before."""
        with _guarded(self.folder):
            row = self._db.execute("SELECT signature, reason FROM watched WHERE path = ?", (path,)).fetchone()
        return None if row is None else (row[0], row[1])

    def note(self, path: str, signature: str, reason: str | None) -> None:
        """Remember that a watched file, in this state, was submitted, or why it could not be."""
        with _guarded(self.folder), self._transaction():
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

    def _delete_chunks(self, number: int) -> None:
        first = number * limits.CHUNKS_MAX
        self._db.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (first, first + limits.CHUNKS_MAX - 1))

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

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled back by itself
                self._db.execute("ROLLBACK")
            raise


def _connect(path: Path) -> sqlite3.Connection:
    # Threads: the sender keeps to one worker thread of its own.
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _missing(folder: Path) -> OutboxError:
    return OutboxError(f"{folder} holds no outbox ({FILE} is missing); `encoder-node submit` makes one")


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The version of an outbox, 0 for one that is being made; refuses those of a later program."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version not in (0, VERSION):
        raise OutboxError(f"{path} is of version {version}, this program knows {VERSION}; update this program")
    return version


def _open_to_read(path: Path) -> sqlite3.Connection:
    """An outbox, without the right to write it, and without waiting for anybody."""
    if not path.exists():
        raise _missing(path.parent)
    modes = ["mode=ro"]
    if not path.with_name(path.name + "-wal").exists():  # nobody has it open, so it does not change; SQLite wants
        modes.append("mode=ro&immutable=1")  # to make that file even so, which a folder of others does not allow
    for mode in modes:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", timeout=BUSY_S, isolation_level=None, uri=True)
        try:
            if _version(db, path) == 0:
                raise _missing(path.parent)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.OperationalError) and mode != modes[-1]:
                continue
            raise
        return db
    raise AssertionError


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """SQLite's and the file system's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            reason = f"the disk of the outbox {folder} is full ({error})"
            raise OutboxFull(f"{reason}; free some space and try again") from error
        advice = "see whether another program uses it"
        raise OutboxError(f"the outbox {folder} does not work ({error}); {advice}") from error
    except OSError as error:
        raise OutboxError(f"the outbox {folder} cannot be made ({error.strerror})") from error
