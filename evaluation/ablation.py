"""What each idea of the codec gives: the real codec with one idea at a time switched off, on the same scenes.

    python -m evaluation.ablation ../shared/corpus --split test --json ablation.json

A variant's BD-rate is against the whole codec: +10 % means that the idea saves 10 % of the bits. Streams of variants
are real `.dl` bytes, decoded again; only switches that change nothing else are here. Encoder speed is CPU time relative
to the whole codec's in the same run.

Ideas that take a training of their own (no hyper-latents, another prior) are not here: docs/codec.md says what is known
of them, and from which run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import msgspec
import numpy as np

from decoder_node.decoder import PlaneDecoder
from downlink.moments import QUIET, Statistics
from downlink.plane import PARTITIONS, FrontEnd
from downlink.quality import Quality, default_peak
from encoder_node import pipeline
from encoder_node.encoder import PlaneEncoder
from evaluation import scenes
from evaluation.bdrate import Curve, NoDelta, delta, mean_percent
from evaluation.codecs.base import Image
from evaluation.codecs.ours import LatentDownlink

QUALITIES = (16.0, 24.0, 32.0, 40.0, 48.0, 56.0)


@contextmanager
def _partition(number: int) -> Iterator[None]:
    def front_ends(self: Statistics, step: float, quiet: float = QUIET) -> list[FrontEnd]:
        least = 1 if self.half.any() else 0
        return [self._partitioned(max(number, least), step, quiet)[0]]

    with mock.patch.object(Statistics, "front_ends", front_ends):
        yield


@contextmanager
def _as_stored() -> Iterator[None]:
    with mock.patch.object(pipeline, "resolutions_of", return_value=()):
        yield


@contextmanager
def _plain_rounding() -> Iterator[None]:
    real = PlaneEncoder.__init__

    def without(self: PlaneEncoder, *given: Any, **named: Any) -> None:
        real(self, *given, **named)
        self.spec = msgspec.structs.replace(self.spec, bit_price=0.0)

    with mock.patch.object(PlaneEncoder, "__init__", without):
        yield


@contextmanager
def _no_synthesis() -> Iterator[None]:
    with mock.patch.object(PlaneDecoder, "synthesise", lambda self, values, levels, some: values):
        yield


@dataclass(frozen=True)
class Variant:
    """The codec without one idea."""

    name: str
    idea: str
    switch: Callable[[], Any]


VARIANTS = (
    Variant("one-klt", "a KLT per subband (one for all instead)", lambda: _partition(0)),
    Variant(
        "four-klts", "choosing per scene how many KLTs (always four instead)", lambda: _partition(len(PARTITIONS) - 1)
    ),
    Variant("as-stored", "native resolution (repeated pixels coded as they are stored instead)", _as_stored),
    Variant("plain-rounding", "rate-distortion optimised quantisation (nearest integer instead)", _plain_rounding),
    Variant("no-synthesis", "the learned synthesis (inverse transform alone instead)", _no_synthesis),
)


def measure(model: str, image: Image, qualities: tuple[float, ...]) -> tuple[Curve, float]:
    """The codec's curve on a scene, and the CPU seconds that encoding took."""
    codec = LatentDownlink(model)
    codec.load("encode")
    codec.load("decode")
    points, seconds = [], 0.0
    for quality in qualities:
        began = time.process_time()
        payload = codec.encode(image, quality)
        seconds += time.process_time() - began
        found = Quality.of_scene(image.scene)
        for grid, (original, decoded) in enumerate(zip(image.grids, codec.decode(payload), strict=True)):
            found.add(grid, original, decoded)
        points.append((8 * len(payload) / image.scene.samples, found.psnr_db))
    return Curve(points), seconds


def ablate(paths: list[Path], split: str | None, model: str, qualities: tuple[float, ...]) -> list[dict[str, Any]]:
    """A row per variant: BD-rate against the whole codec (mean over scenes on which it is defined), relative CPU
    time."""
    rows: dict[str, dict[str, list[float]]] = {v.name: {"percent": [], "time": []} for v in VARIANTS}
    entries, _ = scenes.find(paths, split)
    for entry in entries:
        scene = scenes.describe(entry.path)
        image = Image(scene, scenes.read(entry.path), default_peak(scene))
        whole, whole_s = measure(model, image, qualities)
        for variant in VARIANTS:
            with ExitStack() as stack:
                stack.enter_context(variant.switch())
                curve, seconds = measure(model, image, qualities)
            try:
                rows[variant.name]["percent"].append(delta(whole, curve).percent)
            except NoDelta:
                continue
            rows[variant.name]["time"].append(seconds / whole_s)
    return [
        {
            "variant": variant.name,
            "without": variant.idea,
            "bd_rate_percent": round(mean_percent(rows[variant.name]["percent"]), 2),
            "encode_time": round(float(np.median(rows[variant.name]["time"])), 2),
            "scenes": len(rows[variant.name]["percent"]),
        }
        for variant in VARIANTS
        if rows[variant.name]["percent"]
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scene", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--split", help="This split of a corpus: SCENE is a folder with a manifest.json.")
@click.option("--model", default="universal", show_default=True, help="Bundle.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows here.")
def main(scene: tuple[Path, ...], split: str | None, model: str, json_path: Path | None) -> None:
    """Measure the codec with one idea at a time switched off."""
    rows = ablate(list(scene), split, model, QUALITIES)
    click.echo(f"{'without':72s} {'BD-rate':>8s} {'encode':>7s} {'scenes':>6s}")
    for row in rows:
        click.echo(
            f"{row['without']:72s} {row['bd_rate_percent']:+7.1f}% {row['encode_time']:6.2f}x {row['scenes']:6d}"
        )
    if json_path is not None:
        json_path.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
