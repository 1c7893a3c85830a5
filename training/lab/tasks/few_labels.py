"""Pre-training without labels, then a head from few: what the codes know of land cover.

The encoder sees the four 10 m bands. The labels come from the other bands, which it never sees: a decision tree on
reflectances in the short-wave infrared (water, forest, other vegetation, bare or built-up, cloud or snow), so they are
a rule's and not a surveyor's. Patches on which the rule's thresholds are nearly met are left out.

`options.mode`: `frozen` and `tuned` (pre-trained), `scratch` (not pre-trained), `pca` (linear features, closed form).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.lab import heads
from training.lab.architectures import build, set_principal
from training.lab.places import BANDS, TEN_METRES
from training.lab.trial import VALIDATION_PATCHES, Reconstruct

CLASSES = ("water", "forest", "other vegetation", "bare or built-up", "cloud or snow")
LABELS = (5, 20, 100)
DRAWS = 12
"""How often labelled patches are drawn anew: with five of them, luck matters."""


def land_cover(reflectance: Tensor) -> Tensor:
    """Class of patches (n, 12, side, side) in reflectance, -1 where none is certain."""
    mean = reflectance.mean(dim=(2, 3))
    green, red, blue, near, short = (mean[:, BANDS.index(b)] for b in ("B03", "B04", "B02", "B08", "B11"))
    vegetation = (near - red) / (near + red).clamp(min=1e-3)
    water = (green - short) / (green + short).clamp(min=1e-3)
    out = torch.full((len(mean),), -1)
    out[(water > 0.3) & (vegetation < 0.1) & (blue < 0.18)] = 0
    out[(vegetation > 0.65) & (short < 0.16)] = 1
    out[(vegetation > 0.4) & (short > 0.20)] = 2
    out[(vegetation < 0.3) & (water < -0.1) & (blue < 0.18)] = 3
    out[(blue > 0.25) & (vegetation < 0.3)] = 4
    return out


class Task(Reconstruct):
    """Training is reconstruction of the four bands; heads are fitted when it is measured."""

    def prepare(self) -> None:
        self.full, self.unseen = self.cut("train", self.trial.patches.most), self.cut("test", 4000)
        self.patches, self.test = self.full[:, TEN_METRES], self.unseen[:, TEN_METRES]
        self.held = self.cut("validation", VALIDATION_PATCHES)[:, TEN_METRES]
        side = self.trial.patches.side
        self.module = build(self.trial.network, (len(TEN_METRES), side, side))
        self.network.look_at(self.patches)
        if self.trial.closed_form:
            set_principal(self.network, self.patches)

    def labels(self, patches: Tensor) -> Tensor:
        return land_cover(patches * torch.from_numpy(self.places.scale) / 10000)

    def show(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad():
            code = self.network.encode(self.held)
        return {}, {"code": code.flatten()}

    def few_labels(self, module: Any) -> dict[str, float]:
        """Balanced accuracy on other places, by the number of labels of each class."""
        known, unseen = self.labels(self.full), self.labels(self.unseen)
        present = [c for c in range(len(CLASSES)) if (known == c).sum() >= 8 and (unseen == c).any()]
        out = {"classes": float(len(present))}
        test, truth = self.test[torch.isin(unseen, torch.tensor(present))], unseen[unseen >= 0]
        truth = torch.tensor([present.index(int(c)) for c in truth if int(c) in present])
        with torch.no_grad():
            codes = {False: module.encode(self.patches).flatten(1), True: module.encode(test).flatten(1)}
        for count in LABELS:
            found = []
            for draw in range(DRAWS):
                random = torch.Generator().manual_seed(1000 * self.trial.seed + draw)
                rows, labels = [], []
                for number, c in enumerate(present):
                    mine = torch.nonzero(known == c)[:, 0]
                    picked = mine[torch.randperm(len(mine), generator=random)[:count]]
                    rows.append(picked)
                    labels.append(torch.full((len(picked),), number))
                found.append(self._one(module, codes, torch.cat(rows), torch.cat(labels), len(present), test, truth))
            out[f"labels_{count}_percent"] = 100 * sum(found) / len(found)
        return out

    def _one(
        self, module: Any, codes: dict[bool, Tensor], rows: Tensor, labels: Tensor, classes: int, test: Tensor,
        truth: Tensor,
    ) -> float:  # fmt: skip
        if self.trial.options["mode"] in ("frozen", "pca"):
            head = heads.fit_linear(codes[False][rows], labels, classes)
            with torch.no_grad():
                return heads.balanced_accuracy(head(codes[True]), truth, classes)
        scores = heads.fit_whole(module, self.patches[rows], labels, classes, 60, self.trial.seed)
        with torch.no_grad():
            return heads.balanced_accuracy(scores(test), truth, classes)
