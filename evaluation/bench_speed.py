"""How fast one core encodes and decodes, beside OpenJPEG and OpenJPH at equal PSNR: `python -m evaluation.bench_speed`.

    python -m evaluation.bench_speed [SCENE] [--size 2048] [--quality 40] [--runs 3] [--json OUT.json]

SCENE is whatever the encoder opens, or a package file that holds a Sentinel-2 scene (`make demo` fetches one, which is
the default). All its bands are brought to the pixels of its first grid by repeating them, mirrored to `--size` pixels
a side, and laid down as a raw file, as a sensor would; that also is what the codecs get.

Times are processor seconds of this process, so that other work on the machine disturbs less; every run measures all
codecs in turn, and the medians are compared, so that what disturbs still disturbs all alike. `share` is what the stages
of our encoder take, from one more run under a profiler. The peak of memory is that of the first encoding, with
interpreter and libraries, before any other codec is loaded.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink import bundle
from downlink.accelerator import native
from downlink.quality import default_peak
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source import open_source
from encoder_node.spool import EncodedScene
from encoder_node.target import Target
from evaluation import demo, memory, scenes, stages

SAMPLES = Path(".venv/samples")
CROP = 512
"""Pixels a side of what the step of OpenJPH is searched on."""

Pixels = NDArray[Any]


def pixels_of(scene: Path, size: int, folder: Path) -> Pixels:
    """(bands, size, size) of a scene, mirrored where it is smaller."""
    if scene.suffix == ".whl":
        scene = demo.unpack(scene, folder / "S2A_MSIL1C_20170216T102101_T33UUU")
    grids = scenes.read(scene)
    height, width = grids[0].shape[1:]
    stacked = np.concatenate(
        [grid.repeat(-(-height // grid.shape[1]), axis=1).repeat(-(-width // grid.shape[2]), axis=2) for grid in grids]
        if all(height % grid.shape[1] == 0 and width % grid.shape[2] == 0 for grid in grids)
        else [grids[0]]
    )
    turns = -(-size // height), -(-size // width)
    rows = np.concatenate([stacked[:, :: 1 if i % 2 == 0 else -1] for i in range(turns[0])], axis=1)[:, :size]
    both = [rows[:, :, :: 1 if i % 2 == 0 else -1] for i in range(turns[1])]
    return np.ascontiguousarray(np.concatenate(both, axis=2)[:, :, :size])


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds, and what came out."""
    start = time.process_time()
    found = action()
    return time.process_time() - start, found


def decoded(encoded: EncodedScene, decoder: PlaneDecoder, shape: tuple[int, ...], dtype: Any) -> Pixels:
    out = np.empty(shape, dtype)
    for row in decode_rows(encoded.manifest, encoded.chunk, decoder):
        out[:, row.row : row.row + row.pixels.shape[1]] = row.pixels
    return out


def mse_of(one: Pixels, two: Pixels) -> float:
    squares = [np.square(a.astype(np.float32) - b).mean(dtype=np.float64) for a, b in zip(one, two, strict=True)]
    return float(np.mean(squares))


def step_for(pixels: Pixels, mse: float, peak: float) -> float:
    """The step at which OpenJPH makes this error on the middle of a scene."""
    from evaluation.codecs.htj2k import HighThroughputJpeg2000

    codec, at = HighThroughputJpeg2000(), (pixels.shape[1] - min(CROP, pixels.shape[1])) // 2
    crop = np.ascontiguousarray(pixels[:, at : at + CROP, at : at + CROP])
    step = math.sqrt(12 * mse)
    for _ in range(6):
        found = mse_of(crop, codec.decode_grid(codec.encode_grid(crop, step, peak)))
        step *= math.sqrt(mse / max(found, 1e-9))
    return step


@click.command(help=__doc__.partition("\n")[0])
@click.argument("scene", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--size", default=2048, show_default=True, help="Pixels a side.")
@click.option("--quality", default=40.0, show_default=True)
@click.option("--runs", default=3, show_default=True)
@click.option("--model", default="universal", show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(scene: Path | None, size: int, quality: float, runs: int, model: str, json_path: Path | None) -> None:
    """See the module."""
    if scene is None:
        found = sorted(SAMPLES.glob("*.whl"))
        if not found:
            raise click.ClickException(f"no SCENE given, and {SAMPLES} holds no sample; `make demo` fetches one")
        scene = found[-1]
    with tempfile.TemporaryDirectory() as folder:
        pixels = pixels_of(scene, size, Path(folder))
        path = Path(folder) / "scene.npy"
        np.save(path, pixels)
        figures = measure(path, pixels, quality, runs, model)
    figures["scene"] = scene.name
    print(table(figures))
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=1) + "\n")


def measure(path: Path, pixels: Pixels, quality: float, runs: int, model: str) -> dict[str, Any]:
    """All figures of a scene that lies at `path`."""
    chosen, target = bundle.find(model), Target(quality=quality)
    encoders = {effort: PlaneEncoder(chosen, effort=effort) for effort in ("best", "fast")}
    decoder = PlaneDecoder(chosen)

    def encode(effort: str) -> EncodedScene:
        return encode_scene(open_source(path), encoders[effort], target)

    memory.restart_peak()
    before = memory.peak_mb()
    encode("best").close()
    peak_memory = memory.peak_mb()

    from evaluation.codecs.htj2k import HighThroughputJpeg2000
    from evaluation.codecs.j2k import encode_components

    open_jph = HighThroughputJpeg2000()
    seconds: dict[str, list[float]] = {}
    bits: dict[str, float] = {}
    mse: dict[str, float] = {}

    def note(name: str, action: Callable[[], Any], size_of: Callable[[Any], int] | None = None) -> Any:
        taken, found = timed(action)
        seconds.setdefault(name, []).append(taken)
        if size_of is not None:
            bits[name] = 8 * size_of(found) / pixels.size
        return found

    peak = 0.0
    step = 0.0
    for run in range(runs):
        for effort in ("best", "fast"):
            encoded = note(f"encode, {effort}", lambda effort=effort: encode(effort), lambda e: e.stream_bytes)
            with encoded:
                peak = default_peak(encoded.manifest.scene)
                if effort == "best" or run == 0:
                    out = note(f"decode, {effort}", lambda e=encoded: decoded(e, decoder, pixels.shape, pixels.dtype))
                    mse[effort] = mse_of(pixels, out)
                    del out
        step = step or step_for(pixels, mse["best"], peak)
        note("OpenJPEG", lambda: encode_components(pixels, mse["best"]), len)
        note("OpenJPH", lambda step=step, peak=peak: open_jph.encode_grid(pixels, step, peak), len)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return {
        "shape": list(pixels.shape),
        "quality": quality,
        "native": native(),
        "runs": runs,
        "psnr_db": {effort: round(10 * math.log10(peak**2 / max(error, 1e-12)), 2) for effort, error in mse.items()},
        "msamples_per_s": {name: round(pixels.size / taken / 1e6, 2) for name, taken in medians.items()},
        "bits_per_sample": {name: round(value, 4) for name, value in bits.items()},
        "times_openjpeg": {name: round(medians["OpenJPEG"] / taken, 2) for name, taken in medians.items()},
        "share": {stage: round(part, 3) for stage, part in stages.shares(lambda: encode("best").close()).items()},
        "peak_rss_mb": round(peak_memory, 1),
        "rss_before_mb": round(before, 1),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    bands, height, width = figures["shape"]
    lines = [
        f"{figures['scene']}: {bands} x {height} x {width}, quality {figures['quality']:g}, native loops: "
        f"{figures['native'] or 'none'}, medians of {figures['runs']} runs, one core, processor time",
        "",
        f"{'':16}{'Msamples/s':>12}{'x OpenJPEG':>12}{'bits/sample':>13}",
    ]
    for name, speed in figures["msamples_per_s"].items():
        bits = figures["bits_per_sample"].get(name)
        ratio = figures["times_openjpeg"][name] if not name.startswith("decode") else ""
        lines.append(f"{name:16}{speed:12.2f}{ratio:>12}{'' if bits is None else f'{bits:.4f}':>13}")
    lines += ["", "PSNR: " + ", ".join(f"{name} {value} dB" for name, value in figures["psnr_db"].items())]
    lines.append(f"peak memory of encoding {figures['peak_rss_mb']} MB, {figures['rss_before_mb']} MB of it before")
    lines += ["", "share of the encoder's time (best):"]
    for stage, share in figures["share"].items():
        lines.append(f"  {stage:48}{100 * share:6.1f} %")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
