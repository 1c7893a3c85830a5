"""Learned peers, measured in an environment of their own (`make peers`), or a sentence on why they are not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec

from evaluation import cache
from evaluation.cache import Cache

VARIABLE: Final = "DOWNLINK_PEERS_PYTHON"
SCRIPT: Final = Path(__file__).with_name("peers.py")
PLACE: Final = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
LIMIT_S: Final = 600


def learned(threads: int, kept: Cache) -> dict[str, Any]:
    """What `evaluation/peers.py` prints, or `{"missing": why}`."""
    python = Path(os.environ.get(VARIABLE, PLACE))
    if not python.exists():
        return {
            "missing": f"CompressAI and TerraCodec are not installed; `make peers` brings them to {PLACE.parents[1]}"
        }
    key = cache.key_of("learned", threads, cache.sources("evaluation/peers.py"), str(python), os.cpu_count())
    found: dict[str, Any] | None = kept.get(key)
    if found is not None:
        return found
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [python, "-P", SCRIPT, "--threads", str(threads)],
            capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment,
        )  # fmt: skip
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        if done.returncode:
            return {"missing": f"{python} could not run them: {last}"}
        found = msgspec.json.decode(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError, IndexError) as error:
        return {"missing": f"{python} could not run them: {error}"}
    kept.put(key, found)
    return found
