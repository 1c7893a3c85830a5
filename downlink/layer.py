"""Layers: where in a scene's chunk numbering each one ends.

Chunks are numbered layer by layer (docs/format.md): the first layer is everything up to the first group of latents
(chunk list, side information, masks, group 0), and is a whole scene, coarse; each later one is a further group. Pure; a
manifest that has passed `Manifest.validate` is refused nothing.
"""

from __future__ import annotations

from bisect import bisect_right

from downlink.chunk import ChunkKey, Kind
from downlink.manifest import Manifest


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
