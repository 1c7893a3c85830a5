"""How loud each channel of the transform is: what the prior's indices start from.

The transform itself is closed form (DCT and KLT: the linear autoencoder's own solution, Baldi, Hornik 1989), so only
the prior needs a start: with it, training begins as a good linear transform codec.
"""

from __future__ import annotations

import torch
from torch import Tensor

from downlink.dct import ROOT_CHANNELS, SUBBANDS
from training.corpus import Sampler
from training.model import channels
from training.objective import root_forward


def relative_deviations(sampler: Sampler, batches: int = 16) -> tuple[Tensor, Tensor]:
    """Deviation of each root channel (16) and of each channel (64) relative to its subband's, over planes that are loud
    there."""
    total, root = torch.zeros(SUBBANDS[-1]), torch.zeros(ROOT_CHANNELS)
    for _ in range(batches):
        batch = sampler.draw()
        for number in range(len(SUBBANDS)):
            at = channels(number)
            loud = batch.levels[..., number] > 32
            values = batch.coefficients[:, :, at][loud]
            if number == 0:
                values = root_forward(values)
            energy = (values**2).mean(dim=(2, 3))
            share = (energy / energy.mean(dim=1, keepdim=True).clamp(min=1e-6)).mean(dim=0).nan_to_num(1.0)
            if number == 0:
                root += share
            else:
                total[at] += share
    return (root / batches).clamp(min=1e-4).sqrt(), (total / batches).clamp(min=1e-4).sqrt()
