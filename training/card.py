"""The model card: what a bundle was trained on, what it measured, what it is not for. Written by the export, from
figures alone."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import msgspec

from training.config import Run


def commit() -> str:
    """The commit that the code is at (with `-dirty` where it was changed), or 'unknown' outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _table(figures: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {_number(value)} |" for key, value in figures.items())
    return f"| figure | value |\n|---|---|\n{rows}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def card(name: str, version: str, run: Run, checks: dict[str, Any], figures: dict[str, Any], note: str = "") -> str:
    """Markdown. `figures` come from `downlink evaluate` (its summary) and the training run's log; `checks` from the
    export."""
    settings = json.dumps(msgspec.to_builtins(run), indent=1, sort_keys=True)
    return f"""# {name} {version}

A plane codec: one small convolutional autoencoder for every decorrelated plane of a scene, behind a spectral KLT that
the encoder computes on board. Any number of bands, uint8, uint16, int16.

Licence of the weights: Apache-2.0. Code at commit {commit()}.

## Trained on

Splits {", ".join(run.corpus.splits)} of the project's corpus: Sentinel-2 (Copernicus Sentinel data, modified; free,
full and open), Landsat and HLS (NASA/USGS, public domain). The imagery itself is not distributed with the model.
Held out for validation, whole sources: {", ".join(run.corpus.validation_sources) or "a share of the files"}.

## Made by

    downlink train training/configs/{run.name}.toml --data CORPUS --out runs/{run.name}
    downlink export runs/{run.name} --data CORPUS --out models/{name}

{note}

## Measured

{_table(figures)}

Export checks, on validation crops and on one whole scene through both nodes:

{_table(checks)}

## Not for

Radar and float products (they are refused). Inputs unlike optical imagery will code, at more bits.

## Settings

```json
{settings}
```
"""
