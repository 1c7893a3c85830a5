"""Symbols of one tile <-> its latent chunks: which symbols travel in which chunk, in which order, under which tables.

A tile's symbols are `latent` int32 (planes, latents, h, w) and `hyper` int32 (planes, hyper_latents, h/4, w/4). Chunk
(group, block) carries the channels of one group for a block of `planes_per_chunk` planes: first, in group 0 only, the
hyper-latents of all planes of the block as one segment, then one segment per plane, each in C order. See
docs/format.md, "Latent chunk".

The prior is passed in as a function, so that nothing here knows of onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from downlink.context import compand, next_energy
from downlink.errors import Corrupt
from downlink.spec import PlaneSpec
from downlink.symbol import SymbolDecoder, SymbolEncoder
from downlink.table import Tables

Symbols = NDArray[np.int32]
Prior = Callable[
    [NDArray[np.int32], NDArray[np.int16], NDArray[np.int16], NDArray[np.int16], NDArray[np.uint8]],
    tuple[NDArray[np.uint8], NDArray[np.int32]],
]
"""(hyper, own, before, energy, levels), one row per plane -> scale index and mean (eighths), each (n, latents, h,
w)."""


@dataclass(frozen=True)
class TileCode:
    """How a tile is coded: sizes, tables, the planes' levels and how many planes share a chunk."""

    spec: PlaneSpec
    tables: Tables
    levels: NDArray[np.uint8]
    planes_per_chunk: int

    @property
    def planes(self) -> int:
        return int(self.levels.size)

    @property
    def blocks(self) -> int:
        return -(-self.planes // self.planes_per_chunk)

    def block_planes(self, block: int) -> range:
        """Planes of a block."""
        first = block * self.planes_per_chunk
        return range(first, min(first + self.planes_per_chunk, self.planes))

    def hyper_index(self, planes: range, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Scale index of hyper-latents of these planes: (planes, hyper_latents, h/4, w/4)."""
        table = np.array(self.spec.hyper_index, dtype=np.uint8)
        rows = table[self.levels[planes.start : planes.stop]]
        return np.ascontiguousarray(np.broadcast_to(rows[:, :, None, None], shape))


def contexts(latent: Symbols) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.int16]]:
    """own, before, energy of all planes of a tile whose symbols are known: each (planes, latents, h, w)."""
    own = compand(latent)
    before, energy = np.zeros_like(own), np.zeros_like(own)
    before[1:] = own[:-1]
    for plane in range(1, len(own)):
        energy[plane] = next_energy(energy[plane - 1], own[plane - 1])
    return own, before, energy


def _hyper_segment(code: TileCode, hyper: Symbols, block: int) -> tuple[Symbols, NDArray[np.uint8], Symbols]:
    planes = code.block_planes(block)
    values = hyper[planes.start : planes.stop]
    return values.ravel(), code.hyper_index(planes, values.shape).ravel(), np.zeros(values.size, np.int32)


def tile_segments(
    code: TileCode, latent: Symbols, hyper: Symbols, prior: Prior
) -> Iterator[tuple[int, int, Symbols, NDArray[np.uint8], Symbols]]:
    """Every segment of a tile in stream order: (group, block, values, index, mean)."""
    own, before, energy = contexts(latent)
    index, mean = prior(hyper, own, before, energy, code.levels)
    for group in range(len(code.spec.groups)):
        channels = code.spec.group_channels(group)
        for block in range(code.blocks):
            if group == 0:
                yield group, block, *_hyper_segment(code, hyper, block)
            for plane in code.block_planes(block):
                part = np.s_[plane, channels]
                yield group, block, latent[part].ravel(), index[part].ravel(), mean[part].ravel()


def encode_tile(code: TileCode, latent: Symbols, hyper: Symbols, prior: Prior) -> dict[tuple[int, int], bytes]:
    """Latent chunk payloads of a tile by (group, block)."""
    coders: dict[tuple[int, int], SymbolEncoder] = {}
    for group, block, values, index, mean in tile_segments(code, latent, hyper, prior):
        coders.setdefault((group, block), SymbolEncoder(code.tables)).add(values, index, mean)
    return {key: coder.finish() for key, coder in coders.items()}


def tile_bits(code: TileCode, latent: Symbols, hyper: Symbols, prior: Prior) -> float:
    """Estimated bits of a tile's latent chunks, from the tables alone: what rate control steers by."""
    segments = tile_segments(code, latent, hyper, prior)
    return float(sum(code.tables.cost_bits(values, index, mean) for _, _, values, index, mean in segments))


class TileSymbols:
    """A tile being decoded: what is known so far. `decoded_groups` counts whole groups; the rest keeps the prior's
    mean."""

    def __init__(self, code: TileCode, height: int, width: int, chunks: dict[tuple[int, int], bytes]) -> None:
        spec, planes = code.spec, code.planes
        self.code, self.chunks = code, chunks
        self.latent = np.zeros((planes, spec.latents, height, width), np.int32)
        self.hyper = np.zeros((planes, spec.hyper_latents, height // spec.hyper, width // spec.hyper), np.int32)
        self.own = np.zeros(self.latent.shape, np.int16)
        self.value = np.zeros(self.latent.shape, np.float32)
        """Symbols where they were received, the prior's mean where not: what the synthesis sees."""
        self.broken = False
        self._decoder: SymbolDecoder | None = None

    def begin(self, group: int, block: int) -> None:
        """Open a chunk; from the first one that is not there, the tile keeps to the prior's means."""
        payload = self.chunks.get((group, block))
        if payload is None or self.broken:
            self.broken, self._decoder = True, None
            return
        self._decoder = SymbolDecoder(self.code.tables, payload)
        if group == 0:
            planes = self.code.block_planes(block)
            part = self.hyper[planes.start : planes.stop]
            index = self.code.hyper_index(planes, part.shape).ravel()
            values = self._decoder.take(index, np.zeros(index.size, np.int32))
            limit = self.code.spec.hyper_limit
            if values.size and (int(values.max()) > limit or int(values.min()) < -limit):
                raise Corrupt(
                    f"hyper-latents reach {int(np.abs(values).max())}, the bundle allows {limit}; fetch the chunk again"
                )
            part[...] = values.reshape(part.shape)

    def take(self, group: int, plane: int, index: NDArray[np.uint8], mean: NDArray[np.int32]) -> None:
        """Decode one plane's segment of the open chunk; index and mean are the prior's, (latents, h, w)."""
        channels = self.code.spec.group_channels(group)
        if self._decoder is None:
            self.value[plane, channels] = mean[channels] / np.float32(8)
            return
        values = self._decoder.take(index[channels].ravel(), mean[channels].ravel()).reshape(mean[channels].shape)
        self.latent[plane, channels] = values
        self.own[plane, channels] = compand(values)
        self.value[plane, channels] = values

    def end(self) -> None:
        """Close the open chunk: everything must have been consumed."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None


def decode_tiles(tiles: list[TileSymbols], prior: Prior) -> None:
    """Decode the chunks of tiles of one size together: the prior runs once per group and plane for all of them."""
    if not tiles:
        return
    code = tiles[0].code
    spec = code.spec
    for group in range(len(spec.groups)):
        end = spec.groups[group]
        energy = np.zeros((len(tiles), *tiles[0].own.shape[1:]), np.int16)
        before = np.zeros_like(energy)
        for block in range(code.blocks):
            for tile in tiles:
                tile.begin(group, block)
            for plane in code.block_planes(block):
                hyper = np.stack([tile.hyper[plane] for tile in tiles])
                own = np.stack([tile.own[plane] for tile in tiles])
                levels = np.full(len(tiles), code.levels[plane], np.uint8)
                index, mean = prior(hyper, own, before, energy, levels)
                for at, tile in enumerate(tiles):
                    tile.take(group, plane, index[at], mean[at])
                known = np.stack([tile.own[plane] for tile in tiles])
                known[:, end:] = 0  # later groups are not known yet on either side of the link
                energy, before = next_energy(energy, known), known
            for tile in tiles:
                tile.end()
