"""What the prior knows of symbols, on tensors: downlink.context as training needs it, for whole batches and without
gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from downlink import dct
from downlink.context import ENERGY_DECAY, NEAR_LIMIT, ROTATION_SHIFT
from training.integer import binomial
from training.model import FLAG, TRUST_SHIFTS, PlaneCodec, channels, symbol_channels


@dataclass(frozen=True)
class Symbols:
    """Symbols of planes: `root` (n, 16, h/4, w/4) and `latent` (n, 64, h, w), whose channel 0 counts for nothing."""

    root: Tensor
    latent: Tensor


def phases(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The second and the third phase (downlink.context.phases) as 0 and 1, (1, 1, height, width)."""
    rows, cols = torch.arange(height, device=device)[:, None] % 2, torch.arange(width, device=device) % 2
    return ((rows == 1) & (cols == 1)).float()[None, None], (rows != cols).float()[None, None]


def _shifted(x: Tensor, fill: float = 0.0) -> tuple[list[Tensor], list[Tensor]]:
    p = F.pad(x, (1, 1, 1, 1), value=fill)
    diagonal = [p[..., :-2, :-2], p[..., :-2, 2:], p[..., 2:, :-2], p[..., 2:, 2:]]
    direct = [p[..., :-2, 1:-1], p[..., 2:, 1:-1], p[..., 1:-1, :-2], p[..., 1:-1, 2:]]
    return diagonal, direct


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] + parts[1] + parts[2] + parts[3]


def around(magnitudes: Tensor) -> Tensor:
    """downlink.context.around."""
    second, third = phases(*magnitudes.shape[-2:], magnitudes.device)
    diagonal = torch.tensor([[0.25, 0, 0.25], [0, 0, 0], [0.25, 0, 0.25]]).to(magnitudes)
    direct = torch.tensor([[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]]).to(magnitudes)
    count = magnitudes.shape[1]
    sums = [
        F.conv2d(magnitudes, kernel.expand(count, 1, 3, 3), padding=1, groups=count) for kernel in (diagonal, direct)
    ]
    return torch.floor(sums[0] * second + sums[1] * third)


def near(codec: PlaneCodec, values: Tensor) -> tuple[Tensor, Tensor]:
    """downlink.context.near of (n, 1, h, w)."""
    bounded = values.clamp(-NEAR_LIMIT // 8, NEAR_LIMIT // 8)
    counts = _shifted(torch.ones_like(values[:1]))
    totals, highest, lowest = _shifted(bounded), _shifted(bounded, -NEAR_LIMIT), _shifted(bounded, NEAR_LIMIT)
    average, widest = torch.zeros_like(values), torch.zeros_like(values)
    for which, mask in enumerate(phases(*values.shape[-2:], values.device)):
        count = _total(counts[which])
        mask = mask * (count > 0)
        average = average + torch.floor(_total(totals[which]) * 8.0 / count.clamp(min=1) + 1e-4) * mask
        span = torch.stack(highest[which]).amax(dim=0) - torch.stack(lowest[which]).amin(dim=0)
        widest = widest + span * mask
    return average, codec.compand(widest)


def root_means(root: Tensor) -> Tensor:
    """downlink.dct.root_means: (n, 1, 4 h, 4 w) in eighths."""
    weights = torch.from_numpy(dct.root_integers().astype("float32")).to(root)  # (position, channel)
    kernel = weights.t().reshape(dct.ROOT_CHANNELS, 1, dct.ROOT, dct.ROOT)
    return torch.floor(F.conv_transpose2d(root, kernel, stride=dct.ROOT) / 128.0)


def _energy(magnitudes: Tensor, planes: int) -> Tensor:
    stacked = magnitudes.view(-1, planes, *magnitudes.shape[1:])
    energies = [torch.zeros_like(stacked[:, 0])]
    for p in range(1, planes):
        energies.append(torch.maximum(energies[-1] - ENERGY_DECAY, stacked[:, p - 1]))
    return torch.stack(energies, dim=1).reshape_as(magnitudes)


@dataclass(frozen=True)
class Known:
    """Per subband, for the planes of which it is sent: the network's inputs but features and levels (n, K, h, w); and
    the predictions in eighths: `near` of the root (n, 1, h/4, w/4), `slope` (n, 2, h, w)."""

    inputs: tuple[Tensor, ...]
    near: Tensor
    slope: Tensor


def known(codec: PlaneCodec, symbols: Symbols, planes: int, turn: Tensor, live: list[Tensor]) -> Known:
    """Contexts of symbols of crops * planes, crop-major; `turn` (crops, planes, planes) in units of 1/64; `live`: rows
    of which each subband is sent."""
    with torch.no_grad():
        root, own = codec.compand(symbols.root).abs(), codec.compand(symbols.latent).abs()
        means = root_means(symbols.root).clamp(-NEAR_LIMIT, NEAR_LIMIT)
        edge = F.pad(means, (1, 1, 1, 1), mode="replicate")
        slope = torch.cat(
            [edge[..., 1:-1, 2:] - edge[..., 1:-1, :-2], edge[..., 2:, 1:-1] - edge[..., :-2, 1:-1]], dim=1
        )
        flat = slope.view(-1, planes, 2 * means.shape[-2] * means.shape[-1])
        seen = torch.floor(torch.bmm(turn, flat) / (1 << ROTATION_SHIFT)).view_as(slope).clamp(-NEAR_LIMIT, NEAR_LIMIT)
        seen = seen[live[1]]
        own[:, :1] = codec.compand(torch.floor(slope.abs().sum(dim=1, keepdim=True) / 8.0))
        predicted, spread = near(codec, symbols.root[live[0], :1])
        inputs = []
        for number, rows in enumerate(live):
            at = channels(number)
            mine = own[:, at] if number else root
            energy, mine = _energy(mine, planes)[rows], mine[rows]
            second, third = phases(*mine.shape[-2:], mine.device)
            parts = [energy, binomial(energy), around(mine)]
            if number:
                earlier = own[rows, : at.start]
                parts += [earlier, binomial(earlier)]
            parts += [(FLAG * flag).expand(len(mine), -1, -1, -1) for flag in (second, third)]
            if number == 0:
                parts += [codec.compand(torch.floor(predicted / 8.0)), spread]
            if number == 1:
                parts += [codec.compand(torch.floor(seen / 8.0))]
            inputs.append(torch.cat(parts, dim=1))
        return Known(tuple(inputs), predicted, seen)


Expected = tuple[Tensor, Tensor]
"""Scale index and mean (eighths) of a subband's symbols, (n, channels, h, w) each."""


def predict(codec: PlaneCodec, hyper: Tensor, have: Known, level: Tensor, live: list[Tensor]) -> list[Expected]:
    """What the prior expects, per subband for the planes of which it is sent. hyper (rows, ...), level (rows, 4, 1,
    1)."""
    coarse, fine = codec.prior.features(hyper)
    found: list[Expected] = []
    for number, (one, given, rows) in enumerate(zip(codec.prior.subbands, have.inputs, live, strict=True)):
        features = (fine if number else coarse)[rows]
        out = one(torch.cat([given, features, level[rows].expand(-1, -1, *given.shape[-2:])], dim=1))
        count = symbol_channels(number)
        mean = torch.zeros_like(out[:, :count])
        if number == 0:
            trusted = have.near * out[:, count + 1 :] / (1 << TRUST_SHIFTS[0])
            mean = torch.cat([out[:, count : count + 1] + torch.floor(trusted), mean[:, 1:]], dim=1)
        elif number == 1:
            trusted = -have.slope * out[:, 2 * count :] / (1 << TRUST_SHIFTS[1])
            mean = out[:, count : 2 * count] + F.pad(torch.floor(trusted), (0, 0, 0, 0, 0, count - 2))
        found.append((out[:, :count], mean))
    return found
