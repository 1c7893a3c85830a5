"""Sum of squared weights (biases left out): what keeps an overcomplete code from learning its inputs by heart."""

import torch
from torch import Tensor

from training.lab.architectures import Pass


def penalty(one: Pass) -> Tensor:
    return torch.stack([(w**2).sum() for w in one.network.parameters() if w.dim() > 1]).sum()
