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


REACH = 8
"""How far neighbours may be: what lies further from all that its band has seen is not restored (decoder_node/enhance).
"""
FAR = 1e-4
"""What all pixels within reach weigh together beside the nearest."""


class Restorer(nn.Module):
    """Pixels and what is lost of them (n, 24, h, w) -> (n, 12, h, w). The guess for a lost pixel is the mean of the
    pixels of its band around it, the nearest by far the most (1 / distance^4 within two pixels, else all within
    `reach`), so it does not matter which way a dead line runs, nor whether it is several pixels wide; the network
    corrects it by what other bands show there: their differences from their own neighbours."""

    reach = REACH

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.corrector = Corrector(3 * len(BANDS), len(BANDS), width, blocks)
        away = torch.arange(-2.0, 3.0)
        squared = away[:, None] ** 2 + away**2
        nearest = torch.where(squared > 0, 1 / squared.clamp(min=1) ** 2, 0.0)
        self.register_buffer("nearest", nearest.expand(len(BANDS), 1, 5, 5).contiguous())

    def _sum(self, values: Tensor) -> Tensor:
        """What is around each pixel, weighed."""
        far = F.avg_pool2d(values, 2 * REACH + 1, 1, REACH)
        return F.conv2d(values, self.nearest, padding=2, groups=len(BANDS)) + FAR * far  # type: ignore[arg-type]

    def forward(self, known: Tensor) -> Tensor:
        pixels, lost = known.chunk(2, dim=1)
        kept = 1 - lost
        around = self._sum(pixels * kept) / self._sum(kept).clamp(min=FAR / (2 * REACH + 1) ** 2)
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
        across = bool(torch.rand(1, generator=self.random) < 0.5)  # as lines run in some products
        known = self.damaged(clean.transpose(2, 3) if across else clean, self.random)[0]
        return known.transpose(2, 3) if across else known, clean

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
