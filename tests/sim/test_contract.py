"""The simulator's disk does what a real one does, as long as nothing goes wrong; and forgets what it may forget."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from decoder_node.disk import Disk
from tests.sim.disk import Database, SimDisk, Stop, Trouble


def attempt(disk: Disk, root: Path, step: tuple[Any, ...]) -> object:
    """What an operation gives, or the kind of error it raises."""
    what, *names = step
    paths = [root / name for name in names if isinstance(name, str)]
    try:
        match what:
            case "create" | "write":
                with disk.write(paths[0], create=what == "create") as file:
                    for offset, content in names[1]:
                        file.write_at(content, offset)
                    file.sync()
            case "read":
                with disk.read(paths[0]) as file:
                    file.seek(names[1])
                    return file.read(names[2])
            case "rename":
                disk.rename(*paths)
            case "unlink":
                disk.unlink(paths[0])
            case "sync":
                disk.sync(paths[0])
            case "exists":
                return disk.exists(paths[0])
            case "files":
                return sorted(path.name for path in disk.files(paths[0]))
            case "sync_folder":
                disk.sync_folder(paths[0])
    except OSError as error:
        return type(error)
    return None


@pytest.mark.parametrize("seed", range(30))
def test_it_behaves_as_a_real_disk(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    real, simulated = Disk(), SimDisk(Trouble())
    for folder in ("a", "b"):
        real.make_folder(tmp_path / folder)
        simulated.make_folder(tmp_path / folder)
    files = ["a/1", "a/2", "b/1", "b/3"]
    for _ in range(60):
        pieces = [(source.randrange(40), source.randbytes(source.randrange(1, 30))) for _ in range(3)]
        one, two = source.sample(files, 2)
        step = source.choice(
            [
                ("create", one, pieces), ("write", one, pieces), ("read", one, source.randrange(30), 20),
                ("rename", one, two), ("unlink", one), ("sync", one), ("exists", one), ("files", "a"), ("files", "b"),
                ("sync_folder", "b"),
            ]
        )  # fmt: skip
        assert attempt(simulated, tmp_path, step) == attempt(real, tmp_path, step), step


def test_a_power_cut_takes_what_was_not_synced_and_nothing_else() -> None:
    kept = set()
    for seed in range(200):
        disk, folder = SimDisk(Trouble()), Path("/x")
        with disk.write(folder / "old", create=True) as file:
            file.write_at(b"safe", 0)
            file.sync()
        disk.sync_folder(folder)
        with disk.write(folder / "old") as file:
            file.write_at(b"more", 4)
        disk.rename(folder / "old", folder / "new")
        disk.after_power_cut(random.Random(seed))
        [path] = disk.names  # under one of its names, never under none
        content = bytes(disk.read(path).read())
        assert content.startswith(b"safe")
        kept.add((path.name, content))
    assert {name for name, _ in kept} == {"old", "new"}
    assert {b"safe", b"safemo", b"safemore"} <= {content for _, content in kept}


def test_a_power_cut_takes_a_commit_only_if_it_was_not_synced() -> None:
    for pragma, rows in (("FULL", [(1,)]), ("NORMAL", [])):
        database = Database(Trouble())
        db = database.connect(Path("/x"))
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE t (x)")
        db.execute("COMMIT")
        db.execute(f"PRAGMA synchronous = {pragma}")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (2)")
        database.after_power_cut()
        assert db.execute("SELECT x FROM t").fetchall() == rows


def test_the_nth_operation_fails_or_stops_the_machine() -> None:
    trouble = Trouble()
    disk, db = SimDisk(trouble), Database(trouble).connect(Path("/x"))
    trouble.fail_at = 2
    disk.sync_folder(Path("/x"))
    with pytest.raises(sqlite3.OperationalError):
        db.execute("BEGIN IMMEDIATE")
    trouble.stop_at = 3
    with pytest.raises(Stop):
        disk.unlink(Path("/x/y"))


def test_a_full_disk_takes_no_more() -> None:
    disk = SimDisk(Trouble(), capacity=5)
    with disk.write(Path("/x/y"), create=True) as file:
        file.write_at(b"12345", 0)
        file.write_at(b"54321", 0)
        with pytest.raises(OSError, match="No space left"):
            file.write_at(b"6", 5)
    assert disk.free_bytes(Path("/x")) == 0
