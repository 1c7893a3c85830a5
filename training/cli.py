"""`downlink train` and `downlink export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from downlink.errors import DownlinkError


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of GeoTIFFs, or a corpus with manifest.json.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder: log, checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from this run's checkpoint.")
@click.option(
    "--start",
    metavar="RUN",
    help="Fine-tune: begin from the weights of a released bundle (universal) or of a run (runs/mine/best.pt).",
)
@click.option(
    "--find-rate", is_flag=True, help="Do not train: try rising learning rates on some batches, and say which to set."
)
@click.option("--bands", metavar="1,2,3", help="Bands to train on, numbered from 1. Default: all.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. schedule.minutes=10."
)
def train(
    config: Path,
    data: Path,
    out: Path,
    resume: bool,
    start: str | None,
    find_rate: bool,
    bands: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a codec from a TOML config.

    \b
      downlink train training/configs/universal.toml --data DIR --out runs/universal
      downlink train training/configs/mine.toml --data DIR --out runs/mine --start universal --bands 2,3,4,8
      torchrun --nproc-per-node 2 -m downlink.cli train training/configs/universal.toml --data DIR --out runs/universal
    """
    from training.config import read_config
    from training.train import train as run_training
    from training.weights import find_weights

    if bands:
        overrides = (*overrides, f"corpus.bands=[{bands}]")
    try:
        found = None if start is None else find_weights(start)
        if find_rate:
            from training.loop import find_rate as search
            from training.train import prepare

            rate, curve = search(prepare(read_config(config, overrides), data, found)[0])
            for tried, loss in curve[:: max(1, len(curve) // 12)]:
                click.echo(f"rate {tried:.1e}  loss {loss:.4f}")
            click.echo(f"--set schedule.learning_rate={rate:.1e}")
            return
        best = run_training(read_config(config, overrides), data, out, resume=resume, start=found)
    except DownlinkError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"best weights: {best}")


def _figures(run: Path, evaluation: Path | None) -> dict[str, float | str]:
    """The run's best validation row, and the summary of an evaluation, as rows of the card."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scored = [row for row in rows if "score" in row]
    figures: dict[str, float | str] = {}
    if scored:
        best = min(scored, key=lambda row: float(row["score"]))
        figures["training steps (of the weights kept)"] = best["step"]
        figures["training hours"] = best["seconds"] / 3600
        for key, value in best.items():
            if key.startswith("bits_q"):
                figures[f"validation bits/sample at quality {key[6:]}"] = value
    if evaluation is not None:
        summary = json.loads(evaluation.read_text())["summary"]
        for peer, percent in summary.get("bd_rate_percent", {}).items():
            figures[f"BD-rate against {peer}, test split (%)"] = percent
        for level, codecs in summary.get("bits_per_sample_at", {}).items():
            for codec, value in codecs.items():
                figures[f"test split, bits/sample at {level} dB, {codec}"] = value
    return figures


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="The folder the run was trained on: its held-out pictures check the export.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder to write, e.g. models/mine.")
@click.option("--name", help="Bundle name; default: the folder's.")
@click.option("--version", default="0.1.0", show_default=True)
@click.option("--note", default="", help="What else the card shall say about how this was trained.")
@click.option(
    "--figures", type=click.Path(path_type=Path, exists=True), help="JSON of `downlink evaluate`, for the card."
)
def export(run: Path, data: Path, out: Path, name: str | None, version: str, note: str, figures: Path | None) -> None:
    """Export a run's best weights as a bundle, checked against torch and on a real scene.

    \b
      downlink export runs/universal --data DIR --out models/universal
    """
    from training.corpus import read_corpus
    from training.export import export as run_export
    from training.export import load_run

    try:
        _, settings = load_run(run / "best.pt")
        _, held = read_corpus(data, settings.corpus)
        out.parent.mkdir(parents=True, exist_ok=True)
        checks = run_export(run / "best.pt", out, name or out.name, version, held, _figures(run, figures), note)
    except DownlinkError as error:
        raise click.ClickException(str(error)) from error
    for key, value in checks.items():
        click.echo(f"{key}: {value}")
    click.echo(f"bundle: {out}")
