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
from downlink.prior import Context, Expected, Prior, Symbols
from downlink.quarter import scatter
from downlink.spec import PlaneSpec
from downlink.symbol import SymbolEncoder
from downlink.symbol_decoder import SymbolDecoder, TogetherSymbols
from downlink.table import Tables
from downlink.walk import Walk

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
    """A tile being decoded. Where nothing was received, the prior's mean stands."""

    def __init__(self, code: TileCode, height: int, width: int, chunks: dict[tuple[int, int], bytes]) -> None:
        spec, planes = code.spec, code.planes
        self.code, self.chunks = code, chunks
        self.hyper = np.zeros((planes, spec.hyper_latents, height // spec.hyper, width // spec.hyper), np.int32)
        self.value = np.zeros((planes, CHANNELS, height, width), np.float32)
        """What the synthesis sees (planes, 64, h, w): symbols where they were received, the prior's mean where not; in
        channel 0, the block means."""
        self.root_value = np.zeros((planes, ROOT_CHANNELS, height // ROOT, width // ROOT), np.float32)
        self.stopped: tuple[int, int] | None = None
        """The first chunk that is not there, by (group, block)."""

    @property
    def broken(self) -> bool:
        return self.stopped is not None

    @property
    def symbols(self) -> TileSymbols:
        """What was received; zero where nothing was."""
        root, latent = (value.astype(np.int32) for value in (self.root_value, self.value))
        latent[:, 0] = 0
        found = TileSymbols(root, latent, self.hyper)
        if self.stopped is not None:
            for group in range(self.stopped[0], GROUPS):
                first = self.stopped[1] * self.code.planes_per_chunk if group == self.stopped[0] else 0
                found.of_subband(group)[first:] = 0
        return found

    def open(self, group: int, block: int) -> SymbolDecoder | None:
        """The decoder of a chunk; None from the first one on that is not there: the tile keeps to the prior's means."""
        payload = self.chunks.get((group, block))
        if payload is None or self.broken:
            self.stopped = self.stopped or (group, block)
            return None
        decoder = SymbolDecoder(self.code.tables, payload)
        if group == 0:
            planes = self.code.block_planes(block)
            part = self.hyper[planes.start : planes.stop]
            index = self.code.hyper_index(planes, part.shape).ravel()
            values = decoder.take(index, np.zeros(index.size, np.int32))
            limit = self.code.spec.hyper_limit
            if values.size and (int(values.max()) > limit or int(values.min()) < -limit):
                raise Corrupt(
                    f"hyper-latents reach {int(np.abs(values).max())}, the bundle allows {limit}; fetch the chunk again"
                )
            part[...] = values.reshape(part.shape)
        return decoder


class _Reception:
    """Takes the symbols of tiles of one size from their chunks: a guide of `downlink.walk.Walk`."""

    def __init__(self, tiles: list[ReceivedTile], prior: Prior) -> None:
        self._tiles = tiles
        height, width = tiles[0].value.shape[-2:]
        self._walk = Walk(tiles[0].code, prior, len(tiles), height, width)
        self._there: list[int] = []
        self._decoder: TogetherSymbols | None = None
        self._walk.go(self)

    def begin(self, group: int, block: int) -> None:
        if group == 1 and block == 0:
            for tile in self._tiles:
                tile.value[:, 0] = root_inverse(tile.root_value)
        opened = [tile.open(group, block) for tile in self._tiles]
        self._there = [i for i, decoder in enumerate(opened) if decoder is not None]
        decoders = [decoder for decoder in opened if decoder is not None]
        self._decoder = TogetherSymbols(decoders) if decoders else None

    def hyper(self, planes: range) -> Symbols:
        return np.stack([tile.hyper[planes.start : planes.stop] for tile in self._tiles], axis=1)

    def settle(
        self, group: int, plane: int, phase: int, index: NDArray[np.uint8], mean: Symbols | None
    ) -> NDArray[np.int32]:
        order, count = self._walk.orders(group), len(self._tiles)
        symbols = np.zeros(index.shape, np.int32)
        if self._decoder is not None:
            there: slice | list[int] = slice(None) if len(self._there) == count else self._there
            scales = order.stream(phase, index[there])
            flat = scales.reshape(len(scales), -1)
            means = None if mean is None else order.stream(phase, mean[there]).reshape(flat.shape)
            values = self._decoder.take(np.ascontiguousarray(flat), means)
            symbols[there] = order.quarters(phase, values.reshape(scales.shape))
        for i, tile in enumerate(self._tiles):
            out = tile.value[plane, subband(group)] if group else tile.root_value[plane]
            if not tile.broken:
                scatter(symbols[i], phase, out)
            elif mean is not None:
                scatter(mean[i] / np.float32(8), phase, out)
        return symbols

    def end(self, group: int, block: int) -> None:
        if self._decoder is not None:
            self._decoder.close()


def decode_tiles(tiles: list[ReceivedTile], prior: Prior) -> None:
    """Decode the chunks of tiles of one size and one code together: many at once are faster."""
    left = [tile for tile in tiles if not _decode_natively(tile, prior)]
    if left:
        _Reception(left, prior)


def _decode_natively(tile: ReceivedTile, prior: Prior) -> bool:
    """Whether the tile is decoded. What is refused here is left to numpy, which says why."""
    code, native = tile.code, prior.native
    if native is None or native.tables is not code.tables or not native.takes(code, *tile.value.shape[-2:]):
        return False
    chunks = [tile.chunks.get((group, block)) for group in range(GROUPS) for block in range(code.blocks)]
    stopped = native.decode(code, chunks, tile.hyper, tile.root_value, tile.value)
    if stopped is None:
        for array in (tile.hyper, tile.root_value, tile.value):
            array[...] = 0
        return False
    tile.stopped = None if stopped < 0 else divmod(stopped, code.blocks)
    tile.value[:, 0] = root_inverse(tile.root_value)
    return True
