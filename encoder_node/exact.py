"""Scene -> stream by the exact method: every valid pixel comes back with an error of at most D; D = 0 is lossless.

No bundle and no network: the model of each grid is fitted to sample tiles of it (`exact_fit`), then tiles are coded row
by row. Memory holds one strip, the sample tiles and one tile, whatever the scene's height. Raises `SceneError` for
input that cannot be taken.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink import limits
from downlink.chunk import ChunkKey, GridCoding, Kind
from downlink.errors import SceneError
from downlink.exact import PALETTE_MAX, ExactCode, Layout, encode_tile
from downlink.exact_lattice import Cells, cells_of
from downlink.exact_model import Model
from downlink.exact_predictor import Predictor
from downlink.lattice import lattices
from downlink.manifest import NO_BUNDLE, NO_BUNDLE_NAME
from downlink.scene import Grid, validate
from downlink.tile import TileGrid, Window, align_up
from encoder_node.exact_fit import WEIGHTS_MAX, fit_model
from encoder_node.exact_walk import Sample
from encoder_node.mask_spool import MaskSpool
from encoder_node.source import Source
from encoder_node.spool import EncodedScene, Spool
from encoder_node.survey import Survey
from encoder_node.tiles import LatticeReader

GROUPS: Final = 3
"""Layers: every fourth row and column, every second, all."""
SAMPLE_VALUES: Final = 3 << 20
"""Values (pixels x bands) that the model is fitted to."""
TILE: Final = 256
SAMPLE_SIDE: Final = 128
"""Side of a sample of a grid that is larger than `SAMPLE_VALUES`: many small ones show more of it than few large."""
CELLS_SHARE: Final = 0.75
"""Bands with more cells per pixel than this are not worth the word."""
CHUNK_AIM_BYTES: Final = 150 * 1024
"""Bands are put in as few blocks as keep the first tile's chunks below this: later tiles may need more."""
PALETTE_BITS: Final = 64
"""What a palette costs beside its gaps, about."""

Progress = Callable[[int, int], None]


class _ChunkTooLarge(Exception):
    """A chunk came out above the limit: the grid must be coded in smaller blocks."""


def encode_exact(
    source: Source,
    max_error: int,
    settings: dict[str, str | float],
    spool_dir: Path | None = None,
    progress: Progress | None = None,
    survey: Survey | None = None,
) -> EncodedScene:
    """Encode a scene with errors of at most `max_error`. `progress(done, total)` counts tiles. A `survey` is shown all
    tiles, and what it has seen stands in the manifest."""
    scene = source.scene
    validate(scene)
    readers = readers_of(source)
    if survey is not None:
        survey.begin(readers)
    done, total = 0, sum(len(reader.tiles) for reader in readers)

    def advance() -> None:
        nonlocal done
        done = min(done + 1, total)
        if progress is not None:
            progress(done, total)

    spool = Spool(spool_dir)
    try:
        codings = tuple(_GridEncoder(reader, max_error, spool).encode(advance) for reader in readers)
        cover = None if survey is None else survey.cover
        return EncodedScene(spool, scene, codings, NO_BUNDLE, NO_BUNDLE_NAME, settings, cover=cover)
    except BaseException:
        spool.close()
        raise


def readers_of(source: Source) -> list[LatticeReader]:
    """The grids of a scene as they are cut and read."""
    return [
        LatticeReader(source, lattice, number, tile_size(lattice.grid))
        for number, lattice in enumerate(lattices(source.scene, ()))
    ]


def tile_size(grid: Grid) -> int:
    """The side of a grid's tiles: as large as they may be, but no slivers at the edges.

    >>> from downlink.scene import Band
    >>> [tile_size(Grid(side, side, "uint8", (Band(),))) for side in (1, 120, 264, 600, 10980)]
    [32, 128, 160, 224, 256]
    """
    longer = max(grid.height, grid.width)
    return align_up(-(-longer // -(-longer // TILE)), limits.TILE_PX_MULTIPLE)


class _GridEncoder:
    """Encodes one grid into a spool."""

    def __init__(self, reader: LatticeReader, max_error: int, spool: Spool) -> None:
        self.reader, self.max_error, self.spool = reader, max_error, spool
        self.grid: Grid = reader.grid
        self.tiles: TileGrid = reader.tiles

    def encode(self, progress: Callable[[], None]) -> GridCoding:
        """Encode; blocks of bands shrink until every chunk is within its limit."""
        model = self._fit()
        self.spool.put(ChunkKey(Kind.SIDE, grid=self.reader.number), model.pack())
        predictor, block = Predictor(model), len(self.grid.bands)
        while True:
            code = ExactCode(self.grid, predictor, self.max_error, GROUPS, block)
            masks = MaskSpool(self.reader.number, len(self.grid.bands), self.tiles, self.spool)
            try:
                self._encode_tiles(code, masks, progress)
            except _ChunkTooLarge as error:
                if block == 1:
                    raise SceneError("one band of one tile needs more than a chunk may hold") from error
                block = max(1, min(block // 2, int(error.args[0])))
                self.spool.forget(self.reader.number)
                self.spool.put(ChunkKey(Kind.SIDE, grid=self.reader.number), model.pack())
                continue
            return GridCoding(
                method="exact",
                tile=self.tiles.core,
                planes=len(self.grid.bands),
                planes_per_chunk=block,
                groups=GROUPS,
                mask=masks.mode,
                step=1.0,
                max_error=self.max_error,
            )

    def _encode_tiles(self, code: ExactCode, masks: MaskSpool, progress: Callable[[], None]) -> None:
        aim = CHUNK_AIM_BYTES
        for row in range(self.tiles.rows):
            for tile in self.reader.row(row):
                window = tile.tile.window
                pixels = np.ascontiguousarray(tile.full[:, : window.height, : window.width])
                hole = _hole(pixels, self.grid.nodata)
                masks.put(tile.number, hole)
                if hole is not None and hole.all():
                    progress()
                    continue
                chunks = encode_tile(code, pixels, hole, layouts_of(pixels, hole, self.max_error, self.grid.nodata))
                largest = max(map(len, chunks.values()))
                if largest > limits.CHUNK_BYTES_MAX or (largest > aim and code.planes_per_chunk > 1):
                    raise _ChunkTooLarge(code.planes_per_chunk * CHUNK_AIM_BYTES // largest)
                aim = limits.CHUNK_BYTES_MAX
                for (group, block), payload in chunks.items():
                    key = ChunkKey(Kind.LATENT, self.reader.number, tile.number, group, block)
                    self.spool.put(key, payload)
                progress()

    def _fit(self) -> Model:
        """A model of the grid whose side chunk is within the limit of one."""
        samples = [self._sample(window) for window in self._sample_windows()]
        valid = [sample for sample in samples if sample.nodata is None or not sample.nodata.all()]
        bands = len(self.grid.bands)
        most = WEIGHTS_MAX if bands <= 64 else max(8, 64 * WEIGHTS_MAX // bands)
        while True:
            model = fit_model(self.grid, self.max_error, valid or samples[:1], most)
            if len(model.pack()) <= limits.CHUNK_BYTES_MAX:
                return model
            most //= 2

    def _sample(self, window: Window) -> Sample:
        pixels = self.reader.source.read(self.reader.number, window)
        hole = _hole(pixels, self.grid.nodata)
        return Sample(pixels, hole, layouts_of(pixels, hole, self.max_error, self.grid.nodata))

    def _sample_windows(self) -> list[Window]:
        """All tiles if that is not too much; else windows spread over the grid, one in each cell of a lattice."""
        bands, height, width = self.grid.shape
        if bands * height * width <= SAMPLE_VALUES:
            return [tile.window for tile in self.tiles]
        side = min(SAMPLE_SIDE, max(32, math.isqrt(SAMPLE_VALUES // bands) // 32 * 32))
        count = max(1, SAMPLE_VALUES // (bands * side * side))
        rows = max(1, min(-(-height // side), round(math.sqrt(count * height / width))))
        cols = max(1, min(-(-width // side), count // rows))
        windows = []
        for row in range(rows):
            for col in range(cols):
                tall, wide = min(side, height), min(side, width)
                top = (2 * row + 1) * height // (2 * rows) - tall // 2
                left = (2 * col + 1) * width // (2 * cols) - wide // 2
                top, left = max(0, min(top, height - tall)), max(0, min(left, width - wide))
                windows.append(Window(top, left, tall, wide))
        return windows


def _hole(pixels: NDArray[Any], nodata: int | None) -> NDArray[np.bool_] | None:
    """Where bands are nodata; None if nowhere."""
    if nodata is None:
        return None
    hole = pixels == nodata
    return hole if hole.any() else None


def layouts_of(
    pixels: NDArray[Any], hole: NDArray[np.bool_] | None, max_error: int, nodata: int | None
) -> list[Layout]:
    """How the samples of each band of a tile (bands, height, width) lie: where they repeat, which values they have."""
    layouts = []
    patterns: list[Cells] = []
    for band, plane in enumerate(pixels):
        cells: Cells | None = cells_of(plane)
        assert cells is not None
        if cells.share > CELLS_SHARE:
            cells = None
        else:  # chance repetitions within a known pattern are not worth a pattern of their own
            known = (old for old in patterns if cells.within(old) and old.share < 1.2 * cells.share)
            found = next(known, None)
            if found is None:
                patterns.append(cells)
            cells = found or cells
        valid = plane.ravel() if hole is None else plane[~hole[band]]
        share = 1.0 if cells is None else cells.share
        layouts.append(Layout(cells, _palette(valid, share, max_error, nodata)))
    return layouts


def _palette(values: NDArray[Any], share: float, max_error: int, nodata: int | None) -> NDArray[np.int64] | None:
    """Values that stand for these samples, each within `max_error`, if naming them saves more bits than it costs.

    That is when there are few, and gaps between those that are frequent. `share` of the samples are coded, the others
    repeat. None if one would have to be `nodata`.
    """
    if not values.size:
        return None
    low = int(values.min())
    counts = np.bincount(values.ravel().astype(np.int64) - low)
    places = np.flatnonzero(counts)
    counts = counts[places]
    if max_error:
        firsts = _groups(places.tolist(), 2 * max_error)
        counts = np.add.reduceat(counts, firsts)
        places = (places[firsts] + places[np.append(firsts[1:], len(places)) - 1]) // 2
    if not 2 <= len(places) <= PALETTE_MAX or (nodata is not None and (places == nodata - low).any()):
        return None
    gaps = np.diff(places)
    around = (np.append(gaps, gaps[-1]) + np.insert(gaps, 0, gaps[0])) / (2 * (2 * max_error + 1))
    saved = share * float(counts @ np.log2(around))
    cost = PALETTE_BITS + float((np.log2(gaps) + 4).sum())
    return places + low if saved > 2 * cost else None


def _groups(places: list[int], width: int) -> NDArray[np.intp]:
    """Where groups of rising numbers begin, the fewest of which none spans more than `width`."""
    firsts, at = [], 0
    while at < len(places):
        firsts.append(at)
        at = bisect_right(places, places[at] + width, at)
    return np.array(firsts, np.intp)
