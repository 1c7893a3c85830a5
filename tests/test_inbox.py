"""The inbox: every step may be the last before a crash, and nothing that was acknowledged is lost by it."""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

import decoder_node.durable
from decoder_node.disk import Disk, Writing
from decoder_node.inbox import RETRY_S, Inbox, checked
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


def test_the_folders_of_a_new_archive_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(decoder_node.durable, "sync_folder", synced.append)
    Disk().make_folder(tmp_path / "a" / "b" / "inbox")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]


class BadSector(Disk):
    """A disk on which one byte of the files in `inbox/` cannot be read, until it is written again, or for ever."""

    def __init__(self, offset: int, for_ever: bool = False) -> None:
        self.offset: int | None = None  # not yet
        self._at, self._for_ever = offset, for_ever

    def break_down(self) -> None:
        self.offset = self._at

    def read(self, path: Path) -> BinaryIO:
        disk, inner = self, super().read(path)

        class Failing(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                place = self.tell()
                content = super().read(-1 if size is None else size)
                if disk.offset is not None and place <= disk.offset < place + len(content):
                    raise OSError(errno.EIO, "Input/output error")
                return content

        inner.close()
        return Failing(path) if path.suffix == ".part" else path.open("rb")  # type: ignore[return-value]

    @contextmanager
    def write(self, path: Path, *, create: bool = False) -> Iterator[Writing]:
        with super().write(path, create=create) as file:
            write_at = file.write_at

            def healing(content: bytes, offset: int) -> None:
                if self.offset is not None and offset <= self.offset < offset + len(content) and not self._for_ever:
                    self.offset = None
                write_at(content, offset)

            file.write_at = healing  # type: ignore[method-assign]
            yield file


def place_of(made: Stream, index: int) -> int:
    """Where a chunk is in the file."""
    return len(head(made.packed)) + sum(map(len, made.chunks[:index]))


def test_a_chunk_that_the_disk_cannot_read_is_wanted_again(tmp_path: Path) -> None:
    made = stream()
    chosen = sorted(made.sent)[8]
    disk = BadSector(place_of(made, chosen))
    ground = Ground(tmp_path, disk=disk)
    wanted = ground.missing(made)
    ground.send(made, wanted[:-1])
    disk.break_down()
    ground.send(made, wanted[-1:])
    assert [(item.first, item.count) for item in ground.states[-1].missing] == [(chosen, 1)]
    ground.send(made, [chosen])
    assert ground.states[-1] == made.durable
    assert final(tmp_path, made).read_bytes() == made.file


def test_a_disk_that_never_keeps_a_chunk_costs_three_sendings_and_a_pause(tmp_path: Path) -> None:
    made = stream()
    chosen = sorted(made.sent)[8]
    disk = BadSector(place_of(made, chosen), for_ever=True)
    ground = Ground(tmp_path, disk=disk)
    wanted = ground.missing(made)
    disk.break_down()
    ground.send(made, wanted)
    sendings = 1
    while ground.states[-1].state is State.RECEIVING:
        assert [(item.first, item.count) for item in ground.states[-1].missing] == [(chosen, 1)]
        sendings += 1
        assert sendings <= 3
        ground.send(made, [chosen])
    state = ground.states[-1]
    assert sendings == 3
    assert state.refusal is not None
    assert (state.refusal.code, state.refusal.retry_after_s) == (RefusalCode.EXHAUSTED, 10 * RETRY_S)
    assert str(tmp_path) not in state.refusal.message
    disk.offset = None  # another disk
    assert ground.missing(made) == [chosen]
    ground.send(made, [chosen])
    assert final(tmp_path, made).read_bytes() == made.file


def test_a_read_that_fails_once_blames_no_chunk_and_no_scene(tmp_path: Path) -> None:
    made = stream()
    ground = Ground(tmp_path)
    wanted = ground.missing(made)
    ground.send(made, wanted[:-1])
    [incoming] = [arrival.incoming for arrival in held(ground, made, wanted[-1])]
    fault = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        ground.inbox.seal(incoming, fault)
    assert ground.inbox.seal(incoming, ground.inbox.verify(incoming)) == SceneState(made.id, State.DURABLE)


def held(ground: Ground, made: Stream, index: int) -> tuple[Arrival, ...]:
    """Commit one more chunk, without what follows from it."""
    part = Chunk(index, crc32c(made.chunks[index]), made.chunks[index])
    [commit] = ground.session.receive(Chunks(made.id, (part,), True), 0.0)
    assert isinstance(commit, Commit)
    ground.inbox.commit(commit.arrivals)
    ground.session.committed(commit, 0.0)
    return commit.arrivals


def forged(content: bytes) -> bytes:
    """Other bytes of the same length and CRC-32C: they differ by the polynomial that it is the remainder of."""
    polynomial = 0x1_1EDC6F41
    bits = np.array([polynomial >> place & 1 for place in range(32, -1, -1)], np.uint8)
    difference = np.zeros(len(content), np.uint8)
    packed = np.packbits(bits, bitorder="little")
    difference[: len(packed)] = packed
    other = (np.frombuffer(content, np.uint8) ^ difference).tobytes()
    assert other != content
    assert crc32c(other) == crc32c(content)
    return other


def test_a_forgery_with_the_right_checksum_never_replaces_what_is_committed(tmp_path: Path) -> None:
    """Another stream may have judged it while the chunk was missing, and commits it after the scene was verified."""
    made = stream(3, chunk_bytes=60)
    ground = Ground(tmp_path)
    wanted = ground.missing(made)
    [chosen, *_] = (index for index in wanted[1:] if len(made.chunks[index]) > 20)
    ground.send(made, wanted[:-1])
    [last] = held(ground, made, wanted[-1])
    incoming = last.incoming
    fault = ground.inbox.verify(incoming)
    assert fault is None
    ground.inbox.commit([Arrival(incoming, chosen, forged(made.chunks[chosen]))])
    assert ground.inbox.seal(incoming, fault) == SceneState(made.id, State.DURABLE)
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
