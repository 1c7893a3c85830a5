"""How fast codecs are, in one run: all of them in turn on one picture, again and again, with what that spread over.

Lossy codecs are set to one PSNR (that of ours at `QUALITY`) on the middle of the picture; lossless ones to a bound
of 0. Each thread count is a process of its own. With one thread times are processor seconds, so that other work on the
machine disturbs less; with all of them seconds of the clock, for processor time would count each thread. A codec that
takes long is run less often (`BUDGET_S`), never less than `RUNS_MIN` times.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from downlink.errors import DownlinkError
from downlink.quality import Quality
from downlink.scene import Scene
from evaluation import cache
from evaluation.cache import Cache
from evaluation.codecs import CodecSpec, sweep
from evaluation.codecs.base import Codec, Image
from evaluation.worker import limited_to

QUALITY: Final = 40.0
RUNS: Final = 5
RUNS_MIN: Final = 2
BUDGET_S: Final = 12.0
CROP: Final = 256
"""Pixels a side of what settings are searched on."""

Kind = Literal["lossy", "lossless"]


@dataclass(frozen=True)
class Racer:
    """A codec in the race. The first lossy one says which PSNR the others are set to."""

    spec: CodecSpec
    kind: Kind
    setting: float | None = None
    """None: to be found."""


@dataclass(frozen=True)
class Track:
    """What is raced on: a .npy file (bands, height, width) of a one-grid scene."""

    scene: Scene
    path: Path

    def image(self, peak: float) -> Image:
        return Image(self.scene, (np.load(self.path),), peak)


def speeds(
    tracks: Mapping[Kind, Track], peak: float, racers: Sequence[Racer], threads: Sequence[int], kept: Cache
) -> dict[str, Any]:
    """Times and ratios by number of threads, each kind on its own track."""
    shapes = {kind: track.scene.grids[0].shape for kind, track in tracks.items()}
    found: dict[str, Any] = {"shapes": shapes, "quality": QUALITY}
    settings: list[float | None] = [None] * len(racers)  # found once: they are the same for any number of threads
    for count in threads:
        specs = [
            Racer(CodecSpec(r.spec.label, r.spec.classical, r.spec.model, count), r.kind, setting)
            for r, setting in zip(racers, settings, strict=True)
        ]
        of_scene = [(kind, cache.of_scene(one.scene, (np.load(one.path),))) for kind, one in tracks.items()]
        codecs = [(racer.kind, cache.of_codec(racer.spec)) for racer in specs]
        key = cache.key_of("speed", codecs, of_scene, cache.sources("evaluation/speed.py"), os.cpu_count())
        times = kept.get(key)
        if times is None:
            times = _apart(dict(tracks), peak, specs, count)
            kept.put(key, times)
        settings = [one["setting"] for one in times]
        samples = {kind: track.scene.samples for kind, track in tracks.items()}
        found[str(count)] = _compared(times, samples, "cpu" if count == 1 else "clock")
    return found


def _apart(tracks: dict[Kind, Track], peak: float, racers: Sequence[Racer], threads: int) -> list[dict[str, Any]]:
    with limited_to(threads), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(race, tracks, peak, tuple(racers)).result()
        except BrokenProcessPool:
            raise DownlinkError(
                "measuring speed took its process down: out of memory, or a bug in a codec's library; leave codecs out "
                "(--against) or measure smaller scenes"
            ) from None


def race(tracks: dict[Kind, Track], peak: float, racers: tuple[Racer, ...]) -> list[dict[str, Any]]:
    """Raw times of all racers: lists of [processor seconds, seconds] per run."""
    images = {kind: track.image(peak) for kind, track in tracks.items()}
    codecs: list[Codec] = []
    found: list[dict[str, Any]] = []
    psnr = None
    for racer in racers:
        codec, image = racer.spec.open(), images[racer.kind]
        codec.load("encode")
        codec.load("decode")
        codecs.append(codec)
        if racer.setting is not None:
            setting = racer.setting
        elif racer.kind == "lossless":
            setting = 0.0
        elif racer.spec.classical is None:
            setting = QUALITY
            psnr = _psnr(image, codec.decode(codec.encode(image, setting))[0]) if psnr is None else psnr
        else:
            setting = _setting(codec, racer.spec.classical, _middle(image), 45.0 if psnr is None else psnr)
        found.append({"codec": racer.spec.label, "kind": racer.kind, "setting": setting, "encode": [], "decode": []})
    for run in range(RUNS):
        for codec, one in zip(codecs, found, strict=True):
            image = images[one["kind"]]
            spent = sum(clock for half in ("encode", "decode") for _, clock in one[half])
            if run >= RUNS_MIN and spent > BUDGET_S:
                continue
            payload, times = _timed(lambda c=codec, i=image, s=one["setting"]: c.encode(i, s))
            one["encode"].append(times)
            decoded, times = _timed(lambda c=codec, p=payload: c.decode(p))
            one["decode"].append(times)
            if run == 0:
                one["bytes"], one["psnr_db"] = len(payload), _psnr(image, decoded[0])
    return found


def _timed(action: Any) -> tuple[Any, tuple[float, float]]:
    clock, cpu = time.perf_counter(), time.process_time()
    found = action()
    return found, (time.process_time() - cpu, time.perf_counter() - clock)


def _middle(image: Image) -> Image:
    """What settings are searched on."""
    (grid,), (pixels,) = image.scene.grids, image.grids
    top, left = ((side - min(side, CROP)) // 2 for side in pixels.shape[1:])
    crop = np.ascontiguousarray(pixels[:, top : top + CROP, left : left + CROP])
    small = Scene(image.scene.name, (type(grid)(crop.shape[1], crop.shape[2], grid.dtype, grid.bands, grid.nodata),))
    return Image(small, (crop,), image.peak)


def _setting(codec: Codec, name: str, image: Image, psnr: float) -> float:
    """The setting that comes closest to a PSNR, between those of the codec's sweep."""
    points = []
    for setting in sweep(name, image.peak):
        found = _psnr(image, codec.decode(codec.encode(image, setting))[0])
        if found is not None:
            points.append((found, setting))
    points.sort()
    if not points:
        return sweep(name, image.peak)[0]
    at, settings = zip(*points, strict=True)
    wanted = float(np.exp(np.interp(psnr, at, np.log(settings))))
    return float(round(wanted)) if codec.unit.startswith("largest") else wanted


def _psnr(image: Image, decoded: NDArray[Any]) -> float | None:
    quality = Quality.of_scene(image.scene, image.peak)
    quality.add(0, image.grids[0], decoded)
    return quality.psnr_db if quality.mse else None


def _compared(
    times: list[dict[str, Any]], samples_of: Mapping[Kind, int], by: Literal["cpu", "clock"]
) -> dict[str, Any]:
    """Medians in million samples a second with the least and the most, and how often as fast the first of a kind is:
    the median over runs of the ratio within a run."""
    at = ("cpu", "clock").index(by)
    firsts = {kind: next((one for one in times if one["kind"] == kind), None) for kind in ("lossy", "lossless")}
    codecs = {}
    for one in times:
        samples = samples_of[one["kind"]]
        entry: dict[str, Any] = {
            "kind": one["kind"],
            "setting": one["setting"],
            "bits_per_sample": 8 * one["bytes"] / samples,
            "psnr_db": one["psnr_db"],
            "runs": len(one["encode"]),
        }
        for half in ("encode", "decode"):
            mine = [samples / 1e6 / max(run[at], 1e-9) for run in one[half]]
            entry[half] = _spread(mine)
            first = firsts[one["kind"]]
            assert first is not None
            ratios = [run[at] / max(other[at], 1e-9) for run, other in zip(one[half], first[half], strict=False)]
            entry[f"{half}_ratio"] = _spread(ratios)
        codecs[f"{one['codec']} ({one['kind']})" if _twice(times, one) else one["codec"]] = entry
    return {"seconds": by, "codecs": codecs}


def _twice(times: list[dict[str, Any]], one: dict[str, Any]) -> bool:
    return sum(other["codec"] == one["codec"] for other in times) > 1


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
