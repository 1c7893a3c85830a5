"""Scenes and tiles that are unlike the others, by what their codes cost: known on board for nothing.

A tile's score is how many deviations the logarithm of its bytes per pixel lies above that of the scene's other tiles
(median, and median absolute deviation, so that one tile does not hide another). `--priority anomaly` lets a scene go
down the sooner the higher its highest score, and puts an alert of at most 100 bytes into its manifest, which the ground
has before the first of its chunks:

    setting alert = "2 of 64 tiles: 9.3 at 512,768; 4.1 at 0,256"      score at column,row of the tile's first pixel

A scene of fewer than `TILES_LEAST` tiles has no scores: there is nothing to compare with. Exact streams have none.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from downlink.chunk import Kind
from encoder_node.spool import EncodedScene

TILES_LEAST: Final = 8
ALERT_FROM: Final = 4.0
"""Deviations above which a tile is named."""
ALERT_CHARS: Final = 100
PRIORITY_MOST: Final = 1000
DEVIATION_LEAST: Final = 0.05
"""Of the logarithm: tiles that all cost the same are not told apart by less than five per cent."""


class TileScore(NamedTuple):
    """Deviations above the other tiles, and the tile's first pixel on its lattice."""

    score: float
    column: int
    row: int


def tile_scores(encoded: EncodedScene) -> list[TileScore]:
    """Scores of the tiles of the scene's first lattice, highest first; none where there is too little to compare."""
    manifest = encoded.manifest
    if manifest.exact:
        return []
    layout = manifest.layout()
    tiles = layout.tiles(0)
    size = np.zeros(len(tiles))
    for index in range(layout.pages, len(layout)):
        key = layout.key(index)
        if key.kind == Kind.LATENT and key.grid == 0:
            size[key.tile] += len(encoded.chunk(index))
    if len(size) < TILES_LEAST:
        return []
    windows = [tiles.tile(number).window for number in range(len(tiles))]
    cost = np.log((size + 1) / np.array([window.samples for window in windows]))
    middle = np.median(cost)
    deviation = max(1.4826 * float(np.median(np.abs(cost - middle))), DEVIATION_LEAST)
    found = [
        TileScore(float((one - middle) / deviation), window.col, window.row)
        for one, window in zip(cost, windows, strict=True)
    ]
    return sorted(found, reverse=True)


def alert_of(scores: list[TileScore]) -> str | None:
    """The alert, or None where no tile stands out: as many tiles as fit, the highest first."""
    loud = [one for one in scores if one.score >= ALERT_FROM]
    if not loud:
        return None
    text = f"{len(loud)} of {len(scores)} tiles: "
    parts: list[str] = []
    for one in loud:
        part = f"{one.score:.1f} at {one.column},{one.row}"
        if len(text + "; ".join([*parts, part])) > ALERT_CHARS:
            break
        parts.append(part)
    return text + "; ".join(parts)


def prioritise(encoded: EncodedScene) -> int:
    """The priority that a scene's highest score gives it (0: nothing stands out); puts the alert into its manifest."""
    scores = tile_scores(encoded)
    alert = alert_of(scores)
    if alert is None:
        return 0
    encoded.annotate({"alert": alert})
    return min(PRIORITY_MOST, round(scores[0].score))
