"""Which stage of the encoder takes how much of its time, from one run under Python's profiler.

Each function's own time counts for the stage that its file, or its name among the native loops, belongs to; what
libraries take counts for whoever called them. So stages that have become one (the native loops do several in a single
pass) are shown under the name of that pass, and nothing is counted twice or lost: shares add up to 1.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any, Final

# Pattern on the file, pattern on the function, stage; the first that fits. Native loops have the file "~".
_OF: Final = (
    ("~", "*_native.encode*", "prior, refinement, entropy coding"),
    ("~", "*_native.hear*", "network"),
    ("~", "*_native.crc32c*", "write"),
    ("~", "*_native.*", "transform"),
    ("*/onnxruntime/*", "*", "network"),
    ("*/encoder_node/source*.py", "*", "read"),
    ("*/encoder_node/tiles.py", "_read", "read"),
    ("*/encoder_node/tiles.py", "_gather", "read"),
    ("*/encoder_node/mask_spool.py", "*", "mask"),
    ("*/downlink/mask.py", "*", "mask"),
    ("*/downlink/fill.py", "*", "mask"),
    ("*/encoder_node/tiles.py", "_filled", "mask"),
    ("*/encoder_node/tiles.py", "nodata", "mask"),
    ("*/downlink/moments.py", "*", "statistics, once a scene"),
    ("*/downlink/repeat.py", "*", "statistics, once a scene"),
    ("*/encoder_node/tiles.py", "statistics", "statistics, once a scene"),
    ("*/downlink/plane.py", "*", "transform"),
    ("*/downlink/dct.py", "*", "transform"),
    ("*/downlink/lap.py", "*", "transform"),
    ("*/encoder_node/tiles.py", "*", "transform"),
    ("*/encoder_node/encoder.py", "loudness", "network"),
    ("*/downlink/hyper*.py", "*", "network"),
    ("*/downlink/walk.py", "*", "prior, refinement, entropy coding"),
    ("*/encoder_node/refine.py", "*", "prior, refinement, entropy coding"),
    *((f"*/downlink/{name}.py", "*", "prior, refinement, entropy coding")
      for name in ("context", "prior", "rans", "symbol", "lanes", "lookup", "quarter", "latent", "table", "network")),
    ("*/encoder_node/spool.py", "*", "write"),
    *((f"*/downlink/{name}.py", "*", "write") for name in ("checksum", "chunk", "manifest", "stream")),
)  # fmt: skip
OTHER: Final = "the rest"
STAGES: Final = (
    "read", "mask", "statistics, once a scene", "transform", "network", "prior, refinement, entropy coding", "write",
    OTHER,
)  # fmt: skip
_DEPTH: Final = 12

Function = tuple[str, int, str]


def shares(action: Callable[[], Any]) -> dict[str, float]:
    """Share of `action`'s processor time that each of `STAGES` takes."""
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    action()
    profile.disable()
    stats: Any = pstats.Stats(profile)
    return _shared(stats.stats)


def _shared(stats: dict[Function, Any]) -> dict[str, float]:
    found = dict.fromkeys(STAGES, 0.0)
    known: dict[Function, dict[str, float]] = {}
    for function, (_, _, own, _, _) in stats.items():
        for stage, part in _stages(function, stats, known, 0).items():
            found[stage] += own * part
    total = sum(found.values())
    return {stage: seconds / total for stage, seconds in found.items()} if total else found


def _stages(
    function: Function, stats: dict[Function, Any], known: dict[Function, dict[str, float]], depth: int
) -> dict[str, float]:
    """Parts of a function's own time by stage: its own stage's, or its callers'."""
    own = stage_of(function)
    if own is not None:
        return {own: 1.0}
    if function in known:
        return known[function]
    known[function] = {OTHER: 1.0}  # what calls itself, until it is known
    callers = stats[function][4] if function in stats else {}
    if not callers or depth > _DEPTH or "/encoder_node/" in function[0]:
        return known[function]
    weights = {caller: max(times[2], 1e-12) for caller, times in callers.items()}
    total, parts = sum(weights.values()), dict[str, float]()
    for caller, weight in weights.items():
        for stage, part in _stages(caller, stats, known, depth + 1).items():
            parts[stage] = parts.get(stage, 0.0) + part * weight / total
    known[function] = parts
    return parts


def stage_of(function: Function) -> str | None:
    """The stage that a function itself belongs to."""
    file, _, name = function
    return next((stage for files, names, stage in _OF if fnmatch(file, files) and fnmatch(name, names)), None)
