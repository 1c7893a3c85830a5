"""`decoder-node enhance`: more of a decoded scene, by a bundle made for that."""

from __future__ import annotations

import json
from pathlib import Path

import click

from decoder_node.cli_reprocess import models_option


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", required=True, metavar="NAME", help="A bundle of kind enhance: its name or its folder.")
@models_option
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the network.")
@click.option("--json", "as_json", is_flag=True, help="Print the files as JSON.")
def enhance(
    files: tuple[Path, ...], out: Path, model: str, models: tuple[Path, ...], threads: int, as_json: bool
) -> None:
    """Make OUT from the GeoTIFFs of a decoded scene: restore lost lines, sharpen 20 m bands, or make it look real.

    Which of these, the bundle says; `downlink lab denoising --export DIR` makes one. The product's tags say what was
    done to it. OUT_restored.tif, beside it, says which pixels were restored.

    \b
    decoder-node enhance scene.tif whole.tif --model ./restorer
    decoder-node enhance scene_10m.tif scene_20m.tif sharp.tif --model ./sharpener
    """
    from decoder_node.enhance import enhance as run
    from downlink.bundle import find

    paths = run(files, out, find(model, models), threads)
    if as_json:
        print(json.dumps({"paths": [str(path) for path in paths]}))
    else:
        for path in paths:
            print(path)
