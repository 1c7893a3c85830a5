"""The `downlink` command: a thin group that loads the commands of other parts when they are called.

    downlink evaluate scene.tif --against j2k,j2k-klt
    downlink train training/configs/universal.toml --data DIR --out runs/mine
    downlink export runs/mine --data DIR --out models/mine
    downlink models list

`evaluate`, `train`, `export` and `lab` live in `evaluation` and `training`, which may import everything; this module
names them and imports nothing of them, so that `downlink models` works on the smallest installation. A missing package
is named in one sentence with the `pip install` that brings it. It is the one module of `downlink` that opens files.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import click

from downlink import __version__, bundle
from downlink.bundle import Bundle
from downlink.errors import DownlinkError

_OURS: Final = ("downlink", "encoder_node", "decoder_node", "training", "evaluation")


class _Command(NamedTuple):
    """Where a command lives, the extra that brings what it needs, and its line in the help."""

    module: str
    extra: str
    help: str


LAZY: Final = {
    "evaluate": _Command("evaluation.cli", "evaluation", "Measure rate and quality on your own files."),
    "profile": _Command("evaluation.cli_profile", "evaluation", "Measure what the encoder costs on this machine."),
    "train": _Command("training.cli", "training", "Train a codec from a TOML config."),
    "export": _Command("training.cli", "training", "Export a run's best weights as a bundle."),
    "reprocess": _Command("decoder_node.cli_reprocess", "ground", "Decode the scenes of an archive anew."),
    "lab": _Command("training.lab.cli", "training", "Train and measure the autoencoder family on real imagery."),
}


class _LazyGroup(click.Group):
    """Imports a command when it is called, and turns errors that a user can mend into one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*LAZY, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LAZY:
            return super().get_command(ctx, cmd_name)
        try:
            return cast(click.Command, getattr(importlib.import_module(LAZY[cmd_name].module), cmd_name))
        except ModuleNotFoundError as error:
            raise _missing(error, cmd_name) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, super(_LazyGroup, self).get_command(ctx, name)) for name in super().list_commands(ctx)]
        rows = [(name, command.help) for name, command in LAZY.items()]
        rows += [(name, command.get_short_help_str(80)) for name, command in own if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing(error, ctx.invoked_subcommand or "") from error
        except DownlinkError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error


def _missing(error: ModuleNotFoundError, command: str) -> Exception:
    """What to say when a package is not installed; the error itself when it is a module of ours (a bug)."""
    package = (error.name or "").partition(".")[0]
    if not package or package in _OURS:
        return error
    extra = LAZY[command].extra if command in LAZY else "ground"
    return click.ClickException(f"`downlink {command}` needs {package}: pip install 'latent-downlink[{extra}]'")


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="latent-downlink")
def main() -> None:
    """Learned compression of satellite imagery: measure it, train it, look after its models.

    The two ends of the link have commands of their own: encoder-node and decoder-node.
    """


@main.group()
def models() -> None:
    """List, show, check and split model bundles.

    \b
      downlink models list
      downlink models show universal
      downlink models verify universal
      downlink models split universal encoder to-the-satellite/
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array instead of a table.")
def list_(as_json: bool) -> None:
    """The released bundles that are installed."""
    rows = [_facts(bundle.find(name)) for name in bundle.released_names()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no released bundles are installed")
    for row in rows:
        click.echo(
            f"{row['name']:<20} {row['version']:<10} {row['id'][:12]}  {row['half']:<8} {row['bytes'] / 1e6:.1f} MB"
        )


@models.command()
@click.argument("name")
def show(name: str) -> None:
    """A bundle's id, files and card. NAME is a released bundle or a folder."""
    found = bundle.find(name)
    facts = _facts(found)
    click.echo(f"{found.name} {found.version} ({facts['half']})\nid {found.id.hex()}\nin {found.folder}\n")
    for file, digest in sorted(found.files.items()):
        click.echo(f"  {digest[:12]}  {file}{'' if found.has(file) else '  (not here)'}")
    if found.has("card.md"):
        click.echo(f"\n{found.file('card.md').decode()}")


@models.command()
@click.argument("names", nargs=-1)
@click.option(
    "--symbols", type=click.FloatRange(1, 1e12), metavar="N",
    help="Also code and decode N made-up symbols with the prior in every setting of onnxruntime (1e8: some minutes), "
    "and print what was seen as JSON; exit code 1 if any answer differs.",
)  # fmt: skip
def verify(names: tuple[str, ...], symbols: float | None) -> None:
    """Check every file of bundles against its hash. Without NAMES: of all released ones.

    \b
      downlink models verify
      downlink models verify universal --symbols 1e6
    """
    agree = True
    for name in names or bundle.released_names():
        found = bundle.find(name)
        found.verify()
        if symbols is not None:
            seen = importlib.import_module("training.conformance").prove(found, int(symbols))
            click.echo(json.dumps(seen, indent=2))
            agree = agree and seen["agree"]
            continue
        facts = _facts(found)
        click.echo(
            f"{found.name} {found.version} {found.id.hex()[:12]}: {facts['files']} files as stated ({facts['half']})"
        )
    if not agree:
        raise click.ClickException(
            "a prior answers one way in one setting and another in the next (`differing`, `symbols_returned`): what is "
            "coded with it here may not decode elsewhere; use another version of onnxruntime"
        )


@models.command()
@click.argument("name")
@click.argument("half", type=click.Choice(["encoder", "decoder"]))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def split(name: str, half: Literal["encoder", "decoder"], out: Path) -> None:
    """Write the half of a bundle that one end needs to folder OUT. The id stays that of the whole."""
    files = bundle.split(bundle.find(name).folder, half)
    out.mkdir(parents=True, exist_ok=True)
    others = sorted({path.name for path in out.iterdir()} - files.keys())
    if others:
        raise click.ClickException(f"{out} holds {', '.join(others[:4])} already; name an empty folder")
    for file, content in files.items():
        (out / file).write_bytes(content)
    total = sum(map(len, files.values()))
    click.echo(f"{out}: the {half} half of {name}, {len(files)} files, {total / 1e6:.1f} MB")


def _facts(found: Bundle) -> dict[str, Any]:
    here = [file for file in found.files if found.has(file)]
    halves = [half for half in ("encoder", "decoder") if f"{half}.onnx" in here]
    return {
        "name": found.name,
        "version": found.version,
        "id": found.id.hex(),
        "half": halves[0] if len(halves) == 1 else "both" if halves else "neither",
        "files": len(here),
        "bytes": sum(len(found.folder.joinpath(file).read_bytes()) for file in here),
    }


if __name__ == "__main__":
    main()
