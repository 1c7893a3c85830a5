"""Bits of a symbol under a logistic density of given scale, in a form that never underflows.

sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), so the logarithm is a sum of well-behaved terms and
the gradient stays alive arbitrarily far out in the tail, where a clipped likelihood would go blind.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LOG2E = 1.0 / math.log(2.0)
SCALE_UNIT = 0.11
"""Standard deviation of scale index 1; four indices make an octave."""
LOGISTIC = math.sqrt(3.0) / math.pi


def deviation_of(index: Tensor) -> Tensor:
    """Standard deviation that a (real or integer) scale index stands for."""
    return SCALE_UNIT * torch.exp2((index - 1.0) / 4.0)


def bits(offset: Tensor, index: Tensor) -> Tensor:
    """Bits to code a value at `offset` from the mean with the density of this scale index, elementwise."""
    scale = deviation_of(index) * LOGISTIC
    inverse = 1.0 / scale
    distance = offset.abs()
    upper, lower = (0.5 - distance) * inverse, (-0.5 - distance) * inverse
    log_likelihood = -F.softplus(-upper) - F.softplus(lower) + torch.log1p(-torch.exp(-inverse.clamp(min=1e-4)))
    return -log_likelihood * LOG2E
