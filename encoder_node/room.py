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
