"""Encodes and decodes scenes with one codec: timed, in two processes that do nothing else, as board and ground would.

The parent writes the scene as .npy files and takes the decoded pixels back as such, so that these processes hold the
codec and the pixels but neither GDAL nor the libraries that measure quality: their peak of resident memory is the
codec's own, plus the scene. A codec that takes its process down loses only its own figures.
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
from evaluation.codecs.base import Codec, Half, Image

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


class _Loaded:
    """What stays in a process from task to task: the codec, and the scene while it is the same."""

    codec: tuple[CodecSpec, Codec] | None = None
    image: tuple[tuple[Path, ...], Image] | None = None


def encode(task: Task, alone: bool = True) -> tuple[bytes, float, float]:
    """Payload, seconds, peak of memory in MB; of this task, in a process that is `alone` with it."""
    if _Loaded.image is None or _Loaded.image[0] != task.pixels:
        _Loaded.image = None  # before the next one is read: two scenes need not fit
        grids = tuple(np.load(path) for path in task.pixels)
        _Loaded.image = task.pixels, Image(task.scene, grids, task.peak)
    image, codec = _Loaded.image[1], _open(task.codec, "encode")
    if alone:
        memory.restart_peak()
    start = perf_counter()
    payload = codec.encode(image, task.setting)
    return payload, perf_counter() - start, memory.peak_mb()


def decode(task: Task, payload: bytes, alone: bool = True) -> tuple[float, float]:
    """Seconds, peak of memory in MB; the pixels go to `task.decoded`."""
    codec = _open(task.codec, "decode")
    if alone:
        memory.restart_peak()
    start = perf_counter()
    decoded = codec.decode(payload)
    outcome = perf_counter() - start, memory.peak_mb()
    for path, pixels in zip(task.decoded, decoded, strict=True):
        np.save(path, pixels)
    return outcome


def _open(spec: CodecSpec, half: Half) -> Codec:
    if _Loaded.codec is None or _Loaded.codec[0] != spec:
        _Loaded.codec = spec, spec.open()
    codec = _Loaded.codec[1]
    codec.load(half)
    return codec


class Here:
    """Works in this process: quicker to start, but memory figures are then those of everything that is loaded."""

    def run(self, task: Task) -> Outcome:
        payload, encode_s, peak_rss_mb = encode(task, alone=False)
        decode_s, decode_peak_rss_mb = decode(task, payload, alone=False)
        return Outcome(len(payload), encode_s, decode_s, peak_rss_mb, decode_peak_rss_mb)

    def close(self) -> None:
        _Loaded.codec = _Loaded.image = None


class Apart:
    """Works in two fresh processes per codec, one that encodes and one that decodes; never both at once."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._codec: CodecSpec | None = None
        self._pools: dict[Half, ProcessPoolExecutor] = {}

    def run(self, task: Task) -> Outcome:
        """Raises `DownlinkError` when the codec takes its process down, and whatever the codec raises."""
        if task.codec != self._codec:
            self.close()
            self._codec = task.codec
        try:
            payload, encode_s, peak_rss_mb = self._pool("encode").submit(encode, task).result()
            decode_s, decode_peak_rss_mb = self._pool("decode").submit(decode, task, payload).result()
        except BrokenProcessPool:
            self.close()
            raise DownlinkError(
                f"{task.codec.label} at {task.setting:g} took its process down: out of memory, or a bug in its library"
            ) from None
        return Outcome(len(payload), encode_s, decode_s, peak_rss_mb, decode_peak_rss_mb)

    def _pool(self, half: Half) -> ProcessPoolExecutor:
        if half not in self._pools:
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_leave_interrupts)
            with limited_to(self._threads):  # a spawned process takes its environment when it starts: now
                pool.submit(_leave_interrupts).result()
            self._pools[half] = pool
        return self._pools[half]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        self._pools.clear()
        self._codec = None


Runner = Here | Apart


def _leave_interrupts() -> None:
    """Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def limited_to(count: int) -> Iterator[None]:
    """Processes that are started within have so many threads for their arithmetic."""
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
