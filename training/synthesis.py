"""The synthesis, trained in floats, as it is shipped: 8-bit weights and activations (post-training quantisation, as in
training/hyper.py), so that what it corrects is the same on every machine and costs a quarter.

Its inputs are the integers of `downlink.synthesis.seen`. The trunk that residual blocks add to has 12 bits, of which
convolutions see the upper 8, rounded. Every sum is an integer below 2^24 carried in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downlink.synthesis import LOUD_PER_OCTAVE, SEEN_LIMIT, SOFT_UNITS, seen
from training.config import ConfigError
from training.corpus import Batch
from training.integer import EXACT, WEIGHT_LIMIT
from training.model import ACTIVATION_LIMIT, Synthesis
from training.objective import root_forward, root_inverse

TRUNK_LIMIT = 2047
TRUNK_SHIFT = 4
_TOP = 0.999
"""Share of activations that their bits must hold; louder ones are clipped."""
_SHIFT_MOST = 16


def units(latents: int) -> tuple[Tensor, Tensor]:
    """What one stands for in each channel of `seen`, and what is to be added, in what `Synthesis` was trained on."""
    loud, soft = torch.full((2 * latents,), 1 / LOUD_PER_OCTAVE), torch.full((latents,), 0.125 / SOFT_UNITS)
    unit = torch.cat([loud, soft, torch.full((4,), 1 / 32.0), torch.full((4,), 0.25 / SOFT_UNITS)])
    offset = torch.zeros_like(unit)
    offset[3 * latents : 3 * latents + 4] = -1.0
    return unit, offset


class _Layer(nn.Module):
    """floor((W * x + b) / 2^shift) with integers W, b, x."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, layer: nn.Conv2d, scale_in: Tensor, scale_out: Tensor, loudest: float, shift: int | None = None
    ) -> None:
        """`scale_in` and `scale_out`: integers to one of each channel."""
        super().__init__()
        real = layer.weight.detach() / scale_in[None, :, None, None] * scale_out[:, None, None, None]
        largest = float(real.abs().amax())
        if shift is None:
            shift = min(_SHIFT_MOST, int(torch.tensor(WEIGHT_LIMIT / largest).log2().floor()))
        assert layer.bias is not None
        self.shift, self.padding = shift, layer.kernel_size[0] // 2
        weight = (real * 2.0**shift).round()
        bias = (layer.bias.detach() * scale_out * 2.0**shift + 2.0 ** (shift - 1)).round()
        bound = float((weight.abs().sum(dim=(1, 2, 3)) * loudest + bias.abs()).max())
        if bound >= EXACT or float(weight.abs().max()) > WEIGHT_LIMIT or shift < 0:
            raise ConfigError(
                f"a layer of the synthesis sums up to {bound:.0f} with weights up to {float(weight.abs().max()):.0f}; "
                f"{EXACT:.0f} and {WEIGHT_LIMIT} are allowed"
            )
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(F.conv2d(x, self.weight, self.bias, padding=self.padding) * 2.0**-self.shift)


def _fitting(layer: nn.Conv2d, scale_in: Tensor, wanted: Tensor) -> tuple[Tensor, int]:
    """Scales of outputs, at most as `wanted`, and a shift, so that all weights fit 8 bits and most use them."""
    largest = (
        (layer.weight.detach() / scale_in[None, :, None, None] * wanted[:, None, None, None]).abs().amax(dim=(1, 2, 3))
    )
    shift = min(_SHIFT_MOST, int(torch.log2(WEIGHT_LIMIT / largest.median()).floor()) + 1)
    return wanted * (WEIGHT_LIMIT / 2.0**shift / largest).clamp(max=1), shift


class IntegerSynthesis(nn.Module):
    """`Synthesis` in integers: what is seen (n, 200, h, w) -> what is added to symbols (n, 64, h, w), in steps."""

    last: Tensor
    last_bias: Tensor
    size: Tensor

    def __init__(self, synthesis: Synthesis, samples: list[Tensor]) -> None:
        """`samples` are what is seen, whose activations set the scales. Raises ConfigError where sums would not be
        exact."""
        super().__init__()
        unit, offset = units(synthesis.correct.out_channels)
        real = [sample * unit[None, :, None, None] + offset[None, :, None, None] for sample in samples]
        trunks = [synthesis.enter(one) for one in real]
        largest, hidden = _top(trunks), []
        for block in synthesis.blocks:
            inner = [F.relu(block.see(one)) for one in trunks]
            trunks = [one + block.mix(two) for one, two in zip(trunks, inner, strict=True)]
            hidden.append(_top(inner))
            largest = torch.maximum(largest, _top(trunks))
        enter = nn.Conv2d(len(unit), len(largest), 1)
        with torch.no_grad():  # what is added to inputs is part of the bias
            enter.weight.copy_(synthesis.enter.weight)
            assert enter.bias is not None
            assert synthesis.enter.bias is not None
            enter.bias.copy_(synthesis.enter.bias + (synthesis.enter.weight[:, :, 0, 0] * offset).sum(dim=1))
        trunk, shift = _fitting(enter, 1 / unit, TRUNK_LIMIT / largest.clamp(min=1e-3))
        coarse = trunk / 2**TRUNK_SHIFT
        self.enter = _Layer(enter, 1 / unit, trunk, SEEN_LIMIT, shift)
        self.enter.bias += 2.0 ** (shift + TRUNK_SHIFT - 1)  # the trunk is half a step high: what is cut off rounds
        see, mix = [], []
        for block, top in zip(synthesis.blocks, hidden, strict=True):
            scale, shift = _fitting(block.see, coarse, ACTIVATION_LIMIT / top.clamp(min=1e-3))
            see.append(_Layer(block.see, coarse, scale, ACTIVATION_LIMIT / 2 + 1, shift))
            mix.append(_Layer(block.mix, scale, trunk, ACTIVATION_LIMIT))
        self.see, self.mix = nn.ModuleList(see), nn.ModuleList(mix)
        # in units of powers of two: runtimes multiply them into the weights
        last, bias = synthesis.correct.weight.detach() / coarse[None, :, None, None], synthesis.correct.bias
        assert bias is not None
        size = 2.0 ** (last.abs().amax(dim=(1, 2, 3)).clamp(min=2.0**-30) / WEIGHT_LIMIT).log2().ceil()
        self.register_buffer("last", (last / size[:, None, None, None]).round())
        self.register_buffer("last_bias", (bias.detach() / size).round())
        self.register_buffer("size", size[None, :, None, None])

    def forward(self, seen: Tensor) -> Tensor:
        trunk = torch.clamp(self.enter(seen), -TRUNK_LIMIT - 1, TRUNK_LIMIT)
        for see, mix in zip(self.see, self.mix, strict=True):
            inner = torch.clamp(see(torch.floor(trunk * 2.0**-TRUNK_SHIFT)), 0, ACTIVATION_LIMIT)
            trunk = torch.clamp(trunk + mix(inner), -TRUNK_LIMIT - 1, TRUNK_LIMIT)
        total = F.conv2d(torch.floor(trunk * 2.0**-TRUNK_SHIFT), self.last, self.last_bias)
        return total * self.size


def _top(maps: list[Tensor]) -> Tensor:
    """How loud each channel gets, but for the loudest few: (channels)."""
    every = torch.cat([one.transpose(0, 1).flatten(1).abs() for one in maps], dim=1)
    return every.sort(dim=1).values[:, int(_TOP * (every.shape[1] - 1))]


class Shown(NamedTuple):
    """Live planes of a batch with their nearest symbols: coefficients, values of the symbols and of the planes before
    (n, 64, h, w), levels (n, 4, 1, 1) and what the network sees (n, 200, h, w)."""

    coefficients: Tensor
    values: Tensor
    before: Tensor
    level: Tensor
    seen: Tensor


def shown(batches: list[Batch]) -> list[Shown]:
    """Of each batch that has live planes."""
    found = []
    for batch in batches:
        levels = batch.levels[0].numpy().astype(np.uint8)
        rows = np.flatnonzero(levels.max(axis=1) > 0)
        if len(rows):
            coefficients = batch.coefficients[0, rows]
            values = coefficients.round()
            values[:, :1] = root_inverse(root_forward(coefficients[:, :1]).round())
            before = torch.cat([torch.zeros_like(values[:1]), values[:-1]])
            all_seen = torch.from_numpy(seen(values.numpy(), before.numpy(), levels[rows]))
            found.append(Shown(coefficients, values, before, batch.levels[0, rows][:, :, None, None], all_seen))
    return found
