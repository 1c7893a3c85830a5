"""The outbox's file: its tables, how it is opened and brought up to date, and what its errors mean.

WAL with `synchronous=FULL`: what a transaction has committed is there after a power cut. Refused, with `OutboxError`:
files written by a later program, and folders that hold none where one is expected.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from downlink import limits
from downlink.errors import DownlinkError

FILE: Final = "outbox.sqlite"
VERSION: Final = (
    5  # 1 sent all layers of every scene, 2 heard no requests, 3 all tiles in their order, 4 retained nothing
)
BUSY_S: Final = 60.0  # another process may be committing a large scene

# A chunk's id is its scene's number * CHUNKS_MAX + its index: one B-tree in the order in which chunks are sent.
_SCENES: Final = """
CREATE TABLE scenes (
  number       INTEGER PRIMARY KEY AUTOINCREMENT,
  scene_id     TEXT NOT NULL UNIQUE,
  name         TEXT NOT NULL,
  priority     INTEGER NOT NULL,
  state        TEXT NOT NULL CHECK (state IN ('queued', 'delivered', 'refused', 'damaged', 'kept', 'dropped')),
  reason       TEXT,
  not_before   REAL NOT NULL DEFAULT 0,
  manifest     BLOB NOT NULL,
  lengths      BLOB NOT NULL,
  chunks       INTEGER NOT NULL,
  bytes        INTEGER NOT NULL,
  submitted_at REAL NOT NULL,
  settled_at   REAL,
  offered      INTEGER NOT NULL DEFAULT 0,
  layers       INTEGER,
  first        BLOB NOT NULL DEFAULT x''
);
CREATE INDEX by_urgency ON scenes (state, priority DESC, number);
"""
_ANSWERED: Final = """
CREATE TABLE answered (
  number  INTEGER PRIMARY KEY AUTOINCREMENT,
  ask_id  TEXT NOT NULL UNIQUE,
  verdict INTEGER NOT NULL,
  message TEXT NOT NULL
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_AHEAD: Final = "ALTER TABLE scenes ADD COLUMN ahead BLOB NOT NULL DEFAULT x''"
_REFERENCES: Final = """
ALTER TABLE scenes ADD COLUMN place BLOB;
ALTER TABLE scenes ADD COLUMN reference TEXT;
ALTER TABLE scenes ADD COLUMN retained INTEGER NOT NULL DEFAULT 0;
ALTER TABLE scenes ADD COLUMN reasked INTEGER NOT NULL DEFAULT 0;
CREATE INDEX retained ON scenes (place, number) WHERE retained
"""
SCHEMA: Final = f"""
{_SCENES}
{_AHEAD};
{_REFERENCES};
CREATE TABLE chunks (id INTEGER PRIMARY KEY, crc32c INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE watched (path TEXT PRIMARY KEY, signature TEXT NOT NULL, scene_id TEXT, reason TEXT);
{_ANSWERED}
"""
# What brings an outbox of an earlier version up to the next one.
_OLD: Final = (
    "number, scene_id, name, priority, state, reason, not_before, manifest, lengths, chunks, bytes, submitted_at, "
    "settled_at"
)
MIGRATIONS: Final = {
    1: f"""
DROP INDEX by_urgency;
ALTER TABLE scenes RENAME TO earlier;
{_SCENES}
INSERT INTO scenes ({_OLD}, offered) SELECT {_OLD}, 1 FROM earlier;
DROP TABLE earlier;
CREATE TABLE answered (ask_id TEXT);
CREATE TABLE settings (name TEXT)
""",
    2: f"""
DROP TABLE answered;
DROP TABLE settings;
{_ANSWERED}
""",
    3: _AHEAD,
    4: _REFERENCES,
}


class OutboxError(DownlinkError):
    """The outbox cannot do what is asked."""

    code = "outbox"


class OutboxFull(OutboxError):
    """There is no room for another scene. Later there may be."""

    code = "outbox_full"


def missing(folder: Path) -> OutboxError:
    return OutboxError(f"{folder} holds no outbox ({FILE} is missing); `encoder-node submit` makes one")


def open_outbox(path: Path, connect: Callable[[Path], sqlite3.Connection] | None = None) -> sqlite3.Connection:
    """The outbox at `path`, made if it is not there, brought up to date if it is older than this program."""
    with guarded(path.parent):
        db = (connect or _connect)(path)
        version = _version(db, path)
        if version == 0:
            db.execute("PRAGMA page_size = 16384")  # fewer, longer overflow pages for chunks
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # NORMAL may lose a commit in a power cut
        # A log longer than this is copied into the file and cut: on a full disk there is nothing but the reserve to
        # log a deletion in.
        db.execute(f"PRAGMA journal_size_limit = {limits.MIB}")
        db.execute(f"PRAGMA wal_autocheckpoint = {limits.MIB // 16384}")
        with transaction(db):
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            steps = [MIGRATIONS[step] for step in range(version, VERSION)] if version else [SCHEMA]
            for statement in filter(str.strip, ";".join(steps).split(";")):
                db.execute(statement)
            if version < VERSION:
                db.execute(f"PRAGMA user_version = {VERSION}")
        # Not worth a sync: after a restart the ground tells it again.
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("DROP TABLE IF EXISTS temp.progress")
        db.execute(
            "CREATE TEMP TABLE progress (number INTEGER PRIMARY KEY, layer INTEGER NOT NULL, lacks_from INTEGER)"
        )
        return db


def _connect(path: Path) -> sqlite3.Connection:
    # Threads: the sender keeps to one worker thread of its own.
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The version of an outbox, 0 for one that is being made; refuses those of a later program."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise OutboxError(f"{path} is of version {version}, this program knows {VERSION}; update this program")
    return version


def open_to_read(path: Path) -> sqlite3.Connection:
    """An outbox, without the right to write it, and without waiting for anybody."""
    if not path.exists():
        raise missing(path.parent)
    modes = ["mode=ro"]
    if not path.with_name(path.name + "-wal").exists():  # nobody has it open, so it does not change; SQLite wants
        modes.append("mode=ro&immutable=1")  # to make that file even so, which a folder of others does not allow
    for mode in modes:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", timeout=BUSY_S, isolation_level=None, uri=True)
        try:
            if _version(db, path) == 0:
                raise missing(path.parent)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.OperationalError) and mode != modes[-1]:
                continue
            raise
        return db
    raise AssertionError


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; durable when it has ended."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has rolled back by itself
            db.execute("ROLLBACK")
        raise


def unreadable(error: sqlite3.DatabaseError) -> bool:
    """Is it the disk that cannot give back what was written: a bad sector, a page that was spoilt?"""
    code = getattr(error, "sqlite_errorcode", None)
    read = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)
    return code is not None and (code & 0xFF == sqlite3.SQLITE_CORRUPT or code in read)


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
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
