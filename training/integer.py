"""Convolutions in exact integers, trained with straight-through gradients.

Both ends must derive the same scale index for every symbol, so the prior network computes in integers: integer
weights and activations carried in float32, every partial sum below 2^24, scaling by powers of two with floor,
clipping as activation. A sum of integers below 2^24 is exact in float32 in any order, so any CPU, thread count and
runtime gives the same numbers (Ballé, Johnston, Minnen: Integer Networks for Data Compression with Latent-Variable
Models, ICLR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXACT = float(1 << 24)
WEIGHT_LIMIT = 127


def straight_round(x: Tensor) -> Tensor:
    """Round to nearest; the gradient passes as if nothing had happened."""
    return x + (x.round() - x).detach()


def straight_floor(x: Tensor) -> Tensor:
    """Round down; the gradient passes as if nothing had happened."""
    return x + (x.floor() - x).detach()


class SoftClamp(torch.autograd.Function):
    """Clip; outside the range the gradient passes only where it leads back in, so that no unit stays stuck at a
    bound."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def,override]
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        keep = ((x >= low) | (grad < 0)) & ((x <= high) | (grad > 0))
        return grad * keep, None, None


class IntegerConv(nn.Module):
    """A convolution whose output is clip(floor((W * x + b) / 2^shift), low, high) with integers W, b, x.

    `weight` and `bias` are kept as real numbers in units of 2^-shift; `integers()` gives what is computed with and
    exported.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, low: int, high: int, shift: int = 6) -> None:
        super().__init__()
        self.low, self.high, self.shift, self.kernel = float(low), float(high), shift, kernel
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel * kernel) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def integers(self) -> tuple[Tensor, Tensor]:
        """Integer weights (outputs, inputs, k, k) and bias (outputs), as float tensors with straight-through
        gradients."""
        scale = float(1 << self.shift)
        weight = straight_round((self.weight * scale).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT))
        return weight, straight_round(self.bias * scale)

    def largest_sum(self, input_limit: float) -> float:
        """Bound on every partial sum for inputs within +-input_limit; exact arithmetic needs it below 2^24."""
        weight, bias = self.integers()
        sums = weight.detach().abs().sum(dim=(1, 2, 3)) * input_limit + bias.detach().abs()
        return float(sums.max())

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.integers()
        total = F.conv2d(x, weight, bias, padding=self.kernel // 2)
        if not self.training:
            return torch.clamp(torch.floor(total * 2.0**-self.shift), self.low, self.high)
        return SoftClamp.apply(straight_floor(total * 2.0**-self.shift), self.low, self.high)


class FrozenIntegerConv(nn.Module):
    """An IntegerConv as it is exported: its integers as constants, nothing left to round."""

    def __init__(self, layer: IntegerConv) -> None:
        super().__init__()
        weight, bias = layer.integers()
        self.register_buffer("weight", weight.detach().round())
        self.register_buffer("bias", bias.detach().round())
        self.low, self.high, self.shift, self.kernel = layer.low, layer.high, layer.shift, layer.kernel

    def forward(self, x: Tensor) -> Tensor:
        total = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)
        return torch.clamp(torch.floor(total * 2.0**-self.shift), self.low, self.high)


def freeze(module: nn.Module) -> nn.Module:
    """Replace every IntegerConv inside `module` by its frozen form; returns `module`."""
    for name, child in module.named_children():
        if isinstance(child, IntegerConv):
            setattr(module, name, FrozenIntegerConv(child))
        else:
            freeze(child)
    return module


def binomial(x: Tensor) -> Tensor:
    """Depthwise 3x3 binomial average, floor of sixteenths: what the neighbourhood holds, in integers."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], device=x.device, dtype=x.dtype)
    return torch.floor(F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]) * 0.0625)
