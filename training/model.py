"""The plane codec: what is learned, shared by all decorrelated planes of all sensors.

    coefficients x of a plane (8 x 8 DCT of the bands, KLT per subband, root DCT of the block means, in steps)
    x -> round -> q      x -> HyperAnalysis -> z -> round
    z, q of earlier subbands, neighbours and planes -> Prior (integers) -> scale index, mean -> bits of q
    q -> Synthesis -> x'

The transform is closed form (the linear autoencoder's own solution, adapted to the scene), so the encoder is light:
besides it, only HyperAnalysis and Prior fly. Synthesis stays on the ground and starts as the identity: training begins
as a good linear transform codec and only improves.

Shapes: coefficients and latents (n, 64, height / 8, width / 8), root and hyper-latents (n, 16 and 8, height / 32, width
/ 32), levels (n, 4): one per subband, 0 = nothing of it is sent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downlink.context import COMPAND_TABLE, LEVEL_ZERO, LEVELS_PER_OCTAVE
from downlink.dct import ROOT_CHANNELS, SUBBANDS
from training.config import Model
from training.integer import IntegerConv, straight_round

HYPER = 4
"""Latents per hyper-latent along a side."""
ACTIVATION_LIMIT = 255
HYPER_LIMIT = 31
MEAN_LIMIT = 2047
INDEX_LIMIT = 95
TRUST_LIMIT = 31
SOFT_LIMIT = 64.0
MEAN_UNIT = 8.0
"""Means are sent to the entropy coder in eighths."""
MEANS = (1, 3, 0, 0)
"""Per subband: how many means, and …"""
TRUSTS = (1, 2, 0, 0)
"""… how many trusts in predictions from neighbours the network gives beside its scale indices."""
TRUST_SHIFTS = (4, 7)
FLAG = 32.0
"""How a phase is told to the networks: an input of this size."""


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


class HyperAnalysis(nn.Module):
    """Latents of a tile's core -> hyper-latents: how loud each 32 x 32 neighbourhood is, and where its low
    frequencies lie."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.first = nn.Conv2d(config.latents + 8, config.hyper_width, 3, 2, 1)
        self.second = nn.Conv2d(config.hyper_width, config.hyper_width, 3, 2, 1)
        self.last = nn.Conv2d(config.hyper_width, config.hyper_latents, 1)

    @staticmethod
    def known(latents: Tensor, level: Tensor) -> Tensor:
        """What it sees (n, latents + 8, h, w); on board it is `training.hyper.IntegerHyper`, which sees
        encoder_node.encoder.loudness."""
        signed = log_magnitude(latents)
        expected = ((level - LEVEL_ZERO) * (0.25 / LEVELS_PER_OCTAVE)) + torch.zeros_like(signed[:, :4])
        return torch.cat([signed.abs(), signed[:, :4], expected], dim=1)

    def forward(self, latents: Tensor, level: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(self.known(latents, level)))))
        return self.last(x).float().clamp(-HYPER_LIMIT, HYPER_LIMIT)


class Features(nn.Module):
    """Hyper-latents -> features in integers, at their own and at the latents' resolution."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        wide = config.hyper_width
        self.spread = IntegerConv(config.hyper_latents, wide, 3, 0, ACTIVATION_LIMIT)
        self.unfold = IntegerConv(wide, config.prior_features * HYPER * HYPER, 1, 0, ACTIVATION_LIMIT)

    def forward(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        coarse = self.spread(hyper * 8.0)
        return coarse, F.pixel_shuffle(self.unfold(coarse), HYPER)


def symbol_channels(subband: int) -> int:
    """Channels coded in a subband: the root's for the block means, else its own."""
    at = channels(subband)
    return ROOT_CHANNELS if subband == 0 else at.stop - at.start


def known_channels(config: Model, subband: int) -> int:
    """Channels of a subband network's input: energy, smoothed energy and neighbours of its own channels, magnitudes of
    all earlier channels and those smoothed, two flags of the phase, predictions, features, levels."""
    own, at = symbol_channels(subband), channels(subband)
    predictions = (2, 2, 0, 0)[subband]
    features = config.hyper_width if subband == 0 else config.prior_features
    return 3 * own + 2 * at.start + 2 + predictions + features + len(SUBBANDS)


class Expect(nn.Module):
    """One subband of the prior: what is known of a symbol -> scale index (0..95) of each channel, means (eighths),
    trusts. Pointwise: known (n, K, h, w) -> (n, outputs, h, w), all integers, any h and w."""

    def __init__(self, config: Model, subband: int) -> None:
        super().__init__()
        self.subband, self.outputs = subband, symbol_channels(subband)
        self.inputs = known_channels(config, subband)
        self.skip = self.inputs - 3 * self.outputs - 2 * channels(subband).start
        """Inputs that reach the head directly: flags, predictions, features, levels."""
        width = config.prior_widths[subband]
        self.hidden = IntegerConv(self.inputs, width, 1, 0, ACTIVATION_LIMIT)
        outputs = self.outputs + MEANS[subband] + TRUSTS[subband]
        self.head = IntegerConv(width + self.skip, outputs, 1, -MEAN_LIMIT, MEAN_LIMIT)
        nn.init.normal_(self.head.weight, std=0.02)

    def seed(self, relative: Tensor) -> None:
        """Start with the index that a channel of this deviation (relative to its subband's) has when nothing else is
        known."""
        with torch.no_grad():
            index = 4.0 * torch.log2(relative.clamp(min=1e-3) / 0.11) + 1.0 - LEVEL_ZERO
            self.head.bias[: self.outputs] = index
            self.head.weight[: self.outputs, self.subband - len(SUBBANDS)] = 1.0
            self.head.weight[self.outputs :] *= 0.2
            if TRUSTS[self.subband]:
                self.head.bias[-TRUSTS[self.subband] :] = 14.0

    def forward(self, known: Tensor) -> Tensor:
        out = self.head(torch.cat([self.hidden(known), known[:, -self.skip :]], dim=1))
        means = self.outputs + MEANS[self.subband]
        parts = [out[:, : self.outputs].clamp(0, INDEX_LIMIT)]
        if MEANS[self.subband]:
            parts += [out[:, self.outputs : means], out[:, means:].clamp(0, TRUST_LIMIT)]
        return torch.cat(parts, dim=1)


class Prior(nn.Module):
    """The integer network: what is known -> scale index and mean of every symbol. Causal by construction: a subband is
    wired only to hyper-latents, to earlier subbands of its own plane, to neighbours of earlier phases and to the planes
    before. All inputs and outputs are integers carried in float32."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.features = Features(config)
        self.subbands = nn.ModuleList(Expect(config, number) for number in range(len(SUBBANDS)))

    def seed(self, root: Tensor, latent: Tensor) -> None:
        """Relative deviations of root channels (16) and of all channels (64)."""
        for number, one in enumerate(self.subbands):
            assert isinstance(one, Expect)
            one.seed(latent[channels(number)] if number else root)


def steps_around(values: Tensor) -> Tensor:
    """How much higher the block means above, below, left and right are, softened: (n, 4, h, w). Between large means the
    logarithm loses what deblocking needs most."""
    mean = values[:, :1]
    edge = F.pad(mean, (1, 1, 1, 1), mode="replicate")
    around = (edge[..., :-2, 1:-1], edge[..., 2:, 1:-1], edge[..., 1:-1, :-2], edge[..., 1:-1, 2:])
    return soften(torch.cat(around, dim=1) - mean) * 0.25


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
        self.enter = nn.Conv2d(3 * latents + len(SUBBANDS) + 4, width, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.decoder_blocks))
        self.correct = nn.Conv2d(width, latents, 1)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)  # type: ignore[arg-type]

    def forward(self, symbols: Tensor, before: Tensor, level: Tensor) -> Tensor:
        plane = (level / 32.0 - 1.0) + torch.zeros_like(symbols[:, : len(SUBBANDS)])
        known = [log_magnitude(symbols), log_magnitude(before), soften(symbols) * 0.125, plane, steps_around(symbols)]
        x = self.enter(torch.cat(known, dim=1))
        for block in self.blocks:
            x = block(x)
        return symbols + self.correct(x).float() * alive(level)


class PlaneCodec(nn.Module):
    """All parts, joined for training."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        self.hyper, self.prior, self.synthesis = HyperAnalysis(config), Prior(config), Synthesis(config)
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
