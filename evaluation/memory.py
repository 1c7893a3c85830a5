"""The largest resident memory of this process since a moment of one's choosing."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def restart_peak() -> None:
    """Give back what is free and let the peak start from what is left.

    Where the system does not allow that (only Linux does), the peak stays that of the process's whole life.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _CLEAR.write_text("5")  # proc(5): resets VmHWM to the current resident set
    except OSError:
        pass


def peak_mb() -> float:
    """The peak in MB (10^6 bytes): interpreter, libraries and pixels together."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 1e6 if sys.platform == "darwin" else largest * 1024 / 1e6
