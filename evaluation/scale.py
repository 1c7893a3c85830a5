"""How decoding grows with Dask workers: `python -m evaluation.scale SCENE.tif --copies 24 --workers 1,2`.

Encodes the scene, puts so many copies of its stream into an archive (told apart by their names), starts a scheduler and
workers of one thread each on this machine, decodes the whole archive once to warm them up and then as often as is asked
for, and prints the throughput for each number of workers: the work of `downlink reprocess`, ledger, GeoTIFFs and
catalogue included. Everything has one thread (OMP, BLAS, GDAL, onnxruntime), or one worker would use two cores.

Beside it the ceiling: processes that share nothing (no scheduler, ledger, catalogue or archive) decode the same at the
same time. Two vCPUs may share a core, a memory bus and its heat: what these do not reach, nothing on this machine can.
And what a scene costs: CPU seconds of the workers, and of all that is not spread over them (scheduler, ledger, and the
client with its start), which hardly depend on what else the machine does.
Rounds of all of them take turns, so that a machine that is busy is so for all; the best of each counts. Scenes are
lossless by default (`--quality` for the model). The load before each is printed beside the figures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from decoder_node.ledger import Ledger
from downlink.bundle import find
from downlink.stream import StreamReader
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source import open_source
from encoder_node.target import Target

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GDAL_NUM_THREADS"), "1")
ENVIRONMENT = os.environ | ONE_THREAD
WITHIN_S = 60.0


class _Named:
    """A source under another name: its stream is another scene."""

    def __init__(self, path: Path, name: str) -> None:
        self._source = open_source(path)
        self.scene = replace_name(self._source.scene, name)
        self.notes = self._source.notes
        self.read = self._source.read
        self.close = self._source.close


def replace_name(scene: Any, name: str) -> Any:
    """The same scene under another name."""
    import msgspec

    return (
        msgspec.structs.replace(scene, name=name) if hasattr(scene, "__struct_fields__") else replace(scene, name=name)
    )


def fill(archive: Path, path: Path, copies: int, quality: float | None) -> int:
    """An archive of complete, undecoded scenes; returns the samples of all."""
    encoder = None if quality is None else PlaneEncoder(find("universal"))
    target = Target(max_error=0) if quality is None else Target(quality=quality)
    ledger = Ledger(archive, create=True)
    (archive / "streams").mkdir()
    samples = 0
    for number in range(copies):
        file = io.BytesIO()
        with encode_scene(_Named(path, f"copy {number}"), encoder, target) as encoded:  # type: ignore[arg-type]
            encoded.write(file)
        file.seek(0)
        reader = StreamReader(file)
        (archive / "streams" / f"{reader.scene_id}.dl").write_bytes(file.getvalue())
        ledger.begin(reader.scene_id, reader.manifest, reader.manifest_bytes, 0, len(file.getvalue()))
        ledger.durable(reader.scene_id)
        samples += reader.manifest.scene.samples
    ledger.close()
    return samples


@dataclass(frozen=True)
class Cluster:
    """Where its scheduler is, and its processes: the scheduler's first."""

    address: str
    processes: list[subprocess.Popen[bytes]]

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: of all workers, of the scheduler."""
        scheduler, *workers = (_cpu_s(process.pid) for process in self.processes)
        return sum(workers), scheduler


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def cluster(folder: Path, count: int) -> Iterator[Cluster]:
    """A scheduler and `count` workers as processes."""
    options = ["--host", "127.0.0.1", "--no-dashboard"]
    processes = [_start(folder / "scheduler.log", "distributed.cli.dask_scheduler", *options, "--port", "0")]
    try:
        address = "tcp://" + _line(folder / "scheduler.log", "Scheduler at:").rpartition("tcp://")[2].strip()
        for number in range(count):
            log = folder / f"worker{number}.log"
            more = [address, *options, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
            processes.append(_start(log, "distributed.cli.dask_worker", *more))
        for number in range(count):
            _line(folder / f"worker{number}.log", "Registered to")
        yield Cluster(address, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(log: Path, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdout=output, stderr=output, env=ENVIRONMENT
        )


def _line(log: Path, text: str) -> str:
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        lines = [line for line in log.read_text().splitlines() if text in line]
        if lines:
            return lines[-1]
        time.sleep(0.05)
    raise click.ClickException(f"{log.name} never said {text!r}: {log.read_text()[-400:]}")


def reprocessed(archive: Path, on: Cluster) -> dict[str, Any]:
    """One decoding of the whole archive on a cluster."""
    load, (workers, scheduler) = os.getloadavg()[0], on.cpu_s()
    client = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "decoder_node", "reprocess", "--archive", str(archive), "--json"]
    done = subprocess.run(
        [*command, "--workers", on.address], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    if done.returncode:
        raise click.ClickException(done.stderr.strip()[-500:])
    after, (workers_after, scheduler_after) = resource.getrusage(resource.RUSAGE_CHILDREN), on.cpu_s()
    rest = scheduler_after - scheduler + after.ru_utime + after.ru_stime - client.ru_utime - client.ru_stime
    found: dict[str, Any] = json.loads(done.stdout)
    each = {"worker_cpu_s": (workers_after - workers) / found["scenes"], "other_cpu_s": rest / found["scenes"]}
    return {**found, **{key: round(value, 3) for key, value in each.items()}, "load_before": round(load, 2)}


class Alone:
    """A process that decodes a copy of the archive, over and over, with nobody else: `python -m evaluation.scale_alone`
    waits for a line, decodes everything, and says how many seconds that took."""

    def __init__(self, archive: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "evaluation.scale_alone", str(archive)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True,
        )  # fmt: skip

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def seconds(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("a process of the ceiling has ended by itself")
        return float(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def side_by_side(processes: list[Alone]) -> float:
    """Seconds until all of them have decoded everything."""
    began = time.monotonic()
    for one in processes:
        one.begin()
    for one in processes:
        one.seconds()
    return time.monotonic() - began


@click.command()
@click.argument("scene", type=click.Path(path_type=Path, exists=True))
@click.option("--copies", default=24, show_default=True, type=click.IntRange(2))
@click.option("--workers", default="1,2", show_default=True, help="Numbers of workers to compare.")
@click.option("--times", default=3, show_default=True, type=click.IntRange(1), help="Rounds; the best of each counts.")
@click.option("--quality", type=float, help="Encode with the model at this quality. Default: lossless, without one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(scene: Path, copies: int, workers: str, times: int, quality: float | None, as_json: bool) -> None:
    """Compare the throughput of decoding SCENE for several numbers of Dask workers, and with what the machine can."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no worker outlives it
    counts = [int(word) for word in workers.split(",")]
    with tempfile.TemporaryDirectory(prefix="scale-") as name, contextlib.ExitStack() as ending:
        folder = Path(name)
        archive = folder / "archive"
        archive.mkdir()
        samples = fill(archive, scene, copies, quality)
        clusters = {}
        for count in counts:
            (folder / str(count)).mkdir()
            clusters[count] = ending.enter_context(cluster(folder / str(count), count))
        alone = []
        for number in range(max(counts)):
            shutil.copytree(archive / "streams", folder / f"alone{number}" / "streams")
            alone.append(Alone(folder / f"alone{number}"))
            ending.callback(alone[-1].close)
        runs: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
        apart: dict[int, list[float]] = {count: [] for count in counts}
        for number in range(times + 1):  # the first one warms up
            for count in counts:
                run, seconds = reprocessed(archive, clusters[count]), side_by_side(alone[:count])
                if number:
                    runs[count].append(run)
                    apart[count].append(seconds)
    rows = []
    for count in counts:
        best = max(runs[count], key=lambda run: run["msamples_per_s"])
        kept = ("scenes", "seconds", "scenes_per_s", "msamples_per_s", "worker_cpu_s", "other_cpu_s", "load_before")
        rows.append({"workers": count, **{key: best[key] for key in kept}})
        rows[-1]["apart_msamples_per_s"] = round(count * samples / 1e6 / min(apart[count]), 3)
    for row in rows:
        row["times"] = round(row["msamples_per_s"] / rows[0]["msamples_per_s"], 2)
        row["apart_times"] = round(row["apart_msamples_per_s"] / rows[0]["apart_msamples_per_s"], 2)
    if as_json:
        print(json.dumps({"scene": scene.name, "copies": copies, "cores": os.cpu_count(), "rows": rows}))
        return
    for row in rows:
        what = f"{row['msamples_per_s']:.2f} Msamples/s, {row['times']:.2f}x (load before: {row['load_before']})"
        print(f"{row['workers']} workers: {row['scenes']} scenes in {row['seconds']:.1f} s, {what}")
    for row in rows:
        rate = f"{row['apart_msamples_per_s']:.2f} Msamples/s, {row['apart_times']:.2f}x"
        print(f"{row['workers']} processes that share nothing: {rate}")
    for row in rows:
        cost = f"{row['worker_cpu_s']:.3f} s of a worker, {row['other_cpu_s']:.3f} s of scheduler, ledger and client"
        print(f"{row['workers']} workers: CPU time of a scene: {cost}")


if __name__ == "__main__":
    main()
