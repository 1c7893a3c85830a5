"""The TOML file behind `decoder-node --config FILE`: the same names as the options, with `_` for `-`.

    archive = "/srv/archive"
    listen = "127.0.0.1:50551"
    workers = 2
    models = ["/srv/models"]

An option on the command line wins. Refused, with `ConfigError`: unknown keys, wrong types, files that are not TOML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from downlink.errors import DownlinkError


class ConfigError(DownlinkError):
    """The configuration file cannot be used."""

    code = "config"


class Config(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """All keys, each of which may be left out. Ranges that an option checks itself are not repeated here."""

    archive: str | None = None
    listen: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    insecure_listen: bool | None = None
    nodes: list[str] | None = None
    bundles: list[str] | None = None
    workers: Annotated[int, Meta(ge=0, le=256)] | str | None = None
    partial_after: Annotated[float, Meta(ge=0)] | None = None
    worker_memory_mb: Annotated[int, Meta(ge=1024)] | None = None
    models: list[str] | None = None
    products: list[str] | None = None
    metrics: str | None = None
    store: str | None = None
    page: str | None = None
    page_hosts: list[str] | None = None
    page_token: str | None = None
    page_open: bool | None = None
    log_level: str | None = None


def read_config(path: Path) -> dict[str, Any]:
    """The keys that the file gives, checked. Raises `ConfigError`."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=Config)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        known = ", ".join(Config.__struct_fields__)
        raise ConfigError(f"{path}: {error}; keys are {known}") from error
    given = msgspec.to_builtins(config)
    assert isinstance(given, dict)
    return given
