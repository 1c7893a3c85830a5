"""The connection to the ground: gRPC over mutual TLS, or plain.

With TLS the ground is who its certificate says (the CA's signature, and the host name in `--ground`), and this node
is who its own says: the ground knows it by the one DNS name in there. Files are read for each contact, so that a
renewed certificate needs no restart.

What an operation of gRPC reads into or writes from belongs to its coroutine: when that is cancelled, grpcio 1.85 frees
the memory, and its core uses it afterwards. `to_its_end` lets a cancelled operation run to its end.

Refused, with `LinkError`: files that cannot be read, that are not PEM, and a key that is not the certificate's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from downlink.errors import LinkError

Result = TypeVar("Result")
_running: set[asyncio.Future[Any]] = set()


@dataclass(frozen=True)
class Tls:
    """The PEM files of one end: its certificate (with intermediates, if any), its private key, and the CA that signs
    the peer's."""

    cert: Path
    key: Path
    ca: Path

    def check(self) -> None:
        """Refuse what no handshake could use. gRPC itself would say so at the first contact only, and not why."""
        cert, key = f"--tls-cert {self.cert}", f"--tls-key {self.key}"
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise LinkError(f"--tls-ca {self.ca} holds no PEM certificate ({error.reason})") from error
        except OSError as error:
            raise LinkError(f"--tls-ca {self.ca} cannot be read ({error.strerror})") from error
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(self.cert, self.key, password=_no_password)
        except ssl.SSLError as error:
            what = "are not a PEM certificate and its own key, without a passphrase"
            raise LinkError(f"{cert} and {key} {what} ({error.reason}); see docs/operate.md") from error
        except OSError as error:
            raise LinkError(f"{cert} or {key} cannot be read ({error.strerror})") from error


def _no_password() -> bytes:
    """Nobody is there to type one."""
    return b""


def channel(ground: str, settings: Sequence[tuple[str, Any]], tls: Tls | None) -> grpc.aio.Channel:
    """A channel to `ground` (HOST:PORT), not yet connected."""
    if tls is None:
        return grpc.aio.insecure_channel(ground, settings)
    tls.check()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(), private_key=tls.key.read_bytes(), certificate_chain=tls.cert.read_bytes()
    )
    return grpc.aio.secure_channel(ground, credentials, settings)


def to_its_end(operation: Coroutine[Any, Any, Result]) -> asyncio.Future[Result]:
    """Begin an operation of gRPC. Whoever awaits its outcome and is cancelled leaves it running until the call ends."""
    running = asyncio.ensure_future(operation)
    _running.add(running)
    running.add_done_callback(_ended)
    return asyncio.shield(running)


def _ended(operation: asyncio.Future[Any]) -> None:
    _running.discard(operation)
    if not operation.cancelled():
        operation.exception()  # whoever has waited knows it; nobody else needs to
