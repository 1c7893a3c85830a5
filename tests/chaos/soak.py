"""`make soak MIN=10`: nodes that work while somebody kills them, and the books balanced at the end. Prints JSON.

Several encoder nodes, each with an outbox of its own and a link that is cut now and then, send small real scenes to
one decoder node that decodes them; all over mutual TLS. Every few seconds a node is killed with SIGKILL and started
again, a `submit` too. Then the killing stops, and within `SETTLE_S` everything must be delivered and decoded. The books
are balanced:

    lost        ids that `submit` has printed, or that an outbox holds, and the archive does not have
    corrupt     archived streams that are not byte for byte (by SHA-256) what was submitted
    unexpected  archived streams that nobody has submitted
    duplicates  scenes that the ledger, the catalogue or the archive's folders have more than once
    undecoded   scenes without a GeoTIFF that opens

Exits with 1 if any of them is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from downlink.bundle import find
from downlink.manifest import scene_id
from encoder_node.encoder import PlaneEncoder
from encoder_node.outbox import Outbox
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import scenes
from tests.certificates import Authority
from tests.chaos.proxy import CutAfter, Fate, Proxy
from tests.nodes import ENVIRONMENT, Node, listed

SETTLE_S = 180.0
RATE_KBPS = 600.0  # per node: slow enough for kills to come in the middle


@dataclass
class Report:
    """What happened, and how the books stand."""

    minutes: float
    nodes: int
    seed: int
    scenes: int = 0
    submits_killed: int = 0
    edge_kills: int = 0
    ground_kills: int = 0
    links_cut: int = 0
    stream_bytes: int = 0
    bytes_sent: int = 0
    settled_s: float = 0.0
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    undecoded: list[str] = field(default_factory=list)
    tracebacks: int = 0

    @property
    def clean(self) -> bool:
        wrong = (self.lost, self.corrupt, self.unexpected, self.duplicates, self.undecoded, self.tracebacks)
        return not any(wrong)


def reconcile(archive: Path, submitted: Mapping[str, str], promised: set[str], report: Report) -> None:
    """Compare the archive with what was submitted (id -> SHA-256 of the stream) and what must be there (`promised`)."""
    rows = listed(archive.parent)
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (archive / "streams").glob("*.dl")}
    report.lost = sorted(promised - set(found))
    report.corrupt = sorted(name for name, digest in found.items() if submitted.get(name, digest) != digest)
    report.unexpected = sorted(set(found) - set(submitted))
    collection = json.loads((archive / "scenes" / "collection.json").read_text())
    items = [link["href"].split("/")[-2] for link in collection["links"] if link["rel"] == "item"]
    for names in ([row["scene_id"] for row in rows], items):
        report.duplicates += sorted(name for name, count in Counter(names).items() if count > 1)
    decoded = {row["scene_id"]: row["path"] for row in rows if row["state"] == "decoded"}
    for name in sorted(found):
        try:
            with rasterio.open(decoded[name]) as raster:
                raster.checksum(1)
            if items.count(name) != 1 or not (archive / "scenes" / name / f"{name}.json").exists():
                raise KeyError(name)
        except (KeyError, rasterio.errors.RasterioError):
            report.undecoded.append(name)


class Soak:
    """The site: one ground, several edges behind proxies, all in one folder."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder, self.report = folder, report
        self.random = np.random.default_rng(report.seed)
        self.encoder = PlaneEncoder(find("universal"))
        (folder / "pki").mkdir()
        self._ca = Authority(folder / "pki")
        self._pairs = [self._ca.node(f"edge-{number}") for number in range(report.nodes)]
        self._ground_pair = self._ca.ground()
        self.submitted: dict[str, str] = {}
        self.promised: set[str] = set()
        self.ground, self.address = self._serve("127.0.0.1:0")
        self.proxies = [Proxy(self.address, down=self._fate) for _ in self._pairs]
        for number in range(report.nodes):
            with Outbox(self._outbox(number), create=True):
                pass
        self.edges = [self._send(number) for number in range(report.nodes)]

    def _outbox(self, number: int) -> Path:
        return self.folder / f"outbox-{number}"

    def _fate(self, _: int) -> Fate:
        """One connection in three is cut somewhere."""
        return CutAfter(int(self.random.integers(5_000, 150_000))) if self.random.random() < 1 / 3 else Fate()

    def _tls(self, pair: Any) -> list[str | Path]:
        return ["--tls-cert", pair.cert, "--tls-key", pair.key, "--tls-ca", self._ca.cert]

    def _serve(self, listen: str) -> tuple[Node, str]:
        node = Node(
            self.folder / "ground.log", "decoder_node", "serve", "--archive", self.folder / "archive",
            "--listen", listen, *self._tls(self._ground_pair),
        )  # fmt: skip
        return node, node.wait_for("listening")["listen"]

    def _send(self, number: int) -> Node:
        return Node(
            self.folder / f"edge-{number}.log", "encoder_node", "run", "--outbox", self._outbox(number), "--ground",
            self.proxies[number].address, "--rate-kbps", str(RATE_KBPS), *self._tls(self._pairs[number]),
        )  # fmt: skip

    def submit(self) -> None:
        """A new scene, by the command, which is killed one time in six."""
        seed, number = self.report.scenes, int(self.random.integers(len(self.edges)))
        self.report.scenes += 1
        side = int(self.random.integers(60, 400))
        pixels = scenes.pixels(seed, 3, side, side)
        scene = scenes.scene(pixels, name=f"soak {seed}")
        with encode_scene(ArraySource(scene, pixels), self.encoder, Target(quality=95)) as encoded:
            file = io.BytesIO()
            encoded.write(file)
            name = scene_id(encoded.manifest_bytes)
        path = self.folder / "scene.dl"
        path.write_bytes(file.getvalue())
        self.submitted[name] = hashlib.sha256(file.getvalue()).hexdigest()
        self.report.stream_bytes += len(file.getvalue())
        command = [sys.executable, "-m", "encoder_node", "submit", str(path), "--outbox", str(self._outbox(number))]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        if self.random.random() < 1 / 6:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(float(self.random.uniform(0.2, 0.7)))
            if process.poll() is None:
                process.kill()
                self.report.submits_killed += 1
        said, _ = process.communicate()
        self.promised |= set(said.split())

    def kill(self) -> None:
        """Somebody, and start it again."""
        draw = self.random.random()
        if draw < 0.4:
            self.ground.kill()
            self.report.ground_kills += 1
            self.ground, _ = self._serve(self.address)
        elif draw < 0.9:
            number = int(self.random.integers(len(self.edges)))
            self.edges[number].kill()
            self.report.edge_kills += 1
            self.edges[number] = self._send(number)
        else:
            for proxy in self.proxies:
                proxy.drop()
            self.report.links_cut += len(self.proxies)

    def revive(self) -> None:
        """A node that has ended by itself was ended by a library (`tests/chaos/test_corruption.py`) or has a bug."""
        for number, edge in enumerate(self.edges):
            if edge.process.poll() is not None:
                log = edge.log.read_text()[-3000:]
                raise AssertionError(f"edge {number} has ended with {edge.process.returncode}:\n{log}")
        if self.ground.process.poll() is not None:
            raise AssertionError(f"the ground has ended:\n{self.ground.log.read_text()[-3000:]}")

    def settle(self) -> None:
        """Leave all alone until everything is delivered and decoded."""
        for proxy in self.proxies:
            proxy.down = lambda _: Fate()
            proxy.drop()
        began = time.monotonic()
        for number in range(len(self.edges)):
            with Outbox(self._outbox(number), read_only=True) as box:
                self.promised |= {entry.scene_id for entry in box.entries()}
        while self._unsettled():
            self.revive()
            if time.monotonic() - began > SETTLE_S:
                break
            time.sleep(0.5)
        self.report.settled_s = round(time.monotonic() - began, 1)

    def _unsettled(self) -> bool:
        for number in range(len(self.edges)):
            with Outbox(self._outbox(number), read_only=True) as box:
                if box.undelivered():
                    return True
        return any(row["state"] != "decoded" for row in listed(self.folder))

    def close(self) -> None:
        for node in (*self.edges, self.ground):
            node.kill()
        for proxy in self.proxies:
            self.report.links_cut += proxy.cuts
            self.report.bytes_sent += proxy.bytes_down
            proxy.__exit__(None, None, None)
        logs = list(self.folder.glob("*.log"))
        odd = [line for log in logs for line in log.read_text(errors="replace").splitlines() if "Traceback" in line]
        self.report.tracebacks = len(odd)
        for line in odd[:5]:
            print(line, file=sys.stderr)


@contextlib.contextmanager
def site(folder: Path, report: Report) -> Iterator[Soak]:
    soak = Soak(folder, report)
    try:
        yield soak
    finally:
        soak.close()


def run(folder: Path, minutes: float, nodes: int, seed: int) -> Report:
    report = Report(minutes, nodes, seed)
    with site(folder, report) as soak:
        until = time.monotonic() + 60 * minutes
        kill_at = time.monotonic() + 3
        while time.monotonic() < until:
            soak.submit()
            soak.revive()
            if time.monotonic() >= kill_at:
                soak.kill()
                kill_at = time.monotonic() + float(soak.random.uniform(1.0, 4.0))
            time.sleep(float(soak.random.uniform(0.0, 0.8)))
        soak.settle()
    reconcile(folder / "archive", soak.submitted, soak.promised, report)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--keep", type=Path, help="a new folder for all files, instead of a temporary one")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if asked.keep:
            asked.keep.mkdir(parents=True)
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        report = run(folder, asked.minutes, asked.nodes, asked.seed)
        print(json.dumps(asdict(report) | {"clean": report.clean}))
    sys.exit(0 if report.clean else 1)


if __name__ == "__main__":
    main()
