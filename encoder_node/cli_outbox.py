"""`encoder-node status`, `resend` and `models`: what the outbox holds, and what it encodes with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encoder_node.options import model_of, outbox_folder

if TYPE_CHECKING:
    from encoder_node.outbox import Entry


@click.command()
@outbox_folder
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


@click.command()
@click.argument("scene_ids", nargs=-1, metavar="[SCENE_ID]...")
@outbox_folder
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


@click.command()
@outbox_folder
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def models(outbox: Path, as_json: bool) -> None:
    """Say which model bundle new scenes of the outbox are encoded with, and which one a roll-back would bring back.

    Bundles are installed by the ground: `decoder-node ask install`.

    \b
    encoder-node models --outbox /var/lib/encoder-node
    """
    from downlink.bundle import find
    from encoder_node.models import Models

    here = Models(outbox)
    bundle = find(model_of(None, outbox))
    facts = {
        "name": bundle.name,
        "version": bundle.version,
        "bundle_id": bundle.id.hex(),
        "installed": here.active is not None,
        "previous": here.previous,
    }
    if as_json:
        print(json.dumps(facts))
        return
    before = {None: "none", "": "the operator's own"}.get(here.previous, here.previous)
    whose = "installed by the ground" if facts["installed"] else "the operator's own"
    print(f"{bundle.name} {bundle.version}  {facts['bundle_id']}  {whose}; before: {before}")


def _print_entries(entries: list[Entry], as_json: bool) -> None:
    if as_json:
        print(json.dumps([entry.row() for entry in entries]))
        return
    for entry in entries:
        reason = f"  {entry.reason}" if entry.reason else ""
        print(f"{entry.scene_id[:12]}  {entry.state:9}  {entry.bytes:>12}  {entry.name}{reason}")
