"""Restore a scene with dead lines: the network is told which pixels are lost, and touches no other.

This is the denoising autoencoder made useful: its export runs on the ground (`decoder-node enhance`), takes the lost
pixels from the scene's nodata masks, and says in a layer of its own which pixels it made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.lab.architectures import Corrector
from training.lab.corruptions import corrupt
from training.lab.figures import in_dn, interpolated, psnr, test_patches
from training.lab.places import BANDS
from training.lab.trial import EPSILON, Reconstruct

DETAIL = 20.0
"""Differences from neighbours are some percent of a band's scale: times this, numbers around 1."""


class Restorer(nn.Module):
    """Pixels and what is lost of them (n, 24, h, w) -> (n, 12, h, w). The guess for a lost pixel is the mean of the
    pixels of its band beside it; the network corrects it by what other bands show there: their differences from their
    own neighbours."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.corrector = Corrector(3 * len(BANDS), len(BANDS), width, blocks)

    def forward(self, known: Tensor) -> Tensor:
        pixels, lost = known.chunk(2, dim=1)
        kept = 1 - lost
        seen = F.avg_pool2d(kept, (1, 5), 1, (0, 2)) - kept / 5  # beside a pixel, without it
        around = (F.avg_pool2d(pixels * kept, (1, 5), 1, (0, 2)) - pixels * kept / 5) / seen.clamp(min=0.1)
        detail = DETAIL * (pixels - around) * kept
        correction = self.corrector(torch.cat([detail, around, lost], dim=1)) / DETAIL
        return pixels * kept + (around + correction) * lost


class Task(Reconstruct):
    """Lines are lost at random, of every band by itself."""

    def prepare(self) -> None:
        self.patches = self.cut("train", self.trial.patches.most)
        self.held = self.cut("validation", 128)
        self.module = Restorer(self.trial.options.get("width", 32), self.trial.options.get("blocks", 2))

    def damaged(self, clean: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """(what the network sees, which pixels are lost)."""
        seen, lost = corrupt(clean, self.trial.corruptions, random)
        return torch.cat([seen, lost.to(seen)], dim=1), lost

    def draw(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.patches), (self.trial.patches.batch,), generator=self.random)
        clean = self.patches[rows]
        return self.damaged(clean, self.random)[0], clean

    def loss(self, batch: Any, done: float) -> Tensor:
        known, clean = batch
        return self.error(self.module(known), clean)

    def validate(self, module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            known, _ = self.damaged(self.held, torch.Generator().manual_seed(1))
            error = F.mse_loss(module(known), self.held)
        return {"score": float(torch.log10(error + EPSILON)), "mse": float(error)}

    def show(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            known, _ = self.damaged(self.held[:6], torch.Generator().manual_seed(1))
            parts = (self.held[:6], known[:, : len(BANDS)], module(known))
        rows = [torch.cat(list(part[:, [3, 2, 1]]), dim=2) for part in parts]
        return {"held_out": torch.cat(rows, dim=1)}, {}

    def restored(self, module: nn.Module) -> dict[str, float]:
        """PSNR of lost pixels of unseen places, beside interpolation."""
        test = test_patches(self)
        known, lost = self.damaged(test, torch.Generator().manual_seed(3))
        with torch.no_grad():
            out = torch.cat([module(part) for part in known.split(128)])
        share, seen = float(lost.float().mean()), known[:, : len(BANDS)]
        return {
            "psnr_db": psnr(in_dn(self, out - test)),
            "corrupted_psnr_db": psnr(in_dn(self, seen - test)),
            "lost_psnr_db": psnr(in_dn(self, (out - test) * lost) / share),
            "interpolated_psnr_db": psnr(in_dn(self, (interpolated(seen, lost) - test) * lost) / share),
        }

    def seen_and_made(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """For pictures: patches as they came, and restored."""
        known, _ = self.damaged(clean, torch.Generator().manual_seed(3))
        with torch.no_grad():
            return known[:, : len(BANDS)], self.module(known)
