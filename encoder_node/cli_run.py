"""`encoder-node run`: send what the outbox holds, and pick up what appears in a folder."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from downlink import __version__
from downlink.errors import SceneError
from encoder_node.options import (
    address,
    address_or_none,
    bytes_of,
    land_cover_option,
    layers_option,
    outbox_folder,
    outbox_mb,
    priority_option,
    reference_option,
    skip_clouds_option,
    target_of,
    target_options,
    tls_of,
    tls_options,
)

if TYPE_CHECKING:
    from encoder_node.sender import Sender
    from encoder_node.watch import Standing


@click.command()
@outbox_folder
@click.option(
    "--ground", required=True, metavar="HOST:PORT", callback=address, help="Where the decoder node listens.",
)  # fmt: skip
@tls_options
@outbox_mb
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
@priority_option
@skip_clouds_option
@reference_option
@click.option(
    "--references-mb", type=click.FloatRange(0), metavar="N",
    help="Retain at most N MB of delivered scenes that others may be coded against; the oldest place goes first."
    "  [default: 256 once --reference was used; 0 turns it off]",
)  # fmt: skip
@land_cover_option
@layers_option
@click.option(
    "--model-key", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Only take model bundles from the ground that this Ed25519 key has signed (PEM, the public half).",
)  # fmt: skip
@click.option(
    "--metrics", metavar="HOST:PORT", callback=address_or_none,
    help="Answer Prometheus there (GET /metrics), for example 127.0.0.1:9109. Default: nowhere.",
)  # fmt: skip
@target_options
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def run(
    outbox: Path, ground: str, tls_cert: Path | None, tls_key: Path | None, tls_ca: Path | None,
    outbox_mb: float | None, watch: Path | None, once: bool, rate_kbps: float | None, window_kib: int,
    contact: tuple[str, ...], contacts: Path | None, patience: float, reference: str | None,
    references_mb: float | None, model_key: Path | None, metrics: str | None, model: str | None, log_level: str,
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
    encoder-node run --outbox box --ground 10.0.0.1:50551 --watch /data/incoming --priority anomaly --skip-clouds 80
    encoder-node run --outbox box --ground 10.0.0.1:50551 --contact 2026-11-21T10:02:30Z/2026-11-21T10:11:00Z
    encoder-node run --outbox box --ground ground.example:50551 --tls-cert node.pem --tls-key node.key --tls-ca ca.pem
    """
    from encoder_node.log import log_to_stderr
    from encoder_node.models import Models
    from encoder_node.outbox import Outbox
    from encoder_node.schedule import Contacts
    from encoder_node.sender import Options
    from encoder_node.signature import Key

    log_to_stderr(log_level)
    standing = standing_of()
    options = Options(
        ground=ground,
        tls=tls_of(tls_cert, tls_key, tls_ca),
        rate_kbps=rate_kbps,
        window_bytes=1024 * window_kib,
        give_up_s=patience,
        contacts=Contacts(contact, contacts),
        software=f"encoder-node {__version__}",
    )
    fixed = "" if model is None else f"this node's operator has chosen its model: --model {model}"
    key = None if model_key is None else Key(model_key)
    with Outbox(outbox, create=True, reserve=True) as box, _alone(outbox):
        from encoder_node.sender import Sender

        if references_mb is not None or reference == "last":
            box.references.bind(bytes_of(references_mb))
        models = Models(outbox, key, fixed)
        asyncio.run(_run(lambda: Sender(box, options, models), watch, standing, once, metrics))


def standing_of() -> Standing:
    """What is asked of every scene that is picked up, as it is typed after `submit`."""
    from encoder_node.watch import Standing

    given, target = click.get_current_context().params, target_of()
    always = [f"--threads={given['threads']}", f"--effort={given['effort']}", f"--weights={target.weights}"]
    if given["importance"] is not None:
        always += [f"--importance={given['importance'].absolute()}", f"--outside={given['outside']}"]
    if given["priority"] != 0:
        always.append(f"--priority={'anomaly' if given['priority'] is None else given['priority']}")
    if given["land_cover"]:
        always.append("--land-cover")
    for name in ("model", "outbox_mb", "skip_clouds", "reference"):
        if given[name] is not None:
            always.append(f"--{name.replace('_', '-')}={given[name]}")
    return Standing(
        always=always,
        target=[typed(name, value) for name, value in target.settings.items() if name not in ("weights", "importance")],
        layers=[] if given["layers"] is None else [f"--layers={given['layers']}"],
    )


def typed(name: str, value: str | float) -> str:
    """A target as it is typed; whole numbers without a point, as `--max-error` wants them."""
    option = {"psnr_db": "psnr", "stream_bytes": "bytes"}.get(name, name.replace("_", "-"))
    return f"--{option}={int(value) if isinstance(value, float) and value.is_integer() else value}"


async def _run(
    make: Callable[[], Sender], folder: Path | None, standing: Standing, once: bool, scraped: str | None
) -> None:
    from encoder_node.log import log
    from encoder_node.watch import Watch

    sender = make()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sender.stop)
    watch = Watch(folder, sender, standing) if folder else None
    facts = {"ground": sender.options.ground, "tls": sender.options.tls is not None}
    if scraped is not None:
        from encoder_node.metrics import Metrics

        window = sender.window
        figures = Metrics(sender.outbox.folder, lambda: (sender.sent_bytes, window.round_trip_s, window.took_s))
        facts["metrics"] = figures.serve(scraped)
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
