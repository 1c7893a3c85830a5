"""How far a scene has come, layer by layer: `layers_of`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decoder_node.decoding import part_path
from downlink.errors import StreamError
from downlink.layer import layer_ends
from downlink.manifest import Manifest
from downlink.part import PartReader
from downlink.ranges import Range, bitmap


@dataclass(frozen=True)
class Progress:
    """Shares from 0 to 1: of each layer's chunks, and of the scene's bytes; `bytes` of them are here."""

    layers: tuple[float, ...]
    share: float
    bytes: int


def whole(manifest: Manifest) -> Progress:
    """Of a scene that is all there."""
    return Progress((1.0,) * len(layer_ends(manifest)), 1.0, manifest.payload_bytes)


def progress_of(archive: Path, scene_id: str, manifest: Manifest, there: Sequence[Range]) -> Progress:
    """Of a scene on its way, of which these chunks are committed. Before its chunk list has come nobody knows which
    chunks are empty: they then count as missing."""
    try:
        with part_path(archive, scene_id).open("rb") as file:
            reader = PartReader(file, there)
        size = reader.bytes_there
        return Progress(reader.layers, size / max(1, manifest.payload_bytes), size)
    except (OSError, StreamError):
        have = bitmap(manifest.chunk_count, there)
        parts = np.split(have, layer_ends(manifest)[:-1])
        share = float(have.mean()) if have.size else 0.0
        return Progress(tuple(float(part.mean()) for part in parts), share, int(share * manifest.payload_bytes))
