"""Watching a folder: which of its scenes are new, and whether they have been written to the end.

A scene is taken when its size and time of change have stayed the same for `settle_s`: whoever copies files into the
folder need not rename them. Taken are GeoTIFF, JPEG 2000, `.npy`, `.dl`, zipped products, `.SAFE` folders, and raw
files with their JSON side-car; hidden names and everything else are left alone. Nothing is ever deleted or moved.

Each state of a file is submitted once, by a process of its own: a scene that cannot be encoded, or that kills its
encoder, is reported and left alone until it changes. One for which the outbox has no room is reported and tried again
until there is. What was done is kept in the outbox and survives a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from downlink.errors import SceneError
from encoder_node.durable import shown, utf8
from encoder_node.log import log
from encoder_node.source_array import side_car_of

if TYPE_CHECKING:
    from encoder_node.sender import Sender

SUFFIXES: Final = frozenset({".tif", ".tiff", ".jp2", ".npy", ".dl", ".zip"})
SETTLE_S = 2.0
FULL = 75  # `encoder-node submit`'s word for an outbox without room
FULL_S = 30.0  # until the next try then
LOOK_S = 1.0


def candidates(folder: Path, unusable: dict[Path, str] | None = None) -> dict[Path, str]:
    """The scenes in a folder, each with a signature that changes whenever the scene does.

    `unusable` is given those that cannot be looked at, each with the reason.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        reason = "its name is not UTF-8; rename it"
        try:
            if (signature := _candidate(path)) is None:
                continue
            if utf8(path):
                found[path] = signature
                continue
        except FileNotFoundError:  # gone since it was listed
            continue
        except OSError as error:
            reason = f"it cannot be looked at ({error.strerror})"
        if unusable is not None:
            unusable[path] = reason
    return found


def _candidate(path: Path) -> str | None:
    """The signature of a scene; None for whatever is none."""
    if path.suffix.upper() == ".SAFE" and path.is_dir():
        return _signature([part for part in path.rglob("*") if part.is_file()])
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return _signature([path])
    if (side_car := side_car_of(path)) is not None and path.is_file():
        return _signature([path, side_car])
    return None


def _signature(files: Sequence[Path]) -> str:
    facts = [file.stat() for file in files]
    changed = max((fact.st_mtime_ns for fact in facts), default=0)
    return f"{len(facts)} files, {sum(fact.st_size for fact in facts)} bytes, changed at {changed} ns"


class Settling:
    """Knows since when each scene has looked the same."""

    def __init__(self, settle_s: float = SETTLE_S) -> None:
        self._settle_s = settle_s
        self._since: dict[Path, tuple[str, float]] = {}

    def settled(self, found: Mapping[Path, str], now: float) -> list[Path]:
        """The scenes of `found` that have not changed for long enough."""
        known = self._since
        self._since = {}
        for path, signature in found.items():
            before = known.get(path)
            self._since[path] = before if before and before[0] == signature else (signature, now)
        return [path for path, (_, since) in self._since.items() if now - since >= self._settle_s]


@dataclass(frozen=True)
class Standing:
    """Options of `encoder-node submit` for all scenes: those for `always`, and those for when the ground has not asked
    for another `target`, or number of `layers`."""

    always: Sequence[str] = ()
    target: Sequence[str] = ()
    layers: Sequence[str] = ()


class Watch:
    """Submits the scenes of a folder to the sender's outbox."""

    def __init__(self, folder: Path, sender: Sender, standing: Standing, settle_s: float = SETTLE_S) -> None:
        if not folder.is_dir():
            raise SceneError(f"{folder} is not a folder; --watch needs one that exists")
        if not utf8(folder):
            raise SceneError(f"{shown(folder)}: its name is not UTF-8; --watch needs one that is")
        self._folder = folder
        self._sender = sender
        self._standing = standing
        self._settling = Settling(settle_s)
        self._said: dict[Path, str] = {}
        self._full_until = 0.0
        self.failed: list[str] = []

    async def run(self) -> None:
        """Until the sender is told to stop. A folder that is gone for a while (unmounted, say) is waited for."""
        while not self._sender.stopping.is_set():
            try:
                await self._look()
                self._said.pop(self._folder, None)
            except OSError as error:
                self._fail(self._folder, f"the watched folder cannot be read ({error.strerror})")
            await self._sender.pause(LOOK_S)

    async def run_once(self, give_up_s: float) -> None:
        """Until every scene that is there has been dealt with."""
        began = time.monotonic()
        while (waiting := await self._look()) and not self._sender.stopping.is_set():
            if time.monotonic() - began > give_up_s:
                raise SceneError(f"{waiting[0]} keeps changing for {give_up_s:g} s; try again when it is complete")
            await self._sender.pause(SETTLE_S / 4)

    async def _look(self) -> list[Path]:
        """Submit what is new and settled; returns what is new and not."""
        unusable: dict[Path, str] = {}
        found = await asyncio.to_thread(candidates, self._folder, unusable)
        for path, reason in unusable.items():
            self._fail(path, reason)
        fresh = {}
        for path, signature in found.items():
            seen = await self._sender.disk(partial(self._sender.outbox.seen, str(path)))
            if seen is None or seen[0] != signature:
                fresh[path] = signature
        for path in self._settling.settled(fresh, time.monotonic()):
            if self._sender.stopping.is_set() or time.monotonic() < self._full_until:
                break
            await self._submit(path, fresh.pop(path))
        return list(fresh)

    def _fail(self, path: Path, reason: str) -> None:
        """Report a scene that cannot be submitted, once for each reason."""
        if self._said.get(path) != reason:
            self._said[path] = reason
            self.failed.append(f"{shown(path)}: {reason}")
            log.error("cannot submit", extra={"path": shown(path), "reason": reason})

    async def _submit(self, path: Path, signature: str) -> None:
        asked = await self._sender.disk(self._sender.outbox.target)
        standing = self._standing
        options = [*standing.always, *(() if asked.target else standing.target)]
        options += () if asked.layers else standing.layers
        command = [
            sys.executable,
            "-m",
            "encoder_node",
            "submit",
            "--unless-delivered",  # a file that was only touched is not a wish
            *options,
            "--outbox",
            str(self._sender.outbox.folder),
        ]
        log.info("encoding", extra={"path": str(path)})
        began = time.monotonic()
        try:
            child = await asyncio.create_subprocess_exec(
                *command, "--", str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:  # not the scene's fault: it is tried again
            self._fail(path, f"its encoder cannot be started ({error.strerror})")
            return
        talking = asyncio.create_task(child.communicate())
        stopping = asyncio.create_task(self._sender.stopping.wait())
        try:
            await asyncio.wait({talking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not talking.done():  # it keeps its promise by the outbox's transaction: all or nothing
                return
        finally:
            stopping.cancel()
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await talking
        said, complaint = talking.result()
        reason = None
        if child.returncode != 0:
            lines = complaint.decode(errors="replace").strip().splitlines() or [
                f"its encoder ended with {child.returncode}"
            ]
            reason = lines[-1].removeprefix("Error: ")[:500]
            if child.returncode == FULL:  # not the scene's fault: nothing is noted, and it is tried again
                self._full_until = time.monotonic() + FULL_S
                self._fail(path, reason)
                return
            self._said.pop(path, None)  # each state of a file is reported
            self._fail(path, reason)
        else:
            self._said.pop(path, None)
            facts = {"path": str(path), "scene": said.decode(errors="replace").strip()}
            log.info("submitted", extra={**facts, "seconds": round(time.monotonic() - began, 3)})
        await self._sender.disk(partial(self._sender.outbox.note, str(path), signature, reason))
