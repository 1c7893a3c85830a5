"""A disk and a database that forget what was not synced, fill up, and fail or stop the machine at the n-th operation.

`SimDisk` stands in for `decoder_node.disk.Disk`. What survives a power cut: of each file, its content at the last sync
and any of the writes since, each perhaps torn; of names, what `sync_folder` has settled and any number of the first
changes since (a journal keeps their order). `test_contract.py` holds it against the real one.

`Database.connect` makes SQLite databases in memory for `Outbox` and `Ledger`. SQLite itself is believed: a transaction
is whole or not at all, and durable after its COMMIT if `synchronous` is FULL. Without FULL, a power cut undoes it.
"""

from __future__ import annotations

import errno
import io
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from decoder_node.disk import Disk, Writing


class Stop(BaseException):
    """The machine stops here: power cut, or kill -9."""


class Trouble:
    """Counts operations and says which of them fail. One for each machine."""

    def __init__(self) -> None:
        self.operations = 0
        self.fail_at: int | None = None  # this operation raises an error, once
        self.stop_at: int | None = None  # the machine stops in this one
        self.failing: Callable[[], bool] = lambda: False  # does it fail now?

    def passes(self) -> bool:
        """Called before each operation: raises `Stop`, or says whether it works."""
        self.operations += 1
        if self.operations == self.stop_at:
            raise Stop
        return self.operations != self.fail_at and not self.failing()


class _File:
    def __init__(self) -> None:
        self.content = bytearray()
        self.synced = b""
        self.writes: list[tuple[int, bytes]] = []

    def sync(self) -> None:
        self.synced = bytes(self.content)
        self.writes = []

    def survivor(self, source: random.Random) -> _File:
        """The file after a power cut."""
        kept = bytearray(self.synced)
        for offset, content in self.writes:
            if source.random() < 0.5:
                continue
            if source.random() < 0.3:
                content = content[: source.randrange(len(content) + 1)]
            _put(kept, content, offset)
        after = _File()
        after.content = kept
        after.sync()
        return after


def _put(content: bytearray, piece: bytes, offset: int) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(piece)] = piece


class SimDisk(Disk):
    """Files in memory. `capacity` bytes fit on it."""

    def __init__(self, trouble: Trouble, capacity: int = 1 << 30) -> None:
        self.trouble = trouble
        self.capacity = capacity
        self.names: dict[Path, _File] = {}
        self._settled: dict[Path, _File] = {}  # names that survive
        self._journal: list[dict[Path, _File | None]] = []  # changes of names since, in order; a rename is one
        self.changes = 0  # goes up whenever what survives has changed

    def after_power_cut(self, source: random.Random) -> None:
        """The machine starts again."""
        for change in self._journal[: source.randrange(len(self._journal) + 1)]:
            _apply(self._settled, change)
        self._journal.clear()
        survivors = {id(file): file.survivor(source) for file in self._settled.values()}
        self._settled = {path: survivors[id(file)] for path, file in self._settled.items()}
        self.names = dict(self._settled)
        self.changes += 1

    def outcomes(self, paths: Sequence[Path]) -> list[tuple[bytes, bytes] | None]:
        """Whatever power cut comes now: the first of `paths` that exists then, as (what of it is synced, all of it);
        None where none of them does."""
        names, found = dict(self._settled), []
        for change in [{}, *self._journal]:
            _apply(names, change)
            file = next((names[path] for path in paths if path in names), None)
            found.append(None if file is None else (file.synced, bytes(file.content)))
        return found

    def used(self) -> int:
        return sum(len(file.content) for file in {id(file): file for file in self.names.values()}.values())

    def make_folder(self, folder: Path) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        self._passes(folder)
        touching = (n for n, change in enumerate(self._journal) if any(path.parent == folder for path in change))
        last = max(touching, default=-1)
        for change in self._journal[: last + 1]:
            _apply(self._settled, change)
        del self._journal[: last + 1]
        self.changes += 1

    def exists(self, path: Path) -> bool:
        return path in self.names

    def files(self, folder: Path) -> list[Path]:
        return [path for path in self.names if path.parent == folder]

    def read(self, path: Path) -> BinaryIO:
        return io.BytesIO(bytes(self._existing(path).content))

    @contextmanager
    def write(self, path: Path, *, create: bool = False) -> Iterator[Writing]:
        if create:
            self._passes(path)
            self._change({path: _File()})
        yield _Handle(self, path, self._existing(path))

    def sync(self, path: Path) -> None:
        self._existing(path).sync()
        self.changes += 1

    def rename(self, path: Path, target: Path) -> None:
        file = self._existing(path)
        self._change({target: file, path: None})

    def unlink(self, path: Path) -> None:
        self._passes(path)
        if path in self.names:
            self._change({path: None})

    def free_bytes(self, folder: Path) -> int:
        return max(0, self.capacity - self.used())

    def _existing(self, path: Path) -> _File:
        self._passes(path)
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return self.names[path]

    def _passes(self, path: Path) -> None:
        if not self.trouble.passes():
            raise OSError(errno.EIO, "Input/output error", str(path))

    def _change(self, change: dict[Path, _File | None]) -> None:
        _apply(self.names, change)
        self._journal.append(change)


def _apply(names: dict[Path, _File], change: dict[Path, _File | None]) -> None:
    for path, file in change.items():
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file


class _Handle:
    def __init__(self, disk: SimDisk, path: Path, file: _File) -> None:
        self._disk, self._path, self._file = disk, path, file

    def write_at(self, content: bytes, offset: int) -> None:
        disk, file = self._disk, self._file
        try:
            disk._passes(self._path)
        except Stop:  # half of it was written
            content = content[: len(content) // 2]
            _put(file.content, content, offset)
            file.writes.append((offset, content))
            raise
        if disk.used() + max(0, offset + len(content) - len(file.content)) > disk.capacity:
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        _put(file.content, content, offset)
        file.writes.append((offset, content))

    def sync(self) -> None:
        self._disk._passes(self._path)
        self._file.sync()
        self._disk.changes += 1


class Database:
    """One SQLite database in memory, which outlives the connections to it as a file would."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble
        self.changes = 0
        self.synced = True  # does COMMIT sync?
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._begun = b""  # as it was before the open transaction; only known while COMMIT does not sync
        self._kept: bytes | None = None  # as of the last COMMIT that was synced, if one since was not

    def connect(self, path: Path) -> sqlite3.Connection:
        return _Connection(self)  # type: ignore[return-value]

    def after_power_cut(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        if self._kept is not None:
            self._db.deserialize(self._kept)
            self._kept = None
        self.changes += 1

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        if statement.startswith("PRAGMA synchronous"):
            self.synced = statement.endswith("FULL")
        if statement == "BEGIN IMMEDIATE":
            if not self.trouble.passes():
                raise sqlite3.OperationalError("database or disk is full")
            if not self.synced:
                self._begun = self._db.serialize()
        if statement == "COMMIT":
            if not self.trouble.passes():  # the machine may stop before ...
                raise sqlite3.OperationalError("disk I/O error")
            done = self._db.execute(statement)
            self.changes += 1
            if self.synced:
                self._kept = None
            elif self._kept is None:
                self._kept = self._begun
            self.trouble.passes()  # ... or after it
            return done
        return self._db.execute(statement, values)

    def surviving(self, statement: str, values: Any = ()) -> list[Any]:
        """What a query finds after a power cut now. Not within a transaction."""
        if self._kept is None:
            return self._db.execute(statement, values).fetchall()
        copy = sqlite3.connect(":memory:")
        copy.deserialize(self._kept)
        return copy.execute(statement, values).fetchall()

    def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
        return self._db.executemany(statement, rows)

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction


class _Connection:
    """What `Outbox` and `Ledger` use of a connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.execute = database.execute
        self.executemany = database.executemany

    @property
    def in_transaction(self) -> bool:
        return self._database.in_transaction

    def executescript(self, script: str) -> None:
        """Only housekeeping is done this way."""

    def close(self) -> None:
        pass
