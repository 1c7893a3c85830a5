"""How much an outbox may take of the disk, and the few MiB that it keeps back for itself.

An outbox that is full refuses new scenes (`OutboxFull`); it never drops one that it has taken, because the id that
`submit` has printed is a promise. Full is: above the operator's bound, or so little free disk that the scene would not
fit twice (SQLite writes it to its log first).

Even to delete something SQLite must write. So a file of `RESERVE_BYTES` lies beside the outbox that is good for nothing
but to be deleted: when the disk is full, by whomever, its space lets deliveries be recorded, which frees the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Final

FILE: Final = "reserve"
RESERVE_BYTES: Final = 4 * 2**20


def free_bytes(folder: Path) -> int:
    """Of the disk that `folder` is on."""
    return shutil.disk_usage(folder).free


def lack(db: sqlite3.Connection, folder: Path, bytes_max: int | None, size: int, without_kept: bool) -> str:
    """Why an outbox has no room for a scene of `size` bytes; empty if it has. `without_kept`: if kept scenes went."""
    query = "SELECT coalesce(sum(bytes), 0), count(*) FROM scenes WHERE state NOT IN ('delivered', 'dropped')"
    held, scenes = db.execute(query).fetchone()
    reusable = db.execute("PRAGMA freelist_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0]
    if without_kept:
        query = "SELECT coalesce(sum(bytes), 0), count(*) FROM scenes WHERE state = 'kept'"
        kept, count = db.execute(query).fetchone()
        held, scenes, reusable = held - kept, scenes - count, reusable + kept
    if bytes_max is not None and held + size > bytes_max:
        return (
            f"the outbox {folder} holds {held} bytes of {scenes} scenes, {size} more would pass its bound of "
            f"{bytes_max}; wait until some are delivered, or raise --outbox-mb"
        )
    free = free_bytes(folder) + min(size, reusable)  # what is written twice needs the log once at least
    if free < 2 * size + RESERVE_BYTES:
        return (
            f"the disk of the outbox {folder} is full: {free} bytes are free, a scene of {size} bytes needs "
            f"{2 * size + RESERVE_BYTES}; free some space and try again"
        )
    return ""


class Reserve:
    """The file, and when it is there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def take(self) -> None:
        """Lay it aside, if it is not there and the disk has room enough. Failing to is no failure."""
        with contextlib.suppress(OSError):
            if self._path.exists() or free_bytes(self._path.parent) < 4 * RESERVE_BYTES:
                return
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def give(self) -> bool:
        """Let its space be used; false if there is none to give."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


def disk_full(error: BaseException | None) -> bool:
    """May this be SQLite's word for a full disk? It has several: for its log, its index, its files."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
