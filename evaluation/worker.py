"""Encodes and decodes one scene with one codec at one setting: timed, in a process that does nothing else.

The parent writes the scene as .npy files and takes the decoded pixels back as such, so that this process holds the
codec and the pixels but neither GDAL nor the libraries that measure quality: its peak of resident memory is the codec's
own, plus the scene. A codec that takes its process down loses only its own figures.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np

from downlink.errors import DownlinkError
from downlink.scene import Scene
from evaluation import memory
from evaluation.codecs import CodecSpec
from evaluation.codecs.base import Codec, Image

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One measurement. `pixels` and `decoded` are one .npy file per grid, read and written."""

    codec: CodecSpec
    scene: Scene
    peak: float
    setting: float
    pixels: tuple[Path, ...]
    decoded: tuple[Path, ...]


@dataclass(frozen=True)
class Outcome:
    bytes: int
    encode_s: float
    decode_s: float
    peak_rss_mb: float
    decode_peak_rss_mb: float


_codecs: dict[CodecSpec, Codec] = {}
_image: tuple[tuple[Path, ...], Image] | None = None


def run(task: Task) -> Outcome:
    """Do a task in this process. The codec and the last scene stay loaded for the next one."""
    global _image
    if _image is None or _image[0] != task.pixels:
        _image = None  # before the next one is read: two scenes need not fit
        _image = task.pixels, Image(task.scene, tuple(np.load(path) for path in task.pixels), task.peak)
    image = _image[1]
    codec = _codecs.get(task.codec) or _codecs.setdefault(task.codec, task.codec.open())

    memory.restart_peak()
    start = perf_counter()
    payload = codec.encode(image, task.setting)
    encode_s, peak_rss_mb = perf_counter() - start, memory.peak_mb()

    memory.restart_peak()
    start = perf_counter()
    decoded = codec.decode(payload)
    decode_s, decode_peak_rss_mb = perf_counter() - start, memory.peak_mb()

    for path, pixels in zip(task.decoded, decoded, strict=True):
        np.save(path, pixels)
    return Outcome(len(payload), encode_s, decode_s, peak_rss_mb, decode_peak_rss_mb)


class Here:
    """Runs tasks in this process: quicker to start, but memory figures are then those of everything that is loaded."""

    def run(self, task: Task) -> Outcome:
        return run(task)

    def close(self) -> None:
        _codecs.clear()


class Apart:
    """Runs tasks in a fresh process per codec, one at a time."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._codec: CodecSpec | None = None
        self._pool: ProcessPoolExecutor | None = None

    def run(self, task: Task) -> Outcome:
        """Raises `DownlinkError` when the codec takes its process down, and whatever the codec raises."""
        if self._pool is None or task.codec != self._codec:
            self.close()
            self._codec = task.codec
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_leave_interrupts)
        try:
            with _threads(self._threads):  # a spawned process reads its environment when it starts, at the first task
                return self._pool.submit(run, task).result()
        except BrokenProcessPool:
            self.close()
            raise DownlinkError(
                f"{task.codec.label} at {task.setting:g} took its process down: out of memory, or a bug in its library"
            ) from None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


Runner = Here | Apart


def _leave_interrupts() -> None:
    """Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
