"""Rate and distortion of a batch: what training minimises and validation reports.

Loss of one crop = (bits + trade * squared error in steps) per sample, divided by its own bits per sample: so a
percent fewer bits counts the same at every rate, from thumbnails to near-lossless.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.corpus import Batch
from training.integer import straight_round
from training.known import Known, known, predict
from training.model import HALO, MEAN_UNIT, PlaneCodec, alive
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


def refine(codec: PlaneCodec, latents: Tensor, index: Tensor, mean: Tensor, trade: float) -> Tensor:
    """Rate-distortion optimised quantisation, as encoder_node/refine.py does it: a symbol moves one step towards zero
    where the bits saved are worth more than the error added. Returns symbols, without gradient."""
    with torch.no_grad():
        nearest = latents.round()
        lower = nearest - torch.sign(nearest)
        spent = bits(nearest - mean / MEAN_UNIT, index) - bits(lower - mean / MEAN_UNIT, index)
        added = (latents - lower) ** 2 - (latents - nearest) ** 2
        return torch.where(codec.config.refinement * spent > trade * added, lower, nearest)


def measure(codec: PlaneCodec, batch: Batch, amp: bool, trade: float, correct: bool = True) -> Outcome:
    """Run a batch through the codec. `correct` = False leaves the analysis' correction out, as a lite encoder does.

    Rates are of the real symbols. In training the encoder's gradient comes from the rate of noisy latents instead
    (Ballé et al. 2017), since rounding has none; the prior's from the real symbols, which it must be right about.
    Planes of which nothing is sent are left out of all networks.
    """
    crops, planes = batch.coefficients.shape[:2]
    every = batch.levels.reshape(crops * planes, -1)
    rows = torch.nonzero(every.amax(dim=1) > 0)[:, 0]
    crop_of = rows // planes
    whole = batch.coefficients.reshape(crops * planes, *batch.coefficients.shape[2:])
    coefficients = whole[rows].contiguous(memory_format=torch.channels_last)
    level = every[rows]
    wide = level[:, :, None, None]
    sent = alive(wide)
    device = coefficients.device.type
    target = coefficients[..., HALO:-HALO, HALO:-HALO]
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        latents = codec.analysis(coefficients, wide) if correct else target
        hyper = codec.hyper(latents, wide)
    hyper_symbols = straight_round(hyper)
    stack = torch.zeros(crops * planes, *latents.shape[1:], device=latents.device)

    def contexts(symbols: Tensor) -> Known:
        return known(codec, stack.index_copy(0, rows, symbols), planes, batch.turn).of(rows)

    with torch.no_grad():
        guess = torch.where(latents.abs() < DEAD_ZONE, torch.zeros_like(latents), latents.round())
        found = refine(codec, latents, *predict(codec, hyper_symbols, contexts(guess), wide), trade)
    symbols = latents + (found - latents).detach()
    index, mean = predict(codec, hyper_symbols, contexts(found), wide)
    hyper_index = codec.hyper_index(level[:, 1])[:, :, None, None]
    latent_bits = bits(found - mean / MEAN_UNIT, index) * sent
    hyper_bits = bits(hyper_symbols, hyper_index)
    if codec.training:
        if correct:
            noisy = latents + torch.rand_like(latents) - 0.5
            relaxed = bits(noisy - mean.detach() / MEAN_UNIT, index.detach()) * sent
            latent_bits = latent_bits + (relaxed - relaxed.detach())
        hyper_bits = bits(hyper + torch.rand_like(hyper) - 0.5, hyper_index)
    before_rows = (rows - 1).clamp(min=0)
    filled = stack.index_copy(0, rows, symbols)
    first = (rows % planes == 0).to(symbols.dtype)[:, None, None, None]
    previous = filled[before_rows] * (1 - first)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        rebuilt = codec.synthesis(symbols, previous, wide)
    samples = float(planes * target.shape[-1] * target.shape[-2] * target.shape[1])

    def per_crop(values: Tensor) -> Tensor:
        sums = values.float().flatten(1).sum(dim=1)
        return torch.zeros(crops, device=sums.device).index_add(0, crop_of, sums) / samples

    rounding = (latents.detach() - found) ** 2
    return Outcome(per_crop(latent_bits), per_crop(hyper_bits), per_crop((rebuilt - target) ** 2), per_crop(rounding))
