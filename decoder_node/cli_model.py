"""`decoder-node ask install` and `rollback`: which model bundle a node encodes with."""

from __future__ import annotations

import json
from pathlib import Path

import click

from decoder_node.cli_ask import archive_option, ask, json_option, node_option, opened
from downlink.errors import BundleError

__all__ = ["ask"]


@ask.command()
@click.argument("bundle", metavar="BUNDLE")
@archive_option
@node_option
@click.option(
    "--sign-key", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Sign it with this Ed25519 key (PEM, the private half): nodes with --model-key take no other.",
)  # fmt: skip
@json_option
def install(bundle: str, archive: Path, node: str, sign_key: Path | None, as_json: bool) -> None:
    """Encode with BUNDLE (a released bundle's name, or a bundle's folder) from now on.

    Only its encoder's half is sent, piece by piece, over as many contacts as it takes. The node checks every file, and
    the signature if it demands one, and lets the bundle test itself; then it becomes active. If anything is wrong, the
    bundle of before stays so. `serve --models` must find the whole bundle, or its scenes wait.

    \b
    decoder-node ask install ./my-model --archive /srv/archive --node sat-7
    decoder-node ask install ./my-model --archive /srv/archive --node sat-7 --sign-key bundles.key
    """
    from downlink.bundle import JSON, find, split
    from downlink.request import SIGNED_PREFIX, Install

    found = find(bundle)
    halves = split(found.folder, "encoder")
    names = [JSON, *sorted(halves.keys() - {JSON})]
    signature = b"" if sign_key is None else _signed(sign_key, SIGNED_PREFIX + found.id)
    if not found.has("decoder.onnx"):
        note = "this is the half of the encoder; see that `decoder-node serve --models` finds the whole bundle"
        click.echo(f"Note: {note}", err=True)
    request = Install(found.id.hex(), tuple((name, len(halves[name])) for name in names), signature)
    with opened(archive) as (asks, _):
        entry = asks.add(request, node, [halves[name] for name in names])
    print(json.dumps(entry.row()) if as_json else entry.ask_id)


@ask.command()
@archive_option
@node_option
@json_option
def rollback(archive: Path, node: str, as_json: bool) -> None:
    """Encode with the bundle again that was active before the present one; the two change places.

    \b
    decoder-node ask rollback --archive /srv/archive --node sat-7
    """
    from downlink.request import Rollback

    with opened(archive) as (asks, _):
        entry = asks.add(Rollback(), node)
    print(json.dumps(entry.row()) if as_json else entry.ask_id)


def _signed(path: Path, message: bytes) -> bytes:
    """The message's Ed25519 signature by the private key in a PEM file."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        advice = "pip install 'latent-downlink[signed]' brings it"
        raise BundleError(f"to sign takes the package cryptography; {advice}") from error
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path} holds no private key in PEM without a password; use another") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path} holds a key of another kind; `openssl genpkey -algorithm ed25519` makes one")
    signature: bytes = key.sign(message)
    return signature
