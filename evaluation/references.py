"""Bits that references save on time series, through both real nodes.

    python -m evaluation.references ../shared/corpus [--quality 28,36,44,52] [--series NAME]... [--json OUT.json]

Every scene of a series is encoded alone and, as `submit --reference last` would, against the newest scene before it
that covers the same lattices, both as real streams; the smaller one is what the ground has, and what the next scene is
coded against. Both are decoded. Printed for each series and quality: bits/sample of all its scenes alone and against
references, bits saved, PSNR of both; bits saved at equal PSNR, for which the rate of scenes sent alone is interpolated
between the qualities that were measured (none beyond them); and the time that encoding took against a reference, in
times of that alone.

Series are the folders of CORPUS/timeseries, and the seasons of SSL4EO-S12 places, which the released bundles were
trained on. Refused, with `SceneError`: a corpus without any.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink.bundle import find
from downlink.errors import DownlinkError, SceneError
from downlink.reference import Reference, place_of
from downlink.tile import Window
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.reference_outbox import DEPTH_MAX
from encoder_node.source import Source, open_source
from encoder_node.spool import EncodedScene
from encoder_node.target import Target

PEAK: Final = 10_000.0
HEADS: Final = (
    "series", "quality", "bits/sample alone", "with references", "saved, %", "at equal PSNR, %", "PSNR alone, dB",
    "with references, dB", "scenes that have one", "encoding takes, times",
)  # fmt: skip


@dataclass
class Sums:
    """Of the scenes of a series at one quality."""

    scenes: int = 0
    referring: int = 0
    samples: int = 0
    valid: int = 0
    alone_bytes: int = 0
    bytes: int = 0
    alone_error: float = 0.0
    error: float = 0.0
    alone_s: float = field(default=1e-9)
    tried_s: float = 0.0

    def row(self, series: str, quality: float) -> dict[str, Any]:
        return {
            "series": series, "quality": quality, "scenes": self.scenes, "referring": self.referring,
            "alone_bits_per_sample": 8 * self.alone_bytes / self.samples,
            "bits_per_sample": 8 * self.bytes / self.samples,
            "saved_percent": 100 * (1 - self.bytes / self.alone_bytes),
            "alone_psnr_db": _psnr(self.alone_error / self.valid), "psnr_db": _psnr(self.error / self.valid),
            "encode_times": self.tried_s / self.alone_s,
        }  # fmt: skip


def _psnr(error: float) -> float:
    return 10 * math.log10(PEAK**2 / error)


class Ends:
    """Both halves of a bundle."""

    def __init__(self, model: str) -> None:
        self.encoder, self.decoder = PlaneEncoder(find(model)), PlaneDecoder(find(model))

    def encoded(self, source: Source, quality: float, reference: Reference | None) -> tuple[EncodedScene, float]:
        """A scene's stream, and the processor time it took."""
        began = time.process_time()
        found = encode_scene(source, self.encoder, Target(quality=quality), reference=reference)
        return found, time.process_time() - began

    def error(self, scene: EncodedScene, source: Source, reference: Reference | None) -> tuple[float, int]:
        """Squared error over all valid samples, and how many there are."""
        total, count = 0.0, 0
        rows = decode_rows(scene.manifest, scene.chunk, self.decoder, reference)
        for row in rows:
            grid = scene.manifest.scene.grids[row.grid]
            own = source.read(row.grid, Window(row.row, 0, row.pixels.shape[1], grid.width)).astype(np.float64)
            valid: NDArray[np.bool_] = np.ones(own.shape, np.bool_) if grid.nodata is None else own != grid.nodata
            total += float(((row.pixels - own)[valid] ** 2).sum())
            count += int(valid.sum())
        return total, count

    def known(self, scene: EncodedScene, before: tuple[Reference, Reference] | None) -> tuple[Reference, Reference]:
        """A scene as a reference, at both ends."""
        edge, ground = before or (None, None)
        codecs = self.encoder.codec, self.decoder.codec
        return (
            Reference(scene.scene_id, scene.manifest, scene.chunk, codecs[0], edge),
            Reference(scene.scene_id, scene.manifest, scene.chunk, codecs[1], ground),
        )


def measured(paths: list[Path], ends: Ends, quality: float) -> Sums:
    """A series, its scenes in the order of time."""
    sums = Sums()
    newest: dict[bytes, tuple[Reference, Reference]] = {}
    for path in paths:
        source = open_source(path)
        alone, alone_s = ends.encoded(source, quality, None)
        place = place_of(source.scene, alone.manifest.resolutions)
        before = newest.get(place)
        if before is not None and before[0].depth > DEPTH_MAX:
            before = None
        taken = alone
        if before is not None:
            against, took_s = ends.encoded(source, quality, before[0])
            sums.alone_s += alone_s
            sums.tried_s += took_s
            if against.manifest.reference:
                taken = against
                sums.referring += 1
        error, valid = ends.error(alone, source, None)
        used = before if taken is not alone else None
        sums.alone_error += error
        sums.error += ends.error(taken, source, used[1])[0] if used else error
        sums.valid += valid
        sums.scenes += 1
        sums.samples += source.scene.samples
        sums.alone_bytes += alone.stream_bytes
        sums.bytes += taken.stream_bytes
        newest[place] = ends.known(taken, used)
        source.close()
    return sums


def series_of(corpus: Path) -> dict[str, list[Path]]:
    """Time series of a corpus, by name."""
    found: dict[str, list[Path]] = {}
    for folder in sorted((corpus / "timeseries").glob("*")):
        if paths := sorted(folder.glob("*.tif")):
            found[folder.name] = paths
    seasons: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((corpus / "sentinel2").glob("ssl4eo*.tif")):
        seasons[path.stem.rpartition("_")[0]].append(path)
    return found | {name: paths for name, paths in seasons.items() if len(paths) > 1}


def at_equal_psnr(rows: list[dict[str, Any]]) -> None:
    """Adds to the rows of one series what is saved against scenes sent alone of the same PSNR."""
    psnr = [row["alone_psnr_db"] for row in rows]
    rate = np.log([row["alone_bits_per_sample"] for row in rows])
    for row in rows:
        inside = psnr[0] <= row["psnr_db"] <= psnr[-1]
        alone = float(np.exp(np.interp(row["psnr_db"], psnr, rate)))
        row["saved_at_equal_psnr_percent"] = 100 * (1 - row["bits_per_sample"] / alone) if inside else None


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, as `HEADS` names its columns."""
    equal = row["saved_at_equal_psnr_percent"]
    return [
        row["series"], f"{row['quality']:g}", f"{row['alone_bits_per_sample']:.4f}", f"{row['bits_per_sample']:.4f}",
        f"{row['saved_percent']:.1f}", "" if equal is None else f"{equal:.1f}", f"{row['alone_psnr_db']:.2f}",
        f"{row['psnr_db']:.2f}", f"{row['referring']} of {row['scenes'] - 1}", f"{row['encode_times']:.1f}",
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.references", description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--quality", default="28,36,44,52")
    parser.add_argument("--series", action="append", help="only these")
    parser.add_argument("--model", default="universal")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        chosen = {name: paths for name, paths in series_of(given.corpus).items() if name in (given.series or [name])}
        if not chosen:
            raise SceneError(f"{given.corpus} has no time series of that name; see its folder timeseries")
        ends, rows = Ends(given.model), []
        print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
        qualities = sorted(map(float, given.quality.split(",")))
        for name, paths in chosen.items():
            own = [measured(paths, ends, quality).row(name, quality) for quality in qualities]
            at_equal_psnr(own)
            rows += own
            for row in own:
                print(f"| {' | '.join(cells(row))} |", flush=True)
    except (DownlinkError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if given.json:
        given.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
