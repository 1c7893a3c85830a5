"""The plane codec: one small convolutional autoencoder shared by all decorrelated planes of all sensors.

    planes u (in units of the step) -> Analysis -> y -> round -> q -> Synthesis -> u'
                                            q -> HyperAnalysis -> z -> round
    z, q of earlier groups, q of earlier planes -> Prior (integers) -> scale index, mean -> bits of q

Analysis is light (it flies), Synthesis is heavier (it stays on the ground). Both start as the patch-PCA of the planes
with zero-initialised corrections: training begins as a linear transform codec and only improves.

Shapes: pixels (n, 1, height, width), latents (n, 64, height / 8, width / 8), hyper-latents (n, 8, height / 32, width
/ 32).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downlink.context import COMPAND_TABLE, ENERGY_DECAY, LEVEL_ZERO, LEVELS_PER_OCTAVE
from training.config import Model
from training.integer import IntegerConv, IntegerSmooth, straight_round

PATCH = 8
HYPER = 4
"""Latents per hyper-latent along a side."""
HALO = 8
"""Pixels beyond a tile's core that Analysis must see: one latent for its 3x3 convolution."""
ACTIVATION_LIMIT = 255
HYPER_LIMIT = 31
MEAN_LIMIT = 2047
INDEX_LIMIT = 95
SOFT_LIMIT = 64.0
MEAN_UNIT = 8.0
"""Means are sent to the entropy coder in eighths."""


def soften(x: Tensor) -> Tensor:
    """x / (1 + |x| / 64): nearly x among ordinary latents, bounded among huge ones, so that corrections are bounded
    too and a codec trained at some rates stays a good linear transform codec at all finer ones."""
    return x / (1.0 + x.abs() * (1.0 / SOFT_LIMIT))


def log_magnitude(x: Tensor) -> Tensor:
    """Signed logarithm sign(x) log2(1 + |x|): latents span six orders of magnitude between rates."""
    return torch.sign(x) * torch.log2(1.0 + x.abs())


class Analysis(nn.Module):
    """Pixels with halo -> latents: patch basis, then a residual correction by one 3x3 and one 1x1 convolution."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, config.latents, PATCH, PATCH, bias=False)
        self.see = nn.Conv2d(config.latents, config.encoder_width, 3)
        self.correct = nn.Conv2d(config.encoder_width, config.latents, 1)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):  # large values: bfloat16 would lose whole steps
            linear = self.patch(pixels)
        correction = self.correct(F.relu(self.see(soften(linear))))
        return linear[:, :, 1:-1, 1:-1] + correction.float()


class HyperAnalysis(nn.Module):
    """Latents of a tile's core -> hyper-latents: how loud each 32 x 32 neighbourhood is, and where its low
    frequencies lie."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.first = nn.Conv2d(config.latents + 4, config.hyper_width, 3, 2, 1)
        self.second = nn.Conv2d(config.hyper_width, config.hyper_width, 3, 2, 1)
        self.last = nn.Conv2d(config.hyper_width, config.hyper_latents, 1)

    def forward(self, latents: Tensor, level: Tensor) -> Tensor:
        signed = log_magnitude(latents)
        expected = ((level - LEVEL_ZERO) / LEVELS_PER_OCTAVE).view(-1, 1, 1, 1)
        x = torch.cat([signed.abs(), signed[:, :4]], dim=1) - 0.25 * expected
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.last(x).float().clamp(-HYPER_LIMIT, HYPER_LIMIT)


class Prior(nn.Module):
    """The integer network: what is known -> scale index (0..95) and mean (eighths) of every latent symbol.

    Causal by construction: the head of a group is wired only to hyper-latents, to earlier groups of its own plane and
    to this and earlier groups of the planes before. All inputs and outputs are integers carried in float32.
    """

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.groups, self.features = config.groups, config.prior_features
        wide = config.hyper_width
        self.spread = IntegerConv(config.hyper_latents, wide, 3, 0, ACTIVATION_LIMIT)
        self.unfold = IntegerConv(wide, config.prior_features * HYPER * HYPER, 1, 0, ACTIVATION_LIMIT)
        self.smooth_energy = IntegerSmooth(config.latents)
        self.smooth_own = nn.ModuleList(IntegerSmooth(start) for start in (0, *config.groups[:-1]) if start)
        self.hidden, self.heads = nn.ModuleList(), nn.ModuleList()
        start = 0
        for end, width in zip(config.groups, config.prior_widths, strict=True):
            inputs = 2 * start + 3 * end + config.prior_features + 1
            self.hidden.append(IntegerConv(inputs, width, 1, 0, ACTIVATION_LIMIT))
            self.heads.append(
                IntegerConv(width + config.prior_features + 1, 2 * (end - start), 1, -MEAN_LIMIT, MEAN_LIMIT)
            )
            start = end
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.02)

    def seed(self, relative_deviation: Tensor) -> None:
        """Start with the index that a channel of this deviation (relative to its plane) has when nothing else is
        known."""
        start = 0
        with torch.no_grad():
            for head, end in zip(self.heads, self.groups, strict=True):
                assert isinstance(head, IntegerConv)
                count = end - start
                index = 4.0 * torch.log2(relative_deviation[start:end].clamp(min=1e-3) / 0.11) + 1.0 - LEVEL_ZERO
                head.bias[:count] = index
                head.weight[:count, -1] = 1.0
                head.weight[count:] *= 0.2
                start = end

    def forward(
        self, hyper: Tensor, own: Tensor, before: Tensor, energy: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hyper (n, 8, h/4, w/4), own/before/energy companded (n, 64, h, w), level (n, 1, 1, 1) -> index, mean (n,
        64, h, w)."""
        features = F.pixel_shuffle(self.unfold(self.spread(hyper * 8.0)), HYPER)
        plane = level + torch.zeros_like(features[:, :1])
        smooth_energy = self.smooth_energy(energy)
        indices, means = [], []
        start = 0
        for group, end in enumerate(self.groups):
            known = [energy[:, :end], smooth_energy[:, :end], before[:, :end], features, plane]
            if start:
                magnitude = own[:, :start].abs()
                known += [magnitude, self.smooth_own[group - 1](magnitude)]
            hidden = self.hidden[group](torch.cat(known, dim=1))
            out = self.heads[group](torch.cat([hidden, features, plane], dim=1))
            count = end - start
            indices.append(out[:, :count].clamp(0, INDEX_LIMIT))
            means.append(out[:, count:])
            start = end
        return torch.cat(indices, dim=1), torch.cat(means, dim=1)


class Block(nn.Module):
    """Residual block of the synthesis: 3x3, ReLU, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.see = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.relu(self.see(x)))


class Synthesis(nn.Module):
    """Symbols of a plane and of the plane before -> pixels: a bounded correction of the latents, then the inverse
    patch basis.

    The inverse basis is not learned but computed from the analysis: what the encoder's linear part does is undone
    exactly.
    """

    def __init__(self, config: Model) -> None:
        super().__init__()
        width, latents = config.decoder_width, config.latents
        self.enter = nn.Conv2d(3 * latents + 1, width, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.decoder_blocks))
        self.correct = nn.Conv2d(width, latents, 1)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)  # type: ignore[arg-type]

    def forward(self, symbols: Tensor, before: Tensor, level: Tensor, inverse: Tensor) -> Tensor:
        """`inverse` (64, 1, 8, 8) is `PlaneCodec.inverse_patch()`."""
        plane = (level / 32.0 - 1.0) + torch.zeros_like(symbols[:, :1])
        known = [log_magnitude(symbols), log_magnitude(before), soften(symbols) * 0.125, plane]
        x = self.enter(torch.cat(known, dim=1))
        for block in self.blocks:
            x = block(x)
        correction = self.correct(x).float()
        with torch.autocast(symbols.device.type, enabled=False):
            return F.conv_transpose2d(symbols + correction, inverse, stride=PATCH)


class PlaneCodec(nn.Module):
    """All parts, joined for training."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        self.analysis, self.hyper = Analysis(config), HyperAnalysis(config)
        self.prior, self.synthesis = Prior(config), Synthesis(config)
        self.hyper_base = nn.Parameter(torch.full((config.hyper_latents,), 8.0))
        self.hyper_slope = nn.Parameter(torch.full((config.hyper_latents,), 0.02))
        table = torch.from_numpy(COMPAND_TABLE.astype("float32"))
        self.register_buffer("compand_table", table, persistent=False)

    def start_from(self, basis: Tensor, relative_deviation: Tensor) -> None:
        """Warm start: basis (64, 8, 8) orthonormal patches by falling variance, deviation of each relative to the
        plane's."""
        with torch.no_grad():
            self.analysis.patch.weight.copy_(basis[:, None])
        self.prior.seed(relative_deviation)

    def inverse_patch(self) -> Tensor:
        """Weights (64, 1, 8, 8) of the transposed convolution that undoes the analysis' patch convolution."""
        size = PATCH * PATCH
        basis = self.analysis.patch.weight.reshape(size, size)
        return torch.linalg.inv(basis).t().reshape(size, 1, PATCH, PATCH)

    def hyper_index(self, level: Tensor) -> Tensor:
        """Scale index of each hyper-latent channel for planes of these levels: (n, 8). Integer; the bundle ships it
        as a table."""
        slope = self.hyper_slope[None] * (level.view(-1, 1) - LEVEL_ZERO)
        return straight_round((self.hyper_base[None] + slope).clamp(1.0, 40.0))

    def compand(self, symbols: Tensor) -> Tensor:
        """downlink.context.compand on tensors (no gradient)."""
        last = self.compand_table.numel() - 1
        magnitude = self.compand_table[symbols.abs().clamp(max=last).long()]
        return torch.where(symbols < 0, -magnitude, magnitude)

    def contexts(self, symbols: Tensor, planes: int) -> tuple[Tensor, Tensor, Tensor]:
        """own, before, energy as downlink.context makes them, for symbols (crops * planes, 64, h, w) ordered
        crop-major."""
        own = self.compand(symbols)
        stacked = own.view(-1, planes, *own.shape[1:])
        before = torch.cat([torch.zeros_like(stacked[:, :1]), stacked[:, :-1]], dim=1)
        energies = [torch.zeros_like(stacked[:, 0])]
        for p in range(1, planes):
            energies.append(torch.maximum(energies[-1] - ENERGY_DECAY, stacked[:, p - 1].abs()))
        energy = torch.stack(energies, dim=1)
        return own, before.reshape_as(own), energy.reshape_as(own)
