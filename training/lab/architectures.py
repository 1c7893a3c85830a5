"""The one model builder: an autoencoder is a stack of stages, each with its own way back.

    x -> stage 1 -> … -> stage n -> code -> stage n back -> … -> stage 1 back -> x'

No hidden stage and no activation: PCA's linear autoencoder. Dense stages: the classical deep autoencoder. Convolutional
stages (3 x 3, pooling; transposed convolution back): every stage halves the sides. Tied stages use one weight for both
ways. Inputs are centred band by band and divided by one number (so PCA stays PCA), outputs brought back; both are part
of the network. Patches are (n, bands, side, side); dense stages see them flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import ConfigError
from training.lab.config import Network

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "sigmoid": torch.sigmoid}


class DenseStage(nn.Module):
    """A matrix there and a matrix back; or one matrix and its transpose."""

    def __init__(self, inputs: int, outputs: int, tied: bool) -> None:
        super().__init__()
        self.there = nn.Linear(inputs, outputs)
        self.back = None if tied else nn.Linear(outputs, inputs)
        self.bias = nn.Parameter(torch.zeros(inputs)) if tied else None

    def encode(self, x: Tensor) -> Tensor:
        out: Tensor = self.there(x)
        return out

    def decode(self, h: Tensor) -> Tensor:
        out: Tensor = F.linear(h, self.there.weight.T, self.bias) if self.back is None else self.back(h)
        return out


class ConvStage(nn.Module):
    """3 x 3 convolution and 2 x 2 average pooling there, a transposed convolution back."""

    def __init__(self, inputs: int, outputs: int, tied: bool) -> None:
        super().__init__()
        if tied:
            raise ConfigError("network.tied: pooling has no transpose among convolutional stages; use dense ones")
        self.there = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.back = nn.ConvTranspose2d(outputs, inputs, 4, stride=2, padding=1)

    def encode(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.there(x), 2)

    def decode(self, h: Tensor) -> Tensor:
        out: Tensor = self.back(h)
        return out


STAGES: dict[str, Any] = {"dense": DenseStage, "convolutional": ConvStage}


@dataclass(frozen=True)
class Pass:
    """What one way through gave; penalties see all of it."""

    network: AutoEncoder
    seen: Tensor
    """The input, corrupted if the trial says so."""
    target: Tensor
    output: Tensor
    code: Tensor
    """What the decoder saw."""
    mean: Tensor
    log_variance: Tensor | None


class AutoEncoder(nn.Module):
    """See the module. `shape` is a patch's (bands, side, side)."""

    def __init__(self, config: Network, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.flat = config.architecture == "dense"
        first = shape[0] * shape[1] * shape[2] if self.flat else shape[0]
        sizes = [first, *config.widths, config.code]
        make = STAGES[config.architecture]
        self.stages = nn.ModuleList(make(a, b, config.tied) for a, b in pairwise(sizes))
        self.spread = make(sizes[-2], config.code, False).there if config.variational else None
        self.hidden, self.squash = ACTIVATIONS[config.activation], ACTIVATIONS[config.code_activation]
        self.finish = ACTIVATIONS[config.output]
        self.register_buffer("centre", torch.zeros(shape[0], 1, 1))
        self.register_buffer("unit", torch.ones(()))

    def look_at(self, patches: Tensor) -> None:
        """Take centre and unit from training patches."""
        self.centre: Tensor = patches.mean(dim=(0, 2, 3))[:, None, None]
        self.unit: Tensor = (patches - self.centre).std()

    def entered(self, x: Tensor) -> Tensor:
        """Patches as the first stage takes them."""
        x = (x - self.centre) / self.unit
        return x.flatten(1) if self.flat else x

    def left(self, x: Tensor) -> Tensor:
        """What the last way back gives, as patches."""
        x = x.view(-1, *self.shape) if self.flat else x
        return x if self.config.output == "sigmoid" else x * self.unit + self.centre

    def encode_stage(self, number: int, x: Tensor) -> Tensor:
        """Stage `number` with its activation."""
        stage: Any = self.stages[number]
        after = self.squash if number == len(self.stages) - 1 else self.hidden
        out: Tensor = after(stage.encode(x))
        return out

    def decode_stage(self, number: int, h: Tensor) -> Tensor:
        """The way back through stage `number`."""
        stage: Any = self.stages[number]
        out: Tensor = (self.hidden if number else self.finish)(stage.decode(h))
        return out

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patches (n, bands, side, side) -> code (its mean), and the logarithm of its variance if it has one."""
        x = self.entered(x)
        for number in range(len(self.stages) - 1):
            x = self.encode_stage(number, x)
        mean = self.encode_stage(len(self.stages) - 1, x)
        if self.spread is None:
            return mean, None
        spread = self.spread(x)
        return mean, (spread if self.flat else F.avg_pool2d(spread, 2)).clamp(-12.0, 6.0)

    def encode(self, x: Tensor) -> Tensor:
        return self.moments(x)[0]

    def decode(self, code: Tensor) -> Tensor:
        for number in reversed(range(len(self.stages))):
            code = self.decode_stage(number, code)
        return self.left(code)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Pass:
        mean, log_variance = self.moments(x)
        code = mean
        if log_variance is not None and self.training:
            code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return Pass(self, x, x if target is None else target, self.decode(code), code, mean, log_variance)


def build(config: Network, shape: tuple[int, int, int]) -> AutoEncoder:
    """The autoencoder that a configuration describes. ConfigError where patch and stages do not fit."""
    stages = len(config.widths) + 1
    if config.architecture == "convolutional" and shape[1] % 2**stages:
        raise ConfigError(f"patches.side {shape[1]} is not divisible by {2**stages}, as {stages} stages need")
    return AutoEncoder(config, shape)


class Corrector(nn.Module):
    """What is made better on the ground: a guess, corrected from all that is known, at full resolution.

    known (n, inputs, h, w) -> (n, outputs, h, w), to be added to the guess; zero before training. Residual blocks of
    3 x 3 convolutions; sees `2 * blocks + 2` pixels around.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.leave = nn.Conv2d(width, outputs, 3, padding=1)
        self.halo = 2 * blocks + 2
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, known: Tensor) -> Tensor:
        x = F.relu(self.enter(known))
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.leave(F.relu(x))
        return out


def principal_components(patches: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, directions (count, values), variances (all)) of patches, by the eigenvectors of their covariance."""
    flat = patches.flatten(1).double()
    mean = flat.mean(dim=0)
    centred = flat - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
    return mean.float(), vectors.flip(1)[:, :count].T.float(), variances.flip(0).clamp(min=0).float()


def set_principal(network: AutoEncoder, patches: Tensor) -> None:
    """Make a linear autoencoder of one stage what gradient descent would end at: the projection on the first principal
    components (Baldi, Hornik 1989)."""
    config = network.config
    if len(network.stages) != 1 or not network.flat or config.tied or config.code_activation != "none":
        raise ConfigError("closed_form: only a linear autoencoder of one untied dense stage has one")
    mean, directions, _ = principal_components(patches, config.code)
    mean = network.entered(mean.view(1, *network.shape))[0]
    stage: Any = network.stages[0]
    with torch.no_grad():
        stage.there.weight.copy_(directions)
        stage.there.bias.copy_(-directions @ mean)
        stage.back.weight.copy_(directions.T)
        stage.back.bias.copy_(mean)
