"""The head that says what tiles show (encoder_node/survey.py): latents of four bands of a block -> its land cover.

    python -m training.survey_head --data ../shared/corpus > encoder_node/head.json
    python -m training.survey_head --data ../shared/corpus --cost      what it adds to the time of encoding

Labels are a decision tree's on all twelve bands (training/lab/tasks/few_labels.py), so a rule's and not a surveyor's;
the head sees the latents of the four of 10 m, as the encoder node makes them. It is tested on other places, on all
blocks that the rule is sure of; what it got there stands in the file.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import msgspec
import numpy as np
import torch
from torch import Tensor

from downlink.bundle import find
from downlink.dct import BLOCK
from downlink.lattice import lattices
from downlink.scene import Band, Grid, Scene
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.survey import Head, Survey, features, released_head
from encoder_node.target import Target
from encoder_node.tiles import LatticeReader
from training.lab import heads
from training.lab.places import BANDS, TEN_METRES, Place, Places, read_places
from training.lab.tasks.few_labels import CLASSES, land_cover

CLOUD = CLASSES.index("cloud or snow")
TILE = 256
PER_PLACE = 400
"""Blocks of a place that are trained on: large scenes must not outvote small ones."""
PER_CLASS = 6000
"""What is trained on of each class; rare ones are repeated, so that each counts the same."""


def blocks(place: Place) -> tuple[Tensor, Tensor]:
    """Features (n, 8) of the blocks of a place that the rule is sure of, and their classes."""
    pixels = place.pixels.round().clip(0, 65535).astype(np.uint16)
    bands, height, width = pixels.shape
    scene = Scene(place.name, (Grid(height, width, "uint16", tuple(map(Band, BANDS))),))
    reader = LatticeReader(ArraySource(scene, pixels), lattices(scene, ())[0], 0, TILE)
    seen, labels = [], []
    for row in range(reader.tiles.rows):
        for tile in reader.row(row):
            down, across = (side // BLOCK for side in tile.tile.window[2:])
            found = features(tile.latents(np.array(TEN_METRES))[0])[:, :down, :across]
            own = tile.full[:, : down * BLOCK, : across * BLOCK].reshape(bands, down, BLOCK, across, BLOCK)
            means = torch.from_numpy(own.mean(axis=(2, 4), dtype=np.float32).reshape(bands, -1).T / 10000)
            seen.append(torch.from_numpy(found.reshape(len(found), -1).T))
            labels.append(land_cover(means[:, :, None, None]))
    label = torch.cat(labels)
    return torch.cat(seen)[label >= 0], label[label >= 0]


def gathered(places: list[Place], most: int | None) -> tuple[Tensor, Tensor]:
    """Blocks of many places, at most so many of each."""
    random = torch.Generator().manual_seed(1)
    known, labels = zip(*map(blocks, places), strict=True)
    kept = [torch.randperm(len(one), generator=random)[:most] for one in labels]
    both = [torch.cat([one[rows] for one, rows in zip(parts, kept, strict=True)]) for parts in (known, labels)]
    return both[0], both[1]


def train_head(places: Places) -> Head:
    """The head, with what it got on places that it has not seen."""
    known, labels = gathered(places.train, PER_PLACE)
    random = torch.Generator().manual_seed(1)
    there = [rows for number in range(len(CLASSES)) if len(rows := torch.nonzero(labels == number)[:, 0])]
    rows = torch.cat([own[torch.randint(len(own), (PER_CLASS,), generator=random)] for own in there])
    fitted = heads.fit_linear(known[rows], labels[rows], len(CLASSES), decay=1e-3)
    with torch.no_grad():
        weights = fitted.linear.weight / fitted.deviation
        bias = fitted.linear.bias - weights @ fitted.mean
    unseen, truth = gathered(places.test, None)
    scores = unseen @ weights.T + bias
    found, cloud = scores.argmax(dim=1), truth == CLOUD
    each = ", ".join(
        f"{name} {100 * float((found[truth == number] == number).float().mean()):.1f}"
        for number, name in enumerate(CLASSES)
        if (truth == number).any()
    )
    caught, false = (100 * float((found[one] == CLOUD).float().mean()) for one in (cloud, ~cloud))
    made = (
        "python -m training.survey_head; on blocks of other places that a rule on all bands is sure of: balanced "
        f"accuracy {100 * heads.balanced_accuracy(scores, truth, len(CLASSES)):.1f} % ({each}); {caught:.1f} % of "
        f"{int(cloud.sum())} cloud or snow blocks found, {false:.2f} % of {int((~cloud).sum())} others taken for it"
    )
    rounded = [tuple(round(float(value), 4) for value in row) for row in weights]
    names = tuple(BANDS[number] for number in TEN_METRES)
    return Head(names, CLASSES, CLASSES[CLOUD], tuple(rounded), tuple(round(float(v), 4) for v in bias), made)


def cost(places: Places, side: int = 2048, rounds: int = 8) -> float:
    """Per cent that looking at the tiles adds to the processor time of encoding, the least of some rounds of each: of
    the largest place, repeated to `side`, at quality 50, on one thread."""
    encoder = PlaneEncoder(find("universal"), 1)
    largest = max((*places.train, *places.test), key=lambda place: place.pixels[0].size).pixels.astype(np.uint16)
    pixels = np.pad(largest, [(0, 0), *((0, side - length) for length in largest.shape[1:])], mode="symmetric")
    source = ArraySource(Scene("cost", (Grid(side, side, "uint16", tuple(map(Band, BANDS)), 0),)), pixels)
    took: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for looks, times in took.items():
            began = time.process_time()
            survey = Survey(released_head()) if looks else None
            encode_scene(source, encoder, Target(quality=50.0), survey=survey).close()
            times.append(time.process_time() - began)
    return 100 * (min(took[True]) / min(took[False]) - 1)


@click.command()
@click.option("--cost", "costs", is_flag=True, help="Print what the released head costs instead.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
def main(data: Path, costs: bool) -> None:
    """Print the head as JSON."""
    if costs:
        click.echo(f"{cost(read_places(data)):.1f} % of the time of encoding")
        return
    click.echo(msgspec.json.format(msgspec.json.encode(train_head(read_places(data)))).decode())


if __name__ == "__main__":
    main()
