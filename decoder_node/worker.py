"""Workers: a task (`decoder_node.decoding`) per scene, driven by the ledger.

A task runs at a `Place`: in a process here (`Process`, a pool of one, so that a crash is the fault of exactly one
scene), or on a cluster (`decoder_node.cluster`). A scene that fails `ledger.FAILURES_MAX` times, crashes included, is
quarantined with the reason; one whose model is not installed, or not among those that the operator trusts, stays
durable, and is tried again at the next start. A process here has the memory and the time that `decoder_node.bounds`
gives it, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Protocol, TypeVar

from decoder_node import bounds
from decoder_node.decoding import Outcome, Task, task
from decoder_node.ledger import Ledger
from decoder_node.log import log, log_to_stderr
from decoder_node.reference import among, lineage
from downlink.manifest import Manifest
from downlink.ranges import Range

STOP_S = 4.0  # a decoding that is nearly done may end; the others begin anew at the next start
PARTIAL_AFTER_S = 10.0  # without news of a scene, and it is decoded as far as it has come
POLL_S = 1.0  # how often a loop looks by itself: one word of news may be taken by another loop

Result = TypeVar("Result")


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


@dataclass(frozen=True)
class Job:
    """What a place is asked to do: a task's arguments, and the CPU time that it may take."""

    archive: Path
    scene_id: str
    model_folders: Sequence[Path]
    received_at: float
    there: Sequence[Range] | None
    cpu_s: float


class Died(Exception):
    """What carried a task out has ended before it."""


class Lost(Exception):
    """A task was lost through no fault of the scene: it is to be tried again, and not counted."""


class Place(Protocol):
    """Where tasks are carried out, one at a time. After `Died` it is closed and another one is taken."""

    async def run(self, job: Job) -> Outcome:
        """The task's outcome. Raises `Died`, or `Lost`."""

    def close(self) -> None:
        """End, now, whatever is being done."""


class Process:
    """A process of `memory` bytes on this machine."""

    def __init__(self, task: Task, memory: int) -> None:
        self._task = task
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_begin_process, initargs=(memory,))

    async def run(self, job: Job) -> Outcome:
        pool = self._pool
        ready, clock_s = pool.submit(os.getpid), bounds.START_S  # to start a process is not the scene's work
        processes = list((getattr(pool, "_processes", None) or {}).values())
        try:
            async with asyncio.timeout(clock_s):
                await asyncio.wrap_future(ready)
            clock_s = job.cpu_s * bounds.CLOCK_PER_CPU
            doing = pool.submit(self._task, job.archive, job.scene_id, job.model_folders, job.received_at, job.there)
            async with asyncio.timeout(clock_s):
                return await asyncio.wrap_future(doing)
        except BrokenProcessPool as error:
            for process in processes:
                await asyncio.to_thread(process.join, 1.0)
            causes = [bounds.cause(process.exitcode) for process in processes] or ["died"]
            raise Died(f"the worker process {causes[0]}") from error
        except TimeoutError as error:
            raise Died(f"the worker process was killed: no end after {clock_s:.0f} s") from error
        except Exception as error:  # what the task could not catch itself, for want of memory perhaps
            return Outcome(failure=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)


class Workers:
    """Decode what the ledger has durable, `count` scenes at a time, each at a place of its own: by default a process of
    `memory` bytes. Runs in an event loop.

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
        task: Task = task,
        memory: int | None = None,
        trusts: Callable[[bytes], bool] = lambda bundle: True,
        partial_after_s: float | None = PARTIAL_AFTER_S,
        place: Callable[[], Place] | None = None,
    ) -> None:
        self._archive = archive
        self._ledger = ledger
        self._thread = disk  # the one thread that the ledger belongs to
        self._model_folders = [folder.resolve() for folder in model_folders]
        self._count = count
        memory = bounds.memory_bytes(max(1, count)) if memory is None else memory
        self._place: Callable[[], Place] = place or partial(Process, task, memory)
        self._trusts = trusts
        self._partial_after_s = partial_after_s
        self._taken: set[str] = set()  # being decoded, or waiting for the next start
        self._referring: set[str] = set()  # of these, those that may wait for a reference
        self._news = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin with what the last run has left."""
        for scene_id in await self._disk(self._ledger.recover):
            log.error("quarantined", extra={"scene": scene_id, "reason": "the node died too often while decoding it"})
        self._loops = [asyncio.create_task(self._loop()) for _ in range(self._count)]

    def wake(self, scene_id: str = "") -> None:
        """A scene has become durable: others may have waited for it."""
        self._taken -= self._referring
        self._referring.clear()
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

    def resize(self, count: int) -> None:
        """From now on, `count` scenes at a time. Those beyond it end what they do first."""
        self._count = count
        self._loops = [loop for loop in self._loops if not loop.done()]
        for _ in range(count - len(self._loops)):
            self._loops.append(asyncio.create_task(self._loop()))

    async def _loop(self) -> None:
        place: Place | None = None
        try:
            while not self._stopping and len(self._loops) <= max(1, self._count):
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
                place = place or self._place()
                try:
                    alive = await (self._decode_part if coarse else self._decode)(scene_id, place)
                except Lost as error:
                    await self._disk(partial(self._ledger.decoding, scene_id, False))
                    self._taken.discard(scene_id)
                    log.warning("decoding lost", extra={"scene": scene_id, "reason": str(error)})
                    await asyncio.sleep(POLL_S)
                    continue
                if not alive:
                    place.close()
                    place = None
        finally:
            if place is not None:
                place.close()

    async def _disk(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _decode(self, scene_id: str, place: Place) -> bool:
        """One attempt; false when the worker process has died of it."""
        entry = await self._disk(lambda: self._ledger.find(scene_id))
        assert entry is not None, f"the ledger named {scene_id} as durable"
        received_at = entry.durable_at or entry.offered_at
        manifest = await self._disk(lambda: self._ledger.manifest(scene_id))
        await self._disk(lambda: self._ledger.decoding(scene_id, True))
        alive = True
        try:
            if self._trusts(manifest.bundle):
                cpu_s = bounds.cpu_s(manifest.scene.samples * await self._disk(lambda: self._streams(manifest)))
                outcome = await self._run(place, self._job(scene_id, received_at, cpu_s))
            else:
                outcome = Outcome(waits=f"bundle {manifest.bundle.hex()} is not among those that are trusted here")
        except Died as death:
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
            if manifest.reference:
                self._referring.add(scene_id)
            log.warning("cannot decode yet", extra={"scene": scene_id, "reason": reason})
        else:
            reason = outcome.failure or ""
            state = await self._disk(lambda: self._ledger.failed(scene_id, reason))
            self._taken.discard(scene_id)
            log.error("decoding failed", extra={"scene": scene_id, "reason": reason, "state": state})
        return alive

    async def _decode_part(self, scene_id: str, place: Place) -> bool:
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
                cpu_s = bounds.cpu_s(manifest.scene.samples * await self._disk(lambda: self._streams(manifest)))
                outcome = await self._run(place, self._job(scene_id, entry.offered_at, cpu_s, there))
        except Died as death:
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

    def _streams(self, manifest: Manifest) -> int:
        """How many streams decoding a scene takes: its own, and those of the references behind it."""
        return 1 + len(list(lineage(manifest, among([self._archive / "streams"]))))

    @staticmethod
    async def _run(place: Place, job: Job) -> Outcome:
        outcome = await place.run(job)
        if outcome.lost is not None:
            raise Lost(outcome.lost)
        return outcome

    def _job(self, scene_id: str, received_at: float, cpu_s: float, there: Sequence[Range] | None = None) -> Job:
        return Job(self._archive, scene_id, self._model_folders, received_at, there, cpu_s)
