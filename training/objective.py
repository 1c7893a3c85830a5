"""Rate and distortion of a batch: what training minimises and validation reports.

Loss of one crop = (bits + trade * squared error in steps) per sample, divided by its own bits per sample: so a
percent fewer bits counts the same at every rate, from thumbnails to near-lossless.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.corpus import Batch
from training.model import HALO, MEAN_UNIT, PlaneCodec, quantise
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


def measure(codec: PlaneCodec, batch: Batch, amp: bool) -> Outcome:
    """Run a batch through the codec. In training mode rates are of noisy values (differentiable), else of the real
    symbols."""
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
    symbols, hyper_symbols = quantise(latents), quantise(hyper)
    known = symbols.detach()
    own, before, energy = codec.contexts(known, planes)
    index, mean = codec.prior(hyper_symbols, own, before, energy, wide)
    noisy, noisy_hyper = symbols, hyper_symbols
    if codec.training:
        noisy = latents + torch.rand_like(latents) - 0.5
        noisy_hyper = hyper + torch.rand_like(hyper) - 0.5
    hyper_index = codec.hyper_index(level)[:, :, None, None]
    latent_bits = bits(noisy - mean / MEAN_UNIT, index)
    hyper_bits = bits(noisy_hyper, hyper_index)
    stacked = symbols.view(crops, planes, *symbols.shape[1:])
    previous = torch.cat([torch.zeros_like(stacked[:, :1]), stacked[:, :-1]], dim=1).reshape_as(symbols)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        rebuilt = codec.synthesis(symbols, previous, wide, codec.inverse_patch())
    target = pixels[..., HALO:-HALO, HALO:-HALO]
    samples = float(planes * target.shape[-1] * target.shape[-2])

    def per_crop(values: Tensor) -> Tensor:
        return values.float().reshape(crops, -1).sum(dim=1) / samples

    return Outcome(per_crop(latent_bits), per_crop(hyper_bits), per_crop((rebuilt - target) ** 2))
