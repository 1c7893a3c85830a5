"""`decoder-node ask`: requests to the nodes, which wait in the archive's ledger until the node has answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from downlink.errors import LinkError

if TYPE_CHECKING:
    from decoder_node.asks import Asks, Entry
    from decoder_node.ledger import Ledger

Command = TypeVar("Command", bound=Callable[..., Any])
TARGETS = ("quality", "bits_per_sample", "psnr_db", "stream_bytes", "max_error")

archive_option = click.option(
    "--archive", required=True, type=click.Path(path_type=Path, file_okay=False), help="The archive's folder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
node_option = click.option(
    "--node", default="", metavar="NAME", help="The node's name, as its certificate says it. Without TLS none has one."
)


@click.group(name="ask")
def ask() -> None:
    """Ask nodes for more, or for something else.

    A request is kept until the node has answered it, however long it is away, and is carried out once. `ask list` says
    what has become of it.

    \b
    decoder-node ask refine 3fa94c --archive /srv/archive
    decoder-node ask list --archive /srv/archive
    """


@ask.command()
@click.argument("scene")
@archive_option
@click.option("--layers", type=click.IntRange(1), metavar="N", help="So many layers, of which 1 is the coarsest.")
@click.option(
    "--region", nargs=4, type=click.IntRange(0), metavar="COL ROW WIDTH HEIGHT",
    help="Only this part of the scene, in pixels, and before all else of it.",
)  # fmt: skip
@click.option(
    "--grid", type=click.IntRange(0), default=0, show_default=True, help="The grid that --region counts pixels of."
)
@json_option
def refine(
    scene: str, archive: Path, layers: int | None, region: tuple[int, int, int, int] | None, grid: int, as_json: bool
) -> None:
    """Send more of SCENE (its id, or the first digits): all of it, unless --layers or --region say less.

    \b
    decoder-node ask refine 3fa94c --archive /srv/archive
    decoder-node ask refine 3fa94c --archive /srv/archive --layers 3
    decoder-node ask refine 3fa94c --archive /srv/archive --region 1024 512 2000 1500
    """
    from downlink.region import region_chunks
    from downlink.request import ALL_LAYERS, Refine
    from downlink.tile import Window

    with opened(archive) as (asks, ledger):
        scene_id = _scene(ledger, scene)
        if region is None:
            request = Refine(scene_id, min(layers or ALL_LAYERS, ALL_LAYERS))
        else:
            col, row, width, height = region
            window = Window(row, col, height, width)
            request = Refine(scene_id, 0, region_chunks(ledger.manifest(scene_id), window, grid, layers))
        _print(asks.add(request), as_json)


@ask.command(context_settings={"ignore_unknown_options": True})  # -5 is a number
@click.argument("scene")
@click.argument("priority", type=click.IntRange(-1000, 1000))
@archive_option
@json_option
def priority(scene: str, priority: int, archive: Path, as_json: bool) -> None:
    """Give SCENE another PRIORITY: the larger, the sooner it comes.

    \b
    decoder-node ask priority 3fa94c 10 --archive /srv/archive
    """
    from downlink.request import SetPriority

    with opened(archive) as (asks, ledger):
        _print(asks.add(SetPriority(_scene(ledger, scene), priority)), as_json)


@ask.command()
@click.argument("scene")
@archive_option
@json_option
def cancel(scene: str, archive: Path, as_json: bool) -> None:
    """Send nothing more of SCENE, and delete what the node keeps of it. What has come stays.

    \b
    decoder-node ask cancel 3fa94c --archive /srv/archive
    """
    from downlink.request import Cancel

    with opened(archive) as (asks, ledger):
        _print(asks.add(Cancel(_scene(ledger, scene))), as_json)


@ask.command()
@archive_option
@node_option
@click.option("--quality", type=float, metavar="Q", help="Quality, 0 to 120: 8 more halve the error.")
@click.option("--bits-per-sample", type=float, metavar="R", help="A rate.")
@click.option("--psnr", "psnr_db", type=float, metavar="DB", help="A PSNR, against 10000 (255 for 8-bit scenes).")
@click.option("--bytes", "stream_bytes", type=int, metavar="N", help="A stream may not exceed N bytes.")
@click.option("--max-error", type=int, metavar="D", help="No pixel is off by more than D; 0 is lossless.")
@click.option(
    "--layers", type=click.IntRange(0, 64), default=0, metavar="N", help="Send so many layers, keep the others. 0: all."
)
@json_option
def target(archive: Path, node: str, layers: int, as_json: bool, **targets: float | None) -> None:
    """Encode scenes, that are not encoded yet, like this. Without any option: as the node's operator wants it.

    \b
    decoder-node ask target --archive /srv/archive --node sat-7 --quality 44
    decoder-node ask target --archive /srv/archive --node sat-7 --bits-per-sample 0.5 --layers 2
    decoder-node ask target --archive /srv/archive --node sat-7
    """
    from downlink.request import SetTarget

    given = {name: value for name in TARGETS if (value := targets[name]) is not None}
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} were given; give one")
    request = SetTarget(*next(iter(given.items())), layers) if given else SetTarget(layers=layers)
    with opened(archive) as (asks, _):
        _print(asks.add(request, node), as_json)


@ask.command(name="list")
@archive_option
@json_option
def list_asks(archive: Path, as_json: bool) -> None:
    """List the requests: waiting, done or refused, with the node's words.

    \b
    decoder-node ask list --archive /srv/archive --json | jq '.[] | select(.state == "waiting")'
    """
    from decoder_node.asks import Asks
    from decoder_node.ledger import Ledger

    ledger = Ledger(archive, read_only=True)
    entries = Asks(archive, ledger).entries()
    ledger.close()
    if as_json:
        print(json.dumps([entry.row() for entry in entries]))
        return
    for entry in entries:
        whom = (entry.scene_id or "")[:12] or entry.node or "-"
        print(f"{entry.ask_id[:12]}  {entry.state:8}  {whom:12}  {entry.what}  {entry.message or ''}".rstrip())


@ask.command()
@click.argument("ask_id")
@archive_option
@json_option
def withdraw(ask_id: str, archive: Path, as_json: bool) -> None:
    """Ask for it no longer. A node that has heard it already may carry it out all the same.

    \b
    decoder-node ask withdraw 7be1 --archive /srv/archive
    """
    with opened(archive) as (asks, _):
        _print(asks.withdraw(ask_id), as_json)


@contextmanager
def opened(archive: Path) -> Iterator[tuple[Asks, Ledger]]:
    """The requests of an archive, beside a node that serves it perhaps."""
    from decoder_node.asks import Asks
    from decoder_node.ledger import Ledger

    ledger = Ledger(archive)
    try:
        yield Asks(archive, ledger), ledger
    finally:
        ledger.close()


def _scene(ledger: Ledger, given: str) -> str:
    """The id that begins like this."""
    found = [entry.scene_id for entry in ledger.entries() if entry.scene_id.startswith(given.lower())]
    if len(found) != 1:
        raise LinkError(f"{len(found)} scenes have an id that begins with {given!r}; see `decoder-node list`")
    return found[0]


def _print(entry: Entry, as_json: bool) -> None:
    print(json.dumps(entry.row()) if as_json else entry.ask_id)
