"""Who a peer is: the one DNS name in its certificate. And where the ground may listen without knowing that.

With TLS every peer must show a certificate that the operator's CA has signed; gRPC ends the connection of one that
cannot before it has said a word. The name of a node is the *only* subject alternative name in there, of type DNS: a
certificate with several would be several nodes, and the common name is a label that nobody checks. Without TLS all
peers are nobody (the empty name), which is why the ground then listens on loopback only, unless told otherwise.

Refused, with `LinkError`: addresses beyond loopback without TLS, files that cannot be read or used, and certificates
that name no node, or not exactly one.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from downlink.errors import LinkError

NOBODY: Final = ""  # a peer of a ground without TLS
NODE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Tls:
    """The PEM files of the ground: its certificate (with intermediates, if any), its private key, and the CA that
    signs the nodes' certificates."""

    cert: Path
    key: Path
    ca: Path

    def credentials(self) -> grpc.ServerCredentials:
        """For a server that talks to nobody without a certificate of the CA. Raises `LinkError`."""
        self._check()
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_credentials([pair], self.ca.read_bytes(), require_client_auth=True)

    def _check(self) -> None:
        """Refuse what no handshake could use. gRPC would only say that it cannot bind."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert, key = f"--tls-cert {self.cert}", f"--tls-key {self.key}"
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise LinkError(f"--tls-ca {self.ca} holds no PEM certificate ({error.reason})") from error
        except OSError as error:
            raise LinkError(f"--tls-ca {self.ca} cannot be read ({error.strerror})") from error
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except ssl.SSLError as error:
            what = "are not a PEM certificate and its own key, without a passphrase"
            raise LinkError(f"{cert} and {key} {what} ({error.reason}); see docs/operate.md") from error
        except OSError as error:
            raise LinkError(f"{cert} or {key} cannot be read ({error.strerror})") from error


def node_name(facts: Mapping[str, Iterable[bytes]]) -> str:
    """The node at the other end of a TLS connection, from gRPC's `auth_context`. Raises `LinkError`."""
    names = [name.decode(errors="replace") for name in facts.get("x509_subject_alternative_name", ())]
    of_dns = [name.decode(errors="replace") for name in facts.get("peer_dns", ())]
    if len(names) != 1 or names != of_dns:
        raise LinkError(
            f"the certificate has {len(names)} subject alternative names, {len(of_dns)} of them of type DNS; a node's "
            "has exactly one, of that type, and it is the node's name"
        )
    if not NODE_NAME.fullmatch(names[0]):
        raise LinkError(f"the certificate is for {names[0][:80]!r}, a node's name matches {NODE_NAME.pattern}")
    return names[0]


def check_listen(listen: str, tls: Tls | None, insecure: bool) -> None:
    """Raise `LinkError` for an address (HOST:PORT) on which strangers could pose as nodes, unless that is wanted."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and tls is None and not insecure:
        raise LinkError(
            f"{listen} is not a loopback address, and without TLS anybody who reaches it can send scenes as any "
            "node; give --tls-cert, --tls-key and --tls-ca (docs/operate.md makes them in three commands), or say "
            "--insecure-listen if a tunnel or a firewall keeps strangers away"
        )
