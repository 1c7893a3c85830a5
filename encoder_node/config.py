"""The TOML file behind `encoder-node --config FILE`: the same names as the options, with `_` for `-`.

    outbox = "/var/lib/encoder-node"
    ground = "ground.example:50551"
    watch = "/data/incoming"
    rate_kbps = 2000
    quality = 52

An option on the command line wins. Refused, with `ConfigError`: unknown keys, wrong types, files that are not TOML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from downlink.errors import DownlinkError

Positive = Annotated[float, Meta(gt=0)]


class ConfigError(DownlinkError):
    """The configuration file cannot be used."""

    code = "config"


class Config(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """All keys, each of which may be left out. Ranges that an option checks itself are not repeated here."""

    outbox: str | None = None
    ground: str | None = None
    outbox_mb: Positive | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    watch: str | None = None
    rate_kbps: Positive | None = None
    window_kib: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    patience: Positive | None = None
    contact: list[str] | None = None
    contacts: str | None = None
    model: str | None = None
    model_key: str | None = None
    reference: Literal["last"] | None = None
    references_mb: Annotated[float, Meta(ge=0)] | None = None
    layers: Annotated[int, Meta(ge=1, le=64)] | None = None
    quality: float | None = None
    bits_per_sample: float | None = None
    psnr: float | None = None
    stream_bytes: int | None = None
    max_error: int | None = None
    weights: str | None = None
    priority: int | Literal["anomaly"] | None = None
    skip_clouds: float | None = None
    land_cover: bool | None = None
    threads: Annotated[int, Meta(ge=1, le=64)] | None = None
    metrics: str | None = None
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
