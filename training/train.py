"""Training the universal codec: what the loop (training/loop.py) needs to know of it.

    downlink train training/configs/universal.toml --data DIR --out runs/universal

Validation is on centre crops of held-out pictures at five qualities; the score is the mean binary logarithm of rate +
trade * error.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from downlink import dct
from downlink.dct import BLOCK
from training import parallel
from training.card import commit
from training.config import Run
from training.corpus import PARTITIONS, Batch, Picture, Sampler, coefficients, planes_of, read_corpus
from training.loop import fit, has_bfloat16
from training.model import PlaneCodec
from training.objective import measure
from training.warmstart import relative_deviations

RANK_SEED = 7919
"""Processes that train together draw different batches: their seeds are so far apart."""
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


class UniversalTask:
    """The plane codec behind the loop."""

    def __init__(
        self, codec: PlaneCodec, sampler: Sampler, batches: list[tuple[float, float, Batch]], run: Run
    ) -> None:
        self.module, self.sampler, self.batches, self.run = codec, sampler, batches, run
        self.device = next(codec.parameters()).device
        self.amp = self.device.type == "cuda" or has_bfloat16()

    def groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.module, self.run)

    def draw(self) -> Batch:
        return self.sampler.draw()

    def loss(self, batch: Batch, done: float) -> Tensor:
        run = self.run
        settled = done > run.schedule.settle
        return measure(self.module, batch.to(self.device), self.amp, run.trade, settled=settled).loss(run.trade)

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, PlaneCodec)
        return validate(module, self.batches, self.run.trade, self.amp)

    def told(self, row: dict[str, Any]) -> str:
        figures = "  ".join(
            f"q{q:.0f} {row[f'bits_q{q:.0f}']:.4f}/{row[f'error_q{q:.0f}']:.4f}" for q in VALIDATION_QUALITIES
        )
        return f"score {row['score']:.4f}  {figures}"

    def show(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The first planes of a validation crop, before and after, and its hyper-latents."""
        assert isinstance(module, PlaneCodec)
        _, _, batch = self.batches[len(VALIDATION_QUALITIES) // 2]
        planes = batch.coefficients[0, :3].to(self.device)
        level = batch.levels[0, :3, :, None, None].to(self.device)
        if len(planes) < 3:
            return {}, {}
        with torch.no_grad():
            rebuilt = module.synthesis(planes.round(), torch.zeros_like(planes), level)
            hyper = module.hyper(planes, level)

        def picture(values: Tensor) -> Tensor:
            pixels = torch.from_numpy(dct.inverse(values.cpu().numpy(), False))
            low, high = pixels.amin(dim=(1, 2), keepdim=True), pixels.amax(dim=(1, 2), keepdim=True)
            return (pixels - low) / (high - low).clamp(min=1e-6)

        both = torch.cat([picture(planes), picture(rebuilt)], dim=2)
        return {"planes": both}, {"hyper_latents": hyper.flatten(), "latents": planes.flatten()}

    def resumed(self, step: int) -> None:
        self.sampler.random = np.random.default_rng(self.run.seed + step + RANK_SEED * parallel.rank())


def prepare(run: Run, data: Path, start: Path | None = None) -> tuple[UniversalTask, dict[str, Any]]:
    """The codec at its beginning (warm, or from the weights in `start`), and what the log shall say of the run."""
    torch.manual_seed(run.seed)
    torch.set_num_threads(run.threads)
    device = parallel.device()
    training, held = read_corpus(data, run.corpus)
    sampler = Sampler(training, run, run.seed + RANK_SEED * parallel.rank())
    codec = PlaneCodec(run.model)
    if start is None:
        codec.prior.seed(*relative_deviations(sampler))
    else:
        codec.load_state_dict(torch.load(start, weights_only=True, map_location="cpu")["average"])
    codec = codec.to(device, memory_format=torch.channels_last)
    facts: dict[str, Any] = {
        "seed": run.seed, "commit": commit(), "pictures": len(training), "held_out": len(held),
        "processes": parallel.world(),
    }  # fmt: skip
    return UniversalTask(codec, sampler, validation_batches(held, run), run), {**facts, "device": str(device)}


def train(
    run: Run, data: Path, out: Path, resume: bool = False, start: Path | None = None, quiet: bool = False
) -> Path:
    """Train until steps, minutes or patience end; returns the path of best.pt.

    `start` begins from another run's weights (fine-tuning); `resume` continues this run's own checkpoint.
    """
    parallel.join()
    task, facts = prepare(run, data, start)
    best = fit(task, run.schedule, run.name, run, out, facts, resume, quiet)
    parallel.leave()
    return best
