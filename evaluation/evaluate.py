"""Measures codecs on scenes: real bytes, decoded from those bytes alone, compared with every valid sample.

One row per scene, codec and setting (`row`), in the keys that DESIGN.md fixes. Scenes are read one at a time; each
codec works in a process of its own (`worker`). A codec that fails on a scene costs that scene and codec, is listed
under `failures` and never silently left out.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink.accelerator import native
from downlink.errors import BundleError, DownlinkError
from downlink.quality import Quality, default_peak
from downlink.scene import Scene
from evaluation import bounds, cache, scenes
from evaluation.cache import Cache
from evaluation.codecs import CodecSpec, Contestant
from evaluation.indices import indices
from evaluation.scenes import Entry
from evaluation.seams import seam_ratio
from evaluation.similarity import similarity
from evaluation.summary import Row, summarise
from evaluation.worker import Outcome, Runner, Task


@dataclass
class Report:
    """All that was measured."""

    rows: list[Row] = field(default_factory=list)
    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)

    def document(self, reference: str | None, threads: int) -> dict[str, Any]:
        """What `--json` writes: `reference` is the codec that is compared with the others; without one the settings are
        bounds on the error."""
        return {
            "rows": self.rows,
            "summary": bounds.summarise(self.rows) if reference is None else summarise(self.rows, reference),
            "failures": self.failures,
            "scenes": self.scenes,
            "environment": environment(threads),
        }


Done = Callable[[str, str, float], None]
"""Called after each measurement with codec, scene and the samples (in millions) that it covered."""


def evaluate(
    entries: Sequence[Entry],
    contestants: Sequence[Contestant],
    peak: float | None,
    runner: Runner,
    done: Done,
    kept: Cache | None = None,
) -> Report:
    """Measure all contestants on all scenes, but for what is `kept`. Raises `BundleError` for a model that cannot be
    loaded."""
    report = Report(scenes={entry.label: described(scenes.describe(entry.path)) for entry in entries})
    kept = Cache(None) if kept is None else kept
    with tempfile.TemporaryDirectory(prefix="downlink-evaluate-") as folder:
        # Codecs outside, scenes inside: one process per codec, and one scene in memory.
        for contestant in contestants:
            for number, entry in enumerate(entries):
                place = Path(folder) / f"{number}"
                place.mkdir(exist_ok=True)
                try:
                    # list(): a codec that fails half-way through its settings has no curve on this scene
                    report.rows += list(_measure(entry, contestant, peak, runner, place, done, kept))
                    _check_promise(entry, contestant, report.rows)
                except BundleError:
                    raise  # it will fail on every scene: say so at once
                except DownlinkError as error:
                    report.failures.append({"scene": entry.label, "codec": contestant.spec.label, "error": str(error)})
                for file in place.iterdir():
                    file.unlink()
    return report


def _check_promise(entry: Entry, contestant: Contestant, rows: Sequence[Row]) -> None:
    """`DownlinkError` if a contestant broke the bound that it promises on this scene."""
    for one in rows if contestant.promises else ():
        mine = (one["scene"], one["codec"]) == (entry.label, contestant.spec.label)
        if mine and not bounds.kept(one):
            raise DownlinkError(
                f"a sample is off by {one['max_error']} and {one['nodata_wrong']} changed between data and nodata, "
                f"where at most {one['setting']:g} and none were promised; please report this with the scene"
            )


def _measure(
    entry: Entry, contestant: Contestant, peak: float | None, runner: Runner, folder: Path, done: Done, kept: Cache
) -> Iterator[Row]:
    scene, grids = scenes.describe(entry.path), scenes.read(entry.path)
    against = default_peak(scene) if peak is None else peak
    pixels = tuple(folder / f"pixels{number}.npy" for number in range(len(grids)))
    decoded = tuple(folder / f"decoded{number}.npy" for number in range(len(grids)))
    keys = _keys(contestant, scene, grids, against, runner)
    for setting, key in zip(contestant.at(against), keys, strict=True):
        found = None if key is None else kept.get(key)
        if found is None:
            if not pixels[0].exists():
                for path, grid in zip(pixels, grids, strict=True):
                    np.save(path, grid)
            task = Task(contestant.spec, scene, against, setting, pixels, decoded)
            try:
                outcome = runner.run(task)
            except (RuntimeError, ValueError, MemoryError) as error:  # what codecs' libraries raise
                raise DownlinkError(f"{type(error).__name__} at setting {setting:g}: {error}") from error
            back = [np.load(path, mmap_mode="r") for path in decoded]
            found = row(scene, entry.label, contestant.spec.label, setting, grids, back, outcome, against)
            if key is not None:
                kept.put(key, found)
        yield {**found, "scene": entry.label, "codec": contestant.spec.label}
        done(contestant.spec.label, entry.label, scene.samples / 1e6)


def _keys(
    contestant: Contestant, scene: Scene, grids: tuple[NDArray[Any], ...], peak: float, runner: Runner
) -> list[str | None]:
    """Under what the rows of a codec are kept, by setting; None for a codec that nothing is known about."""
    settings = contestant.at(peak)
    if type(contestant.spec) is not CodecSpec:
        return [None] * len(settings)
    codec, pixels = cache.of_codec(contestant.spec), cache.of_scene(scene, grids)
    common = [type(runner).__name__, codec, cache.of_measuring(), pixels]
    return [cache.key_of("row", common, setting, peak) for setting in settings]


def described(scene: Scene) -> dict[str, Any]:
    """What a report says about a scene."""
    return {
        "name": scene.name,
        "grids": [
            {"shape": grid.shape, "dtype": grid.dtype, "bands": [band.name for band in grid.bands]}
            for grid in scene.grids
        ],
        "samples": scene.samples,
    }


def row(
    scene: Scene,
    label: str,
    codec: str,
    setting: float,
    original: Sequence[NDArray[Any]],
    decoded: Sequence[NDArray[Any]],
    outcome: Outcome,
    peak: float,
) -> Row:
    """One measurement. Figures that do not exist (PSNR of a lossless result, SAM of one band) are None."""
    quality = Quality.of_scene(scene, peak)
    for number, (one, other) in enumerate(zip(original, decoded, strict=True)):
        if other.dtype != one.dtype:
            raise DownlinkError(f"{codec} turned {one.dtype} into {other.dtype} on {label}; that is a bug of the codec")
        quality.add(number, one, other)
    alike = similarity(scene, original, decoded, peak)
    felt = indices(scene, original, decoded, peak)
    return {
        "scene": label,
        "codec": codec,
        "setting": setting,
        "bytes": outcome.bytes,
        "bits_per_sample": 8 * outcome.bytes / scene.samples,
        "psnr_db": _finite(quality.psnr_db),
        "max_error": quality.max_error,
        "rmse_per_band": [_finite(rmse) for rmse in quality.rmse_per_band],
        "sam_deg": _finite(quality.sam_deg),
        "ssim": alike.ssim,
        "ms_ssim": alike.ms_ssim,
        **felt._asdict(),
        "seam_ratio": seam_ratio(scene, original, decoded),
        "encode_s": outcome.encode_s,
        "decode_s": outcome.decode_s,
        "encode_msamples_per_s": scene.samples / 1e6 / max(outcome.encode_s, 1e-9),
        "peak_rss_mb": outcome.peak_rss_mb,
        "decode_peak_rss_mb": outcome.decode_peak_rss_mb,
        "samples": scene.samples,
        "valid_samples": quality.samples,
        "nodata_wrong": quality.nodata_wrong,
        "ratio": scene.raw_bytes / outcome.bytes,
        "peak": peak,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def environment(threads: int) -> dict[str, Any]:
    """What the figures were measured with."""
    versions: dict[str, str | None] = {}
    for name in ("latent-downlink", "numpy", "onnxruntime", "imagecodecs", "bjontegaard"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "native_loops": native(),
        "threads": threads,
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name, as Linux states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
