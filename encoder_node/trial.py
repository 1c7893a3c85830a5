"""`python -m encoder_node.trial FOLDER`: does the model bundle in FOLDER work on this machine?

Loads it, which runs its own self-test, and encodes a small scene with it. Nothing is printed and the exit code is 0 if
it does; else it is not, and the last line on stderr says why. Run before a bundle that came over the link becomes
active, in a process of its own with bounded memory and time: a model that crashes or never ends harms nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import tempfile
from pathlib import Path
from typing import Final

MEMORY_BYTES: Final = 4 << 30  # address space, of which far less is touched
CPU_S: Final = 120
CLOCK_S: Final = 300.0


def main(folder: Path) -> None:
    """Raises what is wrong."""
    import numpy as np

    from downlink.bundle import Bundle
    from downlink.scene import Band, Grid, Scene
    from encoder_node.encoder import PlaneEncoder
    from encoder_node.pipeline import encode_scene
    from encoder_node.source_array import ArraySource
    from encoder_node.target import Target

    bundle = Bundle.read(folder)
    bundle.verify()
    rows, cols = np.mgrid[0:96, 0:80]
    pixels = np.stack([1000 + 7 * rows + 3 * cols, 2000 + 5 * (rows * cols % 97)]).astype(np.uint16)
    grid = Grid(96, 80, "uint16", (Band("a"), Band("b")), None)
    with tempfile.TemporaryDirectory() as spool:
        source = ArraySource(Scene("trial", (grid,)), pixels)
        with encode_scene(source, PlaneEncoder(bundle), Target(), Path(spool)) as encoded:
            if encoded.manifest.bundle != bundle.id:
                raise RuntimeError("the stream names another bundle")


async def trial(folder: Path) -> str:
    """Try a bundle in a process of its own: what is wrong with it, or nothing. Raises OSError when none can be started,
    which is not the bundle's fault."""
    command = [sys.executable, "-m", "encoder_node.trial", str(folder)]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CLOCK_S):
            _, complaint = await child.communicate()
    except TimeoutError:
        return f"its test did not end within {CLOCK_S:.0f} s"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == 0:
        return ""
    lines = complaint.decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else f"its test ended with {child.returncode}"


if __name__ == "__main__":
    for what, bound in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (bound, bound))
    try:
        main(Path(sys.argv[1]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
