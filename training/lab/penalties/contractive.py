"""Squared Frobenius norm of the encoder's Jacobian (Rifai et al. 2011): codes that hardly move when pixels do.

Exact for an encoder of one dense stage with a sigmoid (the closed form of the paper), else Hutchinson's estimate: the
expectation of |J^T v|^2 over v of independent signs is the squared norm, so one backward pass gives it without bias.
"""

from typing import Any

import torch
from torch import Tensor

from training.lab.architectures import Pass


def exact(one: Pass) -> Tensor:
    """For h = sigmoid(W x / unit + b): sum over units of (h (1 - h))^2 |W_unit|^2 / unit^2."""
    stage: Any = one.network.stages[0]
    slope = (one.mean * (1 - one.mean)) ** 2
    return (slope @ (stage.there.weight**2).sum(dim=1)).mean() / one.network.unit**2


def estimate(one: Pass) -> Tensor:
    """One draw of Hutchinson's estimator; differentiable."""
    seen = one.seen.detach().requires_grad_(True)
    code = one.network.encode(seen)
    signs = torch.randint(0, 2, code.shape, device=code.device).to(code) * 2 - 1
    (gradient,) = torch.autograd.grad((code * signs).sum(), seen, create_graph=True)
    return (gradient**2).flatten(1).sum(dim=1).mean()


def penalty(one: Pass) -> Tensor:
    config = one.network.config
    closed = one.network.flat and len(one.network.stages) == 1 and config.code_activation == "sigmoid"
    return exact(one) if closed else estimate(one)
