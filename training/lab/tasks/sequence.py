"""Several days of one place: what was seen before says what will be seen next, and need not be sent again.

A convolutional GRU (Ballas et al. 2016) goes through the days, gives each back and predicts the next one, which is
measured beside the simplest prediction: nothing has changed.

Reference-conditioned coding, as the nodes do it (`downlink.prediction`): coefficients are predicted from those of the
reference, with a gain for each band and subband and a factor for each cell. Beside it, the same with pixels: scene and
reference (the last scene of the place that the ground has acknowledged, as the
ground has decoded it) -> a prediction, band by band gain * reference + offset from the scene itself (two numbers per
band), sharpened or not by a network; what is sent is the difference, through both real nodes, as an int16 scene. A
difference that costs more than the scene alone is not sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_node.target import Target
from training.lab.figures import psnr
from training.lab.nodes import series_through, through
from training.lab.places import BANDS, Pixels
from training.lab.series import Series, test_series, training_series
from training.lab.tasks.enhance import Enhancer
from training.lab.trial import EPSILON, PERCENT, Reconstruct

QUALITY = 36.0
NUMBERS_BYTES = 4
"""Gain and offset of a band, 16 bits each."""


class ConvGRU(nn.Module):
    """Days (n, days, 12, h, w) -> (each day given back, each next day predicted), both like the input.

    A convolution at half resolution, gated recurrent units of 3 x 3 convolutions, and two transposed convolutions that
    correct the day just seen.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Conv2d(len(BANDS), width, 4, 2, 1)
        self.gates = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.candidate = nn.Conv2d(2 * width, width, 3, padding=1)
        self.back = nn.ConvTranspose2d(width, len(BANDS), 4, 2, 1)
        self.next = nn.ConvTranspose2d(width, len(BANDS), 4, 2, 1)
        nn.init.zeros_(self.next.weight)
        nn.init.zeros_(self.next.bias)

    def forward(self, days: Tensor) -> tuple[Tensor, Tensor]:
        state = days.new_zeros(len(days), self.width, days.shape[3] // 2, days.shape[4] // 2)
        given, predicted = [], []
        for day in days.unbind(dim=1):
            x = F.relu(self.enter(day))
            update, reset = torch.sigmoid(self.gates(torch.cat([x, state], dim=1))).chunk(2, dim=1)
            fresh = torch.tanh(self.candidate(torch.cat([x, reset * state], dim=1)))
            state = (1 - update) * state + update * fresh
            given.append(self.back(state))
            predicted.append(day + self.next(state))
        return torch.stack(given, dim=1), torch.stack(predicted, dim=1)


def fitted(scene: Pixels, reference: Pixels) -> Pixels:
    """Band by band gain * reference + offset, by least squares."""
    out = np.empty_like(scene)
    for band, (x, y) in enumerate(zip(reference.reshape(len(BANDS), -1), scene.reshape(len(BANDS), -1), strict=True)):
        centred = x - x.mean()
        gain = float(centred @ (y - y.mean())) / max(float(centred @ centred), 1e-6)
        out[band] = y.mean() + gain * (reference[band] - x.mean())
    return out


class Task(Reconstruct):
    """`options.kind`: `recurrent` trains the GRU, `conditioned` a network that sharpens the fitted reference; `fitted`
    and `nodes` need none."""

    def prepare(self) -> None:
        self.series, self.tests = training_series(self.places), test_series(self.places)
        width = self.trial.options.get("width", 24)
        recurrent = self.trial.options["kind"] == "recurrent"
        self.module = ConvGRU(width) if recurrent else Enhancer(len(BANDS), len(BANDS), width, 1)

    def _days(self, random: torch.Generator) -> Tensor:
        """A batch of squares of whole series, days in order, from a random day on: (n, 3, 12, side, side)."""
        side, out = self.trial.patches.side, []
        for _ in range(self.trial.patches.batch):
            one: Series = self.series[int(torch.randint(len(self.series), (1,), generator=random))]
            days = min(3, len(one))
            first, top, left = (
                int(torch.randint(most + 1, (1,), generator=random))
                for most in (len(one) - days, one.shape[2] - side, one.shape[3] - side)
            )
            out.append(torch.from_numpy(one[first : first + days, :, top : top + side, left : left + side]))
        return torch.stack(out) / torch.from_numpy(self.places.scale)

    def draw(self) -> tuple[Tensor, Tensor]:
        days = self._days(self.random)
        if self.trial.options["kind"] == "recurrent":
            return days, days
        before, after = days[:, 0], days[:, 1]
        guess = [torch.from_numpy(fitted(b.numpy(), a.numpy())) for a, b in zip(before, after, strict=True)]
        return torch.stack(guess), after

    def loss(self, batch: Any, done: float) -> Tensor:
        known, owed = batch
        if self.trial.options["kind"] != "recurrent":
            return PERCENT * F.l1_loss(self.module(known), owed) / 100
        given, predicted = self.module(known)
        return PERCENT * (F.mse_loss(given, owed) + F.mse_loss(predicted[:, :-1], owed[:, 1:]))

    def validate(self, module: nn.Module) -> dict[str, float]:
        """On squares of the training places: there are too few series to hold one out."""
        random = torch.Generator().manual_seed(1)
        kept, self.random = self.random, random
        with torch.no_grad():
            error = float(torch.stack([self.loss(self.draw(), 1.0) for _ in range(2)]).mean())
        self.random = kept
        return {"score": float(np.log10(error + EPSILON)), "error": error}

    def show(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {}, {}

    def prediction(self, module: nn.Module) -> dict[str, float]:
        """PSNR of the day given back, of the next day predicted, and of the next day if nothing changed."""
        sums = np.zeros(3)
        for series in self.tests:
            height, width = (size // 2 * 2 for size in series.shape[2:])
            days = torch.from_numpy(series[None, ..., :height, :width] / self.places.scale).float()
            with torch.no_grad():
                given, predicted = module(days)
            scale = torch.from_numpy(self.places.scale)
            pairs = ((given, days), (predicted[:, :-1], days[:, 1:]), (days[:, :-1], days[:, 1:]))
            sums += [float((((a - b) * scale) ** 2).mean()) / len(self.tests) for a, b in pairs]
        return dict(zip(("psnr_db", "next_psnr_db", "last_psnr_db"), map(psnr, sums), strict=True))

    def saved_bits(self, module: nn.Module) -> dict[str, float]:
        """Real bytes of unseen series: each scene alone at quality 36, and as a difference from the one before at the
        same PSNR, whichever is smaller; the first one is always sent alone."""
        alone_bytes = conditioned_bytes = samples = used = 0
        for series in self.tests:
            reference: Pixels | None = None
            for scene in series:
                size, decoded = through(scene, Target(quality=QUALITY))
                alone_bytes += size
                samples += scene.size
                best = size
                if reference is not None:
                    guess = fitted(scene, reference)
                    if self.trial.options["kind"] == "conditioned":
                        with torch.no_grad():
                            known = torch.from_numpy(guess / self.places.scale).float()[None]
                            guess = module(known)[0].numpy() * self.places.scale
                    guess = np.rint(guess)
                    found, difference = through(scene - guess, Target(quality=QUALITY), dtype="int16")
                    found += NUMBERS_BYTES * len(BANDS)
                    if found < best:
                        best, decoded, used = found, guess + difference, used + 1
                conditioned_bytes += best
                reference = decoded
        return {
            "alone_bits": 8 * alone_bytes / samples, "conditioned_bits": 8 * conditioned_bytes / samples,
            "saved_percent": 100 * (1 - conditioned_bytes / alone_bytes), "used": float(used),
        }  # fmt: skip

    def nodes_saved_bits(self, module: nn.Module) -> dict[str, float]:
        """The same of what both nodes do by themselves (`--reference last`)."""
        target = Target(quality=QUALITY)
        alone = sum(through(scene, target)[0] for series in self.tests for scene in series)
        conditioned = sum(sum(series_through(series, target)) for series in self.tests)
        samples = sum(series.size for series in self.tests)
        return {
            "alone_bits": 8 * alone / samples, "conditioned_bits": 8 * conditioned / samples,
            "saved_percent": 100 * (1 - conditioned / alone),
        }  # fmt: skip
