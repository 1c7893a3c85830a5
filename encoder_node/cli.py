"""`encoder-node`: encode scenes, keep them in an outbox, send them down.

Commands import what they need when they run, so that `--help` is quick and a missing package is only missed where it
is used. A `DownlinkError` or an OSError ends a command with `Error: ...` on stderr and exit code 1; a wrong command
line with 2; a full outbox or disk with 75, which is what sysexits.h calls "try again later".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from downlink import __version__
from downlink.errors import DownlinkError, SceneError
from encoder_node.durable import shown, whole_file

if TYPE_CHECKING:
    from encoder_node.channel import Tls
    from encoder_node.outbox import Entry
    from encoder_node.sender import Sender
    from encoder_node.spool import EncodedScene
    from encoder_node.target import Target

DEFAULT_MODEL = "universal"
FULL = 75
Command = TypeVar("Command", bound=Callable[..., Any])


class _Full(click.ClickException):
    """There is no room; later there may be."""

    exit_code = FULL


class _Commands(click.Group):
    """Turns errors that a user can cause into one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DownlinkError as error:
            raise (_Full if error.code == "outbox_full" else click.ClickException)(str(error)) from error
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"{error.name} is not installed; pip install latent-downlink brings it"
            ) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            failure = _Full if error.errno in (errno.ENOSPC, errno.EDQUOT) else click.ClickException
            raise failure(f"{where}{error.strerror or error}") from error


def _address(ctx: click.Context, _: click.Parameter, value: str) -> str:
    """HOST:PORT, as gRPC wants it."""
    host, _colon, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, for example 127.0.0.1:50551", ctx)
    return value


def _configure(ctx: click.Context, _: click.Parameter, value: Path | None) -> Path | None:
    """Options that the file gives become the defaults of every command that has them."""
    if value is not None:
        from encoder_node.config import read_config

        try:
            given = read_config(value)
        except DownlinkError as error:
            raise click.ClickException(str(error)) from error
        ctx.default_map = dict.fromkeys(("encode", "submit", "run", "status", "resend"), given)
    return value


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="encoder-node")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), callback=_configure, is_eager=True, expose_value=False,
    help="TOML file whose keys are the names of the options (rate_kbps = 2000).",
)  # fmt: skip
def main() -> None:
    """The satellite side: turns scenes into small streams and gets them down.

    \b
    encoder-node encode scene.tif scene.dl
    encoder-node submit scene.tif --outbox /var/lib/encoder-node
    encoder-node run --outbox /var/lib/encoder-node --ground ground.example:50551
    """


def _targets(command: Command) -> Command:
    """The options that say how well to encode."""
    for option in (
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
            help="How much each band's error counts: equal; balanced (relative to the band's deviation); B04=4,B03=4 …",
        ),
        click.option("--bytes", "stream_bytes", type=int, metavar="N", help="The stream may not exceed N bytes."),
        click.option("--bits-per-sample", type=float, metavar="R", help="Aim at this rate, within 2 %."),
        click.option(
            "--quality", type=float, metavar="Q", help="Quality, 0 to 120: 8 more halve the error. Default 50."
        ),
        click.option(
            "--model", default=DEFAULT_MODEL, show_default=True, help="A released bundle's name, or a bundle's folder."
        ),
    ):
        command = option(command)
    return command


_outbox_mb = click.option(
    "--outbox-mb", type=click.FloatRange(0, min_open=True), metavar="N",
    help="Refuse new scenes when those that wait would have more than N megabytes. Default: as much as the disk holds.",
)  # fmt: skip


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * 1e6)


def _tls_options(command: Command) -> Command:
    """The three files of mutual TLS."""
    for name, text in (
        ("--tls-ca", "The CA that signs the ground's certificate (PEM)."),
        ("--tls-key", "Its private key (PEM)."),
        ("--tls-cert", "This node's certificate (PEM); its one DNS name is the node's name."),
    ):
        command = click.option(name, type=click.Path(path_type=Path, dir_okay=False), help=text)(command)
    return command


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> Tls | None:
    """All three, checked, or none."""
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None or ca is None:
        raise click.UsageError("--tls-cert, --tls-key and --tls-ca go together: give all three, or none")
    from encoder_node.channel import Tls

    tls = Tls(cert, key, ca)
    tls.check()
    return tls


def _target() -> Target:
    """What is asked for. A target on the command line replaces one from the configuration file."""
    from encoder_node.target import Target

    ctx = click.get_current_context()
    names = ("quality", "bits_per_sample", "psnr", "stream_bytes", "max_error")
    typed = [name for name in names if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    given = {name: ctx.params[name] for name in typed or names}
    return Target(
        quality=given.get("quality"),
        bits_per_sample=given.get("bits_per_sample"),
        psnr_db=given.get("psnr"),
        stream_bytes=given.get("stream_bytes"),
        max_error=given.get("max_error"),
        weights=ctx.params["weights"],
    )


@main.command()
@click.argument("scene", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_targets
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def encode(scene: Path, out: Path, model: str, threads: int, as_json: bool, **_: object) -> None:
    """Encode SCENE into the stream file OUT.

    SCENE is a GeoTIFF, a JPEG 2000, a Sentinel-2 .SAFE product, an .npy array (bands, height, width), or a raw file
    with a JSON side-car. OUT appears whole or not at all.

    \b
    encoder-node encode scene.tif scene.dl
    encoder-node encode scene.tif scene.dl --bits-per-sample 0.5
    encoder-node encode S2A_MSIL2A_20260101.SAFE scene.dl --psnr 48 --json
    """
    began = time.monotonic()
    target = _target()
    if not out.parent.is_dir():
        raise SceneError(f"{shown(out.parent)} is not a folder; make it first")
    _check_out(scene, out)
    with _encoded(scene, model, target, threads, out.parent) as encoded:
        with whole_file(out) as file:
            encoded.write(file)
        facts = _facts(encoded, began) | {"path": shown(out)}
    if as_json:
        print(json.dumps(facts))
    else:
        print(
            f"{facts['path']}: {facts['bytes']} bytes, {facts['ratio']:.1f}:1, "
            f"{facts['bits_per_sample']:.3f} bits/sample, {facts['encode_s']:.1f} s"
        )


@main.command()
@click.argument("scenes", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SCENE...")
@click.option("--outbox", required=True, type=click.Path(path_type=Path, file_okay=False), help="The outbox's folder.")
@_targets
@click.option(
    "--priority", type=click.IntRange(-1000, 1000), default=0, show_default=True, help="The larger, the sooner."
)
@_outbox_mb
@click.option("--unless-delivered", is_flag=True, help="Do nothing about a scene that the ground has had already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per scene.")
def submit(
    scenes: tuple[Path, ...],
    outbox: Path,
    model: str,
    threads: int,
    priority: int,
    outbox_mb: float | None,
    unless_delivered: bool,
    as_json: bool,
    **_: object,
) -> None:
    """Encode each SCENE and keep it in the outbox until the ground has it.

    A scene's id is printed when the scene is safe on disk: from then on it is not lost, whatever happens to this
    machine's power. The same scene submitted twice is one scene, of the higher priority of the two. One that was
    delivered before is queued once more: the ground answers at once if it still has it. A .dl file made by `encode` is
    queued as it is.

    A full outbox refuses new scenes, with exit code 75; it never drops one that it has taken.

    \b
    encoder-node submit a.tif b.tif --outbox /var/lib/encoder-node
    encoder-node submit fire.tif --outbox /var/lib/encoder-node --priority 10 --quality 60
    encoder-node submit scene.dl --outbox /var/lib/encoder-node
    """
    from encoder_node.outbox import Outbox

    target = _target()
    failures = []
    with Outbox(outbox, create=True, bytes_max=_bytes(outbox_mb), reserve=True) as box:
        for scene in scenes:
            began = time.monotonic()
            try:
                box.check_room()  # before the work
                if scene.suffix == ".dl":
                    entry, facts = _submit_stream(box, scene, priority, again=not unless_delivered)
                else:
                    with _encoded(scene, model, target, threads, outbox) as encoded:
                        packed, chunks = encoded.manifest_bytes, encoded.chunks()
                        entry = box.submit(packed, chunks, priority=priority, again=not unless_delivered)
                        facts = _facts(encoded, began)
            except (DownlinkError, OSError) as error:
                if len(scenes) == 1:
                    raise
                failures.append(scene)
                click.echo(f"Error: {shown(scene)}: {error}", err=True)
                continue
            print(json.dumps({**facts, **_row(entry), "path": shown(scene)}) if as_json else entry.scene_id, flush=True)
    if failures:
        raise SceneError(f"{len(failures)} of {len(scenes)} scenes were not submitted")


@main.command()
@click.option("--outbox", required=True, type=click.Path(path_type=Path, file_okay=False), help="The outbox's folder.")
@click.option(
    "--ground", required=True, metavar="HOST:PORT", callback=_address, help="Where the decoder node listens.",
)  # fmt: skip
@_tls_options
@_outbox_mb
@click.option(
    "--watch", type=click.Path(path_type=Path, file_okay=False), help="Submit the scenes that appear in this folder."
)
@click.option(
    "--once", is_flag=True, help="Exit when all is durable on the ground: 0, or 1 with the reason if it cannot be."
)
@click.option(
    "--rate-kbps", type=click.FloatRange(0, min_open=True), metavar="N", help="Send at most N kbit/s (1000 bits)."
)
@click.option(
    "--window-kib", type=click.IntRange(1, 1 << 20), default=16_384, show_default=True,
    metavar="N", help="At most so much is sent before it is acknowledged; less where less fills the link.",
)  # fmt: skip
@click.option(
    "--contact",
    multiple=True,
    metavar="START/END",
    help="The ground is in sight from START to END (ISO 8601, UTC); nothing is sent outside. As often as needed.",
)
@click.option(
    "--contacts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file of passes: [[contact]] tables with start, end, rate_kbps if known. Read again when it changes.",
)
@click.option(
    "--patience", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, metavar="S",
    help="With --once: give up after so long without progress.",
)  # fmt: skip
@_targets
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(
    outbox: Path, ground: str, tls_cert: Path | None, tls_key: Path | None, tls_ca: Path | None,
    outbox_mb: float | None, watch: Path | None, once: bool, rate_kbps: float | None, window_kib: int,
    contact: tuple[str, ...], contacts: Path | None, patience: float, model: str, threads: int, log_level: str,
    **_: object,
) -> None:  # fmt: skip
    """Send what the outbox holds, for as long as it takes.

    The link may come and go: what the ground has is not sent again, and nothing is forgotten before the ground says
    that it is safe. Without the three --tls files all travels in the clear, and anybody may play the ground. Logs are
    JSON lines on stderr. SIGTERM and SIGINT end it within 10 s, without loss.

    \b
    encoder-node run --outbox /var/lib/encoder-node --ground ground.example:50551
    encoder-node run --outbox box --ground 127.0.0.1:50551 --once
    encoder-node run --outbox box --ground 10.0.0.1:50551 --watch /data/incoming --rate-kbps 2000
    encoder-node run --outbox box --ground 10.0.0.1:50551 --contact 2026-11-21T10:02:30Z/2026-11-21T10:11:00Z
    encoder-node run --outbox box --ground ground.example:50551 --tls-cert node.pem --tls-key node.key --tls-ca ca.pem
    """
    from encoder_node.log import log_to_stderr
    from encoder_node.outbox import Outbox
    from encoder_node.schedule import Contacts
    from encoder_node.sender import Options

    log_to_stderr(log_level)
    target = _target()
    options = Options(
        ground=ground,
        tls=_tls(tls_cert, tls_key, tls_ca),
        rate_kbps=rate_kbps,
        window_bytes=1024 * window_kib,
        give_up_s=patience,
        contacts=Contacts(contact, contacts),
        software=f"encoder-node {__version__}",
    )
    again = [_option(name, value) for name, value in target.settings.items()]
    again += [f"--model={model}", f"--threads={threads}"]
    again += [] if outbox_mb is None else [f"--outbox-mb={outbox_mb:g}"]
    with Outbox(outbox, create=True, reserve=True) as box, _alone(outbox):
        from encoder_node.sender import Sender

        asyncio.run(_run(lambda: Sender(box, options), watch, again, once))


def _option(name: str, value: str | float) -> str:
    """A target as it is typed; whole numbers without a point, as `--max-error` wants them."""
    whole = isinstance(value, float) and value.is_integer()
    return f"--{name.replace('_', '-').removesuffix('-db')}={int(value) if whole else value}"


async def _run(make: Callable[[], Sender], folder: Path | None, options: list[str], once: bool) -> None:
    from encoder_node.log import log
    from encoder_node.watch import Watch

    sender = make()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sender.stop)
    watch = Watch(folder, sender, options) if folder else None
    facts = {"ground": sender.options.ground, "tls": sender.options.tls is not None}
    log.info("started", extra={**facts, "outbox": str(sender.outbox.folder)})
    if once:
        if watch:
            await watch.run_once(sender.options.give_up_s)
        await sender.run(until_empty=True)
        if watch and watch.failed:
            raise SceneError(f"{len(watch.failed)} files could not be submitted: {watch.failed[0]}")
    else:
        await asyncio.gather(sender.run(), *([watch.run()] if watch else []))
    log.info("stopped")


@main.command()
@click.option("--outbox", required=True, type=click.Path(path_type=Path, file_okay=False), help="The outbox's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def status(outbox: Path, as_json: bool) -> None:
    """List the scenes of the outbox: what is queued, refused, delivered.

    \b
    encoder-node status --outbox /var/lib/encoder-node
    encoder-node status --outbox /var/lib/encoder-node --json
    """
    from encoder_node.outbox import Outbox

    with Outbox(outbox, read_only=True) as box:
        _print_entries(box.entries(), as_json)


@main.command()
@click.argument("scene_ids", nargs=-1, metavar="[SCENE_ID]...")
@click.option("--outbox", required=True, type=click.Path(path_type=Path, file_okay=False), help="The outbox's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def resend(scene_ids: tuple[str, ...], outbox: Path, as_json: bool) -> None:
    """Queue scenes again that the ground has refused, or asked to wait with.

    Ids may be shortened to their first digits. Without an id: all of them.

    \b
    encoder-node resend --outbox /var/lib/encoder-node
    encoder-node resend 3fa94c --outbox /var/lib/encoder-node
    """
    from encoder_node.outbox import Outbox

    with Outbox(outbox) as box:
        _print_entries(box.resend(scene_ids), as_json)


def _check_out(scene: Path, out: Path) -> None:
    """Refuse an OUT that would put the stream in the place of what it is made from."""
    if out.is_dir():
        raise SceneError(f"{shown(out)} is a folder; name a file in it, e.g. {shown(out / scene.stem)}.dl")
    if out.exists() and scene.exists() and out.samefile(scene):
        raise SceneError(f"{shown(out)} is the same file as the scene, which would be lost; name another OUT")
    there, target = scene.resolve(), out.resolve()
    for folder in (there, *there.parents):
        if folder.suffix.upper() == ".SAFE" and target.is_relative_to(folder):
            raise SceneError(f"{shown(out)} lies inside the product {shown(folder)}; name an OUT outside of it")
    beside = target.parent == there.parent and out.name.startswith(scene.stem)  # its side-car or header, perhaps
    if out.exists() and out.suffix != ".dl" and (beside or (scene.is_dir() and target.is_relative_to(there))):
        raise SceneError(f"{shown(out)} looks like a part of the scene and would be lost; name another OUT")


@contextlib.contextmanager
def _encoded(scene: Path, model: str, target: Target, threads: int, spool: Path) -> Iterator[EncodedScene]:
    """A scene, encoded; its chunks wait in a temporary file in `spool`."""
    from encoder_node.source import open_source

    source = open_source(scene)
    try:
        for note in source.notes:
            click.echo(f"Note: {shown(scene)}: {note}", err=True)
        if target.max_error is not None:
            from encoder_node.exact import encode_exact

            with (
                _progress(scene.name) as progress,
                encode_exact(source, target.max_error, target.settings, spool, progress) as encoded,
            ):
                yield encoded
            return
        from downlink.bundle import find
        from encoder_node.encoder import PlaneEncoder
        from encoder_node.pipeline import encode_scene

        encoder = PlaneEncoder(find(model), threads=threads)
        with _progress(scene.name) as progress, encode_scene(source, encoder, target, spool, progress) as encoded:
            yield encoded
    finally:
        source.close()


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, if somebody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield advance


def _submit_stream(box: Any, path: Path, priority: int, *, again: bool) -> tuple[Entry, dict[str, Any]]:
    """Queue a stream file as it is."""
    from downlink.stream import StreamReader

    with path.open("rb") as file:
        reader = StreamReader(file)
        entry: Entry = box.submit(reader.manifest_bytes, reader.chunks(), priority=priority, again=again)
        return entry, {"raw_bytes": reader.manifest.scene.raw_bytes}


def _facts(encoded: EncodedScene, began: float) -> dict[str, Any]:
    import resource

    scene = encoded.manifest.scene
    size = encoded.stream_bytes
    return {
        "scene_id": encoded.scene_id,
        "name": scene.name,
        "bytes": size,
        "raw_bytes": scene.raw_bytes,
        "ratio": scene.raw_bytes / size,
        "bits_per_sample": 8 * size / scene.samples,
        "model": encoded.manifest.bundle_name,
        "settings": encoded.manifest.settings,
        "encode_s": round(time.monotonic() - began, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def _row(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in entry.__slots__}


def _print_entries(entries: list[Entry], as_json: bool) -> None:
    if as_json:
        print(json.dumps([_row(entry) for entry in entries]))
        return
    for entry in entries:
        reason = f"  {entry.reason}" if entry.reason else ""
        print(f"{entry.scene_id[:12]}  {entry.state:9}  {entry.bytes:>12}  {entry.name}{reason}")


@contextlib.contextmanager
def _alone(outbox: Path) -> Iterator[None]:
    """One sender per outbox: two would send everything twice."""
    import fcntl

    with (outbox / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SceneError(f"another `encoder-node run` sends the outbox {outbox}; stop it first") from None
        yield
