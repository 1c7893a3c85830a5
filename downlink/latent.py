"""Symbols of one tile <-> its latent chunks: which symbols travel in which chunk, in which order, under which tables.

A tile's symbols are int32: `root` (planes, 16, h/4, w/4), `latent` (planes, 64, h, w) whose channel 0 is not coded (the
root stands for it), and `hyper` (planes, hyper_latents, h/4, w/4). Chunk (group, block) carries one subband for a block
of `planes_per_chunk` planes: first, in group 0 only, the hyper-latents of all planes of the block as one segment, then
three segments per plane, one for each phase; each in C order of (channel, row, column). Planes of which a subband is
not sent (level 0) have no segment there. See docs/format.md, "Latent chunk".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.context import compand, next_energy, phases, slopes, steepness, turned
from downlink.dct import CHANNELS, ROOT, ROOT_CHANNELS, SUBBANDS, root_inverse, root_means, subband
from downlink.errors import Corrupt
from downlink.prior import Context, Expected, Features, Prior, Symbols
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


class TileSymbols(NamedTuple):
    """All symbols of a tile (see the module's text)."""

    root: Symbols
    latent: Symbols
    hyper: Symbols

    def of_subband(self, number: int) -> Symbols:
        """The symbols that are coded as subband `number`: (planes, channels, height, width)."""
        return self.latent[:, subband(number)] if number else self.root


def running_energy(magnitudes: NDArray[np.int16]) -> NDArray[np.int16]:
    """Energy context of every plane from companded magnitudes (planes, channels, h, w)."""
    energy = np.zeros_like(magnitudes)
    for plane in range(1, len(magnitudes)):
        energy[plane] = next_energy(energy[plane - 1], magnitudes[plane - 1])
    return energy


def expect_tile(code: TileCode, symbols: TileSymbols, prior: Prior) -> list[Expected]:
    """What the prior expects of a tile's symbols, per subband for the planes that are sent (planes, channels, h, w)."""
    features = prior.features(symbols.hyper)
    fall = slopes(root_means(symbols.root))
    own = np.abs(compand(symbols.latent))
    own[:, 0] = steepness(fall)
    out = []
    for number, count in enumerate(code.counts):
        if number:
            magnitudes, earlier = own[:count, subband(number)], own[:count, : subband(number).start]
        else:
            magnitudes, earlier = np.abs(compand(symbols.root[:count])), own[:count, :0]
        values = (symbols.root[:count, 0], turned(fall, code.turn))[number] if number < 2 else None
        context = Context(number, running_energy(magnitudes), magnitudes, earlier, values)
        if count:
            out.append(prior.expect_all(features.of(np.s_[:count]), code.levels[:count], context))
        else:
            out.append(Expected(np.zeros(magnitudes.shape, np.uint8), np.zeros(magnitudes.shape, np.int32)))
    return out


Segment = tuple[int, int, Symbols, NDArray[np.uint8], Symbols]


def tile_segments(code: TileCode, symbols: TileSymbols, prior: Prior) -> Iterator[Segment]:
    """Every segment of a tile in stream order: (group, block, values, index, mean)."""
    expected = expect_tile(code, symbols, prior)
    for group in range(GROUPS):
        coded, (index, mean) = symbols.of_subband(group), expected[group]
        masks = phases(*coded.shape[-2:])
        for block in range(code.blocks):
            if group == 0:
                planes = code.block_planes(block)
                values = symbols.hyper[planes.start : planes.stop]
                zeros = np.zeros(values.size, np.int32)
                yield group, block, values.ravel(), code.hyper_index(planes, values.shape).ravel(), zeros
            for plane in code.block_planes(block, group):
                for mask in masks:
                    if not mask.any():  # a tile of one field
                        continue
                    part = np.s_[plane, :, mask]
                    yield group, block, coded[part].T.ravel(), index[part].T.ravel(), mean[part].T.ravel()


def encode_tile(code: TileCode, symbols: TileSymbols, prior: Prior) -> dict[tuple[int, int], bytes]:
    """Latent chunk payloads of a tile by (group, block)."""
    coders: dict[tuple[int, int], SymbolEncoder] = {}
    for group, block, values, index, mean in tile_segments(code, symbols, prior):
        coders.setdefault((group, block), SymbolEncoder(code.tables)).add(values, index, mean)
    return {key: coder.finish() for key, coder in coders.items()}


def tile_bits(code: TileCode, symbols: TileSymbols, prior: Prior) -> float:
    """Estimated bits of a tile's latent chunks, from the tables alone: what rate control steers by."""
    segments = tile_segments(code, symbols, prior)
    return float(sum(code.tables.cost_bits(values, index, mean) for _, _, values, index, mean in segments))


class ReceivedTile:
    """A tile being decoded: what is known so far; where nothing was received, the prior's mean stands."""

    def __init__(self, code: TileCode, height: int, width: int, chunks: dict[tuple[int, int], bytes]) -> None:
        spec, planes = code.spec, code.planes
        self.code, self.chunks = code, chunks
        small = height // ROOT, width // ROOT
        self.symbols = TileSymbols(
            np.zeros((planes, ROOT_CHANNELS, *small), np.int32),
            np.zeros((planes, CHANNELS, height, width), np.int32),
            np.zeros((planes, spec.hyper_latents, height // spec.hyper, width // spec.hyper), np.int32),
        )
        self.own = np.zeros((planes, CHANNELS, height, width), np.int16)
        """Companded magnitudes; of channel 0, the steepness of the block means."""
        self.value = np.zeros((planes, CHANNELS, height, width), np.float32)
        """What the synthesis sees: symbols where they were received, the prior's mean where not; in channel 0, the
        block means."""
        self.root_value = np.zeros((planes, ROOT_CHANNELS, *small), np.float32)
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
            part = self.symbols.hyper[planes.start : planes.stop]
            index = self.code.hyper_index(planes, part.shape).ravel()
            values = self._decoder.take(index, np.zeros(index.size, np.int32))
            limit = self.code.spec.hyper_limit
            if values.size and (int(values.max()) > limit or int(values.min()) < -limit):
                raise Corrupt(
                    f"hyper-latents reach {int(np.abs(values).max())}, the bundle allows {limit}; fetch the chunk again"
                )
            part[...] = values.reshape(part.shape)

    def take(self, group: int, plane: int, mask: NDArray[np.bool_], expected: Expected) -> None:
        """Decode one segment of the open chunk: the fields of a phase; index and mean (channels, fields)."""
        index, mean = expected
        if group:
            symbols, value = self.symbols.latent[plane, subband(group)], self.value[plane, subband(group)]
        else:
            symbols, value = self.symbols.root[plane], self.root_value[plane]
        if self._decoder is None:
            value[:, mask] = mean / np.float32(8)
            return
        values = self._decoder.take(index.ravel(), mean.ravel()).reshape(mean.shape)
        symbols[:, mask] = values
        value[:, mask] = values
        if group:
            self.own[plane, subband(group)][:, mask] = np.abs(compand(values))

    def means_known(self) -> None:
        """After group 0: block means, and what their slopes say of subband 1."""
        fall = slopes(root_means(self.symbols.root))
        self.own[:, 0] = steepness(fall)
        self.slope = turned(fall, self.code.turn)
        self.value[:, 0] = root_inverse(self.root_value)

    def end(self) -> None:
        """Close the open chunk: everything must have been consumed."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None


def decode_tiles(tiles: list[ReceivedTile], prior: Prior) -> None:
    """Decode the chunks of tiles of one size together: the prior runs once per phase and plane for all of them."""
    if not tiles:
        return
    code = tiles[0].code
    features: dict[int, Features] = {}
    for group in range(GROUPS):
        _decode_group(tiles, prior, code, group, features)
        if group == 0:
            for tile in tiles:
                tile.means_known()


def _decode_group(
    tiles: list[ReceivedTile], prior: Prior, code: TileCode, group: int, features: dict[int, Features]
) -> None:
    channels = subband(group)
    shape = tiles[0].symbols.of_subband(group).shape[1:]
    masks = phases(*shape[-2:])
    energy = np.zeros((len(tiles), *shape), np.int16)
    for block in range(code.blocks):
        for tile in tiles:
            tile.begin(group, block)
        for plane in code.block_planes(block, group):
            if plane not in features:
                features[plane] = prior.features(np.stack([tile.symbols.hyper[plane] for tile in tiles]))
            levels = np.broadcast_to(code.levels[plane], (len(tiles), GROUPS))
            earlier = np.stack([tile.own[plane, : channels.start] for tile in tiles])
            for mask in masks:
                if not mask.any():
                    continue
                own = np.stack([_magnitudes(tile, group, plane) for tile in tiles])
                values = _predictors(tiles, group, plane)
                known, predicted = prior.known(features[plane], levels, Context(group, energy, own, earlier, values))
                fields = known[:, :, mask][:, :, None]
                there = None if predicted is None else predicted[:, :, mask][:, :, None]
                index, mean = prior.expect(group, np.ascontiguousarray(fields), there, shape[0])
                for at, tile in enumerate(tiles):
                    tile.take(group, plane, mask, Expected(index[at, :, 0], mean[at, :, 0]))
            energy = next_energy(energy, np.stack([_magnitudes(tile, group, plane) for tile in tiles]))
        for tile in tiles:
            tile.end()


def _predictors(tiles: list[ReceivedTile], group: int, plane: int) -> Symbols | None:
    """What subbands 0 and 1 are predicted from (`downlink.prior.Context.values`)."""
    if group == 0:
        return np.stack([tile.symbols.root[plane, 0] for tile in tiles])
    return np.stack([tile.slope[plane] for tile in tiles]) if group == 1 else None


def _magnitudes(tile: ReceivedTile, group: int, plane: int) -> NDArray[np.int16]:
    return tile.own[plane, subband(group)] if group else np.abs(compand(tile.symbols.root[plane]))
