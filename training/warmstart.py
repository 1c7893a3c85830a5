"""How loud each channel of the transform is: what the prior's indices start from.

The transform itself is closed form (DCT and KLT: the linear autoencoder's own solution, Baldi, Hornik 1989), so only the
prior needs a start: with it, training begins as a good linear transform codec.
"""

from __future__ import annotations

import torch
from torch import Tensor

from downlink.dct import SUBBANDS
from training.corpus import Sampler
from training.model import channels


def relative_deviation(sampler: Sampler, batches: int = 16) -> Tensor:
    """Deviation of each channel relative to its subband's, over planes that are loud there: (64)."""
    total = torch.zeros(SUBBANDS[-1])
    for _ in range(batches):
        batch = sampler.draw()
        for number in range(len(SUBBANDS)):
            at = channels(number)
            loud = batch.levels[..., number] > 32
            energy = (batch.coefficients[:, :, at][loud] ** 2).mean(dim=(2, 3))
            total[at] += (energy / energy.mean(dim=1, keepdim=True).clamp(min=1e-6)).mean(dim=0).nan_to_num(1.0)
    return (total / batches).clamp(min=1e-4).sqrt()
