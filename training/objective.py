"""Rate and distortion of a batch: what training minimises and validation reports.

Loss of one crop = (bits + trade * squared error in steps) per sample, divided by its own bits per sample: so a
percent fewer bits counts the same at every rate, from thumbnails to near-lossless.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from downlink import dct
from training.corpus import Batch
from training.integer import straight_round
from training.known import Expected, Symbols, known, predict
from training.model import MEAN_UNIT, PlaneCodec, channels
from training.rate import bits

RATE_FLOOR = 0.02
"""Bits per sample added to the divisor, so that all but empty crops do not dominate."""


@dataclass(frozen=True)
class Outcome:
    """Per crop: bits per sample of latents and hyper-latents, squared error per sample in steps squared, and squared
    rounding error of the latents alike."""

    latent_bits: Tensor
    hyper_bits: Tensor
    error: Tensor
    rounding: Tensor

    @property
    def rate(self) -> Tensor:
        return self.latent_bits + self.hyper_bits

    def loss(self, trade: float) -> Tensor:
        cost = self.rate + trade * self.error
        return (cost / (self.rate.detach() + RATE_FLOOR)).mean()


DEAD_ZONE = 0.65
"""Magnitude below which a latent counts as zero when contexts for refinement are first guessed."""


def refine(codec: PlaneCodec, exact: Tensor, index: Tensor, mean: Tensor, trade: float) -> Tensor:
    """Rate-distortion optimised quantisation, as encoder_node/refine.py does it: a symbol moves one step towards zero
    where the bits saved are worth more than the error added. Returns symbols, without gradient."""
    with torch.no_grad():
        nearest = exact.round()
        lower = nearest - torch.sign(nearest)
        spent = bits(nearest - mean / MEAN_UNIT, index) - bits(lower - mean / MEAN_UNIT, index)
        added = (exact - lower) ** 2 - (exact - nearest) ** 2
        return torch.where(codec.config.refinement * spent > trade * added, lower, nearest)


def root_forward(means: Tensor) -> Tensor:
    """downlink.dct.root_forward of (n, 1, h, w)."""
    kernel = torch.from_numpy(dct._root_basis()).to(means).reshape(dct.ROOT_CHANNELS, 1, dct.ROOT, dct.ROOT)
    return F.conv2d(means, kernel, stride=dct.ROOT)


def root_inverse(root: Tensor) -> Tensor:
    """downlink.dct.root_inverse: (n, 1, h, w)."""
    kernel = torch.from_numpy(dct._root_basis()).to(root).reshape(dct.ROOT_CHANNELS, 1, dct.ROOT, dct.ROOT)
    return F.conv_transpose2d(root, kernel, stride=dct.ROOT)


def measure(codec: PlaneCodec, batch: Batch, amp: bool, trade: float, settled: bool = True) -> Outcome:
    """Run a batch through the codec. Planes, and subbands of planes, of which nothing is sent are left out.

    The encoder refines its symbols by what a first guess makes the prior expect, then codes them by what they
    themselves make it expect. With `settled` False the second look is saved: symbols are charged what the first one
    expected, which is nearly the same and nearly twice as fast to train on.
    """
    crops, planes = batch.coefficients.shape[:2]
    every = batch.levels.reshape(crops * planes, -1)
    live = [torch.nonzero(every[:, number] > 0)[:, 0] for number in range(every.shape[1])]
    target = batch.coefficients.reshape(crops * planes, *batch.coefficients.shape[2:])
    root = root_forward(target[:, :1])
    level = every[:, :, None, None]
    device = target.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        hyper = codec.hyper(target, level)
    hyper_symbols = straight_round(hyper)
    exact = [root[live[0]], *(target[rows][:, channels(n)] for n, rows in enumerate(live) if n)]

    def joined(parts: list[Tensor]) -> Symbols:
        latent = torch.zeros_like(target)
        for number in range(1, len(parts)):
            latent[live[number], channels(number)] = parts[number]
        return Symbols(torch.zeros_like(root).index_copy(0, live[0], parts[0]), latent)

    def expected(symbols: Symbols) -> list[Expected]:
        return predict(codec, hyper_symbols, known(codec, symbols, planes, batch.turn, live), level, live)

    guess = joined([torch.where(x.abs() < DEAD_ZONE, torch.zeros_like(x), x.round()) for x in exact])
    with torch.set_grad_enabled(torch.is_grad_enabled() and not settled):
        first = expected(guess)
    found = [refine(codec, x, *look, trade) for x, look in zip(exact, first, strict=True)]
    symbols = joined(found)
    final = expected(symbols) if settled else first
    samples = float(planes * target.shape[-1] * target.shape[-2] * target.shape[1])

    def per_crop(values: Tensor, rows: Tensor) -> Tensor:
        sums = values.float().flatten(1).sum(dim=1)
        return torch.zeros(crops, device=sums.device).index_add(0, rows // planes, sums) / samples

    spent = [
        per_crop(bits(values - mean / MEAN_UNIT, index), rows)
        for values, (index, mean), rows in zip(found, final, live, strict=True)
    ]
    some = torch.nonzero(every.amax(dim=1) > 0)[:, 0]
    hyper_index = codec.hyper_index(every[some, 1])[:, :, None, None]
    coded = hyper[some] + torch.rand_like(hyper[some]) - 0.5 if codec.training else hyper_symbols[some]
    values = torch.cat([root_inverse(symbols.root), symbols.latent[:, 1:]], dim=1)
    started = (some % planes == 0).to(values.dtype)[:, None, None, None]
    previous = values[(some - 1).clamp(min=0)] * (1 - started)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        rebuilt = codec.synthesis(values[some], previous, level[some])
    return Outcome(
        torch.stack(spent).sum(dim=0),
        per_crop(bits(coded, hyper_index), some),
        per_crop((rebuilt - target[some]) ** 2, some),
        per_crop((values - target)[some] ** 2, some),
    )
