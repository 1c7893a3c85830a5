"""Sentinel-2's 20 m bands brought to 10 m, with the 10 m bands as guide.

Nobody has 20 m bands at 10 m to learn from, so pairs are made one octave lower (Wald's protocol, 1997; Lanaras et al.
2018): 10 m bands averaged to 20 m guide 20 m bands averaged to 40 m, and the true 20 m bands are owed. Measured the
same way on unseen places, against bicubic interpolation; used one octave higher. Only places whose 20 m bands are
stored 2 x 2 repeated are taken: interpolated ones have lost what is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import ConfigError
from training.lab.figures import psnr
from training.lab.pictures import shown, strip
from training.lab.places import TEN_METRES, TWENTY_METRES, Pixels, Place
from training.lab.tasks.enhance import Enhance, spectral_angle

RED_GREEN_BLUE = [5, 3, 0]
"""Of the 20 m bands, for pictures: B12, B8A, B05."""


def is_native(place: Place) -> bool:
    """Whether the 20 m bands are repeated 2 x 2 from the first pixel on."""
    pixels = place.pixels[list(TWENTY_METRES), : place.pixels.shape[1] // 2 * 2, : place.pixels.shape[2] // 2 * 2]
    return bool(np.array_equal(pixels[:, ::2, ::2], pixels[:, 1::2, 1::2]))


def bicubic(coarse: Tensor) -> Tensor:
    """Twice the resolution."""
    return F.interpolate(coarse, scale_factor=2, mode="bicubic", align_corners=False)


def known_of(fine: Tensor, coarse: Tensor) -> Tensor:
    """What the network is given: the interpolated coarse bands (6), then the fine ones (4), at the fine grid."""
    return torch.cat([bicubic(coarse), fine], dim=1)


class Task(Enhance):
    """See the module."""

    inputs, outputs = 10, 6

    def scales(self) -> tuple[Tensor, Tensor]:
        scale = torch.from_numpy(self.places.scale)
        return scale[list(TEN_METRES)], scale[list(TWENTY_METRES)]

    def octave_lower(self, place: Place, top: int, left: int, side: int) -> tuple[Tensor, Tensor]:
        """(known, owed) of a square of `side` 20 m pixels."""
        ten, twenty = self.scales()
        cut = torch.from_numpy(place.pixels[:, 2 * top : 2 * (top + side), 2 * left : 2 * (left + side)])[None]
        fine = F.avg_pool2d(cut[:, TEN_METRES], 2) / ten
        true = cut[:, TWENTY_METRES, ::2, ::2] / twenty
        return known_of(fine, F.avg_pool2d(true, 2))[0], true[0]

    def native(self, split: str) -> list[Place]:
        """Places whose 20 m bands are what the sensor saw. Hardly one of the validation places is: a tenth of those to
        train on is held out instead."""
        if split == "test":
            return [place for place in self.places.test if is_native(place)]
        held = split == "validation"
        return [
            place for place in self.places.train if is_native(place) and (sum(place.name.encode()) % 10 == 0) == held
        ]

    def pairs(self, split: str, most: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(1)
        side, known, owed = self.trial.patches.side, [], []
        for place in self.native(split):
            height, width = (size // 2 for size in place.pixels.shape[1:])
            if min(height, width) < side:
                continue
            for _ in range(min(self.trial.patches.per_place, height * width // side**2)):
                top, left = (int(random.integers(size - side + 1)) for size in (height, width))
                one = self.octave_lower(place, top, left, side)
                known.append(one[0])
                owed.append(one[1])
        if not known:
            raise ConfigError(f"super-resolution: no place for {split} has 20 m bands at their own resolution")
        rows = torch.from_numpy(random.permutation(len(known))[:most])
        return torch.stack(known)[rows], torch.stack(owed)[rows]

    def sharpened(self, module: nn.Module) -> dict[str, float]:
        """PSNR and spectral angle of unseen places, beside bicubic interpolation."""
        known, owed = self.pairs("test", 1000)
        made, plain = self.enhanced(module, known), known[:, : self.outputs]
        scale = self.scales()[1]

        def found(x: Tensor) -> float:
            return psnr(float((((x - owed) * scale) ** 2).mean()))

        return {
            "psnr_db": found(made), "plain_psnr_db": found(plain),
            "sam_deg": spectral_angle(made * scale, owed * scale),
            "plain_sam_deg": spectral_angle(plain * scale, owed * scale),
        }  # fmt: skip

    @staticmethod
    def sharpness(tasks: dict[str, Any], scene: Pixels) -> Any:
        """The scene at its true resolution: 20 m bands as stored, interpolated, and brought to 10 m."""
        cut = scene[:, 288:384, 672:768]
        pictures = {}
        for name, task in tasks.items():
            ten, twenty = task.scales()
            whole = torch.from_numpy(cut)[None]
            known = known_of(whole[:, TEN_METRES] / ten, whole[:, TWENTY_METRES, ::2, ::2] / twenty)
            stored, made = cut[list(TWENTY_METRES)], (task.enhanced(task.module, known)[0] * twenty).numpy()
            plain = (known[0, :6] * twenty).numpy()
            pictures |= {
                "as stored, 20 m": shown(stored, stored, RED_GREEN_BLUE),
                "bicubic": shown(plain, stored, RED_GREEN_BLUE),
                name: shown(made, stored, RED_GREEN_BLUE),
            }
        return strip(pictures)
