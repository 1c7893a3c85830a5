"""`downlink profile`: what the encoder costs on this machine, as tables, JSON and a picture."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from downlink.errors import DownlinkError, SceneError

QUICK_SIZES = (64, 128, 256)
SIZES = (64, 128, 256, 512, 1024)
QUICK_HEIGHTS = (128, 512)
HEIGHTS = (256, 1024, 4096, 8192)


@click.command()
@click.argument("scene", required=False, type=click.Path(path_type=Path))
@click.option("--model", default="universal", show_default=True, metavar="NAME|PATH", help="Model bundle.")
@click.option("--quality", default=40.0, show_default=True, help="Quality that is encoded at.")
@click.option("--quick", is_flag=True, help="Only small pictures and one thread: a minute on a small board.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option(
    "--picture",
    "picture_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw them here; .svg, .png or .pdf says how.",
)
def profile(
    scene: Path | None, model: str, quality: float, quick: bool, json_path: Path | None, picture_path: Path | None
) -> None:
    """Measure what the encoder costs on this machine.

    Multiplications and parameters per graph, cold start, speed by picture size and threads, time per stage, peak memory
    against the scene's size, energy where RAPL can be read, what the installation takes, float32 against 8 bits, and
    how near the networks come to what this core's matrix product can do. SCENE gives the pixels (mirrored to the sizes
    that are wanted); without one, a made-up picture of 12 bands does.

    \b
      downlink profile
      downlink profile scene.tif --json profile.json --picture profile.svg
      downlink profile --quick
    """
    from evaluation import edge_profile, profile_table
    from evaluation.evaluate import environment

    if picture_path is not None and picture_path.suffix not in (".svg", ".png", ".pdf"):
        raise click.BadParameter(f"{picture_path.name} must end with .svg, .png or .pdf", param_hint="--picture")
    for path in filter(None, (json_path, picture_path)):
        if not path.parent.is_dir():
            raise DownlinkError(f"{path.parent} is no folder; make it first, or name another place")
    pixels = _pixels(scene)
    threads = (1,) if quick else tuple(sorted({1, os.cpu_count() or 1}))
    sizes, heights = (QUICK_SIZES, QUICK_HEIGHTS) if quick else (SIZES, HEIGHTS)

    def say(what: str) -> None:
        click.echo(f"measuring {what} …", err=True)

    found = edge_profile.profile(pixels, model, quality, threads, sizes, heights, say)
    found["scene"] = "made up" if scene is None else scene.name
    found["environment"] = environment(1)
    profile_table.show(found)
    if json_path is not None:
        _write(json_path, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    if picture_path is not None:
        from evaluation import profile_figure

        _write(picture_path, profile_figure.draw(found, picture_path.suffix[1:]))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)
    click.echo(f"written: {path}", err=True)


def _pixels(scene: Path | None) -> Any:
    from evaluation import bench_speed, made_up, scenes

    if scene is None:
        return made_up.picture()
    grid = scenes.describe(scene).grids[0]
    side = min(grid.height, grid.width, max(SIZES))
    if side < 16:
        raise SceneError(f"{scene} is {grid.height} x {grid.width} px; a profile needs 16 px a side at least")
    with tempfile.TemporaryDirectory() as folder:
        return bench_speed.pixels_of(scene, side, Path(folder))
