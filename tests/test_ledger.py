"""The ledger: what it says is on disk, it says again after any crash."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from decoder_node.ledger import FAILURES_MAX, FILE, INTERRUPTIONS_MAX, Ledger, LedgerError
from downlink.manifest import Manifest
from downlink.ranges import Range
from tests.nodes import ROOT
from tests.streams import Stream, stream


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, create=True)


def begin(ledger: Ledger, made: Stream, priority: int = 0, node: str = "") -> str:
    ledger.begin(made.id, Manifest.unpack(made.packed), made.packed, priority, len(made.file), node)
    return made.id


def durable(ledger: Ledger, made: Stream, priority: int = 0, node: str = "") -> str:
    begin(ledger, made, priority, node)
    ledger.durable(made.id)
    return made.id


def state(ledger: Ledger, scene_id: str) -> str:
    entry = ledger.find(scene_id)
    assert entry is not None
    return entry.state


def test_the_disk_is_synced_at_every_commit(ledger: Ledger) -> None:
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_commits_outlive_a_crash(tmp_path: Path, ledger: Ledger) -> None:
    scene_id = begin(ledger, stream())
    ledger.commit([(scene_id, Range(0, 3)), (scene_id, Range(7, 1))])
    ledger.commit([(scene_id, Range(0, 3))])  # again: no harm
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob(f"{FILE}*"):  # as they are on disk, without a clean close
        shutil.copy(file, copy)
    after = Ledger(copy)
    assert after.committed(scene_id) == [Range(0, 3), Range(7, 1)]
    assert after.entries()[0].chunks_committed == 4


FIRST = """
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
  result        TEXT
);
CREATE TABLE committed (
  scene_id TEXT NOT NULL REFERENCES scenes, first INTEGER NOT NULL, count INTEGER NOT NULL,
  PRIMARY KEY (scene_id, first, count)
) WITHOUT ROWID;
"""
SECOND = f"""{FIRST}
ALTER TABLE scenes ADD COLUMN node TEXT NOT NULL DEFAULT '';
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
);
"""


@pytest.mark.parametrize(("version", "schema"), [(1, FIRST), (2, SECOND)], ids=["first", "second"])
def test_a_ledger_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path, version: int, schema: str) -> None:
    """Files as these versions wrote them: a finished scene, and one on its way."""
    done, coming = stream(0), stream(1)
    db = sqlite3.connect(tmp_path / FILE)
    db.executescript(schema)
    insert = (
        "INSERT INTO scenes (scene_id, name, state, priority, manifest, chunks, bytes, offered_at, durable_at, result)"
        " VALUES (?, ?, ?, 3, ?, ?, ?, 1000.5, ?, ?)"
    )
    result = '{"assets": ["scenes/x/a.tif"]}'
    rows = ((done, "decoded", 1001.5, result), (coming, "receiving", None, None))
    for made, found, durable_at, kept in rows:
        values = (made.id, f"{found} one", found, made.packed, len(made.chunks), len(made.file), durable_at, kept)
        db.execute(insert, values)
    db.execute("INSERT INTO committed VALUES (?, 0, 12)", (coming.id,))
    db.execute(f"PRAGMA user_version = {version}")
    db.commit()
    db.close()
    with pytest.raises(
        LedgerError, match=rf"version {version}, this program reads 4; `decoder-node serve` brings it up"
    ):
        Ledger(tmp_path, read_only=True)
    Ledger(tmp_path).close()
    again = Ledger(tmp_path)  # once is enough
    first, second = again.entries()
    assert (first.name, first.state, first.node, first.durable_at) == ("decoded one", "decoded", "", 1001.5)
    assert first.result == {"assets": ["scenes/x/a.tif"]}
    assert (second.name, second.state, second.priority, second.chunks_committed) == (
        "receiving one",
        "receiving",
        3,
        12,
    )
    assert again.committed(coming.id) == [Range(0, 12)]
    assert again.coarse(10.0) == coming.id  # its last news is as old as its offer, for all we know
    again.partial(coming.id, 12, {})
    again.commit([(coming.id, Range(12, 2))])
    assert again.coarse(10.0) is None
    assert again._db.execute("SELECT count(*) FROM asks").fetchone() == (0,)
    again.close()
    (tmp_path / "fresh").mkdir()
    assert columns(Ledger(tmp_path / "fresh", create=True)) == columns(Ledger(tmp_path))


def columns(ledger: Ledger) -> dict[str, set[tuple[str, str, int]]]:
    """Name, type and whether it may be null of each column, and the names of the indexes."""
    names = [row[0] for row in ledger._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: {row[1:4] for row in ledger._db.execute(f"PRAGMA table_info({name})")} for name in names}
    query = "SELECT name, type, 0 FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    return {**found, "indexes": set(ledger._db.execute(query))}


def test_a_scene_belongs_to_the_node_that_offered_it_first(ledger: Ledger) -> None:
    made = stream()
    for node in ("sat-1", "sat-2"):
        ledger.begin(made.id, Manifest.unpack(made.packed), made.packed, 0, len(made.file), node)
    assert ledger.entries()[0].node == "sat-1"


def test_a_durable_scene_is_remembered_for_ever(ledger: Ledger) -> None:
    scene_id = durable(ledger, stream())
    assert ledger.committed(scene_id) == []
    begin(ledger, stream())  # a late duplicate of its offer
    assert state(ledger, scene_id) == "durable"


def test_a_scene_quarantined_on_its_way_in_may_come_again(ledger: Ledger) -> None:
    scene_id = begin(ledger, stream())
    ledger.quarantine(scene_id, "sha256")
    assert state(ledger, scene_id) == "quarantined"
    begin(ledger, stream())
    assert state(ledger, scene_id) == "receiving"


def test_rows_have_what_the_list_promises(tmp_path: Path, ledger: Ledger) -> None:
    made = stream()
    begin(ledger, made)
    row = ledger.entries()[0].row(tmp_path)
    assert (row["scene_id"], row["name"], row["state"], row["path"]) == (made.id, "made up 0", "receiving", None)
    ledger.durable(made.id)
    row = ledger.entries()[0].row(tmp_path)
    assert row["path"] == row["stream"] == str(tmp_path / "streams" / f"{made.id}.dl")
    ledger.decoded(made.id, {"assets": ["scenes/x/a.tif"], "item": "scenes/x/x.json", "decode_s": 1.5})
    row = ledger.entries()[0].row(tmp_path)
    assert (row["state"], row["path"]) == ("decoded", str(tmp_path / "scenes/x/a.tif"))
    assert row["item"] == str(tmp_path / "scenes/x/x.json")
    assert row["facts"] == {"decode_s": 1.5}


def test_scenes_are_decoded_by_priority_then_by_age(ledger: Ledger) -> None:
    ids = [durable(ledger, stream(seed), priority) for seed, priority in enumerate([0, 5, 0])]
    begin(ledger, stream(9), 99)  # not durable yet
    order = []
    while (scene_id := ledger.undecoded(order)) is not None:
        order.append(scene_id)
    assert order == [ids[1], ids[0], ids[2]]


def test_nodes_take_turns_whatever_priority_they_give_their_scenes(ledger: Ledger) -> None:
    greedy = [durable(ledger, stream(seed), 1000, "greedy") for seed in range(3)]
    modest = [durable(ledger, stream(seed), seed, "modest") for seed in (5, 6)]
    order = []
    while (scene_id := ledger.undecoded()) is not None:
        order.append(scene_id)
        ledger.decoded(scene_id, {})
    assert order == [greedy[0], modest[1], greedy[1], modest[0], greedy[2]]  # within a node: by priority


def test_a_node_whose_scene_is_being_decoded_has_its_turn(ledger: Ledger) -> None:
    greedy = [durable(ledger, stream(seed), 1000, "greedy") for seed in range(3)]
    modest = durable(ledger, stream(5), 0, "modest")
    ledger.decoding(greedy[0], True)  # by one process; the next one takes
    assert ledger.undecoded([greedy[0]]) == modest


def test_a_scene_that_stops_coming_is_worth_decoding_once_for_what_has_come(ledger: Ledger) -> None:
    made = stream()
    scene_id, count = begin(ledger, made), len(made.chunks)
    now = time.time()
    assert ledger.coarse(10.0, now=now + 1000) is None  # nothing has come
    ledger.commit([(scene_id, Range(0, 8))])
    assert ledger.coarse(10.0, now=now + 5) is None
    assert ledger.coarse(10.0, now=now + 15) == scene_id
    assert ledger.coarse(10.0, [scene_id], now=now + 15) is None  # being decoded already
    ledger.partial(scene_id, 8, {"assets": ["a.tif"], "missing": 0.7})
    assert (state(ledger, scene_id), ledger.coarse(10.0, now=now + 1000)) == ("partial", None)
    ledger.commit([(scene_id, Range(8, 1))])  # a little more: it waits for company
    assert count / 10 > 1
    assert ledger.coarse(10.0, now=now + 15) is None
    assert ledger.coarse(10.0, now=now + 65) == scene_id
    ledger.commit([(scene_id, Range(9, 5))])
    assert ledger.coarse(10.0, now=now + 15) == scene_id
    ledger.partial(scene_id, 14, None)  # it could not be decoded: tried again with more
    assert (state(ledger, scene_id), ledger.coarse(10.0, now=now + 1000)) == ("partial", None)
    ledger.durable(scene_id)
    assert (ledger.coarse(10.0, now=now + 1000), ledger.undecoded()) == (None, scene_id)
    ledger.partial(scene_id, 14, {"assets": ["late.tif"]})  # a decoding of the part ends after the scene is durable
    entry = ledger.find(scene_id)
    assert entry is not None
    assert (entry.state, entry.result["assets"]) == ("durable", ["a.tif"])
    ledger.decoded(scene_id, {"assets": ["a.tif"], "missing": 0.0})
    assert state(ledger, scene_id) == "decoded"


def test_a_scene_that_keeps_coming_sharpens_now_and_then(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stream()
    scene_id, count, now = begin(ledger, made), len(made.chunks), time.time()
    decoded = []
    for second in range(0, 4 * count):
        monkeypatch.setattr(time, "time", lambda second=second: now + second)
        if second % 4 == 0:  # a chunk every four seconds: never quiet for ten
            ledger.commit([(scene_id, Range(second // 4, 1))])
        if ledger.coarse(10.0) == scene_id:
            decoded.append(second)
            ledger.partial(scene_id, second // 4 + 1, {"assets": ["a.tif"]})
    gaps = np.diff(decoded)
    assert len(decoded) >= 4
    assert decoded[0] >= 10
    assert all(gaps >= 10), "not before ten seconds have passed since the last time"
    assert all(gaps // 4 + 1 >= count / 10), "and not for less than a tenth more"


def test_nodes_take_turns_with_parts_as_well(ledger: Ledger) -> None:
    scenes = {begin(ledger, stream(seed), 9 - seed, node): node for seed, node in enumerate(["a", "a", "b"])}
    ledger.commit([(scene_id, Range(0, 9)) for scene_id in scenes])
    order = []
    while (scene_id := ledger.coarse(10.0, now=time.time() + 20)) is not None:
        order.append(scenes[scene_id])
        ledger.partial(scene_id, 9, {})
    assert order == ["a", "b", "a"]


def test_what_the_disk_has_lost_is_decoded_again_when_it_has_come_again(ledger: Ledger) -> None:
    scene_id = begin(ledger, stream())
    ledger.commit([(scene_id, Range(0, 8))])
    ledger.partial(scene_id, 8, {})
    ledger.correct(scene_id, [Range(0, 2)])
    ledger.commit([(scene_id, Range(2, 6))])
    assert ledger.coarse(10.0, now=time.time() + 20) == scene_id


def test_a_scene_that_fails_again_and_again_is_quarantined(ledger: Ledger) -> None:
    scene_id = durable(ledger, stream())
    for _ in range(FAILURES_MAX - 1):
        assert ledger.failed(scene_id, "boom") == "durable"
        assert ledger.undecoded() == scene_id
    assert ledger.failed(scene_id, "boom") == "quarantined"
    assert ledger.undecoded() is None
    entry = ledger.find(scene_id)
    assert entry is not None
    assert entry.reason == "boom"
    assert entry.durable_at is not None  # the stream is kept


def test_a_failing_scene_lets_others_go_first(ledger: Ledger) -> None:
    bad, good = durable(ledger, stream(0)), durable(ledger, stream(1))
    ledger.failed(bad, "boom")
    assert ledger.undecoded() == good


def test_deaths_of_the_node_while_decoding_are_counted(ledger: Ledger) -> None:
    scene_id = durable(ledger, stream())
    for _ in range(INTERRUPTIONS_MAX - 1):
        ledger.decoding(scene_id, True)
        assert ledger.recover() == []
        assert ledger.undecoded() == scene_id
    ledger.decoding(scene_id, True)
    assert ledger.recover() == [scene_id]
    assert state(ledger, scene_id) == "quarantined"


def test_an_orderly_stop_is_not_held_against_a_scene(ledger: Ledger) -> None:
    scene_id = durable(ledger, stream())
    for _ in range(INTERRUPTIONS_MAX + 1):
        ledger.decoding(scene_id, True)
        ledger.decoding(scene_id, False)
        assert ledger.recover() == []
    assert ledger.undecoded() == scene_id


def test_a_missing_model_is_no_failure(ledger: Ledger) -> None:
    scene_id = durable(ledger, stream())
    ledger.waits(scene_id, "no such bundle")
    entry = ledger.find(scene_id)
    assert entry is not None
    assert (entry.state, entry.reason, entry.failures) == ("durable", "no such bundle", 0)


def test_it_may_be_read_while_it_is_written(tmp_path: Path, ledger: Ledger) -> None:
    looking = Ledger(tmp_path, read_only=True)
    begin(ledger, stream())
    assert len(looking.entries()) == 1
    with pytest.raises(LedgerError, match="readonly"):
        looking.durable(stream().id)


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is no archive"):
        Ledger(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_a_later_program_is_refused(tmp_path: Path, ledger: Ledger) -> None:
    ledger._db.execute("PRAGMA user_version = 9")
    ledger.close()
    with pytest.raises(LedgerError, match="version 9, this program knows 4"):
        Ledger(tmp_path)


READER = """
import os, sys
from pathlib import Path
from decoder_node.ledger import Ledger, LedgerError
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    print(len(Ledger(Path(sys.argv[1]), read_only=True).entries()))
except LedgerError as error:
    print(error)
"""


def test_a_user_who_may_only_read_looks_on() -> None:
    """With a node running, after it has ended, and where only its owner could tell. As another user if we are root."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        archive = Path(name)

        def seen() -> str:
            archive.chmod(0o555)
            command = [sys.executable, "-c", READER, str(archive)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            archive.chmod(0o755)
            return done.stdout.strip()

        own = Ledger(archive, create=True)
        begin(own, stream())
        assert seen() == "1"
        begin(own, stream(1))
        assert seen() == "2"
        own.close()
        assert not (archive / f"{FILE}-wal").exists()
        assert seen() == "2"
        (archive / FILE).chmod(0o000)
        assert "may not be read by this user" in seen()
