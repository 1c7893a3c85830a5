"""A perceptual decoder: what a low-rate stream decodes to, made to look like imagery again.

Encoder and stream are the released bundle's, unchanged: pairs are scenes and what both real nodes made of them at a low
quality. The network corrects decoded pixels; an adversary of 3 x 3 convolutions looks at patches (least squares, Mao et
al. 2017; patches, Isola et al. 2017). `options.adversarial` 0 leaves the squared error alone: the best PSNR, and blur.
What it adds is invented: its products are labelled so that nobody measures on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoder_node.target import Target
from training.lab.figures import frechet, in_dn, psnr
from training.lab.nodes import through
from training.lab.pictures import shown, strip
from training.lab.places import BANDS, Pixels
from training.lab.tasks.enhance import DETAIL, Enhance, Enhancer, blurred
from training.lab.trial import PERCENT

SIDE = 96
SCENES = {"train": 36, "validation": 4, "test": 10}


class Adversary(nn.Module):
    """Patches' details (n, 12, h, w) -> how real each neighbourhood looks (n, 1, h / 4, w / 4)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(len(BANDS), width, 3, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(DETAIL * (x - blurred(x, 9)))
        return out


class Both(nn.Module):
    """The decoder's network and its adversary, for one optimiser; called, it is the decoder's."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.made, self.adversary = Enhancer(len(BANDS), len(BANDS), width, blocks), Adversary()

    def forward(self, known: Tensor) -> Tensor:
        out: Tensor = self.made(known)
        return out


_decoded: dict[tuple[str, str, float], list[tuple[Pixels, Pixels]]] = {}


class Task(Enhance):
    """See the module."""

    def prepare(self) -> None:
        super().prepare()
        self.validations = 0
        torch.manual_seed(self.trial.seed)
        self.module = Both(self.trial.options.get("width", 24), self.trial.options.get("blocks", 2))

    def scenes(self, split: str) -> list[tuple[Pixels, Pixels]]:
        """(scene, what the nodes made of it) in DN; once per process."""
        quality = float(self.trial.options["quality"])
        key = (self.places.fingerprint, split, quality)
        if key not in _decoded:
            found = [place for place in getattr(self.places, split) if min(place.pixels.shape[1:]) >= 64]
            some = found[:: max(1, len(found) // SCENES[split])][: SCENES[split]]
            cuts = [place.pixels[:, :SIDE, :SIDE] for place in some]
            _decoded[key] = [(cut, through(cut, Target(quality=quality))[1]) for cut in cuts]
        return _decoded[key]

    def pairs(self, split: str, most: int) -> tuple[Tensor, Tensor]:
        random, side = np.random.default_rng(1), self.trial.patches.side
        known, owed = [], []
        for scene, decoded in self.scenes(split):
            for _ in range(self.trial.patches.per_place):
                top, left = (int(random.integers(size - side + 1)) for size in scene.shape[1:])
                at = slice(None), slice(top, top + side), slice(left, left + side)
                known.append(decoded[at] / self.places.scale)
                owed.append(scene[at] / self.places.scale)
        rows = random.permutation(len(known))[:most]
        return tuple(torch.from_numpy(np.stack(part)[rows]) for part in (known, owed))  # type: ignore[return-value]

    def loss(self, batch: Any, done: float) -> Tensor:
        """Squared error; from a third of the run on, also what the adversary thinks (its own weights held still), and
        the adversary's own loss on the same patches."""
        known, owed = batch
        made = self.module(known)
        loss = PERCENT * F.mse_loss(made, owed)
        weight = self.trial.options.get("adversarial", 0.0)
        if not weight or done < 1 / 3:
            return loss
        adversary: Any = self.module.adversary
        still = {name: value.detach() for name, value in adversary.named_parameters()}
        believed = torch.func.functional_call(adversary, still, (made,))
        real, false = adversary(owed), adversary(made.detach())
        return loss + weight * ((believed - 1) ** 2).mean() + ((real - 1) ** 2).mean() + (false**2).mean()

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Against an adversary the last weights count: its judgement is no score."""
        self.validations += 1
        found = super().validate(module)
        return found | {"score": -float(self.validations)} if self.trial.options.get("adversarial") else found

    def looks_real(self, module: nn.Module) -> dict[str, float]:
        """PSNR, and the Fréchet distance of 8 x 8 details from real ones, with and without the network."""
        known, owed = self.pairs("test", 400)
        made = self.enhanced(module, known)

        def details(x: Tensor) -> Tensor:
            high = x - blurred(x, 9)
            return high.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)

        return {
            "psnr_db": psnr(in_dn(self, made - owed)), "plain_psnr_db": psnr(in_dn(self, known - owed)),
            "distance": frechet(details(self.owed), details(owed), details(made), 32),
            "plain_distance": frechet(details(self.owed), details(owed), details(known), 32),
        }  # fmt: skip

    @staticmethod
    def looks(tasks: dict[str, Any], scene: Pixels) -> Any:
        """The scene, its low-rate stream decoded, and what each network makes of that."""
        cut = scene[:, 256:384, 640:768]
        pictures = {"scene": shown(cut, cut)}
        for name, task in tasks.items():
            quality = float(task.trial.options["quality"])
            decoded = through(cut, Target(quality=quality))[1]
            known = torch.from_numpy(decoded / task.places.scale)[None].float()
            made = task.enhanced(task.module, known)[0].numpy() * task.places.scale
            pictures |= {f"decoded, quality {quality:g}": shown(decoded, cut), name: shown(made, cut)}
        return strip(pictures)
