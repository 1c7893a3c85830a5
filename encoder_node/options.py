"""What the commands of `encoder-node` have in common: options, and errors as sentences.

Commands import what they need when they run, so that `--help` is quick and a missing package is only missed where it
is used. A `DownlinkError` or an OSError ends a command with `Error: ...` on stderr and exit code 1; a wrong command
line with 2; a full outbox or disk with 75, which is what sysexits.h calls "try again later".
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from downlink.errors import DownlinkError

if TYPE_CHECKING:
    from downlink.request import SetTarget
    from encoder_node.channel import Tls
    from encoder_node.target import Target

DEFAULT_MODEL = "universal"
FULL = 75
Command = TypeVar("Command", bound=Callable[..., Any])


class Full(click.ClickException):
    """There is no room; later there may be."""

    exit_code = FULL


class Commands(click.Group):
    """Turns errors that a user can cause into one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DownlinkError as error:
            raise (Full if error.code == "outbox_full" else click.ClickException)(str(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"{error.name} is not installed; pip install latent-downlink brings it"
            ) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            failure = Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else click.ClickException
            raise failure(f"{where}{error.strerror or error}") from error


def address(ctx: click.Context, _: click.Parameter, value: str) -> str:
    """HOST:PORT, as gRPC wants it."""
    host, _colon, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, for example 127.0.0.1:50551", ctx)
    return value


def address_or_none(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """HOST:PORT, if it is given."""
    return None if value is None else address(ctx, parameter, value)


def target_options(command: Command) -> Command:
    """The options that say how well to encode."""
    for option in (
        click.option(
            "--effort",
            type=click.Choice(["fast", "best"]),
            default="best",
            show_default=True,
            help="fast: no symbol is weighed against its bits; quicker, and some per cent more bits.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the network."
        ),
        click.option(
            "--psnr", "psnr", type=float, metavar="DB", help="Aim at this PSNR, against 10000 (255 for 8-bit scenes)."
        ),
        click.option(
            "--max-error", type=int, metavar="D", help="No pixel is off by more than D; 0 is lossless. Needs no model."
        ),
        click.option(
            "--weights",
            default="equal",
            show_default=True,
            metavar="W",
            help="How much each band's error counts: equal; balanced (relative to the band's deviation); noise "
            "(relative to its noise); visible (red, green and blue four times); B04=4,B03=4 …",
        ),
        click.option(
            "--outside",
            type=float,
            default=0.125,
            show_default=True,
            metavar="W",
            help="How much an error outside of the polygons of --importance counts.",
        ),
        click.option(
            "--importance",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Where the scene matters: a raster over the whole of it (1/4: an error counts a quarter), or GeoJSON "
            "with polygons.",
        ),
        click.option("--bytes", "stream_bytes", type=int, metavar="N", help="The stream may not exceed N bytes."),
        click.option("--bits-per-sample", type=float, metavar="R", help="Aim at this rate, within 2 %."),
        click.option(
            "--quality", type=float, metavar="Q", help="Quality, 0 to 120: 8 more halve the error. Default 50."
        ),
        click.option(
            "--model",
            metavar="NAME",
            help="A released bundle's name, or a bundle's folder. Default: the one that the ground has installed in the"
            f" outbox, else {DEFAULT_MODEL}.",
        ),
    ):
        command = option(command)
    return command


outbox_mb = click.option(
    "--outbox-mb", type=click.FloatRange(0, min_open=True), metavar="N",
    help="Refuse new scenes when those that wait would have more than N megabytes. Default: as much as the disk holds.",
)  # fmt: skip


def priority_of(ctx: click.Context, _: click.Parameter, value: str) -> int | None:
    """A scene's priority; None: what its tiles give it (encoder_node/anomaly.py)."""
    if value == "anomaly":
        return None
    if value.removeprefix("-").isdecimal() and -1000 <= int(value) <= 1000:
        return int(value)
    raise click.BadParameter(f"{value[:80]!r} is neither a number from -1000 to 1000 nor 'anomaly'", ctx)


priority_option = click.option(
    "--priority", default="0", show_default=True, metavar="N|anomaly", callback=priority_of,
    help="The larger, the sooner (-1000 to 1000). anomaly: the more a tile stands out, the sooner; such tiles go before"
    " the scene's others, and an alert before all.",
)  # fmt: skip

skip_clouds_option = click.option(
    "--skip-clouds", type=click.FloatRange(0, 100), metavar="P",
    help="Send nothing of tiles of which more than P % is cloud or snow (Sentinel-2's bands, reflectances).",
)  # fmt: skip

land_cover_option = click.option(
    "--land-cover", is_flag=True,
    help="Say in the manifest what each tile shows: its land cover, and how much of it is cloud. Two bytes a tile.",
)  # fmt: skip


def bytes_of(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * 1e6)


outbox_folder = click.option(
    "--outbox", required=True, type=click.Path(path_type=Path, file_okay=False), help="The outbox's folder."
)


def tls_options(command: Command) -> Command:
    """The three files of mutual TLS."""
    for name, text in (
        ("--tls-ca", "The CA that signs the ground's certificate (PEM)."),
        ("--tls-key", "Its private key (PEM)."),
        ("--tls-cert", "This node's certificate (PEM); its one DNS name is the node's name."),
    ):
        command = click.option(name, type=click.Path(path_type=Path, dir_okay=False), help=text)(command)
    return command


def tls_of(cert: Path | None, key: Path | None, ca: Path | None) -> Tls | None:
    """All three, checked, or none."""
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None or ca is None:
        raise click.UsageError("--tls-cert, --tls-key and --tls-ca go together: give all three, or none")
    from encoder_node.channel import Tls

    tls = Tls(cert, key, ca)
    tls.check()
    return tls


reference_option = click.option(
    "--reference", type=click.Choice(["last"]),
    help="last: code what differs from the last scene of the same place that the ground has, if that is less.",
)  # fmt: skip
layers_option = click.option(
    "--layers", type=click.IntRange(1, 64), metavar="N",
    help="Send so many layers of each scene, and keep the others until the ground asks for them. Default: all.",
)  # fmt: skip


def model_of(given: str | None, outbox: Path | None = None) -> str:
    """What `--model` says, else the bundle that the ground has installed, else the released one."""
    if given is None and outbox is not None:
        from encoder_node.models import Models

        given = str(active) if (active := Models(outbox).active) else None
    return given or DEFAULT_MODEL


def layers_of(given: int | None, asked: SetTarget) -> int | None:
    """How many layers are to be sent, None: all. What the ground asks for counts unless it is typed."""
    source = click.get_current_context().get_parameter_source("layers")
    return given if source is click.core.ParameterSource.COMMANDLINE else asked.layers or given


def target_of(asked: SetTarget | None = None) -> Target:
    """What is asked for: on the command line, else by the ground, else in the configuration file."""
    from encoder_node.importance import ImportanceFile
    from encoder_node.target import Target

    ctx = click.get_current_context()
    names = ("quality", "bits_per_sample", "psnr", "stream_bytes", "max_error")
    typed = [name for name in names if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    given = {name: ctx.params[name] for name in typed or names}
    if asked is not None and asked.target and not typed:
        value = int(asked.value) if asked.target in ("stream_bytes", "max_error") else asked.value
        given = {asked.target.removesuffix("_db"): value}
    drawn = None
    if ctx.params["importance"] is not None:
        drawn = ImportanceFile(ctx.params["importance"], ctx.params["outside"])
    return Target(
        quality=given.get("quality"),
        bits_per_sample=given.get("bits_per_sample"),
        psnr_db=given.get("psnr"),
        stream_bytes=given.get("stream_bytes"),
        max_error=given.get("max_error"),
        weights=ctx.params["weights"],
        importance=drawn,
    )
