"""What happens to pixels on their way, done on purpose: the network sees the corrupted patch and owes the clean one.

Each takes scaled patches (n, bands, side, side), an amount and a generator, and returns corrupted patches and the mask
(n, bands, side, side) of pixels of which nothing is left. A new one is a function and its line in `CORRUPTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Corrupted = tuple[Tensor, Tensor]


def _random(x: Tensor, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=random).to(x)


def _emptied(x: Tensor, lost: Tensor) -> Corrupted:
    lost = lost.expand_as(x)
    return x.masked_fill(lost, 0.0), lost


def gaussian(x: Tensor, amount: float, random: torch.Generator) -> Corrupted:
    """Sensor noise of this standard deviation (1 = the band's scale)."""
    noise = torch.randn(x.shape, generator=random).to(x)
    return x + amount * noise, torch.zeros_like(x, dtype=torch.bool)


def pixels(x: Tensor, amount: float, random: torch.Generator) -> Corrupted:
    """Each pixel of each band is lost with this probability."""
    return _emptied(x, _random(x, tuple(x.shape), random) < amount)


def bands(x: Tensor, amount: float, random: torch.Generator) -> Corrupted:
    """Each band of a patch is lost with this probability."""
    return _emptied(x, _random(x, (*x.shape[:2], 1, 1), random) < amount)


def lines(x: Tensor, amount: float, random: torch.Generator) -> Corrupted:
    """Dead detectors: each column of each band is lost with this probability (a push-broom sensor flies down)."""
    return _emptied(x, _random(x, (*x.shape[:2], 1, x.shape[3]), random) < amount)


def stripes(x: Tensor, amount: float, random: torch.Generator) -> Corrupted:
    """Detectors of unequal gain: each column of each band is multiplied by 1 + amount * N(0, 1)."""
    gain = torch.randn((*x.shape[:2], 1, x.shape[3]), generator=random).to(x)
    return x * (1 + amount * gain), torch.zeros_like(x, dtype=torch.bool)


CORRUPTIONS: dict[str, Callable[[Tensor, float, torch.Generator], Corrupted]] = {
    one.__name__: one for one in (gaussian, pixels, bands, lines, stripes)
}


def corrupt(x: Tensor, amounts: dict[str, float], random: torch.Generator) -> Corrupted:
    """All corruptions of a trial, one after the other, in the order of its config."""
    lost = torch.zeros_like(x, dtype=torch.bool)
    for name, amount in amounts.items():
        x, more = CORRUPTIONS[name](x, amount, random)
        lost = lost | more
    return x, lost
