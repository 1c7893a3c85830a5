"""Worker processes: a task (`decoder_node.decoding`) per scene, driven by the ledger.

Each process is a pool of one, so that a crash is the fault of exactly one scene. A scene that fails
`ledger.FAILURES_MAX` times, crashes included, is quarantined with the reason; one whose model is not installed, or not
among those that the operator trusts, stays durable, and is tried again at the next start. A process has the memory and
the time that `decoder_node.bounds` gives it, no more.
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
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import TypeVar

from decoder_node import bounds
from decoder_node.decoding import Outcome, Task, task
from decoder_node.ledger import Ledger
from decoder_node.log import log, log_to_stderr
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
        task: Task = task,
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
        ready, clock_s = pool.submit(os.getpid), bounds.START_S  # to start a process is not the scene's work
        processes = list((getattr(pool, "_processes", None) or {}).values())
        try:
            async with asyncio.timeout(clock_s):
                await asyncio.wrap_future(ready)
            clock_s = cpu_s * bounds.CLOCK_PER_CPU
            job = pool.submit(self._task, self._archive, scene_id, self._model_folders, received_at, there)
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
