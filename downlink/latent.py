"""Symbols of one tile <-> its latent chunks: which symbols travel in which chunk, in which order, under which tables.

A tile's symbols are `latent` int32 (planes, 64, h, w) and `hyper` int32 (planes, hyper_latents, h/4, w/4). Chunk
(group, block) carries one subband for a block of `planes_per_chunk` planes: first, in group 0 only, the hyper-latents
of all planes of the block as one segment, then the segments of one plane after the other; each in C order. The block
means (group 0) are two segments per plane: the anchors of the checkerboard, then the others. Planes of which a subband
is not sent (level 0) have no segment there. See docs/format.md, "Latent chunk".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from downlink.context import anchors, compand, next_energy, slopes
from downlink.dct import CHANNELS, SUBBANDS, subband
from downlink.errors import Corrupt
from downlink.prior import PASSES_OF_SUBBAND, Contexts, KnownTile, Prior, Symbols, earlier, expect_known
from downlink.spec import PlaneSpec
from downlink.symbol import SymbolDecoder, SymbolEncoder
from downlink.table import Tables

GROUPS = len(SUBBANDS)


@dataclass(frozen=True)
class TileCode:
    """How a tile is coded: sizes, tables, the planes' levels (planes, 4), how subband 1's planes see those of subband
    0 (`turn`), and how many planes share a chunk."""

    spec: PlaneSpec
    tables: Tables
    levels: NDArray[np.uint8]
    turn: NDArray[np.int64]
    planes_per_chunk: int

    @property
    def planes(self) -> int:
        return int(self.levels.shape[0])

    @property
    def blocks(self) -> int:
        return -(-self.planes // self.planes_per_chunk)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Planes of which each subband is sent: always the first ones."""
        return tuple(int(n) for n in np.count_nonzero(self.levels, axis=0))

    def block_planes(self, block: int, band: int | None = None) -> range:
        """Planes of a block; with `band`, those of which that subband is sent."""
        first = block * self.planes_per_chunk
        last = self.planes if band is None else self.counts[band]
        return range(first, max(first, min(first + self.planes_per_chunk, last)))

    def hyper_index(self, planes: range, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Scale index of hyper-latents of these planes: (planes, hyper_latents, h/4, w/4)."""
        table = np.array(self.spec.hyper_index, dtype=np.uint8)
        rows = table[self.levels[planes.start : planes.stop, 1]]
        return np.ascontiguousarray(np.broadcast_to(rows[:, :, None, None], shape))


def contexts(latent: Symbols, turn: NDArray[np.int64]) -> tuple[NDArray[np.int16], KnownTile]:
    """Companded symbols, and the contexts of all planes of a tile whose symbols are known."""
    own = compand(latent)
    before, energy = np.zeros_like(own), np.zeros_like(own)
    before[1:] = own[:-1]
    for plane in range(1, len(own)):
        energy[plane] = next_energy(energy[plane - 1], own[plane - 1])
    return own, KnownTile(before, energy, slopes(latent[: turn.shape[1], 0], turn))


def _hyper_segment(code: TileCode, hyper: Symbols, block: int) -> tuple[Symbols, NDArray[np.uint8], Symbols]:
    planes = code.block_planes(block)
    values = hyper[planes.start : planes.stop]
    return values.ravel(), code.hyper_index(planes, values.shape).ravel(), np.zeros(values.size, np.int32)


def tile_segments(
    code: TileCode, latent: Symbols, hyper: Symbols, prior: Prior
) -> Iterator[tuple[int, int, Symbols, NDArray[np.uint8], Symbols]]:
    """Every segment of a tile in stream order: (group, block, values, index, mean)."""
    own, known = contexts(latent, code.turn)
    index, mean = expect_known(prior, hyper, latent, own, known, code.levels)
    anchor = anchors(*latent.shape[-2:])
    for group in range(GROUPS):
        channels = subband(group)
        for block in range(code.blocks):
            if group == 0:
                yield group, block, *_hyper_segment(code, hyper, block)
            for plane in code.block_planes(block, group):
                part = np.s_[plane, channels]
                if group:
                    yield group, block, latent[part].ravel(), index[part].ravel(), mean[part].ravel()
                    continue
                for half in (anchor, ~anchor):
                    yield group, block, latent[plane, 0][half], index[plane, 0][half], mean[plane, 0][half]


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
    """A tile being decoded: what is known so far; where nothing was received, the prior's mean stands."""

    def __init__(self, code: TileCode, height: int, width: int, chunks: dict[tuple[int, int], bytes]) -> None:
        spec, planes = code.spec, code.planes
        self.code, self.chunks = code, chunks
        self.latent = np.zeros((planes, CHANNELS, height, width), np.int32)
        self.hyper = np.zeros((planes, spec.hyper_latents, height // spec.hyper, width // spec.hyper), np.int32)
        self.own = np.zeros(self.latent.shape, np.int16)
        self.value = np.zeros(self.latent.shape, np.float32)
        """Symbols where they were received, the prior's mean where not: what the synthesis sees."""
        self.slope = np.zeros((0, 2, height, width), np.int32)
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

    def take(
        self,
        plane: int,
        channels: slice,
        where: NDArray[np.bool_] | None,
        index: NDArray[np.uint8],
        mean: NDArray[np.int32],
    ) -> None:
        """Decode one segment of the open chunk; index and mean are the prior's, (channels, h, w), `where` (h, w) the
        blocks it holds (None: all)."""
        if where is not None:
            index, mean = index[:, where], mean[:, where]
        at = channels if where is None else (channels, where)
        if self._decoder is None:
            self.value[plane][at] = mean / np.float32(8)
            return
        values = self._decoder.take(index.ravel(), mean.ravel()).reshape(mean.shape)
        self.latent[plane][at] = values
        self.own[plane][at] = compand(values)
        self.value[plane][at] = values

    def means_known(self) -> None:
        """After group 0: the slopes that predict subband 1."""
        self.slope = slopes(self.latent[: self.code.turn.shape[1], 0], self.code.turn)

    def end(self) -> None:
        """Close the open chunk: everything must have been consumed."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None


def decode_tiles(tiles: list[TileSymbols], prior: Prior) -> None:
    """Decode the chunks of tiles of one size together: the prior runs once per pass and plane for all of them."""
    if not tiles:
        return
    code = tiles[0].code
    height, width = tiles[0].latent.shape[-2:]
    anchor = anchors(height, width)
    features: dict[int, NDArray[np.float32]] = {}
    for group in range(GROUPS):
        channels = subband(group)
        energy = np.zeros((len(tiles), channels.stop - channels.start, height, width), np.int16)
        before = np.zeros_like(energy)
        for block in range(code.blocks):
            for tile in tiles:
                tile.begin(group, block)
            for plane in code.block_planes(block, group):
                if plane not in features:
                    features[plane] = prior.features(np.stack([tile.hyper[plane] for tile in tiles]))
                levels = np.broadcast_to(code.levels[plane], (len(tiles), GROUPS))
                for number in PASSES_OF_SUBBAND[group]:
                    own = np.stack([tile.own[plane, : max(1, channels.start)] for tile in tiles])
                    known = Contexts(
                        energy,
                        before,
                        earlier(own, number, anchor),
                        np.stack([tile.latent[plane, 0] for tile in tiles]) if number == 1 else None,
                        np.stack([tile.slope[plane] for tile in tiles]) if number == 2 else None,
                    )
                    index, mean = prior.expect(number, features[plane], levels, known)
                    where = (anchor, ~anchor)[number] if group == 0 else None
                    for at, tile in enumerate(tiles):
                        tile.take(plane, channels, where, index[at], mean[at])
                before = np.stack([tile.own[plane, channels] for tile in tiles])
                energy = next_energy(energy, before)
            for tile in tiles:
                tile.end()
        if group == 0:
            for tile in tiles:
                tile.means_known()
