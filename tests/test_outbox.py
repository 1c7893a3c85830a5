"""The outbox: what it was given stays, whole, until the ground has it; whatever happens to the machine."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import encoder_node.durable
from downlink.errors import Corrupt, StreamError, TooLarge
from downlink.frame import Refusal, RefusalCode
from downlink.limits import CHUNKS_MAX
from encoder_node.outbox import FILE, Outbox, OutboxError, OutboxFull
from tests.streams import Stream, stream


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "box", create=True)


def submit(box: Outbox, made: Stream, priority: int = 0) -> str:
    return box.submit(made.packed, made.chunks, priority=priority).scene_id


def test_what_was_submitted_comes_back(box: Outbox) -> None:
    made = stream()
    assert submit(box, made) == made.id
    [scene] = box.due(9)
    assert (scene.scene_id, scene.manifest) == (made.id, made.packed)
    assert (scene.lengths == made.lengths).all()
    indexes = sorted(made.sent)
    assert [chunk.content for chunk in box.load(made.id, indexes)] == [made.chunks[index] for index in indexes]
    [entry] = box.entries()
    assert (entry.state, entry.chunks, entry.name) == ("queued", len(indexes), "made up 0")


def test_an_empty_folder_becomes_an_outbox(tmp_path: Path) -> None:
    """A service manager has made it, or a crash came between the folder and the file."""
    made = stream()
    submit(Outbox(tmp_path, create=True), made)
    assert Outbox(tmp_path).entry(made.id).state == "queued"


def test_it_outlives_the_process(box: Outbox) -> None:
    made = stream()
    submit(box, made)
    box.close()
    with Outbox(box.folder) as again:
        assert again.load(made.id, [0])[0].content == made.chunks[0]


def test_the_disk_is_synced_at_every_commit(box: Outbox) -> None:
    assert box._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert box._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_same_scene_twice_is_one_scene(box: Outbox) -> None:
    made = stream()
    submit(box, made)
    submit(box, made)
    assert len(box.entries()) == 1
    box.delivered(made.id)
    assert box.submit(made.packed, made.chunks).state == "delivered"
    assert box.due(9) == []


def test_a_delivered_scene_goes_again_when_that_is_asked_for(box: Outbox) -> None:
    made = stream()
    submit(box, made, 5)
    box.delivered(made.id)
    entry = box.submit(made.packed, made.chunks, priority=1, again=True)
    assert (entry.state, entry.priority, entry.settled_at) == ("queued", 1, None)
    assert [scene.scene_id for scene in box.due(9)] == [made.id]
    indexes = sorted(made.sent)
    assert [chunk.content for chunk in box.load(made.id, indexes)] == [made.chunks[index] for index in indexes]
    box.delivered(made.id)
    assert [entry.state for entry in box.entries()] == ["delivered"]


def test_a_queued_scene_submitted_again_gets_the_higher_priority(box: Outbox) -> None:
    for seed in (0, 1):
        submit(box, stream(seed))
    assert box.submit(stream(1).packed, stream(1).chunks, priority=7).priority == 7
    assert box.submit(stream(1).packed, stream(1).chunks, priority=3).priority == 7
    assert [scene.scene_id for scene in box.due(9)] == [stream(1).id, stream(0).id]


@pytest.mark.parametrize("writing", [True, False])
def test_it_can_be_listed_without_the_right_to_write(box: Outbox, writing: bool) -> None:
    submit(box, stream())
    if not writing:
        box.close()
    before = {path.name: path.stat().st_mtime_ns for path in box.folder.iterdir() if not path.name.endswith("-shm")}
    box.folder.chmod(0o555)
    try:
        with Outbox(box.folder, read_only=True) as reader:
            assert [entry.scene_id for entry in reader.entries()] == [stream().id]
            with pytest.raises(OutboxError, match="readonly"):
                reader.damaged(stream().id, "")
    finally:
        box.folder.chmod(0o755)
    after = {path.name: path.stat().st_mtime_ns for path in box.folder.iterdir()}
    assert before.items() <= after.items()


def test_what_is_no_outbox_is_said_to_those_who_read(tmp_path: Path) -> None:
    for content in (None, b""):
        if content is not None:
            (tmp_path / FILE).write_bytes(content)
        with pytest.raises(OutboxError, match="holds no outbox"):
            Outbox(tmp_path, read_only=True)
    (tmp_path / FILE).write_bytes(b"no database, " * 1000)
    with pytest.raises(OutboxError, match="does not work"):
        Outbox(tmp_path, read_only=True)


def test_chunks_go_only_when_the_scene_is_delivered(box: Outbox) -> None:
    one, other = stream(0), stream(1)
    for made in (one, other):
        submit(box, made)
    box.delivered(one.id)
    with pytest.raises(Corrupt, match="is gone"):
        box.load(one.id, [0])
    assert box.load(other.id, [0])[0].content == other.chunks[0]
    assert [entry.state for entry in box.entries()] == ["queued", "delivered"]
    assert [entry.scene_id for entry in box.undelivered()] == [other.id]


def test_the_disk_is_given_back(box: Outbox) -> None:
    made = stream(5, side=320, chunk_bytes=30_000)
    submit(box, made)
    size = sum(path.stat().st_size for path in box.folder.iterdir())
    box.delivered(made.id)
    assert size > 1_000_000
    assert sum(path.stat().st_size for path in box.folder.iterdir()) < 250_000


def test_urgent_scenes_are_due_first_then_the_oldest(box: Outbox) -> None:
    for seed, priority in enumerate([0, 7, 0, 7, -1]):
        submit(box, stream(seed), priority)
    order = [stream(seed).id for seed in (1, 3, 0, 2, 4)]
    assert [scene.scene_id for scene in box.due(9)] == order
    assert [scene.scene_id for scene in box.due(2, without=frozenset(order[:1]))] == order[1:3]


@pytest.mark.parametrize("fault", ["flip", "short", "missing", "too many", "swapped"])
def test_chunks_that_are_not_the_manifests_are_not_taken(box: Outbox, fault: str) -> None:
    made = stream()
    chunks = list(made.chunks)
    match fault:
        case "flip":
            chunks[5] = bytes([chunks[5][0] ^ 1]) + chunks[5][1:]
        case "short":
            chunks[5] = chunks[5][:-1]
        case "missing":
            del chunks[-1]
        case "too many":
            chunks.append(b"")
        case "swapped":
            chunks[4], chunks[5] = chunks[5], chunks[4]
    with pytest.raises((StreamError, IndexError)):
        box.submit(made.packed, chunks)
    assert box.entries() == []
    assert submit(box, made) == made.id  # and nothing is left that stands in the way


def test_a_failing_disk_leaves_nothing_behind(box: Outbox) -> None:
    made = stream()

    def chunks() -> object:
        yield from made.chunks[:7]
        raise OSError(5, "Input/output error")

    with pytest.raises((OSError, OutboxError)):
        box.submit(made.packed, chunks())  # type: ignore[arg-type]
    assert box.entries() == []


def test_a_full_disk_is_said_and_survived(tmp_path: Path, box: Outbox) -> None:
    box._db.execute("PRAGMA max_page_count = 12")  # SQLITE_FULL, as from a full disk
    with pytest.raises(OutboxError, match="free some space"):
        submit(box, stream(5, side=320, chunk_bytes=30_000))
    box._db.execute("PRAGMA max_page_count = 100000")
    assert submit(box, stream()) == stream().id


def test_a_chunk_that_the_disk_changed_is_not_sent(box: Outbox) -> None:
    made = stream()
    submit(box, made)
    box._db.execute("UPDATE chunks SET content = zeroblob(length(content)) WHERE id % ? = 3", (CHUNKS_MAX,))
    with pytest.raises(Corrupt, match=r"chunk 3 .* submit the scene again"):
        box.load(made.id, [3])
    box.damaged(made.id, "chunk 3")
    assert box.due(9) == []
    assert box.entries()[0].state == "damaged"
    assert box.submit(made.packed, made.chunks).state == "queued"
    assert box.load(made.id, [3])[0].content == made.chunks[3]


def test_a_chunk_that_the_disk_cannot_read_is_its_scenes_damage_not_the_outboxes(box: Outbox) -> None:
    """A page whose pointer to the next is spoilt: SQLite cannot read the row, whatever else it can."""
    made, other = stream(0, chunk_bytes=60_000), stream(1)
    submit(box, made)
    submit(box, other)
    chosen = max(made.sent, key=lambda index: len(made.chunks[index]))
    box.close()  # which moves the log into the file
    path = box.folder / FILE
    content = bytearray(path.read_bytes())
    page = (content.index(made.chunks[chosen][30_000:30_100]) // 16384) * 16384
    content[page : page + 4] = b"\x7f\xff\xff\xff"
    path.write_bytes(content)
    with Outbox(box.folder) as again:
        with pytest.raises(Corrupt, match=rf"chunk {chosen} .* submit the scene again"):
            again.load(made.id, [chosen])
        again.damaged(made.id, "it cannot be read")
        assert [scene.scene_id for scene in again.due(9)] == [other.id]
        assert again.load(other.id, [0])[0].content == other.chunks[0]


def test_a_clock_that_was_set_back_holds_up_no_scene(box: Outbox) -> None:
    """Many boards wake up in 1970: a time to come back that no ground would have named is not waited for."""
    made = stream()
    submit(box, made)
    box.refused(made.id, Refusal(RefusalCode.EXHAUSTED, "full", 60), now=1_800_000_000.0)
    assert box.due(9, now=1_800_000_000.0) == []
    assert [scene.scene_id for scene in box.due(9, now=30.0)] == [made.id]


def test_the_folders_of_a_new_outbox_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(encoder_node.durable, "sync_folder", synced.append)
    Outbox(tmp_path / "a" / "b" / "c", create=True).close()
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


def test_refusals_wait_for_their_time_or_for_the_operator(box: Outbox) -> None:
    for seed in (0, 1):
        submit(box, stream(seed))
    box.refused(stream(0).id, Refusal(RefusalCode.EXHAUSTED, "full", 60), now=1000.0)
    box.refused(stream(1).id, Refusal(RefusalCode.TOO_LARGE, "too large"), now=1000.0)
    assert box.due(9, now=1059.0) == []
    assert [scene.scene_id for scene in box.due(9, now=1060.0)] == [stream(0).id]
    assert box.next_due_at() == 1060.0
    assert {(entry.state, entry.reason) for entry in box.entries()} == {
        ("queued", "exhausted: full"),
        ("refused", "too_large: too large"),
    }
    assert {entry.scene_id for entry in box.resend([])} == {stream(0).id, stream(1).id}
    assert len(box.due(9)) == 2


def test_resend_takes_short_ids_and_says_what_it_cannot_do(box: Outbox) -> None:
    made = stream()
    submit(box, made)
    assert [entry.scene_id for entry in box.resend([made.id[:6]])] == [made.id]
    with pytest.raises(OutboxError, match="0 scenes"):
        box.resend(["zz"])
    box.delivered(made.id)
    with pytest.raises(OutboxError, match="is delivered"):
        box.resend([made.id])


def test_a_refused_scene_submitted_again_is_queued_again(box: Outbox) -> None:
    submit(box, stream())
    box.refused(stream().id, Refusal(RefusalCode.TOO_LARGE, "too large"))
    assert box.submit(stream().packed, stream().chunks).state == "queued"


def test_several_connections_see_each_others_commits(box: Outbox) -> None:
    with Outbox(box.folder) as other:
        submit(other, stream())
        assert len(box.due(9)) == 1


def test_watched_files_are_remembered(box: Outbox) -> None:
    assert box.seen("/a") is None
    box.note("/a", "10 bytes", "no good")
    assert box.seen("/a") == ("10 bytes", "no good")
    box.note("/a", "20 bytes", None)
    assert box.seen("/a") == ("20 bytes", None)


def test_a_folder_without_an_outbox_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="holds no outbox"):
        Outbox(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_outbox_of_the_first_version_is_brought_up_to_date(box: Outbox) -> None:
    made = stream()
    submit(box, made)
    db = box._db
    for statement in (
        "DROP INDEX by_urgency", "ALTER TABLE scenes DROP COLUMN offered", "ALTER TABLE scenes DROP COLUMN layers",
        "ALTER TABLE scenes DROP COLUMN first", "ALTER TABLE scenes DROP COLUMN ahead",
        "DROP TABLE answered", "DROP TABLE settings",
        "CREATE INDEX by_urgency ON scenes (state, priority DESC, number)", "PRAGMA user_version = 1",
    ):  # fmt: skip
        db.execute(statement)
    box.close()
    with Outbox(box.folder, read_only=True) as looking:
        assert looking.entries()[0].state == "queued"
    with Outbox(box.folder) as again:
        [scene] = again.due(9)
        assert (scene.scene_id, scene.lacks_from, scene.layers) == (
            made.id,
            None,
            None,
        )  # the ground may have some of it
        assert [chunk.content for chunk in again.load(made.id, [0])] == [made.chunks[0]]
        assert again.submit(stream(1).packed, stream(1).chunks).state == "queued"
        assert [scene.order for scene in again.due(9)] == [1, 2]


def test_a_scene_that_was_never_offered_is_known_to_be_lacking_as_a_whole(box: Outbox) -> None:
    made = stream()
    submit(box, made)
    scenes = box.due(9)
    assert [scene.lacks_from for scene in scenes] == [0]
    box.offering(scenes)
    assert [scene.lacks_from for scene in box.due(9)] == [0]  # about to be offered, and not offered yet
    with Outbox(box.folder) as after_a_crash:
        assert [scene.lacks_from for scene in after_a_crash.due(9)] == [None]
    box.offered(made.id)
    assert [scene.lacks_from for scene in box.due(9)] == [None]


def test_everybodys_first_layer_is_due_before_anybodys_second(box: Outbox) -> None:
    for seed, priority in enumerate([0, 0, 5, 0]):
        submit(box, stream(seed), priority)
    by_id = {scene.scene_id: scene for scene in box.due(9)}
    box.progress(by_id[stream(0).id], 1, 20)
    box.progress(by_id[stream(2).id], 2, 30)
    due = box.due(9)
    assert [scene.scene_id for scene in due] == [stream(seed).id for seed in (2, 1, 3, 0)]
    assert [scene.layer for scene in due] == [2, 0, 0, 1]
    box.offering(due)
    for scene in due:
        box.offered(scene.scene_id)
    assert [scene.lacks_from for scene in box.due(9)] == [30, None, None, 20]
    box.begin_contact()  # what was under way may be lost
    assert [scene.lacks_from for scene in box.due(9)] == [None] * 4
    assert [scene.layer for scene in box.due(9)] == [2, 0, 0, 1]


def test_a_scene_of_which_a_few_layers_are_wanted_is_kept_until_more_are(box: Outbox) -> None:
    made = stream()
    box.submit(made.packed, made.chunks, layers=1)
    assert [scene.layers for scene in box.due(9)] == [1]
    box.kept(made.id)
    assert box.due(9) == []
    assert box.undelivered() == []
    assert box.load(made.id, [0])[0].content == made.chunks[0]
    assert box.submit(made.packed, made.chunks, layers=1).state == "kept"
    assert box.submit(made.packed, made.chunks).state == "queued"
    assert [scene.layers for scene in box.due(9)] == [None]


def test_kept_scenes_make_room_the_oldest_first_and_queued_ones_never(tmp_path: Path) -> None:
    scenes = [stream(seed) for seed in range(5)]
    size = max(len(made.file) for made in scenes) + 20
    box = Outbox(tmp_path / "box", create=True, bytes_max=3 * size)
    for made in scenes[:3]:
        box.submit(made.packed, made.chunks, layers=1)
    with pytest.raises(OutboxFull):
        submit(box, scenes[3])
    box.kept(scenes[1].id)
    box.kept(scenes[0].id)
    box.check_room(size)
    submit(box, scenes[3])
    states = {entry.scene_id: entry.state for entry in box.entries()}
    assert [states[made.id] for made in scenes[:4]] == ["kept", "dropped", "queued", "queued"]
    with pytest.raises(Corrupt, match="is gone"):
        box.load(scenes[1].id, [0])
    submit(box, scenes[4])
    assert box.entry(scenes[0].id).state == "dropped"
    assert "made room" in str(box.entry(scenes[0].id).reason)
    with pytest.raises(OutboxFull):
        submit(box, stream(7))


def test_an_outbox_of_a_later_program_is_refused(box: Outbox) -> None:
    box._db.execute("PRAGMA user_version = 9")
    box.close()
    with pytest.raises(OutboxError, match="version 9, this program knows 5"):
        Outbox(box.folder)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(OutboxError):
        Outbox(tmp_path)


SUBMITTER = """
import sys
from pathlib import Path
from encoder_node.outbox import Outbox
from tests.streams import stream
with Outbox(Path(sys.argv[1]), create=True) as box:
    for seed in range(int(sys.argv[2]), 10000):
        made = stream(seed, side=160, chunk_bytes=3000)
        print(box.submit(made.packed, made.chunks).scene_id, flush=True)
"""


def test_kill_9_loses_no_scene_whose_id_was_printed(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    printed: list[str] = []
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", SUBMITTER, str(tmp_path), str(len(printed))],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(float(random.uniform(0, 0.15)))
        child.send_signal(signal.SIGKILL)
        printed += [first.strip(), *child.stdout.read().split()]
        child.wait()
    with sqlite3.connect(tmp_path / FILE) as looking:
        assert looking.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    looking.close()
    assert len(printed) >= 6
    with Outbox(tmp_path) as box:
        kept = {entry.scene_id for entry in box.entries()}
        assert kept >= {name for name in printed if len(name) == 64}
        for scene in box.due(10_000):
            box.load(scene.scene_id, np.flatnonzero(scene.lengths).tolist())  # whole, and every checksum right


def test_power_cut_between_transactions_keeps_committed_scenes(tmp_path: Path, box: Outbox) -> None:
    """The files as they are on disk after a commit, copied without a clean close, hold the scene."""
    submit(box, stream())
    copy = tmp_path / "copy"
    shutil.copytree(box.folder, copy)
    with Outbox(copy) as after:
        assert len(after.due(9)) == 1


def test_limits_hold_here_too(box: Outbox) -> None:
    with pytest.raises(TooLarge):
        box.submit(bytes(1 << 17), [])
