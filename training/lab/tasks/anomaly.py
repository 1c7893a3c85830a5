"""Anomaly detection: what an autoencoder that knows ordinary patches makes of extraordinary ones.

Two scores of a patch: its reconstruction error, and the length of its code after the entropy coder (which a satellite
knows for free). Anomalies are planted in unseen patches (fires: hot pixels in the short-wave infrared; ships: bright
pixels; haze: a veil that no ground has) or real: clouds in the corpus, by the blue and short-wave infrared rule that
few_labels uses. `universal` scores with the real bytes of patches sent through the encoder node one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from downlink.table import Tables
from encoder_node.target import Target
from training.lab import entropy
from training.lab.heads import roc_auc
from training.lab.nodes import through
from training.lab.places import BANDS
from training.lab.tasks.few_labels import land_cover
from training.lab.trial import Reconstruct

NORMAL, PLANTED = 600, 200
BY_NODE = 40
"""Patches of each kind that go through the encoder node: it takes them one by one."""
NODE_SIDE = 32
CLOUD = 4


def fire(patches: Tensor, scale: Tensor, random: torch.Generator) -> Tensor:
    """Two by two pixels that glow at 1.6 and 2.2 micrometres: a fire that fills a small part of them."""
    out = patches.clone()
    side = out.shape[-1]
    for one in out:
        top, left = (int(torch.randint(side - 1, (1,), generator=random)) for _ in range(2))
        for band, glow in (("B11", 500.0), ("B12", 1000.0)):
            number = BANDS.index(band)
            one[number, top : top + 2, left : left + 2] += glow / scale[number]
    return out


def ship(patches: Tensor, scale: Tensor, random: torch.Generator) -> Tensor:
    """Three pixels in a row, bright in all bands."""
    out = patches.clone()
    side = out.shape[-1]
    for one in out:
        top, left = (int(torch.randint(side - 2, (1,), generator=random)) for _ in range(2))
        one[:, top, left : left + 3] += 700.0 / scale[:, 0]
    return out


def haze(patches: Tensor, scale: Tensor, random: torch.Generator) -> Tensor:
    """A veil of 10 % of reflectance in blue that falls to nothing in the infrared."""
    wavelength = torch.tensor([443.0, 492, 560, 665, 704, 741, 783, 833, 865, 945, 1614, 2202])
    veil = 1000.0 * (492.0 / wavelength) ** 4
    return patches + (veil[:, None, None] / scale)


KINDS = {"fire": fire, "ship": ship, "haze": haze}


def code_bits(tables: Tables, symbols: Any) -> Tensor:
    """Bits of each patch's symbols (n, channels) under the tables."""

    channels = symbols.shape[1]
    index = np.minimum(np.arange(1, channels + 1), entropy.CHANNELS_MOST).astype(np.uint8)
    zero = np.zeros(channels, np.int32)
    return torch.tensor([tables.cost_bits(row, index, zero) for row in symbols])


class Task(Reconstruct):
    """Training is reconstruction; anomalies are only measured."""

    def ordinary(self, side: int | None = None) -> tuple[Tensor, Tensor]:
        """Unseen patches: cloudless ones, and clouds."""
        size = self.trial.patches
        patches = self.places.patches("test", side or size.side, size.per_place, 4000, seed=1)
        cloud = land_cover(patches * torch.from_numpy(self.places.scale) / 10000) == CLOUD
        return patches[~cloud], patches[cloud]

    def detection(self, module: Any) -> dict[str, float]:
        """ROC-AUC of both scores, by kind of anomaly."""
        scale = torch.from_numpy(self.places.scale)
        normal, clouds = self.ordinary()
        half = min(NORMAL, len(normal) // 2)
        base, victims = normal[:half], normal[half : half + PLANTED]
        random = torch.Generator().manual_seed(6)
        sets = {name: plant(victims, scale, random) for name, plant in KINDS.items()}
        if len(clouds) >= 5:
            sets["cloud"] = clouds[:PLANTED]
        step = entropy.coded(module, self.patches[:2000], base).step
        with torch.no_grad():
            tables = entropy.tables_of(self._symbols(module, self.patches[:2000], step))
        out = {}
        quiet = self._scores(module, base, tables, step)
        for name, patches in sets.items():
            loud = self._scores(module, patches, tables, step)
            for score in quiet:
                both = torch.cat([quiet[score], loud[score]])
                positive = torch.arange(len(both)) >= len(quiet[score])
                out[f"auc_{name}_{score}"] = roc_auc(both, positive)
        return out

    def _symbols(self, module: Any, patches: Tensor, step: float) -> Any:
        return (module.encode(patches).flatten(1) / step).round().int().numpy()

    def _scores(self, module: Any, patches: Tensor, tables: Tables, step: float) -> dict[str, Tensor]:
        with torch.no_grad():
            error = (module(patches).output - patches).abs().amax(dim=(1, 2, 3))
            return {"error": error, "bits": code_bits(tables, self._symbols(module, patches, step))}

    def by_node(self, module: Any) -> dict[str, float]:
        """The same for the released bundle: bytes of a 32 x 32 patch sent through the encoder node at quality 40."""
        scale = torch.from_numpy(self.places.scale)
        normal, clouds = self.ordinary(NODE_SIDE)
        base, victims = normal[:BY_NODE], normal[BY_NODE : 2 * BY_NODE]
        random = torch.Generator().manual_seed(6)
        sets = {name: plant(victims, scale, random) for name, plant in KINDS.items()} | {"cloud": clouds[:BY_NODE]}

        def sizes(patches: Tensor) -> Tensor:
            return torch.tensor([float(through((one * scale).numpy(), Target(quality=40.0))[0]) for one in patches])

        quiet, out = sizes(base), {}
        for name, patches in sets.items():
            if len(patches) >= 5:
                both = torch.cat([quiet, sizes(patches)])
                out[f"auc_{name}_bits"] = roc_auc(both, torch.arange(len(both)) >= len(quiet))
        return out
