"""The plane codec: one small convolutional autoencoder shared by all decorrelated planes of all sensors.

    coefficients x of a plane (8 x 8 DCT of the bands, KLT per subband, in steps) -> Analysis -> y -> round -> q
    q -> Synthesis -> x'                      y -> HyperAnalysis -> z -> round
    z, q of earlier passes, q of earlier planes -> Prior (integers) -> scale index, mean -> bits of q

The transform is a linear transform codec of its own; Analysis (it flies) and Synthesis (it stays on the ground) are
bounded corrections that start at zero, so training begins as that codec and only improves. With Analysis left out
(`lite`) the streams decode all the same.

Shapes: coefficients and latents (n, 64, height / 8, width / 8), hyper-latents (n, 8, height / 32, width / 32), levels
(n, 4): one per subband, 0 = nothing of it is sent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downlink.context import COMPAND_TABLE, LEVEL_ZERO, LEVELS_PER_OCTAVE
from downlink.dct import SUBBANDS
from training.config import Model
from training.integer import IntegerConv, IntegerSmooth, straight_round

HYPER = 4
"""Latents per hyper-latent along a side."""
HALO = 1
"""Blocks beyond a tile's core that Analysis must see, for its 3x3 convolution."""
ACTIVATION_LIMIT = 255
HYPER_LIMIT = 31
MEAN_LIMIT = 2047
INDEX_LIMIT = 95
TRUST_LIMIT = 31
SOFT_LIMIT = 64.0
MEAN_UNIT = 8.0
"""Means are sent to the entropy coder in eighths."""
PASSES = (0, 0, 1, 2, 3)
"""Subband of each coding pass: the block means in two passes over a checkerboard, then the others."""
MEANS = (1, 1, 3, 0, 0)
"""How many means, and …"""
TRUSTS = (0, 1, 2, 0, 0)
"""… how many trusts in predictions from neighbours a pass's head gives beside its scale indices."""
BEFORE_PASSES = 4
"""Passes that look at the plane before; the last one, the most channels by far, makes do with the energy."""


def soften(x: Tensor) -> Tensor:
    """x / (1 + |x| / 64): nearly x among ordinary latents, bounded among huge ones, so that corrections are bounded
    too and a codec trained at some rates stays a good linear transform codec at all finer ones."""
    return x / (1.0 + x.abs() * (1.0 / SOFT_LIMIT))


def log_magnitude(x: Tensor) -> Tensor:
    """Signed logarithm sign(x) log2(1 + |x|): latents span six orders of magnitude between rates."""
    return torch.sign(x) * torch.log2(1.0 + x.abs())


def channels(subband: int) -> slice:
    """Channels of a subband."""
    return slice(SUBBANDS[subband - 1] if subband else 0, SUBBANDS[subband])


def alive(level: Tensor) -> Tensor:
    """Levels (n, 4, 1, 1) -> 1 for channels of subbands that are sent, 0 for others: (n, 64, 1, 1)."""
    sent = (level > 0).to(level.dtype)
    sizes = [end - start for start, end in zip((0, *SUBBANDS), SUBBANDS, strict=False)]
    return torch.cat([sent[:, b : b + 1].expand(-1, size, -1, -1) for b, size in enumerate(sizes)], dim=1)


class Analysis(nn.Module):
    """Coefficients with halo -> latents: a correction by one 3x3 and one 1x1 convolution."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.see = nn.Conv2d(config.latents, config.encoder_width, 3)
        self.correct = nn.Conv2d(config.encoder_width, config.latents, 1)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)  # type: ignore[arg-type]

    def forward(self, coefficients: Tensor, level: Tensor) -> Tensor:
        correction = self.correct(F.relu(self.see(soften(coefficients))))
        return coefficients[:, :, 1:-1, 1:-1] + correction.float() * alive(level)


class HyperAnalysis(nn.Module):
    """Latents of a tile's core -> hyper-latents: how loud each 32 x 32 neighbourhood is, and where its low
    frequencies lie."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.first = nn.Conv2d(config.latents + 8, config.hyper_width, 3, 2, 1)
        self.second = nn.Conv2d(config.hyper_width, config.hyper_width, 3, 2, 1)
        self.last = nn.Conv2d(config.hyper_width, config.hyper_latents, 1)

    def forward(self, latents: Tensor, level: Tensor) -> Tensor:
        signed = log_magnitude(latents)
        expected = ((level - LEVEL_ZERO) * (0.25 / LEVELS_PER_OCTAVE)) + torch.zeros_like(signed[:, :4])
        x = torch.cat([signed.abs(), signed[:, :4], expected], dim=1)
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.last(x).float().clamp(-HYPER_LIMIT, HYPER_LIMIT)


class Features(nn.Module):
    """Hyper-latents -> features at the latents' resolution, in integers."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        wide = config.hyper_width
        self.spread = IntegerConv(config.hyper_latents, wide, 3, 0, ACTIVATION_LIMIT)
        self.unfold = IntegerConv(wide, config.prior_features * HYPER * HYPER, 1, 0, ACTIVATION_LIMIT)

    def forward(self, hyper: Tensor) -> Tensor:
        return F.pixel_shuffle(self.unfold(self.spread(hyper * 8.0)), HYPER)


class Pass(nn.Module):
    """One coding pass of the prior: what is known -> scale index (0..95) of each of its channels, means (eighths),
    trusts.

    Inputs, all integers: features (n, F, h, w), level (n, 4, 1, 1), `energy` of its own channels, `own` companded
    magnitudes of all earlier channels, and `extra`: the plane before's own channels, then what neighbours say.
    """

    def __init__(self, config: Model, number: int) -> None:
        super().__init__()
        subband = PASSES[number]
        at = channels(subband)
        self.number, self.outputs = number, at.stop - at.start
        self.earlier = max(at.start, 1) if number else 0
        self.extras = extra_inputs(number)
        inputs = 2 * self.outputs + 2 * self.earlier + self.extras + config.prior_features + len(SUBBANDS)
        self.smooth_energy = IntegerSmooth(self.outputs)
        self.smooth_own = IntegerSmooth(self.earlier) if number else nn.Identity()
        width = config.prior_widths[number]
        self.hidden = IntegerConv(inputs, width, 1, 0, ACTIVATION_LIMIT)
        outputs = self.outputs + MEANS[number] + TRUSTS[number]
        self.head = IntegerConv(width + config.prior_features + len(SUBBANDS), outputs, 1, -MEAN_LIMIT, MEAN_LIMIT)
        nn.init.normal_(self.head.weight, std=0.02)

    def seed(self, relative_deviation: Tensor) -> None:
        """Start with the index that a channel of this deviation (relative to its subband) has when nothing else is
        known."""
        subband = PASSES[self.number]
        relative = relative_deviation[channels(subband)]
        with torch.no_grad():
            index = 4.0 * torch.log2(relative.clamp(min=1e-3) / 0.11) + 1.0 - LEVEL_ZERO
            self.head.bias[: self.outputs] = index
            self.head.weight[: self.outputs, subband - len(SUBBANDS)] = 1.0
            self.head.weight[self.outputs :] *= 0.2
            if TRUSTS[self.number]:
                self.head.bias[-TRUSTS[self.number] :] = 14.0

    def forward(self, features: Tensor, level: Tensor, energy: Tensor, own: Tensor, extra: Tensor) -> Tensor:
        plane = level + torch.zeros_like(features[:, : len(SUBBANDS)])
        known = [energy, self.smooth_energy(energy), features, plane]
        if self.earlier:
            known += [own, self.smooth_own(own)]
        if self.extras:
            known.append(extra)
        out = self.head(torch.cat([self.hidden(torch.cat(known, dim=1)), features, plane], dim=1))
        means = self.outputs + MEANS[self.number]
        parts = [out[:, : self.outputs].clamp(0, INDEX_LIMIT)]
        if means > self.outputs:
            parts.append(out[:, self.outputs : means])
        if TRUSTS[self.number]:
            parts.append(out[:, means:].clamp(0, TRUST_LIMIT))
        return torch.cat(parts, dim=1)


def extra_inputs(number: int) -> int:
    """Channels of a pass's `extra` input: the plane before, then near and its spread (pass 1) or the two slopes
    (pass 2)."""
    at = channels(PASSES[number])
    return (at.stop - at.start if number < BEFORE_PASSES else 0) + (2 if number in (1, 2) else 0)


class Prior(nn.Module):
    """The integer network: what is known -> scale index and mean of every latent symbol. Causal by construction: a
    pass is wired only to hyper-latents, to earlier passes of its own plane and to the planes before. All inputs and
    outputs are integers carried in float32."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.features = Features(config)
        self.passes = nn.ModuleList(Pass(config, number) for number in range(len(PASSES)))

    def seed(self, relative_deviation: Tensor) -> None:
        for one in self.passes:
            assert isinstance(one, Pass)
            one.seed(relative_deviation)


class Block(nn.Module):
    """Residual block of the synthesis: 3x3, ReLU, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.see = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.relu(self.see(x)))


class Synthesis(nn.Module):
    """Symbols of a plane and of the plane before -> coefficients: a bounded correction of the symbols."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        width, latents = config.decoder_width, config.latents
        self.enter = nn.Conv2d(3 * latents + len(SUBBANDS), width, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.decoder_blocks))
        self.correct = nn.Conv2d(width, latents, 1)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)  # type: ignore[arg-type]

    def forward(self, symbols: Tensor, before: Tensor, level: Tensor) -> Tensor:
        plane = (level / 32.0 - 1.0) + torch.zeros_like(symbols[:, : len(SUBBANDS)])
        known = [log_magnitude(symbols), log_magnitude(before), soften(symbols) * 0.125, plane]
        x = self.enter(torch.cat(known, dim=1))
        for block in self.blocks:
            x = block(x)
        return symbols + self.correct(x).float() * alive(level)


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

    def hyper_index(self, level: Tensor) -> Tensor:
        """Scale index of each hyper-latent channel for planes whose subband 1 has these levels (n): (n, 8). Integer;
        the bundle ships it as a table."""
        slope = self.hyper_slope[None] * (level.view(-1, 1) - LEVEL_ZERO)
        return straight_round((self.hyper_base[None] + slope).clamp(1.0, 40.0))

    def compand(self, symbols: Tensor) -> Tensor:
        """downlink.context.compand on tensors (no gradient)."""
        last = self.compand_table.numel() - 1
        magnitude = self.compand_table[symbols.abs().clamp(max=last).long()]
        return torch.where(symbols < 0, -magnitude, magnitude)
