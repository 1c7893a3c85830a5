"""How far the quality that the ground says is from the true one: `python -m evaluation.estimate PATH --split test`.

The ground never sees the original, and says a PSNR all the same (`decoder_node.decoding.estimated_quality`, from the
quantiser's step and the rate). Here every scene is encoded at each quality, decoded, and its true PSNR is set against
that word: at each quality the error's mean, the mean of its size, and the largest; and how many are within 1 and 2 dB.
Scenes of which the ground says nothing (too few bits) are counted.
"""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

import click

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from decoder_node.decoding import estimated_quality
from downlink.bundle import find as find_bundle
from downlink.errors import DownlinkError
from downlink.quality import Quality
from downlink.stream import StreamReader
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source import open_source
from encoder_node.target import Target
from evaluation.scenes import find, read


def compared(path: Path, quality: float, encoder: PlaneEncoder, decoder: PlaneDecoder) -> dict[str, Any]:
    """One scene at one quality: bits per sample, the true PSNR, and the one that the ground would say."""
    file = io.BytesIO()
    source = open_source(path)
    try:
        with encode_scene(source, encoder, Target(quality=quality)) as encoded:
            encoded.write(file)
    finally:
        source.close()
    file.seek(0)
    reader = StreamReader(file)
    manifest = reader.manifest
    pixels = read(path)
    true = Quality.of_scene(manifest.scene)
    at, grid = 0, 0
    for row in decode_rows(manifest, reader.chunk, decoder):
        at = at if row.grid == grid else 0
        grid = row.grid
        height = row.pixels.shape[1]
        true.add(grid, pixels[grid][:, at : at + height], row.pixels)
        at += height
    estimate = estimated_quality(manifest).get("estimated_psnr_db")
    bits = 8 * len(file.getvalue()) / manifest.scene.samples
    return {
        "scene": path.stem, "quality": quality, "bits_per_sample": round(bits, 4), "psnr_db": round(true.psnr_db, 2),
        "estimated_psnr_db": estimate, "error_db": None if estimate is None else round(estimate - true.psnr_db, 2),
    }  # fmt: skip


def summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is said of these errors."""
    errors = [row["error_db"] for row in rows if row["error_db"] is not None]
    unsaid = len(rows) - len(errors)
    if not errors:
        return {"rows": 0, "unsaid": unsaid}
    sizes = [abs(error) for error in errors]
    return {
        "rows": len(errors), "unsaid": unsaid, "mean_db": round(statistics.fmean(errors), 2),
        "mean_size_db": round(statistics.fmean(sizes), 2), "largest_db": max(errors, key=abs),
        "within_1_db": round(sum(size <= 1 for size in sizes) / len(sizes), 3),
        "within_2_db": round(sum(size <= 2 for size in sizes) / len(sizes), 3),
    }  # fmt: skip


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path, exists=True))
@click.option("--split", help="Of a corpus with a manifest.json: the scenes of this split.")
@click.option("--quality", default="30,40,50,60", show_default=True, metavar="Q[,Q]...")
@click.option("--model", default="universal", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print all rows as JSON.")
def main(paths: tuple[Path, ...], split: str | None, quality: str, model: str, as_json: bool) -> None:
    """Print how far the ground's estimate of the PSNR is off, over scenes or a split of a corpus."""
    try:
        entries, left_out = find(paths, split)
        bundle = find_bundle(model)
        encoder, decoder = PlaneEncoder(bundle), PlaneDecoder(bundle)
        qualities = [float(word) for word in quality.split(",")]
        rows = [compared(entry.path, one, encoder, decoder) for entry in entries for one in qualities]
    except (DownlinkError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    sums = {f"{one:g}": summed_up([row for row in rows if row["quality"] == one]) for one in qualities}
    sums["all"] = summed_up(rows)
    if as_json:
        print(json.dumps({"rows": rows, "by_quality": sums}))
        return
    print(f"{'quality':>8} {'rows':>7} {'unsaid':>7} {'mean':>7} {'|mean|':>7} {'worst':>7} {'<1 dB':>7} {'<2 dB':>7}")
    for name, one in sums.items():
        if not one["rows"]:
            print(f"{name:>8} {0:>7} {one['unsaid']:>7}")
            continue
        shares = f"{100 * one['within_1_db']:>6.0f}% {100 * one['within_2_db']:>6.0f}%"
        figures = f"{one['mean_db']:>7.2f} {one['mean_size_db']:>7.2f} {one['largest_db']:>7.2f}"
        print(f"{name:>8} {one['rows']:>7} {one['unsaid']:>7} {figures} {shares}")
    if left_out:
        print(f"left out for their type: {left_out}")


if __name__ == "__main__":
    main()
