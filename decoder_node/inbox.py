"""The inbox: chunks on disk, each at its final place in what becomes the scene's `.dl` file.

    ARCHIVE/ledger.sqlite            what is committed (decoder_node.ledger)
    ARCHIVE/inbox/<scene id>.part    header and manifest, then chunks as they come, at the offsets of the chunk list
    ARCHIVE/streams/<scene id>.dl    the finished stream, byte for byte what the encoder would have written

`commit` returns when the bytes and then the ledger's rows are synced: what it was given may be acknowledged. A scene
becomes durable when all of it was read back and its hash agrees: fsync, rename, fsync of both folders, ledger. A
crash between any two of these steps leaves a state that `recover` and `open` go on from.

File names are made of scene ids, which are hex; no other word of a peer's is used. OSError (a full disk above all)
passes through: nothing was promised then. All methods but `verify` belong to one thread.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from decoder_node.disk import Disk
from decoder_node.ledger import COMING, Ledger
from decoder_node.reference import lacking
from downlink.action import Arrival
from downlink.checksum import crc32c
from downlink.errors import Corrupt, StreamError
from downlink.frame import Chunk, Refusal, RefusalCode, SceneState, State
from downlink.incoming import Incoming
from downlink.ranges import runs, runs_of
from downlink.session import refused
from downlink.stream import StreamReader, head

SCENE_ID: Final = re.compile(r"[0-9a-f]{64}")
FREE_BYTES_MIN: Final = 64 * 1024 * 1024  # left over for the ledger and for what is being decoded
RETRY_S: Final = 60  # when the disk is full
ROUNDS_MAX: Final = 3  # as often a scene's chunks are wanted again because the disk has not kept them; then it waits


class Inbox:
    """The store behind `GroundSession`."""

    def __init__(
        self, archive: Path, ledger: Ledger, *, disk: Disk | None = None, free_bytes_min: int = FREE_BYTES_MIN
    ) -> None:
        self._ledger = ledger
        self._disk = disk or Disk()
        self._parts = archive / "inbox"
        self._streams = archive / "streams"
        self._free_bytes_min = free_bytes_min
        # Streams that carry the same scene share one picture of it.
        self._open: WeakValueDictionary[str, Incoming] = WeakValueDictionary()
        self._rounds: WeakKeyDictionary[Incoming, int] = WeakKeyDictionary()
        for folder in (self._parts, self._streams):
            self._disk.make_folder(folder)
        self._disk.sync_folder(archive)

    def stream_path(self, scene_id: str) -> Path:
        return self._streams / f"{checked(scene_id)}.dl"

    def part_path(self, scene_id: str) -> Path:
        return self._parts / f"{checked(scene_id)}.part"

    def open(self, offered: Incoming, priority: int, node: str = "") -> Incoming | SceneState:
        """Take a scene in, or say how far it is: the answer to `Open`.

        A new scene belongs to `node`. One that belongs to another is refused, whatever its state: no node can read or
        write for another.
        """
        scene_id = offered.scene_id
        entry = self._ledger.find(scene_id)
        if entry is not None and entry.node not in ("", node):
            reason = f"scene {scene_id[:12]}… belongs to another node, which has offered it first"
            return SceneState(scene_id, State.REFUSED, (), Refusal(RefusalCode.FORBIDDEN, reason))
        if entry is not None and entry.durable_at is not None:
            return SceneState(scene_id, State.DURABLE)
        if entry is not None and self._disk.exists(self.stream_path(scene_id)) and self._sealed_before(scene_id):
            return SceneState(scene_id, State.DURABLE)  # it was sealed, but for the ledger, whose disk had failed
        if refusal := lacking(self._ledger, self._has, offered.manifest, node):
            return SceneState(scene_id, State.REFUSED, (), refusal)
        if known := self._open.get(scene_id):
            return known
        size = len(head(offered.packed)) + offered.manifest.payload_bytes
        free = self._disk.free_bytes(self._parts)
        if free < offered.manifest.payload_bytes + self._free_bytes_min:
            reason = f"the scene needs {offered.manifest.payload_bytes} bytes, and the ground's disk has {free} left"
            return SceneState(scene_id, State.REFUSED, (), Refusal(RefusalCode.EXHAUSTED, reason, RETRY_S))
        if entry is not None and entry.state in COMING and self._disk.exists(self.part_path(scene_id)):
            self._restore(offered)
        else:
            if entry is not None:
                self._ledger.correct(scene_id, ())
            self._write_header(offered, create=True)
            self._disk.sync_folder(self._parts)
            self._ledger.begin(scene_id, offered.manifest, offered.packed, priority, size, node)
        self._open[scene_id] = offered
        return offered

    def _has(self, scene_id: str) -> bool:
        return self._disk.exists(self.stream_path(scene_id))

    def commit(self, arrivals: Sequence[Arrival]) -> None:
        """Write these chunks, sync them, then say so in the ledger: the answer to `Commit`."""
        by_scene: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            by_scene.setdefault(arrival.incoming.scene_id, []).append(arrival)
        written, sizes = [], {}
        for scene_id, group in by_scene.items():
            if self._ledger.settled(scene_id):
                continue  # another stream was faster: all of it is on disk already
            # So may it have been with some of it. What is committed is never written again: it may be verified by now.
            group = [arrival for arrival in group if arrival.incoming.missing[arrival.index]]
            if not group:
                continue
            with self._disk.write(self.part_path(scene_id)) as file:
                start = len(head(group[0].incoming.packed))
                for arrival in group:
                    file.write_at(arrival.content, start + arrival.incoming.span(arrival.index)[0])
                file.sync()
            written += [(scene_id, item) for item in runs_of(arrival.index for arrival in group)]
            sizes[scene_id] = sum(len(arrival.content) for arrival in group)
        if written:
            self._ledger.commit(written, sizes)

    def verify(self, incoming: Incoming) -> StreamError | OSError | None:
        """Read the whole scene back; what is wrong with it, or with reading it, or None. May run in any thread."""
        try:
            with self._disk.read(self.part_path(incoming.scene_id)) as file:
                StreamReader(file).verify()
        except FileNotFoundError:
            return None  # another stream has finished it meanwhile: `seal` knows
        except (StreamError, OSError) as error:
            return error
        return None

    def seal(self, incoming: Incoming, fault: StreamError | OSError | None) -> SceneState | None:
        """Make a verified scene durable, or deal with a fault that `verify` has found: the answer to `Finish`."""
        scene_id = incoming.scene_id
        if self._ledger.settled(scene_id):
            return SceneState(scene_id, State.DURABLE)
        if fault is not None:
            return self._faulty(incoming, fault)
        part = self.part_path(scene_id)
        self._disk.sync(part)
        self._disk.rename(part, self.stream_path(scene_id))
        self._disk.sync_folder(self._streams)
        self._disk.sync_folder(self._parts)
        self._ledger.durable(scene_id)
        self._open.pop(scene_id, None)
        return SceneState(scene_id, State.DURABLE)

    def reject(self, incoming: Incoming, reason: str) -> None:
        """Give a scene up that can never become complete: the answer to `Reject`."""
        self._ledger.quarantine(incoming.scene_id, reason)
        self._disk.unlink(self.part_path(incoming.scene_id))
        self._open.pop(incoming.scene_id, None)

    def recover(self) -> list[str]:
        """After a start: finish what a crash has left between two steps. Returns the scenes that became durable by
        it."""
        finished = []
        for entry in self._ledger.entries():
            if (
                entry.state in COMING
                and self._disk.exists(self.stream_path(entry.scene_id))
                and self._sealed_before(entry.scene_id)
            ):
                finished.append(entry.scene_id)
        for part in self._disk.files(self._parts):
            if part.suffix != ".part":
                continue
            found = self._ledger.find(part.stem) if SCENE_ID.fullmatch(part.stem) else None
            if found is None or found.durable_at is not None:
                self._disk.unlink(part)
        return finished

    def _sealed_before(self, scene_id: str) -> bool:
        """A crash came between the rename and the ledger: is the stream good?"""
        path = self.stream_path(scene_id)
        try:
            with self._disk.read(path) as file:
                StreamReader(file).verify()
            self._disk.sync(path)
        except StreamError:
            self._disk.unlink(path)
            return False
        self._disk.sync_folder(self._streams)
        self._ledger.durable(scene_id)
        self._open.pop(scene_id, None)
        return True

    def _restore(self, incoming: Incoming) -> None:
        """Tell a scene what the ledger says is stored of it. Pages are read back; if one is damaged, all is missing
        again."""
        ranges = self._ledger.committed(incoming.scene_id)
        stored = {
            index
            for item in ranges
            if item.first < incoming.pages
            for index in range(item.first, min(item.end, incoming.pages))
        }
        with self._disk.read(self.part_path(incoming.scene_id)) as file:
            start = len(head(incoming.packed))
            intact = _read(file, 0, start) == head(incoming.packed)
            for index in sorted(stored):
                offset, length = incoming.span(index)
                content = _read(file, start + offset, length)
                if not intact or incoming.judge(Chunk(index, incoming.manifest.pages[index][1], content)):
                    self._ledger.correct(incoming.scene_id, ())
                    self._write_header(incoming)
                    return
                incoming.learn(index, content)
        incoming.restore(ranges)

    def _faulty(self, incoming: Incoming, fault: StreamError | OSError) -> SceneState | None:
        """Find the chunks that the disk has not kept and want them again; if none is to blame, the manifest is. A disk
        that does not keep them `ROUNDS_MAX` times is left alone for a while: each round costs the link."""
        damaged = []
        with self._disk.read(self.part_path(incoming.scene_id)) as file:
            start = len(head(incoming.packed))
            intact = _read(file, 0, start) == head(incoming.packed)
            for index in range(incoming.manifest.chunk_count):
                offset, length = incoming.span(index)
                if length and (not intact or crc32c(_read(file, start + offset, length)) != incoming.checksum(index)):
                    damaged.append(index)
        if not damaged:
            if isinstance(fault, OSError):  # it has passed: the scene is not to blame
                raise fault
            self.reject(incoming, str(fault))
            return refused(incoming.scene_id, Corrupt(str(fault)))
        if not intact:
            self._write_header(incoming)
        incoming.lose(damaged)
        good = np.ones(incoming.manifest.chunk_count, bool)
        good[damaged] = False
        self._ledger.correct(incoming.scene_id, runs(good))
        rounds = self._rounds[incoming] = self._rounds.get(incoming, 0) + 1
        if rounds < ROUNDS_MAX:
            return None
        reason = f"the ground's disk has lost chunks of the scene {rounds} times, {len(damaged)} of them now"
        refusal = Refusal(RefusalCode.EXHAUSTED, reason, 10 * RETRY_S)
        return SceneState(incoming.scene_id, State.REFUSED, (), refusal)

    def _write_header(self, incoming: Incoming, create: bool = False) -> None:
        with self._disk.write(self.part_path(incoming.scene_id), create=create) as file:
            file.write_at(head(incoming.packed), 0)
            file.sync()


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    """What a file has there; nothing where the disk cannot read it, which is damage like any other."""
    try:
        file.seek(offset)
        return file.read(length)
    except OSError:
        return b""


def checked(scene_id: str) -> str:
    """The same id, if it is one: the only way from a peer's word to a file name."""
    if not SCENE_ID.fullmatch(scene_id):
        raise ValueError(f"{scene_id[:80]!r} is not a scene id")
    return scene_id


def is_full(error: OSError) -> bool:
    """Did this fail for want of space?"""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
