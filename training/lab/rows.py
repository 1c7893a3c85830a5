"""Rows -> results: which trials there are, how long each may train, and what was measured of each seed.

A result is kept under the hash of all that it depends on (settings, pixels, minutes, seed), so a command that was
interrupted goes on where it was, and one that is repeated is quick. A trial that was cut short resumes its checkpoint.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from downlink.bundle import find
from training.card import commit
from training.config import ConfigError
from training.lab.config import FOLDER, Row, Trial, digest, read_row
from training.lab.figures import FIGURES
from training.lab.places import Places
from training.lab.trial import Reconstruct, task_of
from training.loop import find_rate, fit, save

Figures = dict[str, float]
MEASURING = 0.3
"""Share of the budget that is left for reading, measuring and drawing."""


@dataclass(frozen=True)
class Result:
    """One trained seed of one variant."""

    row: str
    variant: str
    seed: int
    figures: Figures
    folder: Path


def configs() -> list[Path]:
    """The rows' files, in the order of the page."""
    return sorted(FOLDER.glob("*.toml"))


def find_rows(names: Iterable[str]) -> list[Path]:
    """The files that are meant: paths, or rows' names. ConfigError for one that is not there."""
    known = {path.stem.partition("-")[2]: path for path in configs()}
    out = []
    for name in names:
        path = Path(name) if name.endswith(".toml") else known.get(name)
        if path is None or not path.is_file():
            raise ConfigError(f"no row '{name}': give a TOML file, or one of {', '.join(known)}")
        out.append(path)
    return out


def minutes_of(rows: list[Row], seeds: int, budget_minutes: float, jobs: int = 1) -> float:
    """Minutes of training for a trial of share 1, so that all seeds of all trials fit the budget, `jobs` at a time."""
    shares = sum(trial.share for row in rows for trial in row.variants.values() if not trial.closed_form)
    return jobs * budget_minutes * (1 - MEASURING) / max(shares * seeds, 1e-9)


def measured(trial: Trial, task: Reconstruct, module: Any) -> Figures:
    """All figures that a trial names."""
    out: Figures = {}
    for name in trial.figures:
        if name in FIGURES:
            out |= FIGURES[name](task, module)
        elif hasattr(task, name):
            out |= getattr(task, name)(module)
        else:
            raise ConfigError(f"figures: '{name}' is neither in training/lab/figures.py nor of task {trial.task}")
    return out


def run_trial(
    trial: Trial, places: Places, folder: Path, quiet: bool = True, board: bool = False
) -> tuple[Figures, Any]:
    """Train (or resume, or just load) one seed of one variant, and measure it: (figures, task with best weights)."""
    torch.set_num_threads(1)
    task = task_of(trial, places)
    best = folder / "best.pt"
    if trial.closed_form:
        folder.mkdir(parents=True, exist_ok=True)
        save(best, {"average": task.module.state_dict(), "state": {"step": 0}})
    elif not (folder / "done").exists():
        schedule = trial.schedule
        facts: dict[str, Any] = {"seed": trial.seed, "commit": commit(), "places": len(places.train)}
        if trial.find_rate:  # also when it is resumed: the same weights and batches give the same rate
            facts["found_rate"], _ = find_rate(task)
            schedule = msgspec.structs.replace(schedule, learning_rate=facts["found_rate"])
        fit(
            task,
            schedule,
            trial.name,
            trial,
            folder,
            facts,
            True,
            quiet,
            board,
            fused=True,
            ahead=0,
            clock=time.process_time,
        )
        (folder / "done").touch()
    saved = torch.load(best, weights_only=True)
    task.module.load_state_dict(saved["average"])
    task.module.eval()
    return measured(trial, task, task.module) | {"steps": float(saved["state"]["step"])}, task


@dataclass(frozen=True)
class Work:
    """One trial of one seed that is to be run, or looked up."""

    row: str
    variant: str
    trial: Trial
    folder: Path


def works_of(row: Row, places: Places, out: Path, seeds: Iterable[int], minutes: float) -> list[Work]:
    """All variants and seeds of a row, each with the folder that its result is kept in."""
    works, codec = [], find("universal").id.hex()  # some rows measure the released bundle, or build on it
    for variant, base in row.variants.items():
        for seed in seeds:
            schedule = msgspec.structs.replace(base.schedule, minutes=minutes * base.share)
            trial = msgspec.structs.replace(base, seed=seed, schedule=schedule)
            key = f"{variant.replace(' ', '-')}-{seed}-{digest(trial, places.fingerprint, codec)}"
            works.append(Work(row.base.name, variant, trial, out / row.base.name / key))
    return works


def run_work(work: Work, places: Places) -> Result:
    """Do it, unless its result is there."""
    kept = work.folder / "result.json"
    if kept.exists():
        figures = json.loads(kept.read_text())
    else:
        figures, _ = run_trial(work.trial, places, work.folder)
        kept.write_text(json.dumps(figures))
        (work.folder / "checkpoint.pt").unlink(missing_ok=True)
    return Result(work.row, work.variant, work.trial.seed, figures, work.folder)


_places: Places | None = None  # of a worker process


def _begin(read: Callable[[], Places]) -> None:
    global _places
    _places = read()


def _in_worker(work: Work) -> Result:
    assert _places is not None
    return run_work(work, _places)


def run_all(works: list[Work], places: Places, jobs: int, read: Callable[[], Places]) -> Iterator[Result]:
    """Results in the order of `works`, `jobs` at a time, each process on one thread. `read` reads the places again in
    each process."""
    if jobs == 1:
        yield from (run_work(work, places) for work in works)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(read,)) as pool:
        yield from pool.map(_in_worker, works)


def told(result: Result) -> str:
    """A line for the terminal."""
    return f"{result.row:16} {result.variant:24} seed {result.seed}  " + _line(result.figures)


def _line(figures: Figures) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in figures.items())


def trained(row: Row, result: Result, places: Places) -> Any:
    """The task of a kept result with its best weights: for pictures and exports."""
    torch.set_num_threads(1)
    task = task_of(msgspec.structs.replace(row.variants[result.variant], seed=result.seed), places)
    task.module.load_state_dict(torch.load(result.folder / "best.pt", weights_only=True)["average"])
    task.module.eval()
    return task


def spread(values: list[float]) -> tuple[float, float]:
    """Mean, and half the distance between the smallest and the largest."""
    return float(np.mean(values)), (max(values) - min(values)) / 2


def held_claims(row: Row, results: list[Result]) -> list[tuple[str, int, int]]:
    """(what is claimed, seeds in which it holds, seeds)."""
    by = {(one.variant, one.seed): one.figures for one in results}
    seeds = sorted({one.seed for one in results})
    out = []
    for claim in row.base.claims:
        more, less = ([by[name, seed][claim.figure] for seed in seeds] for name in (claim.more, claim.less))
        out.append((claim.says, sum(a > b for a, b in zip(more, less, strict=True)), len(seeds)))
    return out


def read_rows(paths: Iterable[Path]) -> list[Row]:
    return [read_row(path) for path in paths]
