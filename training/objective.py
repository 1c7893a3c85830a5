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
from training.model import MEAN_UNIT, PlaneCodec, alive
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


def _guess(exact: Tensor) -> Tensor:
    return torch.where(exact.abs() < DEAD_ZONE, torch.zeros_like(exact), exact.round())


def root_forward(means: Tensor) -> Tensor:
    """downlink.dct.root_forward of (n, 1, h, w)."""
    kernel = torch.from_numpy(dct._root_basis()).to(means).reshape(dct.ROOT_CHANNELS, 1, dct.ROOT, dct.ROOT)
    return F.conv2d(means, kernel, stride=dct.ROOT)


def root_inverse(root: Tensor) -> Tensor:
    """downlink.dct.root_inverse: (n, 1, h, w)."""
    kernel = torch.from_numpy(dct._root_basis()).to(root).reshape(dct.ROOT_CHANNELS, 1, dct.ROOT, dct.ROOT)
    return F.conv_transpose2d(root, kernel, stride=dct.ROOT)


def measure(codec: PlaneCodec, batch: Batch, amp: bool, trade: float) -> Outcome:
    """Run a batch through the codec. Planes of which nothing is sent are left out of all networks."""
    crops, planes = batch.coefficients.shape[:2]
    every = batch.levels.reshape(crops * planes, -1)
    rows = torch.nonzero(every.amax(dim=1) > 0)[:, 0]
    crop_of = rows // planes
    whole = batch.coefficients.reshape(crops * planes, *batch.coefficients.shape[2:])
    target = whole[rows].contiguous(memory_format=torch.channels_last)
    root = root_forward(target[:, :1])
    level = every[rows]
    wide = level[:, :, None, None]
    sent = alive(wide)
    device = target.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        hyper = codec.hyper(target, wide)
    hyper_symbols = straight_round(hyper)
    stack = torch.zeros(crops * planes, *target.shape[1:], device=target.device)
    root_stack = torch.zeros(crops * planes, *root.shape[1:], device=target.device)

    def expected(at_root: Tensor, latent: Tensor) -> Expected:
        symbols = Symbols(root_stack.index_copy(0, rows, at_root), stack.index_copy(0, rows, latent))
        return predict(codec, hyper_symbols, known(codec, symbols, planes, batch.turn).of(rows), wide)

    with torch.no_grad():
        first = expected(_guess(root), _guess(target))
        root_found = refine(codec, root, first.root_index, first.root_mean, trade)
        found = refine(codec, target, first.index, first.mean, trade)
    final = expected(root_found, found)
    latent_bits = bits(found[:, 1:] - final.mean[:, 1:] / MEAN_UNIT, final.index[:, 1:]) * sent[:, 1:]
    root_bits = bits(root_found - final.root_mean / MEAN_UNIT, final.root_index) * sent[:, :1]
    hyper_index = codec.hyper_index(level[:, 1])[:, :, None, None]
    hyper_bits = bits(hyper_symbols, hyper_index)
    if codec.training:
        hyper_bits = bits(hyper + torch.rand_like(hyper) - 0.5, hyper_index)
    means = root_inverse(root_found)
    values = torch.cat([means, found[:, 1:]], dim=1).contiguous(memory_format=torch.channels_last)
    filled = stack.index_copy(0, rows, values)
    started = (rows % planes == 0).to(values.dtype)[:, None, None, None]
    previous = filled[(rows - 1).clamp(min=0)] * (1 - started)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        rebuilt = codec.synthesis(values, previous, wide)
    samples = float(planes * target.shape[-1] * target.shape[-2] * target.shape[1])

    def per_crop(values: Tensor) -> Tensor:
        sums = values.float().flatten(1).sum(dim=1)
        return torch.zeros(crops, device=sums.device).index_add(0, crop_of, sums) / samples

    return Outcome(
        per_crop(latent_bits) + per_crop(root_bits),
        per_crop(hyper_bits),
        per_crop((rebuilt - target) ** 2),
        per_crop((values - target) ** 2),
    )
