"""Rows -> results: which trials there are, how long each may train, and what was measured of each seed.

A result is kept under the hash of all that it depends on (settings, pixels, minutes, seed), so a command that was
interrupted goes on where it was, and one that is repeated is quick. A trial that was cut short resumes its checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from training.card import commit
from training.config import ConfigError
from training.lab.config import FOLDER, Row, Trial, digest, read_row
from training.lab.figures import FIGURES
from training.lab.places import Places
from training.lab.trial import Reconstruct, task_of
from training.loop import fit, save

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


def minutes_of(rows: list[Row], seeds: int, budget_minutes: float) -> float:
    """Minutes of training for a trial of share 1, so that all seeds of all trials fit the budget."""
    shares = sum(trial.share for row in rows for trial in row.variants.values() if not trial.closed_form)
    return budget_minutes * (1 - MEASURING) / max(shares * seeds, 1e-9)


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
        facts = {"seed": trial.seed, "commit": commit(), "places": len(places.train)}
        fit(task, trial.schedule, trial.name, trial, folder, facts, True, quiet, board, fused=True)
        (folder / "done").touch()
    saved = torch.load(best, weights_only=True)
    task.module.load_state_dict(saved["average"])
    task.module.eval()
    return measured(trial, task, task.module) | {"steps": float(saved["state"]["step"])}, task


def run_row(
    row: Row, places: Places, out: Path, seeds: Iterable[int], minutes: float, told: Callable[[str], None]
) -> list[Result]:
    """All variants and seeds of a row."""
    results = []
    for variant, base in row.variants.items():
        for seed in seeds:
            schedule = msgspec.structs.replace(base.schedule, minutes=minutes * base.share)
            trial = msgspec.structs.replace(base, seed=seed, schedule=schedule)
            folder = out / row.base.name / f"{variant.replace(' ', '-')}-{seed}-{digest(trial, places.fingerprint)}"
            kept = folder / "result.json"
            if kept.exists():
                figures = json.loads(kept.read_text())
            else:
                figures, _ = run_trial(trial, places, folder)
                kept.write_text(json.dumps(figures))
                (folder / "checkpoint.pt").unlink(missing_ok=True)
            told(f"{row.base.name:16} {variant:24} seed {seed}  " + _line(figures))
            results.append(Result(row.base.name, variant, seed, figures, folder))
    return results


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


def clear(out: Path) -> None:
    """Forget all results."""
    shutil.rmtree(out, ignore_errors=True)


def read_rows(paths: Iterable[Path]) -> list[Row]:
    return [read_row(path) for path in paths]
