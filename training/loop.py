"""The one training loop, top to bottom: draw, step, average, validate, save; stop and resume at any time.

What is trained is a `Task`: the universal codec (training/train.py) or a row of the laboratory (training/lab/trial.py).
A run folder holds config.json, log.jsonl (one line per report, seed and commit first), checkpoint.pt (weights,
optimiser, average: all to resume), best.pt (the averaged weights with the best validation score) and, where TensorBoard
is installed, tensorboard/ (scalars; pictures and histograms if the task has any).
"""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from training import parallel
from training.config import Schedule


class Task(Protocol):
    """What the loop needs to know of a model, its pictures and its aim."""

    module: nn.Module
    """The weights."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser, each group with the `factor` on its learning rate."""

    def draw(self) -> Any:
        """The next batch. Called in a thread of its own, so that batches are drawn while others train."""

    def loss(self, batch: Any, done: float) -> Tensor:
        """What is minimised; `done` is the share of the run that is over."""

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Figures on held-out places, `score` among them: lower is better."""

    def told(self, row: dict[str, Any]) -> str:
        """The figures that a line on the terminal shows."""

    def show(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """For TensorBoard: pictures (3, height, width) in 0..1, and values whose histogram is wanted."""

    def resumed(self, step: int) -> None:
        """The run goes on from this step: draw other batches than those of its beginning."""


class Prefetch:
    """Draws batches in a thread while the last one trains; with `depth` 0, only when one is asked for."""

    def __init__(self, draw: Callable[[], Any], depth: int = 3) -> None:
        self.batches: queue.Queue[Any] = queue.Queue(depth)
        self.draw, self.over = draw, False
        if depth:
            threading.Thread(target=self._fill, daemon=True).start()
        else:
            self.next = draw  # type: ignore[method-assign]

    def _fill(self) -> None:
        while not self.over:
            try:
                self.batches.put(self.draw())
            except BaseException as error:  # what went wrong in the thread is raised where batches are taken
                self.batches.put(error)
                return

    def next(self) -> Any:
        batch = self.batches.get()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def close(self) -> None:
        """Let the thread end: it waits for room at most once more."""
        self.over = True
        while not self.batches.empty():
            self.batches.get_nowait()


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without it autocast is twice as slow as float32 (measured)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass
class State:
    """What a checkpoint holds besides the weights."""

    step: int = 0
    seconds: float = 0.0
    best: float = float("inf")
    stale: int = 0


def finished(schedule: Schedule, state: State) -> bool:
    """Whether the steps, or the minutes if any are set, are used up."""
    return state.step >= schedule.steps or bool(schedule.minutes and state.seconds >= schedule.minutes * 60)


def progress(schedule: Schedule, state: State) -> float:
    """How much of the run is done, by steps or by minutes, whichever is nearer to its end."""
    done = state.step / schedule.steps
    if schedule.minutes:
        done = max(done, state.seconds / 60 / schedule.minutes)
    return min(1.0, done)


def learning_rate(schedule: Schedule, state: State) -> float:
    """Warm-up, then a cosine to 1 %."""
    if state.step < schedule.warmup_steps:
        return schedule.learning_rate * (state.step + 1) / schedule.warmup_steps
    done = progress(schedule, state)
    return schedule.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, name: str, quiet: bool) -> None:
        self.progress: Any = None
        self.name = name
        if not quiet and sys.stdout.isatty():
            from rich.progress import Progress, TimeElapsedColumn

            self.progress = Progress(*Progress.get_default_columns(), TimeElapsedColumn())
            self.progress.start()
            self.task = self.progress.add_task(name, total=1.0)

    def show(self, done: float, step: int, loss: float) -> None:
        if self.progress is not None:
            self.progress.update(self.task, completed=done, description=f"{self.name} step {step} loss {loss:.3f}")

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


class Writer:
    """log.jsonl always, TensorBoard if it is installed and wanted."""

    def __init__(self, folder: Path, board: bool) -> None:
        self.file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self.board: Any = None
        if board:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder / "tensorboard"))
            except ImportError:
                pass

    def write(self, step: int, row: dict[str, Any]) -> None:
        self.file.write(json.dumps({"step": step, **row}) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in row.items():
                if isinstance(value, float):
                    self.board.add_scalar(key, value, step)

    def show(self, step: int, pictures: dict[str, Tensor], histograms: dict[str, Tensor]) -> None:
        for key, picture in pictures.items():
            self.board.add_image(key, picture.clamp(0, 1), step)
        for key, values in histograms.items():
            self.board.add_histogram(key, values, step)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    torch.save(content, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def fit(
    task: Task,
    schedule: Schedule,
    name: str,
    config: msgspec.Struct,
    out: Path,
    facts: dict[str, Any],
    resume: bool = False,
    quiet: bool = False,
    board: bool = True,
    fused: bool | None = None,
    ahead: int = 3,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train until steps, minutes or patience end; returns the path of best.pt.

    `fused`: Adam's faster form, which rounds otherwise. `ahead`: how many batches are drawn beforehand.
    `clock`: what minutes are measured by.
    `config` and `facts` (seed, commit, what is trained on) are kept with the run. `resume` continues the checkpoint in
    `out`, if there is one.
    """
    out.mkdir(parents=True, exist_ok=True)
    module, first = task.module, parallel.rank() == 0
    optimiser = torch.optim.Adam(task.groups(), fused=fused)
    average, state = deepcopy(module), State()
    checkpoint = out / "checkpoint.pt"
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=parallel.device())
        module.load_state_dict(saved["weights"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        state = State(**saved["state"])
        task.resumed(state.step)
    loss_of, writer = parallel.loss_of(task), None
    if first:
        (out / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        writer = Writer(out, board)
        writer.write(state.step, facts)
    prefetch, bar = Prefetch(task.draw, ahead), Bar(name, quiet or not first)

    def content() -> dict[str, Any]:
        return {"average": average.state_dict(), "config": msgspec.to_builtins(config), "state": vars(state)}

    module.train()
    began, began_seconds, seen, loss_sum = clock(), state.seconds, 0, 0.0
    while not finished(schedule, state):
        batch = prefetch.next()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, state) * group["factor"]
        loss = loss_of(batch, progress(schedule, state))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), schedule.clip_norm)
        if torch.isfinite(norm):
            optimiser.step()
        state.step += 1
        (state.seconds,) = parallel.agreed(began_seconds + clock() - began)
        decay = min(schedule.average, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        seen, loss_sum = seen + 1, loss_sum + float(loss.detach())
        bar.show(progress(schedule, state), state.step, loss_sum / seen)
        if state.step % schedule.validate_every == 0 or state.step == 1 or finished(schedule, state):
            row: dict[str, Any] = {
                "loss": loss_sum / seen, "seconds": state.seconds, "rate": learning_rate(schedule, state)
            }  # fmt: skip
            seen, loss_sum = 0, 0.0
            if writer is not None:
                row |= task.validate(average)
                if row["score"] < state.best:
                    state.best, state.stale = row["score"], 0
                    save(out / "best.pt", content())
                else:
                    state.stale += 1
                writer.write(state.step, row)
                if writer.board is not None:
                    writer.show(state.step, *task.show(average))
                save(checkpoint, content() | {"weights": module.state_dict(), "optimiser": optimiser.state_dict()})
                if not quiet:
                    text = f"step {state.step:6d}  {state.seconds:7.0f} s  loss {row['loss']:.4f}  {task.told(row)}"
                    print(text, flush=True)
            state.best, stale = parallel.agreed(state.best, float(state.stale))
            state.stale = int(stale)
            if schedule.patience and state.stale >= schedule.patience:
                break
    parallel.check_same(module)
    prefetch.close()
    bar.close()
    if writer is not None:
        writer.close()
    return out / "best.pt"


def find_rate(
    task: Task, low: float = 1e-6, high: float = 1.0, steps: int = 80
) -> tuple[float, list[tuple[float, float]]]:
    """A learning rate to begin with, and the curve (rate, smoothed loss) that it was read from.

    The rate rises from `low` to `high` step by step (Smith, 2017); the answer is a third of the rate at which the loss
    was smallest before it turned. Weights are put back afterwards.
    """
    module = task.module
    kept = deepcopy(module.state_dict())
    optimiser = torch.optim.Adam(task.groups())
    module.train()
    curve: list[tuple[float, float]] = []
    smooth = 0.0
    for number in range(steps):
        rate = low * (high / low) ** (number / (steps - 1))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        loss = task.loss(task.draw(), 0.0)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        smooth = 0.8 * smooth + 0.2 * float(loss.detach())
        curve.append((rate, smooth / (1 - 0.8 ** (number + 1))))
        if not math.isfinite(smooth) or curve[-1][1] > 4 * min(value for _, value in curve):
            break
    module.load_state_dict(kept)
    best = min(range(len(curve)), key=lambda i: curve[i][1] if math.isfinite(curve[i][1]) else math.inf)
    return curve[best][0] / 3, curve
