"""The ledger: what the ground has of each scene. One SQLite file, `ARCHIVE/ledger.sqlite`, WAL with `synchronous=FULL`.

It is the truth: decoding is a task per row, a restart needs nothing else, and a row is never deleted, so that a late
duplicate of a finished scene is answered from it (its tombstone). Chunk bytes are not in it but in
`decoder_node.inbox`'s files, which are synced before a row here says so.

States: receiving -> durable -> decoded; quarantined when a scene cannot be used (before it is durable: its bytes do
not fit its manifest; after: decoding it has failed `FAILURES_MAX` times, the stream is kept). `partial` is for scenes
decoded before they are complete.

Refused, with `LedgerError`: ledgers written by a later program, and a missing one where one is expected. Instances
belong to one thread at a time.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from downlink.errors import DownlinkError
from downlink.manifest import Manifest
from downlink.ranges import Range

FILE: Final = "ledger.sqlite"
VERSION: Final = 2  # 1 had no `node` and no `asks`
FAILURES_MAX: Final = 3  # a scene that fails so often, crashes included, is left alone ...
# ... and so is one during which the node itself died so often. Far more, because it may well not be the cause.
INTERRUPTIONS_MAX: Final = 100
KEPT: Final = ("durable", "decoded", "partial")

SCHEMA: Final = """
CREATE TABLE scenes (
  scene_id      TEXT PRIMARY KEY,
  name          TEXT NOT NULL,
  state         TEXT NOT NULL CHECK (state IN ('receiving', 'durable', 'decoded', 'partial', 'quarantined')),
  reason        TEXT,
  priority      INTEGER NOT NULL,
  manifest      BLOB NOT NULL,
  chunks        INTEGER NOT NULL,
  bytes         INTEGER NOT NULL,
  offered_at    REAL NOT NULL,
  durable_at    REAL,
  decoded_at    REAL,
  failures      INTEGER NOT NULL DEFAULT 0,
  interruptions INTEGER NOT NULL DEFAULT 0,
  decoding      INTEGER NOT NULL DEFAULT 0,
  result        TEXT,
  node          TEXT NOT NULL DEFAULT ''
);
CREATE TABLE committed (
  scene_id TEXT NOT NULL REFERENCES scenes, first INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (scene_id, first, count)
) WITHOUT ROWID;
"""
ASKS: Final = """
CREATE TABLE asks (
  number      INTEGER PRIMARY KEY AUTOINCREMENT,
  ask_id      TEXT NOT NULL UNIQUE,
  node        TEXT NOT NULL,
  scene_id    TEXT,
  what        TEXT NOT NULL,
  request     BLOB NOT NULL,
  state       TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'refused')),
  message     TEXT,
  asked_at    REAL NOT NULL,
  answered_at REAL
)
"""
# What brings a ledger of an earlier version up to the next one.
MIGRATIONS: Final = {1: ("ALTER TABLE scenes ADD COLUMN node TEXT NOT NULL DEFAULT ''", ASKS)}


class LedgerError(DownlinkError):
    """The ledger cannot do what is asked."""

    code = "ledger"


@dataclass(frozen=True, slots=True)
class Entry:
    """One scene, as `list` shows it."""

    scene_id: str
    name: str
    state: str
    reason: str | None
    priority: int
    chunks: int  # with empty ones, which never travel
    chunks_committed: int
    bytes: int  # of the stream as a file
    offered_at: float
    durable_at: float | None
    decoded_at: float | None
    failures: int
    node: str  # who offered it first, by its certificate; empty without TLS
    result: dict[str, Any]  # of decoding: "assets", "item", "seconds", ... with paths relative to the archive

    def row(self, archive: Path) -> dict[str, Any]:
        """As JSON has it. `path` is the first thing to open: the GeoTIFF, else the stream, else nothing."""
        assets = [str(archive / asset) for asset in self.result.get("assets", ())]
        stream = str(archive / "streams" / f"{self.scene_id}.dl") if self.durable_at is not None else None
        return {
            "scene_id": self.scene_id,
            "name": self.name,
            "state": self.state,
            "path": assets[0] if assets else stream,
            "paths": assets,
            "stream": stream,
            "item": str(archive / self.result["item"]) if "item" in self.result else None,
            "reason": self.reason,
            "priority": self.priority,
            "chunks": self.chunks,
            "chunks_committed": self.chunks_committed,
            "bytes": self.bytes,
            "offered_at": self.offered_at,
            "durable_at": self.durable_at,
            "decoded_at": self.decoded_at,
            "failures": self.failures,
            "node": self.node,
            "facts": {key: value for key, value in self.result.items() if key not in ("assets", "item")},
        }


class Ledger:
    """An open ledger. `create` makes it when it is missing; `read_only` may look on while a node serves. `connect`
    opens the database, which a test may let fail."""

    def __init__(
        self,
        archive: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        self._path = archive / FILE
        if not create and not self._path.exists():
            raise LedgerError(f"{archive} is no archive ({FILE} is missing); `decoder-node serve --archive` makes one")
        if read_only:
            self._open_to_read()
        elif connect is not None:
            self._db = connect(self._path)
        else:
            self._connect("mode=rwc")
        with self._guarded():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise LedgerError(
                    f"{self._path} is of version {version}, this program knows {VERSION}; update this program"
                )
            if read_only:
                if 0 < version < VERSION:
                    advice = "`decoder-node serve` brings it up to date"
                    raise LedgerError(f"{self._path} is of version {version}, this program reads {VERSION}; {advice}")
                return
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # NORMAL may lose a commit in a power cut
            with self._transaction():
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in [*SCHEMA.split(";"), ASKS]:
                        self._db.execute(statement)
                elif version < VERSION:
                    for step in range(version, VERSION):
                        for statement in MIGRATIONS[step]:
                            self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _connect(self, how: str) -> None:
        # Threads: the receiver keeps to one worker thread of its own.
        with self._guarded():
            self._db = sqlite3.connect(
                f"{self._path.resolve().as_uri()}?{how}",
                uri=True,
                timeout=60,
                isolation_level=None,
                check_same_thread=False,
            )

    def _open_to_read(self) -> None:
        """Open without the right to write: even a reader of a WAL needs a -shm file, which a running node has made.

        Where nobody writes and we may not make one, the file is all there is and can be read as it lies.
        """
        try:
            self._connect("mode=ro")
            self._db.execute("PRAGMA user_version").fetchone()
        except (sqlite3.OperationalError, LedgerError) as error:
            wal = self._path.resolve().with_name(f"{self._path.resolve().name}-wal")
            if not os.access(self._path, os.R_OK):
                raise LedgerError(f"the ledger {self._path} may not be read by this user; ask its owner") from error
            if os.access(self._path.resolve().parent, os.W_OK):
                return  # something else is wrong; the first query says what
            if wal.exists():
                raise LedgerError(
                    f"the ledger {self._path} cannot be read by this user: its last changes are in {wal.name}, which "
                    "only its owner can take in; run `decoder-node list` as the user of `decoder-node serve`"
                ) from error
            self._connect("mode=ro&immutable=1")

    def close(self) -> None:
        self._db.close()

    # --- receiving ---

    def begin(self, scene_id: str, manifest: Manifest, packed: bytes, priority: int, size: int, node: str = "") -> None:
        """A scene is offered for the first time, or again after it was quarantined on its way in. It belongs to the
        node that has offered it first, for ever."""
        values = (scene_id, manifest.scene.name, priority, packed, manifest.chunk_count, size, time.time(), node)
        with self._guarded(), self._transaction():
            self._db.execute(
                "INSERT INTO scenes (scene_id, name, state, priority, manifest, chunks, bytes, offered_at, node)"
                " VALUES (?, ?, 'receiving', ?, ?, ?, ?, ?, ?) ON CONFLICT (scene_id) DO UPDATE SET"
                " state = 'receiving', reason = NULL, priority = excluded.priority WHERE durable_at IS NULL",
                values,
            )

    def commit(self, ranges: Iterable[tuple[str, Range]]) -> None:
        """These chunks are on disk, synced. Durable when this returns."""
        rows = [(scene_id, item.first, item.count) for scene_id, item in ranges]
        with self._guarded(), self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO committed VALUES (?, ?, ?)", rows)

    def committed(self, scene_id: str) -> list[Range]:
        """What `commit` was told, in ascending order; ranges may overlap."""
        query = "SELECT first, count FROM committed WHERE scene_id = ? ORDER BY first"
        with self._guarded():
            return [Range(*row) for row in self._db.execute(query, (scene_id,))]

    def correct(self, scene_id: str, ranges: Iterable[Range]) -> None:
        """Only these chunks are good: the disk has lost others that were committed."""
        with self._guarded(), self._transaction():
            self._db.execute("DELETE FROM committed WHERE scene_id = ?", (scene_id,))
            rows = [(scene_id, item.first, item.count) for item in ranges]
            self._db.executemany("INSERT INTO committed VALUES (?, ?, ?)", rows)

    def durable(self, scene_id: str) -> None:
        """The stream is whole, verified, synced and at its final place."""
        with self._guarded(), self._transaction():
            query = "UPDATE scenes SET state = 'durable', reason = NULL, durable_at = ? WHERE scene_id = ?"
            self._db.execute(f"{query} AND state = 'receiving'", (time.time(), scene_id))
            self._db.execute("DELETE FROM committed WHERE scene_id = ?", (scene_id,))

    def settled(self, scene_id: str) -> bool:
        """Is the scene durable, or was it ever?"""
        with self._guarded():
            query = "SELECT durable_at IS NOT NULL FROM scenes WHERE scene_id = ?"
            row = self._db.execute(query, (scene_id,)).fetchone()
        return row is not None and bool(row[0])

    def quarantine(self, scene_id: str, reason: str) -> None:
        """The scene cannot be used."""
        with self._guarded(), self._transaction():
            self._db.execute(
                "UPDATE scenes SET state = 'quarantined', reason = ? WHERE scene_id = ?", (reason, scene_id)
            )
            self._db.execute("DELETE FROM committed WHERE scene_id = ?", (scene_id,))

    # --- decoding ---

    def recover(self) -> list[str]:
        """After a start: count the decodings that the last run did not live to finish. Returns scenes given up for
        it."""
        reason = f"the node died {INTERRUPTIONS_MAX} times while decoding it; try `decoder-node decode` on its stream"
        with self._guarded(), self._transaction():
            self._db.execute("UPDATE scenes SET interruptions = interruptions + 1, decoding = 0 WHERE decoding = 1")
            given_up = "FROM scenes WHERE state = 'durable' AND interruptions >= ?"
            rows = self._db.execute(f"SELECT scene_id {given_up}", (INTERRUPTIONS_MAX,)).fetchall()
            query = (
                f"UPDATE scenes SET state = 'quarantined', reason = ? WHERE scene_id IN (SELECT scene_id {given_up})"
            )
            self._db.execute(query, (reason, INTERRUPTIONS_MAX))
        return [row[0] for row in rows]

    def undecoded(self, without: Iterable[str] = ()) -> str | None:
        """The scene to decode next: those that went wrong least often first, then by priority and age."""
        left_out = list(without)
        marks = ",".join("?" * len(left_out))
        query = (
            f"SELECT scene_id FROM scenes WHERE state = 'durable' AND scene_id NOT IN ({marks})"
            " ORDER BY interruptions + failures, priority DESC, durable_at LIMIT 1"
        )
        with self._guarded():
            row = self._db.execute(query, left_out).fetchone()
        return None if row is None else str(row[0])

    def decoding(self, scene_id: str, begun: bool) -> None:
        """A worker begins, or was stopped without its fault."""
        with self._guarded(), self._transaction():
            self._db.execute("UPDATE scenes SET decoding = ? WHERE scene_id = ?", (int(begun), scene_id))

    def decoded(self, scene_id: str, result: dict[str, Any]) -> None:
        """The GeoTIFFs and the catalogue's item are at their places."""
        with self._guarded(), self._transaction():
            query = "UPDATE scenes SET state = 'decoded', reason = NULL, decoding = 0, decoded_at = ?, result = ?"
            self._db.execute(f"{query} WHERE scene_id = ?", (time.time(), json.dumps(result), scene_id))

    def failed(self, scene_id: str, reason: str) -> str:
        """Decoding has failed once more; returns the state: durable (try again) or quarantined."""
        with self._guarded(), self._transaction():
            self._db.execute(
                "UPDATE scenes SET failures = failures + 1, decoding = 0, reason = ?,"
                " state = CASE WHEN failures + 1 >= ? THEN 'quarantined' ELSE state END WHERE scene_id = ?",
                (reason, FAILURES_MAX, scene_id),
            )
            row = self._db.execute("SELECT state FROM scenes WHERE scene_id = ?", (scene_id,)).fetchone()
        return str(row[0])

    def waits(self, scene_id: str, reason: str) -> None:
        """The scene is all right but cannot be decoded here and now (its model is not installed)."""
        with self._guarded(), self._transaction():
            self._db.execute("UPDATE scenes SET reason = ?, decoding = 0 WHERE scene_id = ?", (reason, scene_id))

    # --- looking ---

    def find(self, scene_id: str) -> Entry | None:
        """One scene, by its whole id."""
        found = self._entries("WHERE s.scene_id = ?", (scene_id,))
        return found[0] if found else None

    def manifest(self, scene_id: str) -> Manifest:
        """The manifest of a scene that is here."""
        with self._guarded():
            row = self._db.execute("SELECT manifest FROM scenes WHERE scene_id = ?", (scene_id,)).fetchone()
        if row is None:
            raise LedgerError(f"the ledger {self._path} holds no scene {scene_id}; see `decoder-node list`")
        return Manifest.unpack(row[0])

    def entries(self) -> list[Entry]:
        """All scenes, oldest first."""
        return self._entries("ORDER BY s.offered_at, s.scene_id", ())

    def _entries(self, where: str, values: Sequence[object]) -> list[Entry]:
        query = (
            "SELECT s.scene_id, s.name, s.state, s.reason, s.priority, s.chunks, CASE WHEN s.durable_at IS NULL THEN"
            " (SELECT coalesce(sum(count), 0) FROM committed c WHERE c.scene_id = s.scene_id) ELSE s.chunks END,"
            f" s.bytes, s.offered_at, s.durable_at, s.decoded_at, s.failures, s.node, s.result FROM scenes s {where}"
        )
        with self._guarded():
            rows = self._db.execute(query, values).fetchall()
        found = []
        for row in rows:
            fields = [*row[:-1], json.loads(row[-1] or "{}")]
            found.append(Entry(*fields))
        return found

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

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"the ledger {self._path} does not work ({error}); see whether its disk is full or failing"
            ) from error
