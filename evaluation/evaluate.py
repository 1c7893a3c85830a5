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
from skimage.metrics import structural_similarity

from downlink.errors import BundleError, DownlinkError
from downlink.quality import Quality, default_peak, valid_pixels
from downlink.scene import Scene
from evaluation import bounds, scenes
from evaluation.codecs import Contestant
from evaluation.scenes import Entry
from evaluation.summary import Row, summarise
from evaluation.worker import Outcome, Runner, Task

# Wang et al. 2004: an 11 x 11 Gaussian window of sigma 1.5, so sides below 11 have no SSIM.
_SSIM_SIDE_MIN = 11


@dataclass
class Report:
    """All that was measured."""

    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)

    def document(self, reference: str | None, threads: int) -> dict[str, Any]:
        """What `--json` writes: `reference` is the codec that is compared with the others; without one the settings are
        bounds on the error."""
        return {
            "rows": self.rows,
            "summary": bounds.summarise(self.rows) if reference is None else summarise(self.rows, reference),
            "failures": self.failures,
            "environment": _environment(threads),
        }


Done = Callable[[str, str, float], None]
"""Called after each measurement with codec, scene and the samples (in millions) that it covered."""


def evaluate(
    entries: Sequence[Entry], contestants: Sequence[Contestant], peak: float | None, runner: Runner, done: Done
) -> Report:
    """Measure all contestants on all scenes. Raises `BundleError` for a model that cannot be loaded."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="downlink-evaluate-") as folder:
        # Codecs outside, scenes inside: one process per codec, and one scene in memory.
        for contestant in contestants:
            for number, entry in enumerate(entries):
                place = Path(folder) / f"{number}"
                place.mkdir(exist_ok=True)
                try:
                    # list(): a codec that fails half-way through its settings has no curve on this scene
                    report.rows += list(_measure(entry, contestant, peak, runner, place, done))
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
    entry: Entry, contestant: Contestant, peak: float | None, runner: Runner, folder: Path, done: Done
) -> Iterator[Row]:
    scene, grids = scenes.describe(entry.path), scenes.read(entry.path)
    against = default_peak(scene) if peak is None else peak
    pixels = tuple(folder / f"pixels{number}.npy" for number in range(len(grids)))
    decoded = tuple(folder / f"decoded{number}.npy" for number in range(len(grids)))
    for path, grid in zip(pixels, grids, strict=True):
        np.save(path, grid)
    for setting in contestant.at(against):
        task = Task(contestant.spec, scene, against, setting, pixels, decoded)
        try:
            outcome = runner.run(task)
        except (RuntimeError, ValueError, MemoryError) as error:  # what codecs' libraries raise
            raise DownlinkError(f"{type(error).__name__} at setting {setting:g}: {error}") from error
        back = [np.load(path, mmap_mode="r") for path in decoded]
        yield row(scene, entry.label, contestant.spec.label, setting, grids, back, outcome, against)
        done(contestant.spec.label, entry.label, scene.samples / 1e6)


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
        "ssim": ssim(scene, original, decoded, peak),
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


def ssim(scene: Scene, original: Sequence[NDArray[Any]], decoded: Sequence[NDArray[Any]], peak: float) -> float | None:
    """Mean structural similarity over bands (Gaussian window, data range = peak), each over its valid pixels."""
    values = []
    for grid, one, other in zip(scene.grids, original, decoded, strict=True):
        if min(grid.height, grid.width) < _SSIM_SIDE_MIN:
            continue
        valid = valid_pixels(one, grid.nodata)
        for band in range(len(grid.bands)):
            where = None if valid is None else valid[band]
            if where is not None and not where.any():
                continue
            _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
                one[band].astype(np.float64),
                other[band].astype(np.float64),
                data_range=peak,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                full=True,
            )
            values.append(float(similarity.mean() if where is None else similarity[where].mean()))
    return float(np.mean(values)) if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _environment(threads: int) -> dict[str, Any]:
    """What the figures were measured with."""
    versions: dict[str, str | None] = {}
    for name in ("latent-downlink", "numpy", "onnxruntime", "imagecodecs", "scikit-image", "bjontegaard"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": threads,
        "versions": versions,
    }
