"""The ledger's file: its tables, how it is opened and brought up to date, and what its errors mean.

WAL with `synchronous=FULL`: what a transaction has committed is there after a power cut. Refused, with `LedgerError`:
files written by a later program, and to a reader those of an earlier one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from downlink.errors import DownlinkError

FILE: Final = "ledger.sqlite"
VERSION: Final = 4  # 1 knew no nodes, 2 decoded no partial scenes and asked for nothing, 3 kept no history

_ASKS: Final = """
CREATE TABLE asks (
  number       INTEGER PRIMARY KEY AUTOINCREMENT,
  ask_id       TEXT NOT NULL UNIQUE,
  node         TEXT NOT NULL,
  scene_id     TEXT,
  what         TEXT NOT NULL,
  request      BLOB NOT NULL,
  bundle_bytes INTEGER NOT NULL,
  state        TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'refused')),
  message      TEXT,
  asked_at     REAL NOT NULL,
  answered_at  REAL
);
CREATE INDEX unanswered ON asks (node, number) WHERE state = 'waiting'
"""
# places: where and when a scene is of, from when it was decoded. traffic: what was committed in each minute.
_HISTORY: Final = """
CREATE TABLE places (
  scene_id TEXT PRIMARY KEY REFERENCES scenes, acquired TEXT, outline TEXT, west REAL, south REAL, east REAL, north REAL
) WITHOUT ROWID;
CREATE TABLE traffic (
  node TEXT NOT NULL, minute INTEGER NOT NULL, bytes INTEGER NOT NULL, chunks INTEGER NOT NULL,
  waiting_bytes INTEGER, PRIMARY KEY (node, minute)
) WITHOUT ROWID;
CREATE TABLE nodes (
  node            TEXT PRIMARY KEY,
  address         TEXT NOT NULL,
  software        TEXT NOT NULL DEFAULT '',
  streams         INTEGER NOT NULL DEFAULT 0,
  seen_at         REAL NOT NULL,
  waiting_scenes  INTEGER,
  waiting_bytes   INTEGER,
  kept_scenes     INTEGER,
  next_contact_at REAL,
  reported_at     REAL
) WITHOUT ROWID;
CREATE INDEX by_state ON scenes (state, offered_at);
CREATE INDEX by_offer ON scenes (offered_at, scene_id)
"""
_INDEXES: Final = """
CREATE INDEX by_node ON scenes (node, decoded_at);
CREATE INDEX at_work ON scenes (node) WHERE decoding = 1;
CREATE INDEX coming ON scenes (progress_at) WHERE durable_at IS NULL
"""
SCHEMA: Final = f"""
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
  node          TEXT NOT NULL DEFAULT '',
  progress_at   REAL,
  decoded_chunks INTEGER NOT NULL DEFAULT 0
);
{_INDEXES};
CREATE TABLE committed (
  scene_id TEXT NOT NULL REFERENCES scenes, first INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (scene_id, first, count)
) WITHOUT ROWID;
{_ASKS};
{_HISTORY}
"""
# What brings a ledger of an earlier version up to the next one.
MIGRATIONS: Final = {
    1: "ALTER TABLE scenes ADD COLUMN node TEXT NOT NULL DEFAULT ''; CREATE TABLE asks (ask_id TEXT)",
    2: f"""
ALTER TABLE scenes ADD COLUMN progress_at REAL;
ALTER TABLE scenes ADD COLUMN decoded_chunks INTEGER NOT NULL DEFAULT 0;
UPDATE scenes SET progress_at = offered_at;
{_INDEXES};
DROP TABLE asks;
{_ASKS}
""",
    3: _HISTORY,
}


class LedgerError(DownlinkError):
    """The ledger cannot do what is asked."""

    code = "ledger"


def open_ledger(path: Path, connect: Callable[[Path], sqlite3.Connection] | None = None) -> sqlite3.Connection:
    """The ledger at `path`, made if it is not there, brought up to date if it is older than this program."""
    with guarded(path):
        db = connect(path) if connect else _connect(path, "mode=rwc")
        _version(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # NORMAL may lose a commit in a power cut
        with transaction(db):
            version = _version(db, path)
            steps = [MIGRATIONS[step] for step in range(version, VERSION)] if version else [SCHEMA]
            for statement in filter(str.strip, ";".join(steps).split(";")):
                db.execute(statement)
            if version < VERSION:
                db.execute(f"PRAGMA user_version = {VERSION}")
        return db


def open_to_read(path: Path) -> sqlite3.Connection:
    """The ledger, without the right to write: even a reader of a WAL needs a -shm file, which a running node has made.

    Where nobody writes and we may not make one, the file is all there is and can be read as it lies.
    """
    with guarded(path):
        try:
            db = _connect(path, "mode=ro")
            version = _version(db, path)
        except sqlite3.OperationalError as error:
            wal = path.resolve().with_name(f"{path.resolve().name}-wal")
            if not os.access(path, os.R_OK):
                raise LedgerError(f"the ledger {path} may not be read by this user; ask its owner") from error
            if os.access(path.resolve().parent, os.W_OK):
                raise  # something else is wrong
            if wal.exists():
                raise LedgerError(
                    f"the ledger {path} cannot be read by this user: its last changes are in {wal.name}, which only "
                    "its owner can take in; run `decoder-node list` as the user of `decoder-node serve`"
                ) from error
            db = _connect(path, "mode=ro&immutable=1")
            version = _version(db, path)
        if 0 < version < VERSION:
            advice = "`decoder-node serve` brings it up to date"
            raise LedgerError(f"{path} is of version {version}, this program reads {VERSION}; {advice}")
        return db


def _connect(path: Path, how: str) -> sqlite3.Connection:
    # Threads: the receiver keeps to one worker thread of its own.
    uri = f"{path.resolve().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The version of a ledger, 0 for one that is being made; refuses those of a later program."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise LedgerError(f"{path} is of version {version}, this program knows {VERSION}; update this program")
    return version


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


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise LedgerError(
            f"the ledger {path} does not work ({error}); see whether its disk is full or failing"
        ) from error
