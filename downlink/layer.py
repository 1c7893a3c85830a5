"""Layers: where in a scene's chunk numbering each one ends.

Chunks are numbered layer by layer (docs/format.md): the first layer is everything up to the first group of latents
(chunk list, side information, masks, group 0), and is a whole scene, coarse; each later one is a further group. They
travel in this order, but for those that the ground has asked for, and those of tiles that stand out (`turns`). Pure; a
manifest that has passed `Manifest.validate` is refused nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from downlink.chunk import ChunkKey, Kind
from downlink.manifest import Manifest
from downlink.ranges import Range


def layer_ends(manifest: Manifest) -> tuple[int, ...]:
    """For each layer, the index of the first chunk after it; the last one is the chunk count."""
    layout = manifest.layout()
    most = max(coding.groups for coding in manifest.codings)
    starts = [
        min(
            layout.index(ChunkKey(Kind.LATENT, grid=grid, group=group))
            for grid, coding in enumerate(manifest.codings)
            if coding.groups > group
        )
        for group in range(1, most)
    ]
    return (*starts, manifest.chunk_count)


def layer_of(ends: tuple[int, ...], index: int) -> int:
    """The layer that chunk `index` belongs to."""
    return bisect_right(ends, index)


def turns(
    manifest: Manifest, first: Sequence[Range] = (), ahead: Sequence[Range] = ()
) -> tuple[NDArray[np.int32], tuple[int, int]]:
    """In which order a scene's chunks travel: (the turn of each, the smaller the sooner, equal ones by index; from
    which turn on a chunk goes with the second layers of other scenes, and from which with its own layer).

    The chunk list; what the ground has asked for; side information and masks; of the first layer the tiles of `ahead`,
    in the order given, then the others; all further layers of the tiles of `ahead`; then everything else. So tiles that
    stand out are whole as soon as the scene is there coarsely: they are few, and the others wait little for them.
    """
    ends, layout = layer_ends(manifest), manifest.layout()
    behind = len(ahead) + 4
    out = np.full(manifest.chunk_count, behind + len(ahead), np.int32)
    out[: ends[0]] = behind - 1
    for number, item in enumerate(ahead):
        out[item.first : item.end] = number + (3 if item.first < ends[0] else behind)
    out[: layout.index(ChunkKey(Kind.LATENT))] = 2
    for item in first:
        out[item.first : item.end] = 1
    out[: layout.pages] = 0
    return out, (behind, behind + len(ahead))
