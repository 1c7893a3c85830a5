"""The inbox: every step may be the last before a crash, and nothing that was acknowledged is lost by it."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decoder_node.inbox import Inbox, checked
from decoder_node.ledger import Ledger
from downlink.action import Arrival, Commit, Finish, GroundAction, Open, Reject, Send
from downlink.checksum import crc32c
from downlink.frame import REVISION, Ack, Chunk, Chunks, Hello, Offer, RefusalCode, SceneState, State
from downlink.incoming import Incoming
from downlink.session import GroundSession
from downlink.stream import head
from tests.streams import Stream, stream


class Ground:
    """A ground that was just started on an archive: ledger, inbox, one stream."""

    def __init__(self, archive: Path, **options: Any) -> None:
        self.ledger = Ledger(archive, create=True)
        self.inbox = Inbox(archive, self.ledger, **options)
        self.recovered = self.inbox.recover()
        self.session = GroundSession("ground")
        self.session.receive(Hello(REVISION, "edge"), 0.0)
        self.acked: set[int] = set()
        self.states: list[SceneState] = []

    def do(self, actions: list[GroundAction]) -> None:
        waiting = list(actions)
        while waiting:
            match action := waiting.pop(0):
                case Open(incoming, priority):
                    waiting += self.session.opened(incoming.scene_id, self.inbox.open(incoming, priority), 0.0)
                case Commit(arrivals):
                    self.inbox.commit(arrivals)
                    waiting += self.session.committed(action, 0.0)
                case Finish(incoming):
                    fault = self.inbox.verify(incoming)
                    waiting += self.session.finished(incoming, self.inbox.seal(incoming, fault), 0.0)
                case Reject(incoming, reason):
                    self.inbox.reject(incoming, reason)
                case Send(Ack(_, committed)):
                    self.acked |= {index for item in committed for index in range(item.first, item.end)}
                case Send(SceneState() as state):
                    self.states.append(state)

    def offer(self, made: Stream) -> SceneState:
        self.do(self.session.receive(Offer(made.id, made.packed), 0.0))
        return self.states[-1]

    def send(self, made: Stream, indexes: list[int], flush: bool = True) -> None:
        parts = tuple(Chunk(index, crc32c(made.chunks[index]), made.chunks[index]) for index in indexes)
        self.do(self.session.receive(Chunks(made.id, parts, flush), 0.0))

    def missing(self, made: Stream) -> list[int]:
        """What the ground asks for, as far as the edge has it."""
        state = self.offer(made)
        if state.state is State.DURABLE:
            return []
        wanted = {index for item in state.missing for index in range(item.first, item.end)}
        return sorted(wanted & made.sent)

    def close(self) -> None:
        self.ledger.close()


def final(archive: Path, made: Stream) -> Path:
    return archive / "streams" / f"{made.id}.dl"


def test_the_finished_stream_is_the_file_that_the_encoder_writes(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path)
    ground.send(made, ground.missing(made))
    assert ground.states[-1] == made.durable
    assert final(tmp_path, made).read_bytes() == made.file
    assert list((tmp_path / "inbox").iterdir()) == []
    assert ground.acked == made.sent


def test_order_does_not_matter(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path)
    first, *others = ground.missing(made)
    for index in (first, *reversed(others), *others[:4]):
        ground.send(made, [index])
    assert final(tmp_path, made).read_bytes() == made.file


def test_a_restart_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path)
    all_of_it = ground.missing(made)
    ground.send(made, all_of_it[:7])
    ground.close()
    again = Ground(tmp_path)
    assert again.missing(made) == all_of_it[7:]
    again.send(made, all_of_it[7:])
    assert final(tmp_path, made).read_bytes() == made.file


def test_a_finished_scene_leaves_a_tombstone(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path)
    ground.send(made, ground.missing(made))
    ground.close()
    again = Ground(tmp_path)
    assert again.offer(made) == made.durable
    again.send(made, [0, 1])
    assert final(tmp_path, made).read_bytes() == made.file
    assert list((tmp_path / "inbox").iterdir()) == []


class Fault(Exception):
    """The machine stops here."""


def stop_at(number: int, patch: pytest.MonkeyPatch, error: Callable[[], Exception]) -> None:
    """Let the number-th call that touches the disk fail."""
    calls = itertools.count()

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if next(calls) == number:
                raise error()
            return real(*arguments, **named)

        patch.setattr(owner, name, wrapped)

    for owner, name in (
        (os, "pwrite"), (os, "fsync"), (os, "fdatasync"), (Path, "rename"), (Path, "unlink"),
        (Ledger, "begin"), (Ledger, "commit"), (Ledger, "durable"), (Ledger, "correct"),
    ):  # fmt: skip
        wrap(owner, name)


@pytest.mark.parametrize("error", [Fault, lambda: OSError(errno.ENOSPC, "No space left on device")])
def test_a_crash_at_any_step_loses_nothing_that_was_acknowledged(
    tmp_path: Path, error: Callable[[], Exception]
) -> None:
    """Fail the 1st, 2nd, ... call that touches the disk and start again, until a run passes unharmed."""
    made = stream()
    for number in itertools.count():
        archive = tmp_path / str(number)
        archive.mkdir()
        ground = Ground(archive)
        harmed = False
        with pytest.MonkeyPatch.context() as patch:
            stop_at(number, patch, error)
            try:
                wanted = ground.missing(made)
                for start in range(0, len(wanted), 8):
                    ground.send(made, wanted[start : start + 8])
            except (Fault, OSError):
                harmed = True
        ground.close()
        if not harmed:
            break
        again = Ground(archive)
        still = again.missing(made)
        assert not (ground.acked & set(still)), f"acknowledged chunks are gone after a stop at call {number}"
        again.send(made, still) if still else None
        assert again.offer(made).state is State.DURABLE
        assert final(archive, made).read_bytes() == made.file
        assert list((archive / "inbox").iterdir()) == []
        again.close()
    assert number > 20  # the loop has really stopped at many places


def test_bytes_are_synced_before_the_ledger_says_so_and_renamed_before_the_scene_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground, made = Ground(tmp_path), stream()
    order: list[str] = []

    def note(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (order.append(name), real(*a, **k))[1])

    for owner, name in (
        (os, "pwrite"), (os, "fsync"), (os, "fdatasync"), (Path, "rename"), (Ledger, "commit"), (Ledger, "durable"),
    ):  # fmt: skip
        note(owner, name)
    wanted = ground.missing(made)
    order.clear()
    ground.send(made, wanted[:2])
    assert order == ["pwrite", "pwrite", "fdatasync", "commit"]
    order.clear()
    ground.send(made, wanted[2:])
    assert order[-7:] == ["fdatasync", "commit", "fsync", "rename", "fsync", "fsync", "durable"]


def test_a_chunk_that_the_disk_lost_is_wanted_again(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path)
    wanted = ground.missing(made)
    ground.send(made, wanted[:9])
    part = tmp_path / "inbox" / f"{made.id}.part"
    content = bytearray(part.read_bytes())
    offset = len(head(made.packed)) + sum(map(len, made.chunks[: wanted[6]]))
    content[offset] ^= 1
    part.write_bytes(content)
    ground.send(made, wanted[9:])
    assert ground.states[-1].state is State.RECEIVING
    assert [(item.first, item.count) for item in ground.states[-1].missing] == [(wanted[6], 1)]
    ground.close()
    again = Ground(tmp_path)
    assert again.missing(made) == [wanted[6]]
    again.send(made, [wanted[6]])
    assert final(tmp_path, made).read_bytes() == made.file


@pytest.mark.parametrize("where", ["header", "page", "gone"])
def test_a_damaged_beginning_starts_the_scene_anew(tmp_path: Path, where: str) -> None:
    made = stream()
    ground = Ground(tmp_path)
    wanted = ground.missing(made)
    ground.send(made, wanted[:9])
    ground.close()
    part = tmp_path / "inbox" / f"{made.id}.part"
    content = bytearray(part.read_bytes())
    content[5 if where == "header" else len(head(made.packed)) + 1] ^= 1
    part.write_bytes(content)
    if where == "gone":
        part.unlink()
    again = Ground(tmp_path)
    assert again.missing(made) == wanted
    again.send(made, wanted)
    assert final(tmp_path, made).read_bytes() == made.file


def test_a_full_disk_refuses_new_scenes_with_a_time_to_come_back(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path, free_bytes_min=1 << 60)
    state = ground.offer(made)
    assert state.refusal is not None
    assert state.refusal.code is RefusalCode.EXHAUSTED
    assert state.refusal.retry_after_s > 0
    assert str(tmp_path) not in state.refusal.message
    assert list((tmp_path / "inbox").iterdir()) == []


def test_leftovers_of_nobody_are_removed(tmp_path: Path) -> None:
    Ground(tmp_path).close()
    stray = tmp_path / "inbox" / f"{'ab' * 32}.part"
    stray.write_bytes(b"?")
    Ground(tmp_path)
    assert not stray.exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a" * 63, "A" * 64, "a" * 64 + "\n", "/" * 64])
def test_only_ids_become_file_names(name: str) -> None:
    with pytest.raises(ValueError, match="is not a scene id"):
        checked(name)


def test_a_scene_named_like_a_path_stays_in_the_archive(tmp_path: Path) -> None:
    made = stream(name="../../../../etc/passwd")
    archive = tmp_path / "archive"
    archive.mkdir()
    ground = Ground(archive)
    ground.send(made, ground.missing(made))
    assert final(archive, made).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_two_streams_finish_one_scene_once(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path)
    wanted = ground.missing(made)
    other = GroundSession("ground")
    other.receive(Hello(REVISION, "edge"), 0.0)
    [action] = other.receive(Offer(made.id, made.packed), 0.0)
    assert isinstance(action, Open)
    shared = ground.inbox.open(action.incoming, 0)
    assert isinstance(shared, Incoming)
    ground.send(made, wanted)
    late = [Arrival(shared, index, made.chunks[index]) for index in wanted[:3]]
    ground.inbox.commit(late)  # of the other stream, after the end
    assert ground.inbox.seal(shared, ground.inbox.verify(shared)) == SceneState(made.id, State.DURABLE)
    assert final(tmp_path, made).read_bytes() == made.file
