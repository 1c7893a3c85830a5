"""Watching a folder: which of its scenes are new, and whether they have been written to the end.

A scene is taken when its size and time of change have stayed the same for `settle_s`: whoever copies files into the
folder need not rename them. Taken are GeoTIFF, JPEG 2000, `.npy`, `.dl`, zipped products, `.SAFE` folders, and raw
files with their JSON side-car; hidden names and everything else are left alone. Nothing is ever deleted or moved.

Each state of a file is submitted once, by a process of its own: a scene that cannot be encoded, or that kills its
encoder, is reported and left alone until it changes. What was done is kept in the outbox and survives a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from downlink.errors import SceneError
from encoder_node.log import log
from encoder_node.source_array import side_car_of

if TYPE_CHECKING:
    from encoder_node.sender import Sender

SUFFIXES: Final = frozenset({".tif", ".tiff", ".jp2", ".npy", ".dl", ".zip"})
SETTLE_S = 2.0
LOOK_S = 1.0


def candidates(folder: Path) -> dict[Path, str]:
    """The scenes in a folder, each with a signature that changes whenever the scene does."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            if path.suffix.upper() == ".SAFE" and path.is_dir():
                found[path] = _signature([part for part in path.rglob("*") if part.is_file()])
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                found[path] = _signature([path])
            elif (side_car := side_car_of(path)) is not None and path.is_file():
                found[path] = _signature([path, side_car])
    return found


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


class Watch:
    """Submits the scenes of a folder to the sender's outbox; `options` are those of `encoder-node submit`."""

    def __init__(self, folder: Path, sender: Sender, options: Sequence[str], settle_s: float = SETTLE_S) -> None:
        if not folder.is_dir():
            raise SceneError(f"{folder} is not a folder; --watch needs one that exists")
        self._folder = folder
        self._sender = sender
        self._options = [*options]
        self._settling = Settling(settle_s)
        self.failed: list[str] = []

    async def run(self) -> None:
        """Until the sender is told to stop."""
        while not self._sender.stopping.is_set():
            await self._look()
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
        found = await asyncio.to_thread(candidates, self._folder)
        fresh = {}
        for path, signature in found.items():
            seen = await self._sender.disk(partial(self._sender.outbox.seen, str(path)))
            if seen is None or seen[0] != signature:
                fresh[path] = signature
        for path in self._settling.settled(fresh, time.monotonic()):
            if self._sender.stopping.is_set():
                break
            await self._submit(path, fresh.pop(path))
        return list(fresh)

    async def _submit(self, path: Path, signature: str) -> None:
        command = [
            sys.executable,
            "-m",
            "encoder_node",
            "submit",
            *self._options,
            "--outbox",
            str(self._sender.outbox.folder),
        ]
        log.info("encoding", extra={"path": str(path)})
        child = await asyncio.create_subprocess_exec(
            *command, "--", str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
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
            self.failed.append(f"{path}: {reason}")
            log.error("cannot submit", extra={"path": str(path), "reason": reason})
        else:
            log.info("submitted", extra={"path": str(path), "scene": said.decode().split()[0]})
        await self._sender.disk(partial(self._sender.outbox.note, str(path), signature, reason))
