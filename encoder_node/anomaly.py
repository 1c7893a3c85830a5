"""Scenes and tiles that are unlike the others, by what their codes cost: known on board for nothing.

A tile's score is how many deviations the logarithm of its bytes per pixel lies above that of the scene's other tiles
(median, and median absolute deviation, so that one tile does not hide another). With `--priority anomaly`

- a scene goes down the sooner the higher its highest score;
- its tiles that stand out (a score of `ALERT_FROM` or more) go before its others, the highest score first: in the first
  layer, and then with all their layers, before the second layer of anything else (`downlink.layer.turns`);
- an alert of at most 100 bytes stands in its manifest, which the ground has before the first of its chunks:

    setting alert = "2 of 64 tiles: 9.3 at 512,768; 4.1 at 0,256"      score at column,row of the tile's first pixel

A scene of fewer than `TILES_LEAST` tiles has no scores: there is nothing to compare with. Exact streams have none. A
stream that was made before, a file, gets its priority and its order, but no alert: its manifest stays as it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.chunk import ChunkKey, Kind
from downlink.manifest import Manifest
from downlink.ranges import Range
from downlink.region import tile_chunks

TILES_LEAST: Final = 8
ALERT_FROM: Final = 4.0
"""Deviations above which a tile is named, and goes ahead."""
ALERT_CHARS: Final = 100
PRIORITY_MOST: Final = 1000
DEVIATION_LEAST: Final = 0.05
"""Of the logarithm: tiles that all cost the same are not told apart by less than five per cent."""


class TileScore(NamedTuple):
    """Deviations above the other tiles, the tile's first pixel on its lattice, and its number."""

    score: float
    column: int
    row: int
    tile: int


class Urgency(NamedTuple):
    """What a scene's scores make of it. Nothing stands out: 0, nothing, and None."""

    priority: int = 0
    ahead: tuple[Range, ...] = ()
    alert: str | None = None


def tile_scores(manifest: Manifest, lengths: NDArray[np.integer]) -> list[TileScore]:
    """Scores of the tiles of the scene's first lattice, highest first; none where there is too little to compare.
    `lengths`: bytes of every chunk, by index."""
    if manifest.exact:
        return []
    layout = manifest.layout()
    tiles, coding = layout.tiles(0), manifest.codings[0]
    if len(tiles) < TILES_LEAST:
        return []
    size = np.zeros(len(tiles))
    for group in range(coding.groups):
        start = layout.index(ChunkKey(Kind.LATENT, group=group))
        part = lengths[start : start + len(tiles) * coding.blocks].astype(np.float64)
        size += part.reshape(len(tiles), coding.blocks).sum(axis=1)
    windows = [tiles.tile(number).window for number in range(len(tiles))]
    cost = np.log((size + 1) / np.array([window.samples for window in windows]))
    middle = np.median(cost)
    deviation = max(1.4826 * float(np.median(np.abs(cost - middle))), DEVIATION_LEAST)
    found = [
        TileScore(float((one - middle) / deviation), window.col, window.row, number)
        for number, (one, window) in enumerate(zip(cost, windows, strict=True))
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


def urgency_of(manifest: Manifest, lengths: NDArray[np.integer]) -> Urgency:
    """How urgent a scene is, and which of its chunks go ahead of the others."""
    scores = tile_scores(manifest, lengths)
    alert = alert_of(scores)
    if alert is None:
        return Urgency()
    loud = [one.tile for one in scores if one.score >= ALERT_FROM]
    return Urgency(min(PRIORITY_MOST, round(scores[0].score)), tile_chunks(manifest, loud), alert)
