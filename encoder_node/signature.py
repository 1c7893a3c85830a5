"""Signatures of model bundles: Ed25519 (RFC 8032), by the `cryptography` package, which the extra `signed` brings.

The edge needs it only where its operator demands signatures (`--model-key`). Refused, with `ConfigError`: keys that
cannot be read or are of another kind, and any key at all where the package is not installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encoder_node.config import ConfigError


class Key:
    """A public key, from a PEM file."""

    def __init__(self, path: Path) -> None:
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
            from cryptography.hazmat.primitives.serialization import load_pem_public_key
        except ImportError as error:
            advice = "pip install 'latent-downlink[signed]' brings it"
            raise ConfigError(f"{path}: to check signatures takes the package cryptography; {advice}") from error
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} holds no public key in PEM; `openssl pkey -pubout` writes one") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(f"{path} holds a key of another kind; `openssl genpkey -algorithm ed25519` makes one")
        self._key: Any = key
        self._invalid = InvalidSignature

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Has this key signed the message?"""
        try:
            self._key.verify(signature, message)
        except self._invalid:
            return False
        return True
