"""What decoding one scene may take of the machine: address space, CPU time, time on the clock.

A decoder reads what a stranger may have written. Its bounds follow from the scene's admitted size, never from what its
payloads say, and the kernel keeps them: whoever passes them is killed or gets a MemoryError, in a process of its own,
and the receiver beside it does not notice. `confine` and `allow` are called in that process.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import Final

GIB: Final = 2**30
MEMORY_MIN: Final = 2 * GIB  # libraries and one row of tiles; address space, of which less than half is ever touched
CPU_S: Final = 300.0  # to load libraries and the model, and to write what is small …
CPU_S_PER_MSAMPLE: Final = 20.0  # … and for each million samples, some 60 times what they take on one of today's cores
START_S: Final = 600.0  # on the clock, for a worker process to start: a busy machine, a slow disk
CLOCK_PER_CPU: Final = 4.0  # a machine may be busy; one that stands still is not


def memory_bytes(workers: int) -> int:
    """Address space for each of so many workers, when the operator does not say: their share of 3/4 of the memory, so
    that the receiver is never what the kernel kills for want of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(MEMORY_MIN, physical * 3 // 4 // max(1, workers))


def cpu_s(samples: int) -> float:
    """CPU time for a scene of so many samples, in seconds, over all threads."""
    return CPU_S + CPU_S_PER_MSAMPLE * samples / 1e6


def confine(memory: int) -> None:
    """Bound this process's address space in bytes, for good, and let it leave no core file."""
    for what, bound in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (bound, bound))


def allow(seconds: float) -> None:
    """Let this process use so much more CPU time than it has; then SIGXCPU ends it."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    bound = int(spent.ru_utime + spent.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def cause(exit_code: int | None) -> str:
    """Why a process that ended so may have died, for the operator."""
    if exit_code is None or exit_code >= 0:
        return f"ended with {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in {int(known) for known in signal.Signals} else str(exit_code)
    meaning = {
        "SIGXCPU": ": it took more CPU time than its size allows",
        "SIGKILL": ": killed, perhaps for want of memory",
    }
    return f"died of {name}{meaning.get(name, '')}"
