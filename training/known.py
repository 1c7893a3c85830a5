"""What the prior knows of symbols, on tensors: downlink.context as training needs it, for whole batches and without
gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from downlink.context import ENERGY_DECAY, NEAR_LIMIT, ROTATION_SHIFT
from training.model import BEFORE_PASSES, MEANS, PASSES, TRUSTS, PlaneCodec, channels


@dataclass(frozen=True)
class Known:
    """Contexts of all planes of a batch, each (n, channels, h, w): companded symbols `own`, `before`, running `energy`,
    `near` in eighths and its companded `spread`, `slope` (n, 2, h, w), and where the anchors are (1, 1, h, w)."""

    own: Tensor
    before: Tensor
    energy: Tensor
    near: Tensor
    spread: Tensor
    slope: Tensor
    anchor: Tensor

    def of(self, rows: Tensor) -> Known:
        """Of some planes only."""
        return Known(*(getattr(self, name)[rows] for name in list(vars(self))[:-1]), self.anchor)


def anchors(height: int, width: int, device: torch.device) -> Tensor:
    """downlink.context.anchors as 0 and 1, (1, 1, height, width)."""
    rows, cols = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return ((rows + cols) % 2 == 0).float()[None, None]


def known(codec: PlaneCodec, symbols: Tensor, planes: int, turn: Tensor) -> Known:
    """Contexts of symbols (crops * planes, 64, h, w), crop-major; `turn` (crops, planes, planes) in units of 1/64."""
    with torch.no_grad():
        own = codec.compand(symbols)
        stacked = own.view(-1, planes, *own.shape[1:])
        before = torch.cat([torch.zeros_like(stacked[:, :1]), stacked[:, :-1]], dim=1)
        energies = [torch.zeros_like(stacked[:, 0])]
        for p in range(1, planes):
            energies.append(torch.maximum(energies[-1] - ENERGY_DECAY, stacked[:, p - 1].abs()))
        energy = torch.stack(energies, dim=1)
        height, width = symbols.shape[-2:]
        anchor = anchors(height, width, symbols.device)
        means = symbols[:, :1].clamp(-NEAR_LIMIT // 8, NEAR_LIMIT // 8)
        padded = F.pad(means, (1, 1, 1, 1))
        around = _around(padded)
        count = sum(_around(F.pad(torch.ones_like(means[:1]), (1, 1, 1, 1))))
        near = torch.floor(sum(around) * 8.0 / count + 1e-4)
        outside = torch.where(F.pad(torch.ones_like(means[:1]), (1, 1, 1, 1)) > 0, 0.0, float(NEAR_LIMIT))
        highest = torch.stack(_around(padded - outside)).amax(dim=0)
        lowest = torch.stack(_around(padded + outside)).amin(dim=0)
        spread = codec.compand(highest - lowest)
        edge = F.pad(means, (1, 1, 1, 1), mode="replicate")
        falls = torch.cat(
            [edge[..., 1:-1, 2:] - edge[..., 1:-1, :-2], edge[..., 2:, 1:-1] - edge[..., :-2, 1:-1]], dim=1
        )
        falls = falls.view(-1, planes, 2 * height * width)
        slope = torch.floor(torch.bmm(turn, falls) / (1 << ROTATION_SHIFT)).view(-1, 2, height, width)
        return Known(own, before.reshape_as(own), energy.reshape_as(own), near, spread, slope, anchor)


def _around(padded: Tensor) -> list[Tensor]:
    return [padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]]


def pass_inputs(codec: PlaneCodec, number: int, have: Known) -> tuple[Tensor, Tensor, Tensor]:
    """`energy`, `own`, `extra` of a pass, as downlink.latent builds them from integers."""
    at = channels(PASSES[number])
    own = have.own[:, :1].abs() * have.anchor if number == 1 else have.own[:, : at.start].abs()
    extra = [have.before[:, at]] if number < BEFORE_PASSES else []
    if number == 1:
        extra += [codec.compand(torch.floor(have.near / 8.0)), have.spread]
    if number == 2:
        extra += [codec.compand(have.slope).abs()]
    return have.energy[:, at], own, torch.cat(extra, dim=1) if extra else own[:, :0]


def predict(codec: PlaneCodec, hyper: Tensor, have: Known, level: Tensor) -> tuple[Tensor, Tensor]:
    """Scale index and mean (eighths) of every symbol of these planes: (n, 64, h, w) each. level (n, 4, 1, 1)."""
    features = codec.prior.features(hyper)
    outs = [
        one(features, level, *pass_inputs(codec, number, have)) for number, one in enumerate(codec.prior.passes)
    ]
    anchor = have.anchor
    trusted = outs[1][:, 1:2] + torch.floor(have.near * outs[1][:, 2:3] / 16.0)
    first_index = outs[0][:, :1] * anchor + outs[1][:, :1] * (1 - anchor)
    first_mean = outs[0][:, 1:2] * anchor + trusted * (1 - anchor)
    slopes = outs[2][:, 3:5] + torch.floor(-have.slope * outs[2][:, 6:8] / 16.0)
    index = torch.cat([first_index, outs[2][:, :3], outs[3], outs[4]], dim=1)
    silent = torch.zeros_like(index[:, 4:])
    return index, torch.cat([first_mean, slopes, outs[2][:, 5:6], silent], dim=1)


assert sum(MEANS) == 5 and sum(TRUSTS) == 3  # what `predict` takes apart
