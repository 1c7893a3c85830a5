"""Real nodes as processes, for tests that kill, stop and starve them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
WITHIN_S = 120.0  # a machine may be busy with ten other things


class Node:
    """`python -m MODULE ARGUMENTS...`, its log in a file."""

    def __init__(self, log: Path, module: str, *arguments: str | Path) -> None:
        self.log = log
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            command = [sys.executable, "-m", module, *map(str, arguments)]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT, cwd=log.parent)

    def events(self) -> list[dict[str, Any]]:
        """What it has logged since it was started."""
        lines = self.log.read_bytes()[self._from :].decode().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait_for(self, event: str) -> dict[str, Any]:
        """The first such event; an error if it ends before."""
        until = time.monotonic() + WITHIN_S
        while time.monotonic() < until:
            ended = self.process.poll() is not None
            for found in self.events():
                if found["event"] == event:
                    return found
            if ended:
                break
            time.sleep(0.02)
        raise AssertionError(f"{self.process.args} never logged {event!r}:\n{self.log.read_text()}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(12)

    def wait(self, within_s: float = WITHIN_S) -> int:
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.process.args} did not end:\n{self.log.read_text()}") from None


def run(module: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A node's command, to its end."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, check=False)


def serve(
    folder: Path, listen: str = "127.0.0.1:0", workers: int = 0, options: tuple[str, ...] = ()
) -> tuple[Node, str]:
    """A decoder node on `folder`/archive; returns it and its address."""
    arguments = ("serve", "--archive", folder / "archive", "--listen", listen, "--workers", str(workers), *options)
    node = Node(folder / "ground.log", "decoder_node", *arguments)
    return node, node.wait_for("listening")["listen"]


def send(folder: Path, ground: str, *arguments: str) -> Node:
    """An encoder node that sends `folder`/outbox."""
    return Node(
        folder / "edge.log", "encoder_node", "run", "--outbox", folder / "outbox", "--ground", ground, *arguments
    )


def listed(folder: Path) -> list[dict[str, Any]]:
    done = run("decoder_node", "list", "--archive", folder / "archive", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows
