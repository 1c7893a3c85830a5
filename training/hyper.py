"""The hyper-latents' network, trained in floats, as it flies: 8-bit weights and activations (post-training
quantisation, Nagel et al., A White Paper on Neural Network Quantization, arXiv 2106.08295, §3: ranges from data, a
scale to each channel).

Its inputs are the integers of `encoder_node.encoder.loudness`. Every sum is an integer below 2^24 carried in float32,
scales are powers of two, so that onnxruntime and the native loops give the same hyper-latents.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downlink.context import LEVELS_PER_OCTAVE
from encoder_node.encoder import LOUD_PER_OCTAVE, SIGNED, loudness
from training.config import ConfigError
from training.corpus import Batch
from training.integer import EXACT, WEIGHT_LIMIT
from training.model import ACTIVATION_LIMIT, HYPER_LIMIT, HyperAnalysis, PlaneCodec

_TOP = 0.9999
"""Share of activations that the 8 bits must hold; louder ones are clipped."""
_SHIFT_MOST = 16


def units(latents: int, subbands: int) -> Tensor:
    """What one stands for in each channel of `loudness`, in what `HyperAnalysis.known` shows: (channels)."""
    loud = torch.full((latents,), 1 / LOUD_PER_OCTAVE)
    return torch.cat([loud, 2 * loud[:SIGNED], torch.full((subbands,), 0.25 / LEVELS_PER_OCTAVE)])


class IntegerHyper(nn.Module):
    """`HyperAnalysis` in integers: loudness (n, channels, h, w) -> hyper-latents (n, latents, h / 4, w / 4)."""

    def __init__(self, analysis: HyperAnalysis, samples: list[Tensor]) -> None:
        """`samples` are loudnesses, whose activations set the scales. Raises ConfigError where sums would not be
        exact."""
        super().__init__()
        layers = [analysis.first, analysis.second, analysis.last]
        loudest = float(max(float(sample.abs().max()) for sample in samples))
        scale = 1 / units(samples[0].shape[1] - SIGNED - 4, 4)  # of each input channel: integers to one
        shown = [sample / scale[None, :, None, None] for sample in samples]
        shifts = []
        for number, layer in enumerate(layers):
            real = layer.weight.detach() / scale[None, :, None, None]
            shown = [layer(one) for one in shown]
            if number < 2:
                shown = [F.relu(one) for one in shown]
                every = torch.cat([one.transpose(0, 1).flatten(1) for one in shown], dim=1)
                top = every.sort(dim=1).values[:, int(_TOP * (every.shape[1] - 1))]
                scale = ACTIVATION_LIMIT / top.clamp(min=0.05)
            else:
                scale = torch.ones(len(real))
            largest = (real * scale[:, None, None, None]).abs().amax(dim=(1, 2, 3))
            shift = min(_SHIFT_MOST, int(torch.log2(WEIGHT_LIMIT / largest.median()).floor()) + 1)
            if number < 2:  # channels whose weights would not fit have coarser activations
                scale = scale * (WEIGHT_LIMIT / 2.0**shift / largest).clamp(max=1)
            else:
                shift = int(torch.log2(WEIGHT_LIMIT / largest.max()).floor())
            weight = (real * scale[:, None, None, None] * 2.0**shift).round()
            half = 2.0 ** (shift - 1)
            bias = (layer.bias.detach() * scale * 2.0**shift + half).round()  # floor then rounds to the nearest
            bound = float((weight.abs().sum(dim=(1, 2, 3)) * max(loudest, ACTIVATION_LIMIT) + bias.abs()).max())
            if bound >= EXACT or shift < 1:
                raise ConfigError(
                    f"hyper-latents' layer {number}: sums may reach {bound:.0f} at shift {shift}, exact float32 "
                    f"integers end at {EXACT:.0f}; train with a smaller hyper_width"
                )
            self.register_buffer(f"weight_{number}", weight)
            self.register_buffer(f"bias_{number}", bias)
            shifts.append(shift)
        self.shifts = tuple(shifts)

    def forward(self, loudness: Tensor) -> Tensor:
        x = loudness
        for number, shift in enumerate(self.shifts):
            strides = {"stride": 2, "padding": 1} if number < 2 else {}
            weight, bias = getattr(self, f"weight_{number}"), getattr(self, f"bias_{number}")
            x = torch.floor(F.conv2d(x, weight, bias, **strides) * 2.0**-shift)
            low, high = (0, ACTIVATION_LIMIT) if number < 2 else (-HYPER_LIMIT, HYPER_LIMIT)
            x = torch.clamp(x, float(low), float(high))
        return x


def loudnesses(codec: PlaneCodec, batches: list[Batch]) -> list[tuple[Tensor, Tensor]]:
    """Of the live planes of each batch: (loudness, hyper-latents in floats)."""
    found = []
    for batch in batches:
        levels = batch.levels[0].numpy().astype(np.uint8)
        rows = np.flatnonzero(levels.max(axis=1) > 0)
        if len(rows):
            coefficients, live = batch.coefficients[0, rows], levels[rows]
            level = torch.from_numpy(live.astype(np.float32))[:, :, None, None]
            with torch.no_grad():
                hyper = codec.hyper(coefficients, level)
            found.append((torch.from_numpy(loudness(coefficients.numpy()[None], live)), hyper))
    return found
