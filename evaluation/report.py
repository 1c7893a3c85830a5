"""A whole report: curves, bounds, speeds and pictures of somebody's own scenes, in one folder.

    report.html   for people: one file, no network
    report.json   every figure: `evaluate`'s JSON, with `bounds` (the same at bounds on the error), `equal_bits`,
                  `speed`, `learned` and `pictures` (without the pictures themselves)
    rows.csv      one line per measurement

What is measured is kept under `cache/` in the folder (`evaluation.cache`) as soon as it is there: a run that was
interrupted goes on where it stopped, and a run over the same files again takes seconds.
"""

from __future__ import annotations

import csv
import datetime
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from downlink.errors import DownlinkError
from downlink.quality import default_peak
from downlink.scene import Grid, Scene
from evaluation import bench_speed, bounds, pictures, report_page, scenes
from evaluation.cache import Cache
from evaluation.codecs import CodecSpec, Contestant
from evaluation.equal_bits import at_equal_bits, bands_at
from evaluation.evaluate import Done, environment, evaluate
from evaluation.learned import learned
from evaluation.scenes import Entry
from evaluation.speed import Kind, Racer, Track, speeds
from evaluation.summary import Row, summarise
from evaluation.worker import Runner

SPEED_SIDE: Final = 1024
"""Pixels a side of what lossy codecs' speeds are measured on: a square of the scene with the longest short side,
mirrored where it is smaller, because scenes that come down are large. Lossless codecs get the square as it is, unless
it is larger: some look for repetitions and would find them."""

Say = Callable[[str], None]


def measure(
    entries: Sequence[Entry],
    curves: Sequence[Contestant],
    promised: Sequence[Contestant],
    peak: float | None,
    runner: Runner,
    threads: int,
    kept: Cache,
    done: Done,
    say: Say,
    races: bool = True,
) -> dict[str, Any]:
    """All of a report. `curves` are lossy codecs, the reference first; `promised` those that bound the error, ours
    first; either may be empty. `say` is told what begins; without `races` there are no tables of speed."""
    found: dict[str, Any] = {"date": datetime.date.today().isoformat()}
    reference = curves[0].spec.label if curves else None
    say("rate and quality")
    lossy = evaluate(entries, curves, peak, runner, done, kept)
    found |= {"rows": lossy.rows, "failures": lossy.failures, "scenes": lossy.scenes}
    found["summary"] = summarise(lossy.rows, reference or "")
    found["equal_bits"] = at_equal_bits(lossy.rows, reference) if reference else None
    found["settings"] = {contestant.spec.label: contestant.unit for contestant in curves}
    say("bounded error")
    bounded = evaluate(entries, promised, peak, runner, done, kept)
    found["bounds"] = {
        "rows": bounded.rows,
        "failures": bounded.failures,
        "summary": bounds.summarise(bounded.rows),
    }
    say("pictures at equal bits")
    chosen = pictures.choose(entries) if curves else []
    taken = [pictures.pictures(entry, curves, lossy.rows, peak, runner, kept) for entry in chosen]
    found["pictures"] = [one for one in taken if one is not None]
    found["bands"] = _bands(found, reference, lossy.rows)
    runner.close()
    found |= {"speed": None, "learned": {"missing": "speeds were not asked for"}}
    if races:
        say("speed")
        found["speed"] = _speed(entries, curves, promised, peak, kept)
        say("learned peers")
        found["learned"] = learned(1, kept)
    found["environment"] = environment(threads)
    return found


def _bands(found: dict[str, Any], reference: str | None, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """RMSE per band in reflectance at the bits of each scene that has pictures."""
    out = []
    for one in found["pictures"]:
        names = [band for grid in found["scenes"][one["scene"]]["grids"] for band in grid["bands"]]
        errors = {
            codec: bands_at(
                [row for row in rows if (row["scene"], row["codec"]) == (one["scene"], codec)], one["bits_per_sample"]
            )
            for codec in dict.fromkeys(row["codec"] for row in rows)
        }
        known = {codec: error for codec, error in errors.items() if error and any(v is not None for v in error)}
        labels = [name or str(number + 1) for number, name in enumerate(names)]
        out.append({"scene": one["scene"], "bands": labels, "rmse": known, "reference": reference})
    return out


def _speed(
    entries: Sequence[Entry],
    curves: Sequence[Contestant],
    promised: Sequence[Contestant],
    peak: float | None,
    kept: Cache,
) -> dict[str, Any] | None:
    racers = [Racer(one.spec, "lossy") for one in curves] + [Racer(one.spec, "lossless") for one in promised]
    racers = [racer for racer in racers if type(racer.spec) is CodecSpec]
    if not racers:
        return None
    largest = max(entries, key=_short_side)
    described = scenes.describe(largest.path)
    first = described.grids[0]
    with tempfile.TemporaryDirectory(prefix="downlink-speed-") as folder:
        tracks: dict[Kind, Track] = {}
        sides: dict[Kind, int] = {"lossy": SPEED_SIDE, "lossless": min(SPEED_SIDE, _short_side(largest))}
        for kind, side in sides.items():
            pixels = bench_speed.pixels_of(largest.path, side, Path(folder))
            if len({grid.dtype for grid in described.grids}) > 1:
                pixels = pixels[: len(first.bands)]
            bands = tuple(band for grid in described.grids for band in grid.bands)[: len(pixels)]
            scene = Scene("speed", (Grid(*pixels.shape[1:], first.dtype, bands, first.nodata),))  # type: ignore[arg-type]
            tracks[kind] = Track(scene, Path(folder) / f"{kind}.npy")
            np.save(tracks[kind].path, pixels)
        against = default_peak(described) if peak is None else peak
        threads = sorted({1, os.cpu_count() or 1})
        try:
            return {"scene": largest.label, **speeds(tracks, against, racers, threads, kept)}
        except (DownlinkError, RuntimeError, ValueError, MemoryError) as error:
            return {"scene": largest.label, "missing": str(error)}


def _short_side(entry: Entry) -> int:
    grid = scenes.describe(entry.path).grids[0]
    return min(grid.height, grid.width)


def write(folder: Path, found: dict[str, Any]) -> list[Path]:
    """`report.html`, `report.json` and `rows.csv`; each whole or not at all."""
    text = report_page.render(found)
    figures = {**found, "pictures": [_without_pictures(one) for one in found["pictures"]]}
    contents = {
        "report.html": text.encode(),
        "report.json": msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n",
        "rows.csv": _csv([*found["rows"], *found["bounds"]["rows"]]),
    }
    paths = []
    for name, content in contents.items():
        path = folder / name
        temporary = path.with_name(f".{name}.part")
        temporary.write_bytes(content)
        temporary.replace(path)
        paths.append(path)
    return paths


def _without_pictures(one: dict[str, Any]) -> dict[str, Any]:
    codecs = [
        {key: value for key, value in codec.items() if key not in ("picture", "error")} for codec in one["codecs"]
    ]
    return {**{key: value for key, value in one.items() if key != "original"}, "codecs": codecs}


def _csv(rows: Sequence[Row]) -> bytes:
    with tempfile.SpooledTemporaryFile(mode="w+", newline="", encoding="utf-8") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            listed = {
                name: " ".join("" if v is None else f"{v:.6g}" for v in value) if isinstance(value, list) else value
                for name, value in row.items()
            }
            writer.writerow(listed)
        file.seek(0)
        return file.read().encode()
