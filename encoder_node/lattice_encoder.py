"""Encodes one lattice of a scene at one step: its front end, its tiles in batches, its chunks into the spool.

What it costs and how far it is off can be estimated from sample tiles before (`LatticeEncoder.estimate`); with a
reference, what that says is taken off first (`LatticeEncoder.against`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from downlink import limits
from downlink.accelerator import Sent
from downlink.chunk import ChunkKey, GridCoding, Kind
from downlink.context import LEVEL_ZERO, LEVELS_PER_OCTAVE
from downlink.dct import BLOCK, CHANNELS, subband
from downlink.errors import SceneError
from downlink.latent import GROUPS, TileCode
from downlink.mask import MaskMode
from downlink.plane import GAINS_PER_OCTAVE, FrontEnd
from downlink.prediction import NOTHING
from downlink.reference import ReferenceLattice
from downlink.symbol import SymbolEncoder, finish_together
from encoder_node.encoder import SYMBOL_LIMIT, PlaneEncoder
from encoder_node.importance import Importance
from encoder_node.mask_spool import MaskSpool
from encoder_node.reference import Foreknown, foresee
from encoder_node.refine import Decided
from encoder_node.spool import Spool
from encoder_node.tiles import LatticeReader, TilePixels
from encoder_node.weights import band_weights

RATE_TILES = 6
"""Tiles per grid that a rate or PSNR target is searched on."""
TRIAL_WINDOWS = 4
TRIAL_SIDE = 128
"""Windows that front ends are tried on before one is chosen: a twentieth of the time that 2048 x 2048 pixels take."""
TRIAL_BANDS = 32
"""Of more bands the front end that is expected to cost least is taken untried."""
FEW_TILES = 4
QUIETER = (0.1, 0.2)
"""How quiet planes that are dropped may be besides (see downlink.moments.QUIET): tried on scenes of few tiles."""
PRICE = 0.1
"""Squared steps that a bit is worth to a bundle that does not refine."""
CHUNK_AIM_BYTES = 96 * 1024
"""Plane blocks are cut so that the largest chunk is expected to stay below this: well within the limit of a chunk."""
OVERHEAD_BYTES_PER_CHUNK = 9.0
"""Lanes, checksum and length of a chunk, added to the entropy estimate."""
PLANE_TILES_AT_ONCE = 96
"""Planes of tiles that are analysed together, at most: so that hundreds of bands stay in bounded memory."""
SYMBOLS_AT_ONCE = 6 << 20
"""Symbols that wait for the entropy coder: chunks of many tiles are coded side by side."""

Floats = NDArray[np.float32]


class _ChunkTooLarge(Exception):
    """A chunk came out above the limit: the grid must be coded in smaller plane blocks."""


class LatticeEncoder:
    """Encodes one lattice at one step into a spool."""

    def __init__(
        self, reader: LatticeReader, encoder: PlaneEncoder, weights: str, importance: Importance | None
    ) -> None:
        self.reader, self.encoder = reader, encoder
        self.foresight: Foreknown | None = None
        self.referring = False  # does the scene have a reference?
        self._planes: Floats = np.empty(0, np.float32)
        self._chosen: dict[float, FrontEnd] = {}
        self.gains = None if importance is None else importance.gains(reader.tiles)
        lattice = reader.lattice
        plain = reader.statistics()
        first = [0, *np.cumsum([len(grid.bands) for grid in reader.source.scene.grids]).tolist()]
        numbers = [first[member.grid] + member.band + 1 for member in lattice.members]
        self._weighting = band_weights(weights, lattice.grid.bands, numbers, plain.deviations, plain.noises)
        self.statistics = plain.weighted(lattice.weights, self._weighting)
        self.blocks = -(-lattice.height // BLOCK) * -(-lattice.width // BLOCK)

    def against(self, reference: ReferenceLattice, step: float) -> Self | None:
        """The encoder of what a reference leaves open at about this step; None where it says nothing."""
        found = foresee(self.reader, reference, self._front_end(step), step)
        if found is None:
            return None
        foresight, left = found
        other = copy(self)
        reader = self.reader
        other.reader = LatticeReader(reader.source, reader.lattice, reader.number, reader.tiles.core, foresight)
        other.foresight = foresight
        other.statistics = left.weighted(self.reader.lattice.weights, self._weighting)
        other._chosen = {}
        other.__dict__.pop("_trials", None)
        return other

    def expense(self, step: float) -> tuple[float, float]:
        """Bits of the whole lattice, and with what the error is worth in bits, judged by sample tiles."""
        bits, error = self.estimate(step)
        if self.foresight is not None:
            bits += 8 * len(self.foresight.prediction.pack(self.reader.lattice.half))
        return bits, bits + error / (self.encoder.spec.bit_price or PRICE) / step**2

    def _front_end(self, step: float) -> FrontEnd:
        """The front end that sample windows cost least with; of small scenes, also how quiet its planes may be."""
        if len(self.reader.lattice.members) > TRIAL_BANDS:
            return replace(self.statistics.front_end(step, self.blocks), gains=self.gains)
        found = self._chosen.get(step)
        if found is None:
            every = [replace(option, gains=self.gains) for option in self.statistics.front_ends(step)]
            found = min(every, key=lambda option: self._expense(option, step)) if len(every) > 1 else every[0]
            if len(self.reader.tiles) <= FEW_TILES:
                quieter = [
                    replace(option, gains=self.gains)
                    for quiet in QUIETER
                    for option in self.statistics.front_ends(step, quiet)
                    if option.partition == found.partition
                ]
                found = min([found, *quieter], key=lambda option: self._expense(option, step))
            self._chosen = {step: found}
        return found

    def _expense(self, front_end: FrontEnd, step: float) -> float:
        """Bits, and what the error is worth in bits, of the whole lattice, judged by trial windows."""
        bits, error = self._measured(front_end, step, self._trials)
        return bits + error / (self.encoder.spec.bit_price or PRICE) / step**2

    @cached_property
    def _trials(self) -> list[TilePixels]:
        """One window of a small scene, a few of a large one; where tiles have gains, tiles."""
        reader, lattice = self.reader, self.reader.lattice
        if self.gains is None:
            reader = reader.windows(TRIAL_SIDE)
        share = lattice.height * lattice.width // (32 * TRIAL_SIDE**2)
        most = max(1, min(share, TRIAL_WINDOWS), len(self.reader.tiles) // 100)
        return [reader.one(number) for number in reader.sample_tiles(most)]

    def _code(self, front_end: FrontEnd, planes_per_chunk: int, gain: int) -> TileCode:
        levels = front_end.levels_at(gain)
        return TileCode(self.encoder.spec, self.encoder.tables, levels, front_end.turn, planes_per_chunk)

    def _decide(
        self, tiles: Sequence[TilePixels], front_end: FrontEnd, step: float, planes_per_chunk: int, measures: bool
    ) -> Decided:
        """Symbols of tiles of one coded size and one gain."""
        gain = front_end.gain(tiles[0].number)
        code, step = self._code(front_end, planes_per_chunk, gain), _coarser(step, gain)
        height, width = (side // BLOCK for side in tiles[0].tile.coded)
        planes = self._room((len(tiles), front_end.planes, CHANNELS, height, width))
        for tile, out in zip(tiles, planes, strict=True):
            tile.planes(front_end, step, SYMBOL_LIMIT, out)
        return self.encoder.decide(planes, code, [(t.tile.window.height, t.tile.window.width) for t in tiles], measures)

    def _room(self, shape: tuple[int, ...]) -> Floats:
        """For the coefficients of tiles, until the next are decided on: pages that are new each time cost more than
        what is written to them."""
        if self._planes.shape != shape:
            self._planes = np.empty(shape, np.float32)
        return self._planes

    def estimate(self, step: float) -> tuple[float, float]:
        """(bits, squared error in DN squared, summed over samples) that the whole lattice takes at this step, from
        sample tiles."""
        tiles = (self.reader.one(number) for number in self.reader.sample_tiles(RATE_TILES))
        return self._measured(self._front_end(step), step, tiles)

    def _measured(self, front_end: FrontEnd, step: float, tiles: Iterable[TilePixels]) -> tuple[float, float]:
        """`estimate` of a front end, from these tiles."""
        bits = error = 0.0
        pixels = 0
        for tile in tiles:
            decided = self._decide([tile], front_end, step, front_end.planes, True)
            tile_cost = decided.bits(0)
            bits += tile_cost + 8 * OVERHEAD_BYTES_PER_CHUNK * GROUPS
            samples = tile.tile.window.samples * len(self.reader.lattice.members)
            own_step = _coarser(step, front_end.gain(tile.number))
            error += float(decided.errors[0]) * self._error_ratio(tile_cost / samples) * own_step**2
            pixels += tile.tile.window.samples
        lattice = self.reader.lattice
        whole = lattice.height * lattice.width
        dropped = self.statistics.dropped_variance(front_end) * whole * len(lattice.members)
        return bits * whole / pixels + 8.0 * len(front_end.pack()), error * whole / pixels + dropped

    def _error_ratio(self, bits_per_sample: float) -> float:
        """Pixel error over latent rounding error at this rate, as measured when the bundle was exported."""
        table = self.encoder.spec.distortion
        return float(np.interp(bits_per_sample, [row[0] for row in table], [row[1] for row in table])) if table else 1.0

    def encode(self, step: float, spool: Spool, progress: Callable[[], None]) -> GridCoding:
        """Encode at this step; plane blocks shrink until every chunk is within its limit."""
        front_end = self._front_end(step)
        block = _planes_per_chunk(front_end, self.reader.tiles.core)
        while True:
            try:
                mode = self._encode_tiles(step, front_end, block, spool, progress)
            except _ChunkTooLarge:
                if block == 1:
                    raise SceneError(
                        "one plane of one tile needs more than a chunk may hold; choose a lower quality"
                    ) from None
                block = max(1, block // 4)
                spool.forget(self.reader.number)
                continue
            return GridCoding(
                tile=self.reader.tiles.core,
                planes=front_end.planes,
                planes_per_chunk=block,
                groups=GROUPS,
                mask=mode,
                step=step,
            )

    def _encode_tiles(
        self, step: float, front_end: FrontEnd, block: int, spool: Spool, progress: Callable[[], None]
    ) -> MaskMode:
        grid = self.reader.number
        masks = MaskSpool(grid, len(self.reader.grid.bands), self.reader.tiles, spool)
        waiting: dict[ChunkKey, SymbolEncoder | Sent] = {}
        for row in range(self.reader.tiles.rows):
            for tiles in self._together(self.reader.row(row), front_end.planes):
                for tile in tiles:
                    masks.put(tile.number, tile.nodata())
                decided = self._decide(tiles, front_end, step, block, False)
                for tile, chunks in zip(tiles, decided.chunks, strict=True):
                    waiting |= {
                        ChunkKey(Kind.LATENT, grid, tile.number, group, number): chunk
                        for (group, number), chunk in chunks.items()
                    }
                if sum(chunk.coded for chunk in waiting.values()) > SYMBOLS_AT_ONCE:
                    _put_chunks(waiting, spool)
                for _ in tiles:
                    progress()
        _put_chunks(waiting, spool)
        spool.put(ChunkKey(Kind.SIDE, grid=grid), self._side(front_end))
        return masks.mode

    def _side(self, front_end: FrontEnd) -> bytes:
        """The side chunk; once all tiles have settled what is believed of the reference."""
        if not self.referring:
            return front_end.pack()
        half = self.reader.lattice.half
        return (NOTHING if self.foresight is None else self.foresight.prediction.pack(half)) + front_end.pack()

    def _kind(self, tile: TilePixels) -> tuple[int, ...]:
        return (*tile.tile.coded, 0 if self.gains is None else int(self.gains[tile.number]))

    def _together(self, tiles: Iterable[TilePixels], planes: int) -> Iterator[list[TilePixels]]:
        """Neighbouring tiles of one coded size and one gain, a few at once."""
        most = max(1, min(self.encoder.tiles_at_once, PLANE_TILES_AT_ONCE // planes))
        batch: list[TilePixels] = []
        for tile in tiles:
            if batch and (len(batch) == most or self._kind(tile) != self._kind(batch[0])):
                yield batch
                batch = []
            batch.append(tile)
        yield batch


def _coarser(step: float, gain: int) -> float:
    """The step of tiles of this gain."""
    return float(step * 2.0 ** (gain / GAINS_PER_OCTAVE))


def _put_chunks(waiting: dict[ChunkKey, SymbolEncoder | Sent], spool: Spool) -> None:
    """Make the payloads of many chunks, which is faster at once."""
    finished = iter(finish_together([chunk for chunk in waiting.values() if isinstance(chunk, SymbolEncoder)]))
    for key, chunk in waiting.items():
        payload = next(finished) if isinstance(chunk, SymbolEncoder) else chunk.payload
        if len(payload) > limits.CHUNK_BYTES_MAX:
            raise _ChunkTooLarge
        spool.put(key, payload)
    waiting.clear()


def _planes_per_chunk(front_end: FrontEnd, tile: int) -> int:
    """Planes whose symbols share a chunk: as many as are expected to fit, guessed from the planes' levels in the
    subband that has most channels, loudest first."""
    bits = np.zeros(front_end.planes)
    for band in range(GROUPS):
        octaves = (front_end.levels[:, band].astype(np.float64) - LEVEL_ZERO) / LEVELS_PER_OCTAVE
        at = subband(band)
        each = np.where(front_end.levels[:, band] > 0, np.maximum(0.05, 0.7 * octaves + 0.7), 0.0)
        bits = np.maximum(bits, each * (at.stop - at.start) / CHANNELS)
    return max(1, int(np.searchsorted(np.cumsum(bits * tile * tile), CHUNK_AIM_BYTES * 8)))
