"""`python -m tests.fuzz.wire --minutes 1`: a real ground, and bytes on its port that are almost a conversation.

The bytes that a real edge sends are recorded, mutated, and sent on many connections, cut and joined in any way:
HTTP/2's frames and headers are damaged as well as ours. In the end, and every few hundred connections, the ground must
be alive, healthy, of bounded size, without a traceback in its log, and take a scene. `make fuzz` runs it with the other
targets.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import socket
import tempfile
import time
from pathlib import Path

from tests import nodes
from tests.chaos.proxy import Fate, Proxy
from tests.chaos.rig import submit
from tests.fuzz.mutate import mutated
from tests.streams import stream

CHECK_EVERY = 300
GROWTH_MIB = 256.0


class Record(Fate):
    """Keeps what goes by."""

    def __init__(self, into: bytearray) -> None:
        self._into = into

    async def piece(self, piece: bytes) -> bytes:
        self._into += piece
        return piece


def recorded(folder: Path, address: str, seed: int) -> bytes:
    """What an edge says to deliver a scene. Also: proof that the ground still takes one."""
    into = bytearray()
    made = stream(seed, name="fuzzed wire")
    with Proxy(address, down=lambda _: Record(into)) as proxy:
        (folder / str(seed)).mkdir()
        submit(folder / str(seed), [made])
        edge = nodes.send(folder / str(seed), proxy.address, "--once")
        assert edge.wait(60) == 0, edge.log.read_text()
    assert (folder / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file
    return bytes(into)


def rss_mib(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def attack(folder: Path, seconds: float, seed: int) -> int:
    """How many connections were made; raises what is wrong with the ground."""
    chance = random.Random(seed)
    ground, address = nodes.serve(folder)
    host, _, port = address.rpartition(":")
    try:
        seeds = [recorded(folder, address, number) for number in range(2)]
        before, count = rss_mib(ground.process.pid), 0
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            data = mutated(seeds, chance)
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5) as link:
                link.settimeout(0.05)
                for start in range(0, len(data), 16384):
                    link.sendall(data[start : start + 16384])
                    with contextlib.suppress(TimeoutError):
                        link.recv(65536)
            count += 1
            if ground.process.poll() is not None:
                (folder / "killer").write_bytes(data)
                raise AssertionError(f"the ground has died, see {folder / 'killer'}:\n{ground.log.read_text()[-3000:]}")
            if count % CHECK_EVERY == 0:
                assert rss_mib(ground.process.pid) < before + GROWTH_MIB
                recorded(folder, address, 10 + count // CHECK_EVERY)
        recorded(folder, address, 9)
        text = ground.log.read_text()
        assert "Traceback" not in text, text[text.index("Traceback") - 500 : text.index("Traceback") + 3000]
        assert ground.terminate() == 0
        return count
    finally:
        ground.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    asked = parser.parse_args()
    print(f"wire: seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="wire-"))
    count = attack(folder, 60 * asked.minutes, asked.seed)
    print(f"wire: {count} inputs, nothing found")


if __name__ == "__main__":
    main()
