"""Decodes the streams of a folder again and again, alone: the ceiling of `evaluation.scale`.

    python -m evaluation.scale_alone FOLDER

For each line on its standard input it decodes FOLDER/streams/*.dl into FOLDER, without a ledger, a scheduler or another
process, and prints how many seconds that took.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from decoder_node.decoding import archive_scene


def main() -> None:
    """Until standard input ends."""
    folder = Path(sys.argv[1])
    names = sorted(path.stem for path in (folder / "streams").glob("*.dl"))
    for _ in sys.stdin:
        began = time.monotonic()
        for name in names:
            archive_scene(folder, name, [], 1.8e9)
        print(time.monotonic() - began, flush=True)


if __name__ == "__main__":
    main()
