"""`decoder-node`: receive scenes, decode them into an archive, say what is there.

Commands import what they need when they run, so that `--help` is quick and a missing package is only missed where it
is used. A `DownlinkError` or an OSError ends a command with `Error: ...` on stderr and exit code 1; a wrong command
line with 2.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from decoder_node.cli_enhance import enhance
from decoder_node.cli_model import ask  # with all its commands
from decoder_node.cli_page import options_of, page, page_options
from decoder_node.cli_reprocess import models_option, place_options, reprocess
from downlink import __version__
from downlink.errors import DownlinkError

if TYPE_CHECKING:
    from decoder_node.identity import Tls

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_LISTEN = "127.0.0.1:50551"


class _Commands(click.Group):
    """Turns errors that a user can cause into one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DownlinkError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            advice = "pip install 'latent-downlink[ground]' brings it"
            raise click.ClickException(f"{error.name} is not installed; {advice}") from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error


def _address(ctx: click.Context, _: click.Parameter, value: str) -> str:
    """HOST:PORT, as gRPC wants it."""
    host, _colon, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, for example 127.0.0.1:50551", ctx)
    return value


def _address_or_none(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else _address(ctx, parameter, value)


def _bundle_ids(ctx: click.Context, _: click.Parameter, values: tuple[str, ...]) -> list[bytes]:
    """Ids of bundles."""
    for value in values:
        if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise click.BadParameter(f"{value[:80]!r} is no bundle's id; `downlink models list` shows them", ctx)
    return [bytes.fromhex(value) for value in values]


def _configure(ctx: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """Options that the file gives become the defaults of every command that has them."""
    if value is not None:
        from decoder_node.config import read_config

        try:
            given = read_config(value)
        except DownlinkError as error:
            raise click.ClickException(str(error)) from error
        ctx.default_map = dict.fromkeys(("serve", "list", "decode", "page"), given)
        archive = {key: value for key, value in given.items() if key == "archive"}
        ctx.default_map["ask"] = dict.fromkeys(ask.commands, archive)
    return value


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="decoder-node")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), callback=_configure, is_eager=True, expose_value=False,
    help='TOML file whose keys are the names of the options (archive = "/srv/archive").',
)  # fmt: skip
def main() -> None:
    """The ground side: takes in what satellites send and writes GeoTIFFs and a STAC catalogue.

    \b
    decoder-node serve --archive /srv/archive --listen 0.0.0.0:50551
    decoder-node list --archive /srv/archive
    decoder-node decode scene.dl scene.tif
    decoder-node ask refine 3fa94c --archive /srv/archive
    """


_archive = click.option(
    "--archive", required=True, type=click.Path(path_type=Path, file_okay=False), help="The archive's folder."
)
_models = models_option


def _tls_options(command: Command) -> Command:
    """The three files of mutual TLS."""
    for name, text in (
        ("--tls-ca", "The CA that signs the nodes' certificates (PEM)."),
        ("--tls-key", "Its private key (PEM)."),
        ("--tls-cert", "The ground's certificate (PEM), for the host name that the nodes call."),
    ):
        command = click.option(name, type=click.Path(path_type=Path, dir_okay=False), help=text)(command)
    return command


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> Tls | None:
    """All three, or none."""
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None or ca is None:
        raise click.UsageError("--tls-cert, --tls-key and --tls-ca go together: give all three, or none")
    from decoder_node.identity import Tls

    return Tls(cert, key, ca)


@main.command()
@_archive
@click.option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    callback=_address,
    help="Port 0 takes a free one.",
)
@_tls_options
@click.option(
    "--insecure-listen", is_flag=True,
    help="Listen beyond loopback without TLS: anybody who reaches the address can send as any node.",
)  # fmt: skip
@click.option(
    "--nodes", multiple=True, metavar="NAME",
    help="A node that is let in. May be given several times. Default: all whose certificates the CA has signed.",
)  # fmt: skip
@click.option(
    "--bundles", multiple=True, metavar="ID", callback=_bundle_ids,
    help="The id (64 hex digits) of a bundle whose scenes are taken. May be given several times. Default: all.",
)  # fmt: skip
@place_options
@click.option(
    "--partial-after", type=click.FloatRange(0), default=10.0, show_default=True, metavar="S",
    help="Decode what has come of a scene so long after its offer, and again when a tenth more is there, as often at "
    "most. 0: only complete scenes.",
)  # fmt: skip
@_models
@click.option(
    "--metrics", metavar="HOST:PORT", callback=_address_or_none,
    help="Answer Prometheus there (GET /metrics), for example 127.0.0.1:9108. Default: nowhere.",
)  # fmt: skip
@click.option(
    "--page", metavar="HOST:PORT", callback=_address_or_none,
    help="Serve the web page there, for example 127.0.0.1:8080. Default: no page.",
)  # fmt: skip
@page_options
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(
    archive: Path, listen: str, tls_cert: Path | None, tls_key: Path | None, tls_ca: Path | None, insecure_listen: bool,
    nodes: tuple[str, ...], bundles: list[bytes], workers: int | str, worker_memory_mb: int | None,
    partial_after: float, models: tuple[Path, ...], products: tuple[str, ...], store: str, metrics: str | None,
    page: str | None, page_hosts: tuple[str, ...], page_token: Path | None, page_open: bool, log_level: str,
) -> None:  # fmt: skip
    """Receive scenes and decode them.

    What was acknowledged is on disk; what is durable is complete and verified. Scenes that were received and not yet
    decoded are decoded after a restart. A scene that stops coming is decoded as far as it has come: its files say that
    they are partial, and those of the whole scene replace them. Logs are JSON lines on stderr. SIGTERM and SIGINT end
    it within 10 s, without loss.

    With the three --tls files, nodes must show a certificate that the CA has signed, and each may only send and ask
    for its own scenes. Without them it listens on loopback only, unless --insecure-listen is given.

    \b
    decoder-node serve --archive /srv/archive --page 127.0.0.1:8080
    decoder-node serve --archive /srv/archive --listen 0.0.0.0:50551 --tls-cert ground.pem --tls-key ground.key \
        --tls-ca ca.pem --workers 4 --models /srv/models
    """
    from decoder_node.admission import Admission
    from decoder_node.durable import make_folder
    from decoder_node.log import log_to_stderr
    from decoder_node.serving import Serving, alone
    from decoder_node.serving import serve as run_serve

    log_to_stderr(log_level)
    tls = _tls(tls_cert, tls_key, tls_ca)
    make_folder(archive)
    archive = archive.resolve()
    admission = Admission(nodes, bundles)
    with alone(archive):
        memory = None if worker_memory_mb is None else worker_memory_mb * 2**20
        shown = None
        if page is not None:
            shown = options_of(archive, page, page_hosts, page_token, page_open, models, log_level)
        how = Serving(
            archive=archive, listen=listen, tls=tls, insecure=insecure_listen, admission=admission, workers=workers,
            memory=memory, partial_after_s=partial_after or None, models=models, products=products, store=store,
            page=shown, metrics=metrics,
        )  # fmt: skip
        asyncio.run(run_serve(how))


@main.command(name="list")
@_archive
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_scenes(archive: Path, as_json: bool) -> None:
    """List the scenes of the archive: what is being received, durable, decoded, quarantined.

    May be used while `serve` runs.

    \b
    decoder-node list --archive /srv/archive
    decoder-node list --archive /srv/archive --json | jq -r '.[] | select(.state == "decoded") | .path'
    """
    from decoder_node.ledger import Ledger

    ledger = Ledger(archive, read_only=True)
    rows = [entry.row(archive) for entry in ledger.entries()]
    ledger.close()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        done = f"{100 * row['chunks_committed'] // row['chunks']:>3} %"
        what = row["reason"] or row["path"] or ""
        if "land_cover" in row["facts"]:
            seen = [f"{name} {share:.0f} %" for name, share in row["facts"]["land_cover"].items()]
            what += f"  ({', '.join(seen)}; cloud {row['facts'].get('cloud_percent', 0):.0f} % of the scene)"
        print(f"{row['scene_id'][:12]}  {row['state']:11}  {done}  {row['bytes']:>12}  {row['name']}  {what}".rstrip())


@main.command()
@click.argument("stream", type=click.Path(path_type=Path), metavar="IN.dl")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT.tif")
@_models
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the network.")
@click.option(
    "--reference", "references", multiple=True, type=click.Path(path_type=Path, exists=True), metavar="REF.dl|DIR",
    help="Where the scene that this one was coded against lies; by default beside IN.dl. May be given several times.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print paths and figures as JSON.")
def decode(
    stream: Path, out: Path, models: tuple[Path, ...], threads: int, references: tuple[Path, ...], as_json: bool
) -> None:
    """Decode the stream file IN.dl to the Cloud-Optimised GeoTIFF OUT.tif.

    A scene with bands of several pixel sizes becomes several files: OUT_10m.tif, OUT_20m.tif, and so on. Each appears
    whole or not at all.

    \b
    decoder-node decode scene.dl scene.tif
    decoder-node decode scene.dl scene.tif --models ./my-models --json
    decoder-node decode tuesday.dl tuesday.tif --reference monday.dl
    """
    from decoder_node.decoding import decode_stream

    decoded = decode_stream(stream, out, models, threads, references=[*references, stream.parent])
    if as_json:
        print(json.dumps({"paths": [str(path) for path in decoded.paths], **decoded.facts}))
    else:
        for path in decoded.paths:
            print(path)


main.add_command(ask)
main.add_command(enhance)
main.add_command(page)
main.add_command(reprocess)
