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
from training.model import HALO, MEAN_UNIT, PlaneCodec
from training.rate import bits

RATE_FLOOR = 0.06
"""Bits per sample added to the divisor, so that all but empty crops do not dominate."""


@dataclass(frozen=True)
class Outcome:
    """Per crop: bits per sample of latents and hyper-latents, squared error per sample in steps squared."""

    latent_bits: Tensor
    hyper_bits: Tensor
    error: Tensor

    @property
    def rate(self) -> Tensor:
        return self.latent_bits + self.hyper_bits

    def loss(self, trade: float) -> Tensor:
        cost = self.rate + trade * self.error
        return (cost / (self.rate.detach() + RATE_FLOOR)).mean()


DEAD_ZONE = 0.65
"""Magnitude below which a latent counts as zero when contexts for refinement are first guessed."""


def refine(codec: PlaneCodec, latents: Tensor, hyper: Tensor, planes: int, level: Tensor, trade: float) -> Tensor:
    """Rate-distortion optimised quantisation, as encoder_node/refine.py does it: a symbol moves one step towards zero
    where the bits saved are worth more than the error added. Returns symbols, without gradient."""
    with torch.no_grad():
        nearest = latents.round()
        guess = torch.where(latents.abs() < DEAD_ZONE, torch.zeros_like(latents), nearest)
        index, mean = codec.prior(hyper, *codec.contexts(guess, planes), level)
        lower = nearest - torch.sign(nearest)
        spent = bits(nearest - mean / MEAN_UNIT, index) - bits(lower - mean / MEAN_UNIT, index)
        added = (latents - lower) ** 2 - (latents - nearest) ** 2
        return torch.where(codec.config.refinement * spent > trade * added, lower, nearest)


def measure(codec: PlaneCodec, batch: Batch, amp: bool, trade: float) -> Outcome:
    """Run a batch through the codec.

    Rates are of the real symbols. In training the encoder's gradient comes from the rate of noisy latents instead
    (Ballé et al. 2017), since rounding has none; the prior's from the real symbols, which it must be right about.
    """
    crops, planes = batch.pixels.shape[:2]
    pixels = batch.pixels.reshape(crops * planes, 1, *batch.pixels.shape[2:]).contiguous(
        memory_format=torch.channels_last
    )
    level = batch.levels.reshape(-1)
    wide = level.view(-1, 1, 1, 1)
    device = pixels.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        latents = codec.analysis(pixels)
        hyper = codec.hyper(latents, level)
    hyper_symbols = straight_round(hyper)
    known = refine(codec, latents, hyper_symbols, planes, wide, trade)
    symbols = latents + (known - latents).detach()
    index, mean = codec.prior(hyper_symbols, *codec.contexts(known, planes), wide)
    hyper_index = codec.hyper_index(level)[:, :, None, None]
    latent_bits, hyper_bits = bits(known - mean / MEAN_UNIT, index), bits(hyper_symbols, hyper_index)
    if codec.training:
        noisy = latents + torch.rand_like(latents) - 0.5
        relaxed = bits(noisy - mean.detach() / MEAN_UNIT, index.detach())
        latent_bits = latent_bits + (relaxed - relaxed.detach())
        hyper_bits = bits(hyper + torch.rand_like(hyper) - 0.5, hyper_index)
    stacked = symbols.view(crops, planes, *symbols.shape[1:])
    previous = torch.cat([torch.zeros_like(stacked[:, :1]), stacked[:, :-1]], dim=1).reshape_as(symbols)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        rebuilt = codec.synthesis(symbols, previous, wide, codec.inverse_patch())
    target = pixels[..., HALO:-HALO, HALO:-HALO]
    samples = float(planes * target.shape[-1] * target.shape[-2])

    def per_crop(values: Tensor) -> Tensor:
        return values.float().reshape(crops, -1).sum(dim=1) / samples

    return Outcome(per_crop(latent_bits), per_crop(hyper_bits), per_crop((rebuilt - target) ** 2))
