"""Scene -> stream: statistics, step, then row of tiles by row of tiles through the network and the entropy coder to
the spool.

Memory holds one strip, one tile's activations and the chunk index, whatever the scene's height.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from downlink import limits, mask
from downlink.chunk import ChunkKey, GridCoding, Kind
from downlink.context import LEVEL_ZERO, LEVELS_PER_OCTAVE
from downlink.errors import SceneError
from downlink.latent import TileCode, encode_tile, tile_bits
from downlink.mask import MaskMode
from downlink.plane import FrontEnd, Statistics
from downlink.quality import default_peak
from downlink.scene import Scene, validate
from encoder_node.encoder import PlaneEncoder, TileSymbols
from encoder_node.exact import encode_exact
from encoder_node.source import Source
from encoder_node.spool import EncodedScene, Spool
from encoder_node.target import Estimate, Target, search_step, step_of_quality
from encoder_node.tiles import GridReader, TilePixels

TILE = 256
RATE_TILES = 6
"""Tiles per grid that a rate or PSNR target is searched on."""
CHUNK_AIM_BYTES = 96 * 1024
"""Plane blocks are cut so that the largest chunk is expected to stay below this: well within the limit of a chunk."""
OVERHEAD_BYTES_PER_CHUNK = 9.0
"""Lanes, checksum and length of a chunk, added to the entropy estimate."""

Progress = Callable[[int, int], None]


class _ChunkTooLarge(Exception):
    """A chunk came out above the limit: the grid must be coded in smaller plane blocks."""


class _GridEncoder:
    """Encodes one grid at one step into a spool."""

    def __init__(self, reader: GridReader, encoder: PlaneEncoder, statistics: Statistics) -> None:
        self.reader, self.encoder, self.statistics = reader, encoder, statistics

    def _code(self, front_end: FrontEnd, planes_per_chunk: int) -> TileCode:
        return TileCode(self.encoder.spec, self.encoder.tables, front_end.levels, planes_per_chunk)

    def _analyse(self, tile: TilePixels, front_end: FrontEnd, step: float) -> TileSymbols:
        window = tile.tile.window
        planes = self.reader.planes(tile, front_end, step)
        return self.encoder.analyse(planes, front_end.levels, (window.height, window.width))

    def estimate(self, step: float) -> tuple[float, float]:
        """(bits, squared error in DN squared, summed over samples) that the whole grid takes at this step, from
        sample tiles."""
        front_end = self.statistics.front_end(step)
        code = self._code(front_end, front_end.planes)
        tiles = self.reader.sample_tiles(RATE_TILES)
        bits = error = 0.0
        pixels = 0
        for number in tiles:
            tile = self.reader.one(number)
            symbols = self._analyse(tile, front_end, step)
            tile_cost = tile_bits(code, symbols.latent, symbols.hyper, self.encoder.prior)
            bits += tile_cost + 8 * OVERHEAD_BYTES_PER_CHUNK * len(code.spec.groups)
            samples = tile.tile.window.samples * len(self.reader.grid.bands)
            ratio = self._error_ratio(tile_cost / samples)
            error += symbols.rounding_error * ratio * front_end.planes * step**2 * tile.tile.window.samples
            pixels += tile.tile.window.samples
        scale = self.reader.grid.height * self.reader.grid.width / pixels
        side_bits = 8.0 * len(front_end.pack())
        dropped = self.statistics.dropped_variance(front_end) * self.reader.grid.samples
        return bits * scale + side_bits, error * scale + dropped

    def _error_ratio(self, bits_per_sample: float) -> float:
        """Pixel error over latent rounding error at this rate, as measured when the bundle was exported."""
        table = self.encoder.spec.distortion
        return float(np.interp(bits_per_sample, [row[0] for row in table], [row[1] for row in table])) if table else 1.0

    def encode(self, step: float, spool: Spool, progress: Callable[[], None]) -> GridCoding:
        """Encode at this step; plane blocks shrink until every chunk is within its limit."""
        front_end = self.statistics.front_end(step)
        block = _planes_per_chunk(front_end)
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
                tile=TILE,
                planes=front_end.planes,
                planes_per_chunk=block,
                groups=len(self.encoder.spec.groups),
                mask=mode,
                step=step,
            )

    def _encode_tiles(
        self, step: float, front_end: FrontEnd, block: int, spool: Spool, progress: Callable[[], None]
    ) -> MaskMode:
        grid = self.reader.number
        code = self._code(front_end, block)
        spool.put(ChunkKey(Kind.SIDE, grid=grid), front_end.pack())
        mode: MaskMode = "none"
        for row in range(self.reader.tiles.rows):
            for tile in self.reader.row(row):
                mode = self._put_mask(tile, mode, spool)
                symbols = self._analyse(tile, front_end, step)
                chunks = encode_tile(code, symbols.latent, symbols.hyper, self.encoder.prior)
                for (group, number), payload in chunks.items():
                    if len(payload) > limits.CHUNK_BYTES_MAX:
                        raise _ChunkTooLarge
                    spool.put(ChunkKey(Kind.LATENT, grid, tile.number, group, number), payload)
                progress()
        return mode

    def _put_mask(self, tile: TilePixels, mode: MaskMode, spool: Spool) -> MaskMode:
        """Keep a tile's nodata mask; the grid's mode becomes 'bands' at the first tile whose bands differ, and
        earlier tiles' shared masks are repeated for every block of bands."""
        grid, bands = self.reader.number, len(self.reader.grid.bands)
        hole = tile.nodata(self.reader.grid.nodata)
        if hole is None:
            return mode
        core = tile.core(hole)
        if not core.any():
            return mode
        if mode != "bands" and bands > 1 and bool((core != core[:1]).any()):
            self._unshare_masks(tile.number, spool)
            mode = "bands"
        elif mode == "none":
            mode = "shared"
        for number in range(mask.blocks(mode, bands)):
            planes = mask.block_bands(mode, bands, number)
            payload = mask.encode_mask(np.ascontiguousarray(core[planes.start : planes.stop]))
            spool.put(ChunkKey(Kind.MASK, grid, tile.number, 0, number), payload)
        return mode

    def _unshare_masks(self, before: int, spool: Spool) -> None:
        grid, bands = self.reader.number, len(self.reader.grid.bands)
        for number in range(before):
            window = self.reader.tiles.tile(number).window
            payload = spool.get(ChunkKey(Kind.MASK, grid, number))
            if not payload:
                continue
            shared = mask.decode_mask(payload, (1, window.height, window.width))
            for block in range(mask.blocks("bands", bands)):
                count = len(mask.block_bands("bands", bands, block))
                repeated = np.ascontiguousarray(np.broadcast_to(shared, (count, *shared.shape[1:])))
                spool.put(ChunkKey(Kind.MASK, grid, number, 0, block), mask.encode_mask(repeated))


def _planes_per_chunk(front_end: FrontEnd) -> int:
    """Planes whose symbols share a chunk: as many as are expected to fit, guessed from the planes' levels, loudest
    first."""
    octaves = (front_end.levels.astype(np.float64) - LEVEL_ZERO) / LEVELS_PER_OCTAVE
    bits = np.cumsum(np.maximum(0.05, 0.7 * octaves + 0.7)) * TILE * TILE
    return max(1, int(np.searchsorted(bits, CHUNK_AIM_BYTES * 8)))


def _steps(target: Target, scene: Scene, encoders: list[_GridEncoder]) -> list[float]:
    """One step per grid. Searched targets share one step in DN over all grids of a scene: equal error everywhere."""
    if target.bits_per_sample is None and target.psnr_db is None:
        quality = float(target.settings["quality"])
        return [step_of_quality(quality, grid.dtype) for grid in scene.grids]

    peak = default_peak(scene)

    def estimate(step: float) -> Estimate:
        parts = [encoder.estimate(step) for encoder in encoders]
        bits = sum(part[0] for part in parts) + 8 * 256  # the manifest
        return Estimate(bits / scene.samples, sum(part[1] for part in parts) / scene.samples, peak)

    step = search_step(target, step_of_quality(46.0, scene.grids[0].dtype), estimate)
    return [step] * len(scene.grids)


def encode_scene(
    source: Source,
    encoder: PlaneEncoder,
    target: Target,
    spool_dir: Path | None = None,
    progress: Progress | None = None,
) -> EncodedScene:
    """Encode a scene. `progress(done, total)` counts tiles. Raises SceneError for input that cannot be taken."""
    if target.max_error is not None:
        return encode_exact(source, target.max_error, target.settings, spool_dir, progress)
    scene = source.scene
    validate(scene)
    halo = encoder.spec.encoder_halo
    readers = [GridReader(source, number, TILE, halo) for number in range(len(scene.grids))]
    encoders = [_GridEncoder(reader, encoder, reader.statistics()) for reader in readers]
    steps = _steps(target, scene, encoders)
    done, total = 0, sum(len(reader.tiles) for reader in readers)

    def advance() -> None:
        nonlocal done
        done = min(done + 1, total)
        if progress is not None:
            progress(done, total)

    spool = Spool(spool_dir)
    try:
        codings = tuple(grid.encode(step, spool, advance) for grid, step in zip(encoders, steps, strict=True))
        return EncodedScene(spool, scene, codings, encoder.bundle.id, encoder.bundle.name, target.settings)
    except BaseException:
        spool.close()
        raise
