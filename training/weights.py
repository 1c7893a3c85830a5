"""Where the weights of released bundles lie: `training/released/NAME-VERSION.pt`, what `best.pt` of the run was.

A bundle holds graphs that are made to run, integer ones among them; training goes on from the weights behind them.
"""

from __future__ import annotations

import re
from pathlib import Path

from training.config import ConfigError

FOLDER = Path(__file__).parent / "released"


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.stem.rpartition("-")[2]))


def find_weights(start: str) -> Path:
    """The file that `start` means: a path, NAME (its newest version) or NAME-VERSION. ConfigError if there is none."""
    if Path(start).is_file():
        return Path(start)
    found = [path for path in FOLDER.glob("*.pt") if start in (path.stem, path.stem.rpartition("-")[0])]
    if not found:
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.pt"))) or "none"
        raise ConfigError(
            f"start: '{start}' is neither a file nor a released bundle with weights ({known}); "
            "a run's are in its best.pt"
        )
    return max(found, key=_version)
