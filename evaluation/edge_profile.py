"""What the encoder costs on this machine: `downlink profile`.

Everything that holds a clock or a memory figure runs in a process of its own that has loaded what a board has and
nothing else (`evaluation.edge_run`). Speeds are medians with the least and the most of the runs; with one thread by
processor time, so that other work on the machine disturbs less. Figures that this machine does not give (RAPL without
rights, quantisation without its package) are `{"missing": why}`, never left out.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink import bundle
from downlink.accelerator import SWITCH
from downlink.errors import DownlinkError
from encoder_node.encoder import PlaneEncoder
from evaluation import edge_run, graphs, stages

DISTRIBUTION: Final = "latent-downlink"
WIDTH: Final = 1024
"""Pixels across of the scenes that peak memory is compared over; they differ in height."""
WORK_SIDE: Final = 512
"""Pixels a side, at most, of the picture on which multiplications are counted."""
RUNS: Final = 5
LIMIT_S: Final = 900
RAPL: Final = Path("/sys/class/powercap")
ENERGY_S: Final = 3.0

Say = Callable[[str], None]


def profile(
    pixels: NDArray[Any],
    model: str,
    quality: float,
    threads: Sequence[int],
    sizes: Sequence[int],
    heights: Sequence[int],
    say: Say,
) -> dict[str, Any]:
    """All figures, from a picture (bands, height, width) of which as much is used, mirrored, as each measurement
    needs: squares of `sizes` px for speed, `heights` px for memory. Raises `DownlinkError` where the encoder cannot be
    run."""
    chosen = bundle.find(model)
    found: dict[str, Any] = {
        "model": {"name": chosen.name, "version": chosen.version, "id": chosen.id.hex()},
        "bands": len(pixels),
        "quality": quality,
    }
    say("graphs")
    peak = _gemm_peak()
    found["graphs"] = graphs.graphs(chosen)
    for one in found["graphs"]:
        one["share_of_gemm_peak"] = one["gmac_per_s"] / peak
    found["gemm_peak_gmac_per_s"] = peak
    side = min(max(sizes), WORK_SIDE)
    counted = graphs.work(chosen, mirrored(pixels, side, side), quality)
    for one in found["graphs"]:
        one["kmac_per_sample"] = counted.get(one["name"])
    found["network"] = {"size_px": side, "kmac_per_sample": sum(counted.values())}
    with tempfile.TemporaryDirectory(prefix="downlink-profile-") as folder:
        run = _Runs(Path(folder), pixels, model, quality)
        say("cold start")
        found["cold_start"] = run.cold()
        say("speed by size and threads")
        found["speed"] = [run.speed(size, count) for count in threads for size in sizes]
        say("float32 against 8 bits")
        found["int8"] = run.integers(max(sizes), found["speed"], graphs.eight_bits(chosen.file("encoder.onnx")))
        say("stages")
        found["stages"] = run.stages(chosen, max(sizes))
        say("memory")
        found["memory"] = [run.memory(height) for height in heights]
        say("energy")
        found["energy"] = run.energy(chosen, max(sizes))
    found["install"] = install_sizes()
    return found


def _gemm_peak() -> float:
    """Of one core: in a process whose matrix products have one thread."""
    one = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from evaluation.graphs import gemm_gmac_per_s; print(gemm_gmac_per_s())"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=one)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DownlinkError(f"the matrix product cannot be measured ({last})")
    return float(done.stdout)


class _Runs:
    """Measurements on pictures that lie in a folder."""

    def __init__(self, folder: Path, pixels: NDArray[Any], model: str, quality: float) -> None:
        self._folder, self._pixels, self._model, self._quality = folder, pixels, model, quality

    def _scene(self, height: int, width: int) -> Path:
        path = self._folder / f"{height}x{width}.npy"
        if not path.exists():
            np.save(path, mirrored(self._pixels, height, width))
        return path

    def _edge(self, scene: Path, threads: int = 1, runs: int = 0, plain: bool = False) -> dict[str, Any]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        if plain:
            environment[SWITCH] = "0"
        command = [sys.executable, "-m", "evaluation.edge_run", scene, "--model", self._model]
        command += ["--quality", self._quality, "--threads", threads, "--runs", runs]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DownlinkError(f"the encoder failed on {scene.name} ({last})")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def cold(self) -> dict[str, Any]:
        """Seconds from nothing to a coded patch: medians of three processes."""
        scene = self._scene(128, 128)
        parts: dict[str, list[float]] = {"total_s": [], "import_s": [], "load_s": [], "first_s": []}
        for _ in range(3):
            start = time.perf_counter()
            found = self._edge(scene)
            parts["total_s"].append(time.perf_counter() - start)
            for name in ("import_s", "load_s", "first_s"):
                parts[name].append(found[name])
        return {name: statistics.median(values) for name, values in parts.items()}

    def speed(self, size: int, threads: int) -> dict[str, Any]:
        """Million samples a second of pictures of `size` x `size` px."""
        found = self._edge(self._scene(size, size), threads, RUNS if size > 256 else 4 * RUNS)
        samples = len(self._pixels) * size * size
        rates = [samples / 1e6 / max(cpu if threads == 1 else clock, 1e-9) for cpu, clock in found["runs"]]
        return {
            "size_px": size,
            "threads": threads,
            "msamples_per_s": {"median": statistics.median(rates), "low": min(rates), "high": max(rates)},
            "bits_per_sample": 8 * found["bytes"] / samples,
            "native_loops": found["native"],
        }

    def integers(self, size: int, speeds: Sequence[dict[str, Any]], graph: dict[str, Any]) -> dict[str, Any]:
        """The encoder with its native loops, which calculate in 8 bits, and without them, where the same integers pass
        through onnxruntime and numpy in float32; and the network alone, as onnxruntime quantises it."""
        scene, samples = self._scene(size, size), len(self._pixels) * size * size
        native, plain = self._edge(scene, 1, 0), self._edge(scene, 1, 2, plain=True)
        rate = statistics.median(samples / 1e6 / max(cpu, 1e-9) for cpu, _ in plain["runs"])
        mine = next(one for one in speeds if one["size_px"] == size and one["threads"] == 1)
        return {
            "native_loops": native["native"],
            "native_8_bit_msamples_per_s": mine["msamples_per_s"]["median"] if native["native"] else None,
            "float32_msamples_per_s": rate,
            "same_bytes": native["sha256"] == plain["sha256"],
            "encoder_onnx_in_onnxruntime": graph,
        }

    def stages(self, chosen: bundle.Bundle, size: int) -> dict[str, float]:
        """Share of the time of each stage, after a first run."""
        encoder, scene = PlaneEncoder(chosen), str(self._scene(size, size))
        edge_run.encode(encoder, scene, self._quality)
        return stages.shares(lambda: edge_run.encode(encoder, scene, self._quality))

    def memory(self, height: int) -> dict[str, Any]:
        found = self._edge(self._scene(height, WIDTH))
        return {
            "height_px": height,
            "width_px": WIDTH,
            "scene_mb": len(self._pixels) * height * WIDTH * self._pixels.itemsize / 1e6,
            "peak_rss_mb": found["peak_rss_mb"],
            "rss_before_mb": found["rss_before_mb"],
        }

    def energy(self, chosen: bundle.Bundle, size: int) -> dict[str, Any]:
        """Nanojoules a sample of the whole processor package, less what it takes when it only waits."""
        encoder, scene = PlaneEncoder(chosen), str(self._scene(size, size))
        samples = [0]

        def work() -> None:
            edge_run.encode(encoder, scene, self._quality)
            samples[0] += len(self._pixels) * size * size

        return energy(work, samples)


def mirrored(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(bands, height, width), mirrored at the edges as often as it takes."""
    rows, columns = (
        np.minimum(at := np.arange(size) % (2 * have), 2 * have - 1 - at)
        for size, have in ((height, pixels.shape[1]), (width, pixels.shape[2]))
    )
    return np.ascontiguousarray(pixels[:, rows][:, :, columns])


def energy(
    work: Callable[[], None], samples: list[int], root: Path = RAPL, seconds: float = ENERGY_S
) -> dict[str, Any]:
    """What RAPL says that `work`, repeated, takes beyond idling; `samples[0]` counts what it has done."""
    try:
        counters = [path for path in sorted(root.glob("intel-rapl:?/energy_uj")) if path.read_text()]
    except OSError as error:
        return {"missing": f"RAPL's counters cannot be read here ({error.strerror}); run as root"}
    if not counters:
        return {"missing": f"this machine shows no RAPL counters under {root} (virtual machines seldom do)"}

    def joules() -> float:
        return sum(int(path.read_text()) for path in counters) / 1e6

    def spent(action: Callable[[], None]) -> tuple[float, float]:
        before, start = joules(), time.perf_counter()
        while time.perf_counter() - start < seconds:
            action()
        return joules() - before, time.perf_counter() - start

    idle_j, idle_s = spent(lambda: time.sleep(0.05))
    samples[0] = 0
    busy_j, busy_s = spent(work)
    own = busy_j - idle_j / idle_s * busy_s
    if busy_j < 0 or not samples[0]:
        return {"missing": "RAPL's counter went round while it was watched; run again"}
    return {"nj_per_sample": 1e9 * own / samples[0], "watts": busy_j / busy_s, "idle_watts": idle_j / idle_s}


def install_sizes() -> dict[str, Any]:
    """Megabytes that the edge installation takes, by distribution: ours and all that it depends on, as installed
    here."""
    found: dict[str, float] = {}
    waiting = [DISTRIBUTION]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # wanted under a condition that does not hold here
        found[name] = _megabytes(distribution) if name != DISTRIBUTION else _ours()
        for wanted in distribution.requires or ():
            condition = wanted.partition(";")[2]
            if "extra" not in condition:
                waiting.append(re.split(r"[\s<>=!~;\[(]", wanted, maxsplit=1)[0])
    return {"total_mb": sum(found.values()), "distributions_mb": dict(sorted(found.items(), key=lambda one: -one[1]))}


def _megabytes(distribution: importlib.metadata.Distribution) -> float:
    files = (Path(str(file.locate())) for file in distribution.files or ())
    return sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc") / 1e6


def _ours() -> float:
    """What of ours a board needs: the two packages and the released bundles."""
    root = Path(bundle.__file__).parents[1]
    places = [root / "downlink", root / "encoder_node", *(bundle.find(name).folder for name in bundle.released_names())]
    files = {
        file for place in places for file in place.rglob("*") if file.suffix in (".py", ".so", ".onnx", ".bin", ".json")
    }
    return sum(file.stat().st_size for file in files) / 1e6
