"""The training loop, top to bottom: read pictures, warm start, step, validate, save; stop and resume at any time.

    downlink train training/configs/universal.toml --data DIR --out runs/universal

A run folder holds config.json, log.jsonl (one line per report, seed and commit first), checkpoint.pt (weights,
optimiser, average, generator states: all to resume) and best.pt (the averaged weights with the best validation score).
"""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from downlink.dct import BLOCK
from training.card import commit
from training.config import Run
from training.corpus import PARTITIONS, Batch, Picture, Sampler, coefficients, planes_of, read_corpus
from training.model import PlaneCodec
from training.objective import measure
from training.warmstart import relative_deviations

VALIDATION_QUALITIES = (14.0, 26.0, 38.0, 50.0, 62.0)
EMPTY = 1e-3
"""Added to the cost of a validation crop, so that crops of which nothing is sent have a logarithm."""


def validation_batches(pictures: list[Picture], run: Run, limit: int = 24) -> list[tuple[float, float, Batch]]:
    """Centre crops of held-out pictures, all bands, at fixed qualities: (quality, step, batch of one crop)."""
    chosen = pictures[:: max(1, len(pictures) // limit)][:limit]
    out = []
    side = run.corpus.crop + 2 * BLOCK  # blocks of the border are cut off again: they are not lapped
    for picture in chosen:
        bands, height, width = picture.pixels.shape
        bands = min(bands, 16)
        top, left = (max(0, (size - side) // 4 * 2) for size in (height, width))
        crop = picture.pixels[:bands, top : top + side, left : left + side].astype(np.float32)
        crop = np.pad(crop, [(0, 0), (0, side - crop.shape[1]), (0, side - crop.shape[2])], mode="symmetric")
        factors = picture.factors[:bands]
        values = coefficients(crop, picture.mean[:bands], factors)[..., 1:-1, 1:-1]
        for quality in VALIDATION_QUALITIES:
            step = picture.peak * 2.0 ** (-quality / 8)
            parts = planes_of(values, picture.covariances[:, :bands, :bands], factors, PARTITIONS[-1], step)
            out.append((quality, step, Batch(*(torch.from_numpy(part[None]) for part in parts))))
    return out


def parameter_groups(codec: PlaneCodec, run: Run) -> list[dict[str, Any]]:
    """Parameters with the factor on their learning rate: the large scale indices fast."""
    fast = [codec.hyper_base, codec.hyper_slope]
    others = [p for p in codec.parameters() if all(p is not q for q in fast)]
    return [{"params": others, "factor": 1.0}, {"params": fast, "factor": run.schedule.hyper_factor}]


def validate(codec: PlaneCodec, batches: list[tuple[float, float, Batch]], trade: float, amp: bool) -> dict[str, float]:
    """Mean bits per sample and error per quality, and one score: the mean logarithm of rate + trade * error (lower is
    better)."""
    device = next(codec.parameters()).device
    codec.eval()
    rates: dict[float, list[float]] = {}
    errors: dict[float, list[float]] = {}
    score = []
    with torch.no_grad():
        for quality, _step, batch in batches:
            outcome = measure(codec, batch.to(device), amp, trade)
            rate, error = float(outcome.rate[0]), float(outcome.error[0])
            rates.setdefault(quality, []).append(rate)
            errors.setdefault(quality, []).append(error)
            score.append(math.log2(rate + trade * error + EMPTY))
    codec.train()
    row = {"score": sum(score) / len(score)}
    for quality in rates:
        row[f"bits_q{quality:.0f}"] = float(np.mean(rates[quality]))
        row[f"error_q{quality:.0f}"] = float(np.mean(errors[quality]))
    return row


class Prefetch:
    """Draws batches in a thread while the last one trains."""

    def __init__(self, sampler: Sampler, depth: int = 3) -> None:
        self.batches: queue.Queue[Batch] = queue.Queue(depth)
        self.sampler = sampler
        threading.Thread(target=self._draw, daemon=True).start()

    def _draw(self) -> None:
        while True:
            self.batches.put(self.sampler.draw())

    def next(self) -> Batch:
        return self.batches.get()


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


def finished(run: Run, state: State) -> bool:
    """Whether the steps, or the minutes if any are set, are used up."""
    minutes = run.schedule.minutes
    return state.step >= run.schedule.steps or bool(minutes and state.seconds >= minutes * 60)


def progress(run: Run, state: State) -> float:
    """How much of the run is done, by steps or by minutes, whichever is nearer to its end."""
    done = state.step / run.schedule.steps
    if run.schedule.minutes:
        done = max(done, state.seconds / 60 / run.schedule.minutes)
    return min(1.0, done)


def learning_rate(run: Run, state: State) -> float:
    """Warm-up, then a cosine to 1 %."""
    schedule = run.schedule
    if state.step < schedule.warmup_steps:
        return schedule.learning_rate * (state.step + 1) / schedule.warmup_steps
    done = progress(run, state)
    return schedule.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, run: Run, quiet: bool) -> None:
        self.progress: Any = None
        if not quiet and sys.stdout.isatty():
            from rich.progress import Progress, TimeElapsedColumn

            self.progress = Progress(*Progress.get_default_columns(), TimeElapsedColumn())
            self.progress.start()
            self.task = self.progress.add_task(run.name, total=1.0)

    def show(self, run: Run, state: State, loss: float) -> None:
        if self.progress is not None:
            minutes = run.schedule.minutes
            done = max(state.step / run.schedule.steps, state.seconds / 60 / minutes if minutes else 0.0)
            text = f"{run.name} step {state.step} loss {loss:.3f}"
            self.progress.update(self.task, completed=min(1.0, done), description=text)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


class Writer:
    """log.jsonl always, TensorBoard if it is installed."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / "log.jsonl").open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board: Any = SummaryWriter(str(folder / "tensorboard"))
        except ImportError:
            self.board = None

    def write(self, step: int, row: dict[str, Any]) -> None:
        self.file.write(json.dumps({"step": step, **row}) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in row.items():
                if isinstance(value, float):
                    self.board.add_scalar(key, value, step)


def train(
    run: Run, data: Path, out: Path, resume: bool = False, start: Path | None = None, quiet: bool = False
) -> Path:
    """Train until steps, minutes or patience end; returns the path of best.pt.

    `start` begins from another run's weights (fine-tuning); `resume` continues this run's own checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    torch.set_num_threads(run.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, held = read_corpus(data, run.corpus)
    sampler = Sampler(training, run, run.seed)
    codec = PlaneCodec(run.model)
    if start is None:
        codec.prior.seed(*relative_deviations(sampler))
    else:
        codec.load_state_dict(torch.load(start, weights_only=True, map_location="cpu")["average"])
    codec = codec.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(parameter_groups(codec, run))
    amp = device.type == "cuda" or has_bfloat16()
    average, state = deepcopy(codec), State()
    checkpoint = out / "checkpoint.pt"
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        codec.load_state_dict(saved["weights"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        state = State(**saved["state"])
        sampler.random = np.random.default_rng(run.seed + state.step)
    batches = validation_batches(held, run)
    (out / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)))
    writer, prefetch, bar = Writer(out), Prefetch(sampler), Bar(run, quiet)
    writer.write(
        state.step,
        {"seed": run.seed, "commit": commit(), "pictures": len(training), "held_out": len(held), "device": str(device)},
    )

    def save(path: Path, full: bool) -> None:
        content: dict[str, Any] = {
            "average": average.state_dict(),
            "config": msgspec.to_builtins(run),
            "state": vars(state),
        }
        if full:
            content |= {"weights": codec.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(content, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    codec.train()
    began, began_seconds, seen, loss_sum = time.monotonic(), state.seconds, 0, 0.0
    while not finished(run, state):
        batch = prefetch.next()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(run, state) * group["factor"]
        outcome = measure(codec, batch.to(device), amp, run.trade, settled=progress(run, state) > run.schedule.settle)
        loss = outcome.loss(run.trade)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(codec.parameters(), run.schedule.clip_norm)
        if torch.isfinite(norm):
            optimiser.step()
        state.step += 1
        state.seconds = began_seconds + time.monotonic() - began
        decay = min(run.schedule.average, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), codec.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
        seen, loss_sum = seen + 1, loss_sum + float(loss.detach())
        bar.show(run, state, loss_sum / seen)
        if state.step % run.schedule.validate_every == 0 or state.step == 1 or finished(run, state):
            row: dict[str, Any] = {"loss": loss_sum / seen, "seconds": state.seconds, "rate": learning_rate(run, state)}
            row |= validate(average, batches, run.trade, amp)
            seen, loss_sum = 0, 0.0
            if row["score"] < state.best:
                state.best, state.stale = row["score"], 0
                save(out / "best.pt", full=False)
            else:
                state.stale += 1
            writer.write(state.step, row)
            save(checkpoint, full=True)
            if not quiet:
                figures = "  ".join(
                    f"q{q:.0f} {row[f'bits_q{q:.0f}']:.4f}/{row[f'error_q{q:.0f}']:.4f}" for q in VALIDATION_QUALITIES
                )
                print(
                    f"step {state.step:6d}  {state.seconds:7.0f} s  loss {row['loss']:.4f}  "
                    f"score {row['score']:.4f}  {figures}",
                    flush=True,
                )
            if run.schedule.patience and state.stale >= run.schedule.patience:
                break
    bar.close()
    return out / "best.pt"
