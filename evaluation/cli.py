"""`downlink evaluate`: what this codec gives on somebody's own files, beside what else they could use.

    downlink evaluate scene.tif
    downlink evaluate a.tif b.tif --against j2k,j2k-klt,lerc --json result.json
    downlink evaluate --split test corpus/ --quality 30,40,50,60
    downlink evaluate scene.tif --max-error 0,10
    downlink evaluate scene.tif --against all --report report/

Tables go to standard output (Markdown when piped), progress to a terminal's standard error, and everything that was
measured to the file of `--json`. Exit code 1 when something could not be measured, 2 when the command is wrong.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from downlink import bundle
from downlink.errors import DownlinkError
from downlink.limits import MAX_ERROR_MAX
from evaluation.codecs import BOUNDED, CLASSICAL, LOSSY, CodecSpec, Contestant, unit

DEFAULT_MODEL = "universal"
QUALITIES = "16,24,32,40,48,56"
AGAINST = "j2k,j2k-klt"
NO_MODEL = "none"
EXACT = "exact"
REPORT_BOUNDS = (0.0, 10.0)


class _Names(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.4 on
    """Codec names, separated by commas."""

    name = "NAMES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        names = CLASSICAL if value == "all" else tuple(dict.fromkeys(filter(None, value.split(","))))
        unknown = [name for name in names if name not in CLASSICAL and name != NO_MODEL]
        if unknown:
            self.fail(f"{', '.join(unknown)} is unknown; choose from {', '.join(CLASSICAL)} or all", param, ctx)
        return tuple(name for name in names if name != NO_MODEL)


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers, separated by commas."""

    name = "Q,Q,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is no list of numbers; write for example {QUALITIES}", param, ctx)
        if not numbers or not all(math.isfinite(number) for number in numbers):
            self.fail(f"{value!r} holds no usable number; write for example {QUALITIES}", param, ctx)
        return tuple(sorted(set(numbers)))


class _Bounds(_Numbers):
    """Bounds on the error, separated by commas."""

    name = "D,D,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        for number in found:
            if not (number.is_integer() and 0 <= number <= MAX_ERROR_MAX):
                self.fail(
                    f"{number:g} is no bound; write whole numbers from 0 (lossless) to {MAX_ERROR_MAX}", param, ctx
                )
        return found


@click.command()
@click.argument("scenes", nargs=-1, required=True, metavar="SCENE…", type=click.Path(path_type=Path))
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|PATH",
    help=f"Model bundle; may be given several times; 'none': classical codecs alone.  [default: {DEFAULT_MODEL}]",
)
@click.option("--quality", type=_Numbers(), default=QUALITIES, show_default=True, help="Qualities the models run at.")
@click.option(
    "--max-error",
    "bounds",
    type=_Bounds(),
    help="Instead of models, measure the exact method: no sample off by more than D; 0 is lossless. With --report: "
    "beside them, by default at 0 and 10.",
)
@click.option(
    "--against",
    type=_Names(),
    help=f"{', '.join(CLASSICAL)}; all; or none.  [default: {AGAINST}; with --max-error {','.join(BOUNDED)}; "
    "with --report all]",
)
@click.option("--peak", type=float, help="PSNR's peak.  [default: 10000, or 255 for 8-bit scenes]")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(file_okay=False, path_type=Path),
    help="Measure all there is (curves, bounds, speeds, pictures); report.html, report.json and rows.csv go here.",
)
@click.option(
    "--cache",
    "cache_path",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep every measurement here, by content, and measure nothing twice.  [default: with --report its cache/]",
)
@click.option(
    "--speed/--no-speed", default=True, show_default=True, help="Race all codecs for a report's tables of speed."
)
@click.option("--split", help="Measure this split of a corpus: SCENE is a folder with a manifest.json.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads of each codec.")
@click.option(
    "--isolate/--no-isolate",
    default=True,
    show_default=True,
    help="Run each codec in processes of its own, so that its peak memory is its own.",
)
def evaluate(
    scenes: tuple[Path, ...],
    models: tuple[str, ...],
    quality: tuple[float, ...],
    bounds: tuple[float, ...] | None,
    against: tuple[str, ...] | None,
    peak: float | None,
    json_path: Path | None,
    report_path: Path | None,
    cache_path: Path | None,
    speed: bool,
    split: str | None,
    threads: int,
    isolate: bool,
) -> None:
    """Measure rate, quality and speed on SCENEs, beside classical codecs.

    Every figure comes from real files: encoded, decoded from those bytes alone, compared with all valid samples.

    \b
      downlink evaluate scene.tif
      downlink evaluate a.tif b.tif --against j2k,jpegxl --json result.json
      downlink evaluate scene.tif --max-error 0,10
      downlink evaluate scene.tif --against all --report report/
    """
    if peak is not None and not (math.isfinite(peak) and peak > 0):
        raise click.BadParameter(f"{peak:g} is no peak; it must be above 0, such as 10000 or 255", param_hint="--peak")
    if report_path is not None:
        names = CLASSICAL if against is None else against
        curves = [*_models(models or (DEFAULT_MODEL,), quality, threads)]
        curves += _classical(tuple(name for name in LOSSY if name in names), threads)
        promised = _bounded(tuple(name for name in BOUNDED if name in names), bounds or REPORT_BOUNDS, threads)
        if _report(scenes, curves, promised, peak, json_path, report_path, cache_path, speed, split, threads, isolate):
            sys.exit(1)
        return
    if bounds is None:
        peers = tuple(AGAINST.split(",")) if against is None else against
        contestants = [*_models(models or (DEFAULT_MODEL,), quality, threads), *_classical(peers, threads)]
    else:
        source = click.get_current_context().get_parameter_source("quality")
        if models or source is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError("--max-error measures the exact method: leave --model and --quality out")
        contestants = _bounded(BOUNDED if against is None else against, bounds, threads)
    if _evaluate(scenes, contestants, peak, json_path, cache_path, split, threads, isolate):
        sys.exit(1)


def _evaluate(
    scenes: tuple[Path, ...],
    contestants: list[Contestant],
    peak: float | None,
    json_path: Path | None,
    cache_path: Path | None,
    split: str | None,
    threads: int,
    isolate: bool,
) -> int:
    """Returns how many measurements failed."""
    # Imported here, so that --help needs none of the evaluation extra; what is missing `downlink.cli` puts in words.
    from evaluation import bounds_table, table
    from evaluation.cache import Cache
    from evaluation.evaluate import evaluate as run
    from evaluation.worker import Apart, Here

    entries, millions = _found(scenes, contestants, split)
    runner = Apart(threads) if isolate else Here()
    settings = sum(len(contestant.at(1.0)) for contestant in contestants)
    try:
        with _writer(json_path) as write, _progress(millions * settings) as done:
            report = run(entries, contestants, peak, runner, done, Cache(cache_path))
            promised = any(contestant.promises for contestant in contestants)
            document = report.document(None if promised else contestants[0].spec.label, threads)
            write(document)
    finally:
        runner.close()
    if promised:
        bounds_table.show(table.console(), document)
    else:
        table.show(table.console(), document, {contestant.spec.label: contestant.unit for contestant in contestants})
    if json_path is not None:
        click.echo(f"All figures: {json_path}", err=True)
    return len(report.failures)


def _report(
    scenes: tuple[Path, ...],
    curves: list[Contestant],
    promised: list[Contestant],
    peak: float | None,
    json_path: Path | None,
    report_path: Path,
    cache_path: Path | None,
    speed: bool,
    split: str | None,
    threads: int,
    isolate: bool,
) -> int:
    """Measures, writes the folder, prints the summary's table; returns how many measurements failed."""
    from evaluation import report, table
    from evaluation.cache import Cache
    from evaluation.worker import Apart, Here

    entries, millions = _found(scenes, [*curves, *promised], split)
    try:
        report_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownlinkError(
            f"{report_path} cannot be written ({error.strerror}); give --report another place"
        ) from error
    kept = Cache(report_path / "cache" if cache_path is None else cache_path)
    runner = Apart(threads) if isolate else Here()
    settings = sum(len(contestant.at(1.0)) for contestant in (*curves, *promised))

    def say(what: str) -> None:
        click.echo(f"measuring {what} …", err=True)

    try:
        with _writer(json_path) as write, _progress(millions * settings) as done:
            found = report.measure(entries, curves, promised, peak, runner, threads, kept, done, say, speed) | {
                "split": split
            }
            paths = report.write(report_path, found)
            write({key: value for key, value in found.items() if key != "pictures"})
    finally:
        runner.close()
    failures = found["failures"] + found["bounds"]["failures"]
    if found["rows"]:
        table.show(table.console(), {**found, "failures": failures}, found["settings"])
    click.echo(f"The report: {paths[0]}", err=True)
    return len(failures)


def _found(scenes: tuple[Path, ...], contestants: list[Contestant], split: str | None) -> tuple[list[Any], float]:
    """The scenes to be measured, and their million samples; refuses before hours are spent."""
    from evaluation import scenes as listing

    if not contestants:
        raise DownlinkError("nothing to measure: --model is none and --against is none; name one codec at least")
    entries, left_out = listing.find(scenes, split)
    millions = sum(listing.describe(entry.path).samples for entry in entries) / 1e6
    if left_out:
        click.echo(f"{left_out} files of the corpus are neither 8- nor 16-bit integers: left out", err=True)
    return entries, millions


def _models(models: tuple[str, ...], quality: tuple[float, ...], threads: int) -> list[Contestant]:
    found: list[Contestant] = []
    for model in models:
        if model == NO_MODEL:
            continue
        try:
            name = bundle.find(model).name
        except DownlinkError as error:
            raise DownlinkError(f"{error}; --model {NO_MODEL} measures the classical codecs alone") from error
        label = name if all(name != other.spec.label for other in found) else model
        found.append(Contestant(CodecSpec(label, model=model, threads=threads), "quality", quality))
    return found


def _classical(names: tuple[str, ...], threads: int) -> list[Contestant]:
    return [Contestant(CodecSpec(name, classical=name, threads=threads), unit(name)) for name in names]


def _bounded(names: tuple[str, ...], bounds: tuple[float, ...], threads: int) -> list[Contestant]:
    others = [name for name in names if name not in BOUNDED]
    if others:
        raise click.BadParameter(
            f"{', '.join(others)} cannot bound the error of a sample; choose from {', '.join(BOUNDED)}",
            param_hint="--against",
        )
    exact = Contestant(CodecSpec(EXACT, threads=threads), "largest error allowed in DN", bounds, promises=True)
    return [exact, *(Contestant(CodecSpec(n, classical=n, threads=threads), unit(n), bounds) for n in names)]


@contextlib.contextmanager
def _writer(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes the JSON whole or not at all; finds out that it cannot be written before anything is measured."""
    if path is None:
        yield lambda document: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise DownlinkError(f"{path} cannot be written ({error.strerror}); give --json another place") from error
    os.close(handle)
    temporary = Path(name)

    def write(document: dict[str, Any]) -> None:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
        temporary.chmod(0o644)
        temporary.replace(path)

    try:
        yield write
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress(total: float) -> Iterator[Callable[[str, str, float], None]]:
    """A bar on standard error if that is a terminal; in million samples, for scenes differ in size."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from evaluation.table import console

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    out = console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("evaluate", total=total)

        def done(codec: str, scene: str, millions: float) -> None:
            bar.update(task, advance=millions, description=f"{codec} · {scene[:40]}")

        yield done
