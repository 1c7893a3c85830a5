"""The head that leaves clouds on board (encoder_node/clouds.py): four bands of 8 x 8 blocks -> cloud or not.

    python -m training.cloud_head --data ../shared/corpus > encoder_node/cloud.json

Labels are a decision tree's on all twelve bands (cloud or snow: bright in the blue, no vegetation), the head sees the
four of 10 m. It is tested on other places; what it got there stands in the file.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import torch
from torch import Tensor

from encoder_node.clouds import BLOCK, Head
from training.lab import heads
from training.lab.places import BANDS, TEN_METRES, Places, read_places
from training.lab.tasks.few_labels import CLASSES, land_cover

CLOUD = CLASSES.index("cloud or snow")


def features(patches: Tensor) -> Tensor:
    """Reflectances (n, 12, 8, 8) -> means and deviations of the 10 m bands (n, 8)."""
    own = patches[:, TEN_METRES]
    return torch.cat([own.mean(dim=(2, 3)), own.flatten(2).std(dim=2, unbiased=False)], dim=1)


def labelled(places: Places, split: str) -> tuple[Tensor, Tensor]:
    """Features of blocks that the rule is sure of, and whether they are cloud."""
    patches = places.patches(split, BLOCK, 400, 40000, seed=1) * torch.from_numpy(places.scale) / 10000
    label = land_cover(patches)
    return features(patches[label >= 0]), (label[label >= 0] == CLOUD).long()


def train_head(places: Places) -> Head:
    """The head, with what it got on places that it has not seen."""
    torch.manual_seed(1)
    known, cloud = labelled(places, "train")
    rare = torch.nonzero(cloud)[:, 0]
    rows = torch.cat([torch.arange(len(cloud)), rare.repeat(max(0, len(cloud) // max(1, len(rare)) // 4 - 1))])
    fitted = heads.fit_linear(known[rows], cloud[rows], 2, decay=1e-3)
    weight = (fitted.linear.weight[1] - fitted.linear.weight[0]).detach() / fitted.deviation
    bias = float(fitted.linear.bias[1] - fitted.linear.bias[0]) - float(weight @ fitted.mean)
    unseen, truth = labelled(places, "test")
    scores = unseen @ weight + bias
    found = scores > 0
    caught, false = (float(found[truth == kind].float().mean()) for kind in (1, 0))
    made = (
        f"python -m training.cloud_head; other places: {100 * caught:.1f} % of {int(truth.sum())} cloud or snow "
        f"blocks found, {100 * false:.2f} % of {int((1 - truth).sum())} others taken for it (blocks that a rule on all "
        f"bands is sure of), ROC-AUC {heads.roc_auc(scores, truth.bool()):.4f}"
    )
    half = len(TEN_METRES)
    means, deviations = (tuple(round(float(v), 4) for v in part) for part in (weight[:half], weight[half:]))
    return Head(tuple(BANDS[i] for i in TEN_METRES), means, deviations, round(bias, 4), made)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
def main(data: Path) -> None:
    """Print the head as JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(train_head(read_places(data)))).decode())


if __name__ == "__main__":
    main()
