"""Decoders that make more of a scene on the ground: a known guess, corrected by a residual network at full resolution.

`superresolve` and `perceptual` share the frame: pairs of (what the network is given, the guess, what it owes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.lab.architectures import Corrector
from training.lab.trial import EPSILON, PERCENT, Reconstruct

DETAIL = 20.0
"""Corrections are some percent of a band's scale: a network that works around 1 gives this many times them."""


def blurred(x: Tensor, size: int = 5) -> Tensor:
    """Mean over size x size pixels, edges repeated."""
    half = size // 2
    return F.avg_pool2d(F.pad(x, (half, half, half, half), mode="replicate"), size, 1)


class Enhancer(nn.Module):
    """known (n, inputs, h, w), whose first `outputs` channels are the guess -> the guess, corrected (n, outputs, h, w).
    The network sees every channel and its difference from its neighbourhood."""

    def __init__(self, inputs: int, outputs: int, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.outputs = outputs
        self.corrector = Corrector(2 * inputs, outputs, width, blocks)

    def forward(self, known: Tensor) -> Tensor:
        smooth = blurred(known)
        correction = self.corrector(torch.cat([smooth, DETAIL * (known - smooth)], dim=1)) / DETAIL
        return known[:, : self.outputs] + correction


class Enhance(Reconstruct):
    """Pairs are made once, in `pairs`; training draws from them."""

    inputs = outputs = 12

    def pairs(self, split: str, most: int) -> tuple[Tensor, Tensor]:
        """(known (n, inputs, side, side), what is owed (n, outputs, side, side))."""
        raise NotImplementedError

    def prepare(self) -> None:
        self.known, self.owed = self.pairs("train", self.trial.patches.most)
        self.held_known, self.held_owed = self.pairs("validation", 128)
        options = self.trial.options
        self.module = Enhancer(self.inputs, self.outputs, options.get("width", 24), options.get("blocks", 2))

    def draw(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.known), (self.trial.patches.batch,), generator=self.random)
        return self.known[rows], self.owed[rows]

    def loss(self, batch: Any, done: float) -> Tensor:
        known, owed = batch
        return PERCENT * F.mse_loss(self.module(known), owed)

    def enhanced(self, module: nn.Module, known: Tensor) -> Tensor:
        module.eval()
        with torch.no_grad():
            return torch.cat([module(part) for part in known.split(64)])

    def validate(self, module: nn.Module) -> dict[str, float]:
        error = F.mse_loss(self.enhanced(module, self.held_known), self.held_owed)
        module.train()
        return {"score": float(torch.log10(error + EPSILON)), "mse": float(error)}

    def show(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parts = self.held_known[:6, :3], self.enhanced(module, self.held_known[:6])[:, :3], self.held_owed[:6, :3]
        module.train()
        return {"held_out": torch.cat([torch.cat(list(part), dim=2) for part in parts], dim=1)}, {}


def spectral_angle(a: Tensor, b: Tensor) -> float:
    """Mean angle between the spectra of pixels (n, bands, h, w), in degrees."""
    cosine = F.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    return float(torch.rad2deg(torch.arccos(cosine)).mean())
