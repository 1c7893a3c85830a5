"""What the loop trains in the laboratory: a network, corrupted patches, a reconstruction error and penalties.

`Reconstruct` is the aim of most rows; other aims are its subclasses in training/lab/tasks. A task owns its data:
training patches, validation patches (other places), and a generator, so that the same seed draws the same batches.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import parallel
from training.config import ConfigError
from training.lab import penalties
from training.lab.architectures import AutoEncoder, Pass, build, set_principal
from training.lab.config import Trial
from training.lab.corruptions import corrupt
from training.lab.places import BANDS, Places

VALIDATION_PATCHES = 512
EPSILON = 1e-12
PERCENT = 1e4
"""Squared errors are minimised in squared percents of a band's scale: numbers around 1, as Adam likes them."""


class Reconstruct:
    """Give the clean patch back."""

    module: nn.Module

    def __init__(self, trial: Trial, places: Places) -> None:
        torch.manual_seed(trial.seed)
        self.trial, self.places = trial, places
        self.random = torch.Generator().manual_seed(trial.seed + 7919 * parallel.rank())
        self.prepare()

    def prepare(self) -> None:
        """Read data, build the network."""
        self.patches = self.cut("train", self.trial.patches.most)
        self.held = self.cut("validation", VALIDATION_PATCHES)
        side = self.trial.patches.side
        self.module = build(self.trial.network, (len(BANDS), side, side))
        self.network.look_at(self.patches)
        if self.trial.closed_form:
            set_principal(self.network, self.patches)

    @property
    def network(self) -> AutoEncoder:
        assert isinstance(self.module, AutoEncoder)
        return self.module

    def cut(self, split: str, most: int) -> Tensor:
        """Patches of a split. The same ones for every seed of a trial: seeds are to differ in training alone."""
        size = self.trial.patches
        return self.places.patches(split, size.side, size.per_place, most, seed=1)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "factor": 1.0}]

    def draw(self) -> tuple[Tensor, Tensor]:
        """(what the network sees, what it owes)."""
        rows = torch.randint(len(self.patches), (self.trial.patches.batch,), generator=self.random)
        clean = self.patches[rows]
        return corrupt(clean, self.trial.corruptions, self.random)[0], clean

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Reconstruction error per value: squared percents, or binary cross-entropy, which takes values as
        probabilities (of light)."""
        if self.trial.loss == "bce":
            return F.binary_cross_entropy(output.clamp(1e-6, 1 - 1e-6), target.clamp(0, 1))
        return PERCENT * F.mse_loss(output, target)

    def loss(self, batch: Any, done: float) -> Tensor:
        seen, clean = batch
        if done < self.trial.greedy:
            return self.stage_loss(seen, int(done / self.trial.greedy * len(self.network.stages)))
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=self.trial.precision == "bfloat16"):
            one: Pass = self.module(seen, clean)
        loss = self.error(one.output.float(), one.target)
        for name, weight in self.trial.penalties.items():
            loss = loss + weight * penalties.find(name)(one)
        return loss

    def stage_loss(self, seen: Tensor, stage: int) -> Tensor:
        """Greedy training (Bengio et al. 2007): one stage learns to give back what the stages before it make."""
        network = self.network
        with torch.no_grad():
            below = network.entered(seen)
            for number in range(stage):
                below = network.encode_stage(number, below)
        return F.mse_loss(network.decode_stage(stage, network.encode_stage(stage, below)), below)

    def held_batch(self) -> tuple[Tensor, Tensor]:
        """Validation patches, corrupted the same way every time."""
        return corrupt(self.held, self.trial.corruptions, torch.Generator().manual_seed(1))[0], self.held

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Score: the logarithm of the squared error on places that were not trained on."""
        module.eval()
        with torch.no_grad():
            seen, clean = self.held_batch()
            error = F.mse_loss(module(seen).output, clean)
        module.train()
        return {"score": float(torch.log10(error + EPSILON)), "mse": float(error)}

    def told(self, row: dict[str, Any]) -> str:
        return "  ".join(f"{key} {value:.5g}" for key, value in row.items() if key not in ("loss", "seconds", "rate"))

    def show(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Some held-out patches above what became of them (red, green, blue), and their codes."""
        with torch.no_grad():
            seen, clean = (part[:8] for part in self.held_batch())
            module.eval()
            one: Pass = module(seen)
            module.train()
        rows = [torch.cat(list(part[:, [3, 2, 1]]), dim=2) for part in (clean, seen, one.output)]
        return {"held_out": torch.cat(rows, dim=1)}, {"code": one.code.flatten()}

    def seen_and_made(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """For pictures: patches as they came (`options.try` says otherwise than in training), and what is made of
        them."""
        amounts = self.trial.options.get("try", self.trial.corruptions)
        seen, _ = corrupt(clean, amounts, torch.Generator().manual_seed(3))
        with torch.no_grad():
            return seen, self.module(seen).output

    def resumed(self, step: int) -> None:
        self.random.manual_seed(self.trial.seed + step + 7919 * parallel.rank())


def task_of(trial: Trial, places: Places) -> Reconstruct:
    """The task that a trial names: `Reconstruct`, or the class `Task` of training/lab/tasks/NAME.py."""
    if trial.task == "reconstruct":
        return Reconstruct(trial, places)
    try:
        module = importlib.import_module(f"training.lab.tasks.{trial.task}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"task '{trial.task}': there is no training/lab/tasks/{trial.task}.py") from error
    made: Reconstruct = module.Task(trial, places)
    return made
