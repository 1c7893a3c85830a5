"""Decoding: a task per durable scene, in worker processes, driven by the ledger.

`decode_stream` is the task itself: stream -> GeoTIFF files and a catalogue item. It is idempotent (outputs are
written whole and renamed), so it may be run again after any crash. `Workers` runs it: each of its processes is a pool
of one, so that a crash is the fault of exactly one scene. A scene that fails `ledger.FAILURES_MAX` times, crashes
included, is quarantined with the reason; one whose model is not installed, or not among those that the operator
trusts, stays durable, and is tried again at the next start. A process has the memory and the time that
`decoder_node.bounds` gives it, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from decoder_node import bounds
from decoder_node.inbox import checked
from decoder_node.ledger import Ledger
from decoder_node.log import log, log_to_stderr
from downlink.bundle import find_id
from downlink.errors import BundleError, DownlinkError
from downlink.manifest import Manifest
from downlink.part import PartReader
from downlink.ranges import Range
from downlink.stream import StreamReader, read_head

if TYPE_CHECKING:
    from decoder_node.compose import Row

NEEDS_GROUND = "pip install 'latent-downlink[ground]' brings it"
STOP_S = 4.0  # a decoding that is nearly done may end; the others begin anew at the next start
PARTIAL_AFTER_S = 10.0  # without news of a scene, and it is decoded as far as it has come
POLL_S = 1.0  # how often a loop looks by itself: one word of news may be taken by another loop

Result = TypeVar("Result")


class MissingExtra(DownlinkError):
    """A package of the ground's extra is not installed."""

    code = "missing_extra"


class OutputError(DownlinkError):
    """What was asked for cannot be written there."""

    code = "output"


@dataclass(frozen=True)
class Decoded:
    """What decoding has made, and what it took."""

    manifest: Manifest
    paths: list[Path]  # one GeoTIFF per grid
    facts: dict[str, Any]


def decode_stream(
    source: Path,
    target: Path,
    model_folders: Sequence[Path],
    threads: int = 1,
    there: Sequence[Range] | None = None,
) -> Decoded:
    """Decode the stream file `source` to `target` (or one file per grid beside it, `decoder_node.raster.output_paths`).

    With `there`, the file is a part of a stream, which has these chunks only: what they give is decoded, and the files
    say that they are partial and by how much. Raises `StreamError` for a damaged stream, `BundleError` when its model
    is not here, `MissingExtra` when a package is not, `OutputError` when an output would replace the stream itself or
    is a folder.
    """
    try:
        from decoder_node.compose import decode_rows
        from decoder_node.decoder import PlaneDecoder
        from decoder_node.raster import output_paths, write_cog
    except ImportError as error:
        raise MissingExtra(f"decoding needs {error.name}; {NEEDS_GROUND}") from error
    began = time.monotonic()
    with source.open("rb") as file:
        reader = StreamReader(file) if there is None else PartReader(file, there)
        if isinstance(reader, StreamReader):
            reader.verify()
        manifest = reader.manifest
        paths = output_paths(target, manifest.scene)
        _check_outputs(source, paths)
        decoder: PlaneDecoder | None = None
        tags = {"scene_id": reader.scene_id}
        if not manifest.exact:
            bundle = find_id(manifest.bundle, model_folders, needs="decoder.onnx")
            decoder = PlaneDecoder(bundle, threads=threads)
            tags["bundle"] = f"{bundle.name} {bundle.id.hex()[:12]}"
        part: dict[str, Any] = {}
        if isinstance(reader, PartReader):
            part = {"partial": True, "layers": [round(share, 6) for share in reader.layers]}
            part |= {"missing": round(reader.missing, 6), "stream_bytes": reader.bytes_there}
            tags |= {"partial": "yes", "missing_percent": f"{100 * reader.missing:.4g}"}
        missing: list[float] = []
        rows = decode_rows(manifest, reader.chunk, decoder)
        for grid, strips in itertools.groupby(rows, key=lambda row: row.grid):
            write_cog(paths[grid], manifest.scene, grid, _pixels(strips, missing), tags)
    facts = {
        "stream_bytes": source.stat().st_size,
        "missing": round(sum(missing) / max(1, len(missing)), 6),
        "decode_s": round(time.monotonic() - began, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **part,
    }
    return Decoded(manifest, paths, facts)


def _check_outputs(source: Path, paths: Sequence[Path]) -> None:
    """Before any work: refuse to replace the stream, under whatever name it is reached, or a folder."""
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file, for example {path / source.stem}.tif")
        if path.exists() and os.path.samefile(path, source):
            raise OutputError(f"{path} is the stream itself; name another file for the GeoTIFF")


def _pixels(rows: Iterator[Row], missing: list[float]) -> Iterator[NDArray[np.generic]]:
    for row in rows:
        missing.append(row.missing)
        yield row.pixels


def archive_scene(
    archive: Path,
    scene_id: str,
    model_folders: Sequence[Path],
    received_at: float,
    there: Sequence[Range] | None = None,
) -> dict[str, Any]:
    """The task: decode a durable scene into the archive, or with `there` what has come of one, within the CPU time that
    its size allows. Returns what the ledger keeps, with paths relative to the archive."""
    try:
        from decoder_node.catalogue import add_item
        from decoder_node.quicklook import write_quicklook
    except ImportError as error:
        raise MissingExtra(f"the archive needs {error.name}; {NEEDS_GROUND}") from error
    stream = archive / "streams" / f"{checked(scene_id)}.dl"
    source = stream if there is None else archive / "inbox" / f"{scene_id}.part"
    with source.open("rb") as file:
        bounds.allow(bounds.cpu_s(Manifest.unpack(read_head(file)).scene.samples))
    folder = archive / "scenes" / scene_id
    folder.mkdir(parents=True, exist_ok=True)
    decoded = decode_stream(source, folder / f"{scene_id[:12]}.tif", model_folders, there=there)
    picture = write_quicklook(folder / f"{scene_id[:12]}.png", decoded.manifest.scene, decoded.paths)
    received = datetime.fromtimestamp(received_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    facts = {"received": received, **decoded.facts}
    assets = [*decoded.paths, picture, *([stream] if there is None else [])]
    item = add_item(archive, scene_id, decoded.manifest, assets, facts)
    return {
        "assets": [str(path.relative_to(archive)) for path in decoded.paths],
        "item": str(item.relative_to(archive)),
        "quicklook": str(picture.relative_to(archive)),
        **decoded.facts,
    }


@dataclass(frozen=True)
class Outcome:
    """What became of a task in its process. Exactly one is set."""

    result: dict[str, Any] | None = None
    waits: str | None = None  # nothing is wrong with the scene, but it cannot be decoded here and now
    failure: str | None = None


def _task(
    archive: Path,
    scene_id: str,
    model_folders: Sequence[Path],
    received_at: float,
    there: Sequence[Range] | None = None,
) -> Outcome:
    """`archive_scene` with its errors as values: an exception may not survive the way back to the parent."""
    try:
        return Outcome(result=archive_scene(archive, scene_id, model_folders, received_at, there))
    except (BundleError, MissingExtra) as error:
        return Outcome(waits=str(error))
    except DownlinkError as error:
        return Outcome(failure=f"{error.code}: {error}")
    except Exception as error:
        log.exception("decoding failed", extra={"scene": scene_id})
        return Outcome(failure=f"{type(error).__name__}: {error}")


class Task(Protocol):
    """What a worker process does with a scene: `archive_scene`."""

    def __call__(
        self,
        archive: Path,
        scene_id: str,
        model_folders: Sequence[Path],
        received_at: float,
        there: Sequence[Range] | None = None,
        /,
    ) -> Outcome: ...


def _begin_process(memory: int) -> None:
    """In each worker process: keep within `memory` bytes, leave signals to the node, log as it does, and do not outlive
    it (a pool's process would)."""
    bounds.confine(memory)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log_to_stderr("info")
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait_for_any([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


class Workers:
    """`count` processes of `memory` bytes that decode what the ledger has durable. Runs in an event loop.

    Scenes of bundles that `trusts` denies are left as they are. A scene of which nothing more has come for
    `partial_after_s` is decoded as far as it has come, when there is nothing else to do; None: never.
    """

    def __init__(
        self,
        archive: Path,
        ledger: Ledger,
        disk: ThreadPoolExecutor,
        model_folders: Sequence[Path],
        count: int,
        task: Task = _task,
        memory: int | None = None,
        trusts: Callable[[bytes], bool] = lambda bundle: True,
        partial_after_s: float | None = PARTIAL_AFTER_S,
    ) -> None:
        self._archive = archive
        self._ledger = ledger
        self._thread = disk  # the one thread that the ledger belongs to
        self._model_folders = [folder.resolve() for folder in model_folders]
        self._count = count
        self._task = task
        self._memory = bounds.memory_bytes(count) if memory is None else memory
        self._trusts = trusts
        self._partial_after_s = partial_after_s
        self._taken: set[str] = set()  # being decoded, or waiting for the next start
        self._news = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin with what the last run has left."""
        for scene_id in await self._disk(self._ledger.recover):
            log.error("quarantined", extra={"scene": scene_id, "reason": "the node died too often while decoding it"})
        self._loops = [asyncio.create_task(self._loop()) for _ in range(self._count)]

    def wake(self, scene_id: str = "") -> None:
        """A scene has become durable."""
        self._news.set()

    async def stop(self, within_s: float = STOP_S) -> None:
        """Let decodings that end soon end; stop the others, which are not to blame."""
        self._stopping = True
        self.wake()
        if self._loops:
            _, late = await asyncio.wait(self._loops, timeout=within_s)
            for loop in late:
                loop.cancel()
            await asyncio.gather(*self._loops, return_exceptions=True)

    def _coarse(self) -> str | None:
        """A scene that is still coming, and of which nothing more came for a while."""
        return None if self._partial_after_s is None else self._ledger.coarse(self._partial_after_s, self._taken)

    async def _loop(self) -> None:
        pool: ProcessPoolExecutor | None = None
        try:
            while not self._stopping:
                self._news.clear()
                scene_id = await self._disk(lambda: self._ledger.undecoded(self._taken))
                coarse = scene_id is None
                if coarse:
                    scene_id = await self._disk(self._coarse)
                if scene_id is None or scene_id in self._taken:  # another loop was faster
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):  # wait_for may swallow a cancellation before Python 3.12
                            await self._news.wait()
                    continue
                self._taken.add(scene_id)
                pool = pool or self._pool()
                if not await (self._decode_part if coarse else self._decode)(scene_id, pool):
                    pool.shutdown(wait=False)
                    pool = None
        finally:
            if pool is not None:
                _kill(pool)

    async def _disk(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_begin_process, initargs=(self._memory,))

    async def _decode(self, scene_id: str, pool: ProcessPoolExecutor) -> bool:
        """One attempt; false when the worker process has died of it."""
        entry = await self._disk(lambda: self._ledger.find(scene_id))
        assert entry is not None, f"the ledger named {scene_id} as durable"
        received_at = entry.durable_at or entry.offered_at
        manifest = await self._disk(lambda: self._ledger.manifest(scene_id))
        await self._disk(lambda: self._ledger.decoding(scene_id, True))
        alive = True
        try:
            if self._trusts(manifest.bundle):
                outcome = await self._run(pool, scene_id, received_at, bounds.cpu_s(manifest.scene.samples))
            else:
                outcome = Outcome(waits=f"bundle {manifest.bundle.hex()} is not among those that are trusted here")
        except _ProcessDied as death:
            outcome, alive = Outcome(failure=str(death)), False
        except asyncio.CancelledError:
            await self._disk(lambda: self._ledger.decoding(scene_id, False))
            raise
        if outcome.result is not None:
            result = outcome.result
            await self._disk(lambda: self._ledger.decoded(scene_id, result))
            self._taken.discard(scene_id)
            log.info("decoded", extra={"scene": scene_id, "title": entry.name, "seconds": result["decode_s"]})
        elif outcome.waits is not None:
            reason = outcome.waits
            await self._disk(lambda: self._ledger.waits(scene_id, reason))
            log.warning("cannot decode yet", extra={"scene": scene_id, "reason": reason})
        else:
            reason = outcome.failure or ""
            state = await self._disk(lambda: self._ledger.failed(scene_id, reason))
            self._taken.discard(scene_id)
            log.error("decoding failed", extra={"scene": scene_id, "reason": reason, "state": state})
        return alive

    async def _decode_part(self, scene_id: str, pool: ProcessPoolExecutor) -> bool:
        """Decode what has come of a scene; false when the worker process has died of it. That it cannot be yet, or
        ever, is no fault: it is tried again when more has come."""
        entry = await self._disk(lambda: self._ledger.find(scene_id))
        assert entry is not None, f"the ledger named {scene_id} as coming"
        there = await self._disk(lambda: self._ledger.committed(scene_id))
        manifest = await self._disk(lambda: self._ledger.manifest(scene_id))
        await self._disk(lambda: self._ledger.decoding(scene_id, True))
        outcome, alive = Outcome(waits="its bundle is not among those that are trusted here"), True
        try:
            if self._trusts(manifest.bundle):
                cpu_s = bounds.cpu_s(manifest.scene.samples)
                outcome = await self._run(pool, scene_id, entry.offered_at, cpu_s, there)
        except _ProcessDied as death:
            outcome, alive = Outcome(failure=str(death)), False
        except asyncio.CancelledError:
            await self._disk(lambda: self._ledger.decoding(scene_id, False))
            raise
        await self._disk(lambda: self._ledger.partial(scene_id, entry.chunks_committed, outcome.result))
        self._taken.discard(scene_id)
        facts = {"scene": scene_id, "title": entry.name}
        if outcome.result is not None:
            log.info("decoded in part", extra={**facts, "missing": outcome.result.get("missing")})
        else:
            log.info("not decoded in part", extra={**facts, "reason": outcome.waits or outcome.failure})
        return alive

    async def _run(
        self,
        pool: ProcessPoolExecutor,
        scene_id: str,
        received_at: float,
        cpu_s: float,
        there: Sequence[Range] | None = None,
    ) -> Outcome:
        """The task in its process. Raises `_ProcessDied` when that does not live to the task's end."""
        job = pool.submit(self._task, self._archive, scene_id, self._model_folders, received_at, there)
        processes = list((getattr(pool, "_processes", None) or {}).values())
        clock_s = cpu_s * bounds.CLOCK_PER_CPU
        try:
            async with asyncio.timeout(clock_s):
                return await asyncio.wrap_future(job)
        except BrokenProcessPool as error:
            for process in processes:
                await asyncio.to_thread(process.join, 1.0)
            causes = [bounds.cause(process.exitcode) for process in processes] or ["died"]
            raise _ProcessDied(f"the worker process {causes[0]}") from error
        except TimeoutError as error:
            _kill(pool)
            raise _ProcessDied(f"the worker process was killed: no end after {clock_s:.0f} s") from error
        except Exception as error:  # what the task could not catch itself, for want of memory perhaps
            return Outcome(failure=f"{type(error).__name__}: {error}")


class _ProcessDied(Exception):
    """A worker process has ended before its task."""


def _kill(pool: ProcessPoolExecutor) -> None:
    """End a pool now, whatever it does."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
