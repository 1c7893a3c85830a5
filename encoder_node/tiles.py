"""Windows of a scene -> what the encoder works on: strips read once, bands gathered on their lattice, tiles cut,
nodata filled, pixels transformed.

Everything beyond the grid's edge is the edge pixel repeated. Only one strip (a row of tiles) is in memory. A tile comes
with the pixels of its neighbours that its own are mixed with (`downlink.lap`); where those are nodata, they are what
the neighbour fills them with, so that both ends of a border agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from downlink import accelerator, dct, lap
from downlink.fill import fill_holes
from downlink.lattice import Lattice, Member, native_index, sample_index
from downlink.moments import Moments, Statistics
from downlink.plane import FrontEnd
from downlink.scene import Grid
from downlink.tile import Tile, TileGrid, Window
from encoder_node.source import Source

SAMPLE_WINDOWS = 36
SAMPLE_SIDE = 128
"""Windows that statistics are taken from: 36 x 128 x 128 pixels settle a covariance of hundreds of bands."""
SAMPLE_VALUES = 1 << 20
"""Values (pixels x bands) taken from one window."""
READ_BYTES = 14 << 20
"""What is read of a row of tiles at once: memory stays flat however wide a scene is, and files that store whole lines
are not read more often than need be."""
FRAMES = 24
"""Frames of filled tiles that are kept: those of a tile's neighbours are asked for again by the next tile."""
ROWS_AT_ONCE = 384
"""Rows of a grid read at once when a coarse lattice picks every sixth of them."""

MARGIN = dct.BLOCK // 2
"""Pixels of a neighbour that a tile's own are mixed with."""

Pixels = NDArray[Any]
Floats = NDArray[np.float32]
Margin = tuple[int, int, int, int]
Part = tuple[slice, slice, slice]


class NotRepeated(Exception):
    """A band that repeated its pixels in the sample windows does not do so everywhere."""


class Foresight(Protocol):
    """What is known of a lattice before it is coded (`encoder_node.reference.Foreknown`)."""

    def take_off(self, tile: Tile, front_end: FrontEnd, step: float, planes: Floats) -> None:
        """Subtract it from the planes of a tile (planes, 64, blocks down, blocks across) in steps."""


def sample_windows(grid: Grid) -> list[Window]:
    """Windows spread over a grid, the first and the last rows and columns among them."""
    side = 96
    places = []
    for size in (grid.height, grid.width):
        last = max(0, size - side)
        places.append([(0, min(side, size)), (last // 2, min(side, size)), (last, min(side, size))])
    rows, cols = places
    return list(dict.fromkeys(Window(row, col, height, width) for row, height in rows for col, width in cols))


@dataclass(frozen=True)
class TilePixels:
    """One tile as read: `wide` (bands of the lattice's resolution, coded height, coded width) and (bands of half of
    it, half as many rows and columns), in the grid's dtype, with `margin` pixels (above, below, left, right; of the
    lattice) of its neighbours around. `full` and `half` are the same without their margins."""

    number: int
    tile: Tile
    lattice: Lattice
    wide: tuple[Pixels, Pixels]
    margin: Margin
    reader: LatticeReader

    @property
    def full(self) -> Pixels:
        return self.wide[0][self.inside(False)]

    @property
    def half(self) -> Pixels:
        return self.wide[1][self.inside(True)]

    def inside(self, half: bool) -> tuple[slice, slice, slice]:
        """Where the tile's own pixels are in `wide`."""
        above, _, left, _ = (pixels // (2 if half else 1) for pixels in self.margin)
        high, wide = (side // (2 if half else 1) for side in self.tile.coded)
        return slice(None), slice(above, above + high), slice(left, left + wide)

    def nodata(self) -> NDArray[np.bool_] | None:
        """Where each band is nodata in the tile's own window, (bands, height, width) at the lattice's resolution; None
        where the grid defines no such value or nothing is."""
        value = self.lattice.grid.nodata
        if value is None:
            return None
        holes = [pixels == value for pixels in (self.full, self.half)]
        if not any(hole.any() for hole in holes):
            return None
        window = self.tile.window
        out = np.empty((len(self.lattice.members), window.height, window.width), np.bool_)
        core = np.s_[:, : window.height, : window.width]
        out[~self.lattice.half] = holes[0][core]
        out[self.lattice.half] = holes[1].repeat(2, axis=1).repeat(2, axis=2)[core]
        return out

    def coefficients(self, mean: Floats) -> Floats:
        """Transform coefficients (bands, 64, blocks down, blocks across), nodata filled; `mean`
        (bands) fills a band that has no valid pixel here."""
        lattice = self.lattice
        coded = tuple(side // dct.BLOCK for side in self.tile.coded)
        held = tuple(-(-side // dct.BLOCK) for side in self.tile.window[2:])
        blank = np.zeros if lattice.half.any() else np.empty  # bands of half resolution have no high channels
        out = blank((len(lattice.members), dct.CHANNELS, *held), np.float32)
        beyond = np.zeros((len(lattice.members), dct.CHANNELS, *coded), np.float32) if held != coded else out
        for half in (False, True):
            (places,) = (lattice.half == half).nonzero()
            if len(places):
                filled = self._filled(half, mean[places])
                self._transform(half, filled, places, out)
                if held != coded:
                    beyond[places, 0] = _flat(filled[self.inside(half)], dct.BLOCK // (2 if half else 1))
        if held != coded:
            beyond[:, :, : held[0], : held[1]] = out
        return beyond

    def latents(self, chosen: NDArray[np.intp]) -> tuple[Floats, NDArray[np.float64]]:
        """Transform coefficients (chosen members, 64, blocks down, blocks across) of blocks that hold pixels, and the
        share of samples that are valid in each block, in the worst of these bands. Nodata counts as the mean of the
        band's valid pixels, which `coefficients` knows better: not to be coded."""
        held = tuple(-(-side // dct.BLOCK) for side in self.tile.window[2:])
        out = np.zeros((len(chosen), dct.CHANNELS, *held), np.float32)
        valid = np.ones(held)
        half, nodata = self.lattice.half, self.lattice.grid.nodata
        rank = np.where(half, np.cumsum(half), np.cumsum(~half)) - 1  # among members of one resolution
        for place, member in enumerate(chosen.tolist()):
            which = bool(half[member])
            band = self.wide[which][rank[member] : rank[member] + 1]
            if nodata is not None and (hole := band == nodata).any():
                size = dct.BLOCK // (2 if which else 1)
                own = ~hole[self.inside(which)][0, : held[0] * size, : held[1] * size]
                np.minimum(valid, own.reshape(held[0], size, held[1], size).mean(axis=(1, 3)), out=valid)
                mean = np.where(hole, 0, band).sum(dtype=np.float64) / max(1, int((~hole).sum()))
                band = np.where(hole, mean, band).astype(np.float32)
            self._transform(which, band, np.array([place]), out)
        return out, valid

    def planes(self, front_end: FrontEnd, step: float, limit: float, out: Floats) -> None:
        """Coefficients of planes in steps, less what a reference says of them, clipped to +-limit, into `out` (planes,
        64, blocks down, blocks across)."""
        self._own_planes(front_end, step, limit, out)
        if self.reader.foresight is not None:
            self.reader.foresight.take_off(self.tile, front_end, step, out)
            np.clip(out, np.float32(-limit), np.float32(limit), out=out)

    def _own_planes(self, front_end: FrontEnd, step: float, limit: float, out: Floats) -> None:
        mean, bands = front_end.mean.astype(np.float32), len(self.lattice.members)
        if accelerator.native() is not None and all(
            -(-side // dct.BLOCK) == blocks for side, blocks in zip(self.tile.window[2:], out.shape[2:], strict=True)
        ):
            parts = list(self._parts(mean, *out.shape[2:]))
            if accelerator.front(parts, bands, front_end.mixings(step), limit, out):
                return
        front_end.forward(self.coefficients(mean), step, out)
        np.clip(out, np.float32(-limit), np.float32(limit), out=out)

    def _parts(self, mean: Floats, down: int, across: int) -> Iterator[accelerator.Part]:
        """What so many blocks are made from, for bands of either resolution."""
        for half in (False, True):
            (places,) = (self.lattice.half == half).nonzero()
            if len(places):
                yield self._part(half, self._filled(half, mean[places]), places, down, across)

    def _part(self, half: bool, filled: Pixels, places: NDArray[np.intp], down: int, across: int) -> accelerator.Part:
        above, below, left, right = (pixels > 0 for pixels in self.margin)
        high, wide = (
            (before + blocks * dct.BLOCK + after) // (2 if half else 1)
            for before, blocks, after in zip(self.margin[::2], (down, across), self.margin[1::2], strict=True)
        )
        return accelerator.Part(filled[:, :high, :wide], half, (above, below, left, right), places)

    def _transform(self, half: bool, filled: Pixels, places: NDArray[np.intp], out: Floats) -> None:
        """Blocks that hold pixels of the grid. Those wholly beyond it are not mixed with others, because nothing but
        their means is sent."""
        part = self._part(half, filled, places, *out.shape[2:])
        if accelerator.forward(part, out):
            return
        above, _, left, _ = part.beside
        size = dct.BLOCK // (2 if half else 1)
        first = size // 2 if above else size, size // 2 if left else size
        mixed = lap.mix(part.pixels.astype(np.float32), size, first)
        own = tuple(
            slice(before // (8 // size), before // (8 // size) + blocks * size)
            for before, blocks in zip(self.margin[::2], out.shape[2:], strict=True)
        )
        out[places, : size * size] = dct.forward(mixed[(slice(None), *own)], half)

    def _filled(self, half: bool, mean: Floats) -> Pixels:
        """Pixels with their margins, without holes: as new floats, where there were any."""
        pixels = self.wide[half]
        nodata = self.lattice.grid.nodata
        if nodata is None:
            return pixels
        hole = pixels == nodata
        if not hole.any():
            return pixels
        values = pixels.astype(np.float32)
        own = self.inside(half)
        values[own] = fill_holes(values[own], hole[own], mean)
        for number, there, here in self.reader.beside(self, half):
            if hole[here].any():
                values[here] = self.reader.frame(number, half, mean).at(there)
        return values


def _flat(pixels: Pixels, size: int) -> Floats:
    """Channel 0 that blocks (n, height / size, width / size) would have alone."""
    count, height, width = pixels.shape
    blocks = pixels.reshape(count, height // size, size, width // size, size)
    return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float32) * np.float32(dct.FLAT))


class Frame:
    """The outermost pixels of a filled tile, which its neighbours need: `depth` on each side of (bands, height,
    width)."""

    def __init__(self, filled: Floats, depth: int) -> None:
        self._shape = filled.shape[1:]
        self._sides = [
            (slice(None), rows, columns)
            for rows, columns in (
                (slice(0, depth), slice(None)),
                (slice(-depth, None), slice(None)),
                (slice(None), slice(0, depth)),
                (slice(None), slice(-depth, None)),
            )
        ]
        self._kept = [filled[side].copy() for side in self._sides]

    def at(self, part: tuple[slice, slice, slice]) -> Floats:
        """A part of it that lies along one side, or in a corner."""
        out = np.empty((len(self._kept[0]), *self._shape), np.float32)
        for side, kept in zip(self._sides, self._kept, strict=True):
            out[side] = kept
        return out[part]


def _spaced(index: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """The same places as a slice, if they are evenly spaced: edge pixels repeat."""
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if step > 0 and bool((np.diff(index) == step).all()):
        return slice(int(index[0]), int(index[-1]) + 1, step)
    return index


def _parts(before: int, after: int, own: slice, depth: int) -> list[tuple[int, slice, slice]]:
    """Along one axis: (-1, 0 or 1, where in the neighbour, where in the tile's wide pixels)."""
    found = [(0, slice(None), own)]
    if before:
        found.append((-1, slice(-depth, None), slice(0, own.start)))
    if after:
        found.append((1, slice(0, depth), slice(own.stop, own.stop + depth)))
    return found


class LatticeReader:
    """Reads one lattice of a source by rows of tiles, and windows of it for statistics."""

    def __init__(
        self, source: Source, lattice: Lattice, number: int, core: int, foresight: Foresight | None = None
    ) -> None:
        self.source, self.lattice, self.number, self.foresight = source, lattice, number, foresight
        self.grid = lattice.grid
        self.tiles = TileGrid(lattice.height, lattice.width, core)
        self.watcher: Callable[[TilePixels], None] | None = None
        """Is shown every tile that is read by rows."""
        self._readers = self._grouped()
        self._frames: dict[tuple[int, bool, bytes], Frame] = {}

    def _grouped(self) -> list[tuple[int, Member, list[int], list[int]]]:
        """Members that are read alike: (grid, one of them, their places among all members, their bands)."""
        found: dict[tuple[int, int], tuple[int, Member, list[int], list[int]]] = {}
        for place, member in enumerate(self.lattice.members):
            entry = found.setdefault((member.grid, member.factor), (member.grid, member, [], []))
            entry[2].append(place)
            entry[3].append(member.band)
        return list(found.values())

    def _read(self, top: int, left: int, height: int, width: int) -> tuple[Pixels, Pixels]:
        """Full and half members of a rectangle of the lattice that may reach beyond it: edge pixels repeat. All four
        are even."""
        half = self.lattice.half
        out = tuple(
            np.empty((int((half == wanted).sum()), height // factor, width // factor), self.grid.dtype)
            for wanted, factor in ((False, 1), (True, 2))
        )
        order = np.where(half, np.cumsum(half), np.cumsum(~half)) - 1
        for grid, member, places, bands in self._readers:
            factor = member.factor
            rows = native_index(self.lattice, member, top // factor, height // factor, True)
            cols = native_index(self.lattice, member, left // factor, width // factor, False)
            out[factor - 1][order[places]] = self._gather(grid, member, bands, rows, cols)
        return out[0], out[1]

    def _gather(
        self, grid: int, member: Member, bands: list[int], rows: NDArray[np.intp], cols: NDArray[np.intp]
    ) -> Pixels:
        shape = self.source.scene.grids[grid].shape
        rows, cols = rows.clip(0, shape[1] - 1), cols.clip(0, shape[2] - 1)
        block = self.lattice.unit * member.factor // member.pixel  # grid pixels that one native sample covers
        left, right = int(cols[0]), min(int(cols[-1]) + block, shape[2])
        out: Pixels | None = None
        done = 0
        while done < len(rows):
            top = int(rows[done])
            count = int(np.searchsorted(rows[done:], top + ROWS_AT_ONCE))
            part = rows[done : done + count]
            bottom = min(int(part[-1]) + block, shape[1])
            pixels = self.source.read(grid, Window(top, left, bottom - top, right - left))
            if bands != list(range(shape[0])):
                pixels = pixels[bands]
            if block > 1:
                self._check_repeats(pixels, member, top, left)
            pixels = pixels[:, _spaced(part - top)][:, :, _spaced(cols - left)]
            if count == len(rows):
                return pixels
            if out is None:
                out = np.empty((len(bands), len(rows), len(cols)), pixels.dtype)
            out[:, done : done + count] = pixels
            done += count
        assert out is not None
        return out

    def _check_repeats(self, pixels: Pixels, member: Member, top: int, left: int) -> None:
        """Every native sample must show the same value in all pixels that it covers."""
        rows = sample_index(self.lattice, member, top, pixels.shape[1], True)
        cols = sample_index(self.lattice, member, left, pixels.shape[2], False)
        for index, turned in ((rows, pixels.swapaxes(0, 1)), (cols, pixels.transpose(2, 0, 1))):
            (repeated,) = (index[1:] == index[:-1]).nonzero()
            every = self.lattice.unit * member.factor // member.pixel
            for first in range(min(every, len(repeated))):  # evenly spaced ones together
                later = repeated[repeated % every == repeated[first] % every] + 1
                if (turned[_spaced(later)] != turned[_spaced(later - 1)]).any():
                    raise NotRepeated

    def row(self, row: int) -> Iterator[TilePixels]:
        """The tiles of one row of tiles, read several at once."""
        numbers = self.tiles.row_tiles(row)
        lines = self.tiles.tile(numbers[0]).coded[0]
        width = READ_BYTES // (lines * max(1, len(self.lattice.members)) * np.dtype(self.grid.dtype).itemsize)
        at_once = max(1, width // self.tiles.core)
        for start in range(0, len(numbers), at_once):
            tiles = [self.tiles.tile(number) for number in numbers[start : start + at_once]]
            outer = [self._margin(tile) for tile in tiles]
            above, below = outer[0][:2]
            left = tiles[0].window.col - outer[0][2]
            right = tiles[-1].window.col + tiles[-1].coded[1] + outer[-1][3]
            full, half = self._read(tiles[0].window.row - above, left, above + lines + below, right - left)
            for number, tile, margin in zip(numbers[start : start + at_once], tiles, outer, strict=True):
                first, last = tile.window.col - margin[2] - left, tile.window.col + tile.coded[1] + margin[3] - left
                wide = full[:, :, first:last], half[:, :, first // 2 : last // 2]
                found = TilePixels(number, tile, self.lattice, wide, margin, self)
                if self.watcher is not None:
                    self.watcher(found)
                yield found

    def one(self, number: int) -> TilePixels:
        """A single tile."""
        tile = self.tiles.tile(number)
        margin = above, below, left, right = self._margin(tile)
        top, start = tile.window.row - above, tile.window.col - left
        wide = self._read(top, start, above + tile.coded[0] + below, left + tile.coded[1] + right)
        return TilePixels(number, tile, self.lattice, wide, margin, self)

    def _margin(self, tile: Tile) -> Margin:
        """Pixels around a tile that are its neighbours': none where there are no tiles."""
        row, col = tile.row, tile.col
        sides = row > 0, row < self.tiles.rows - 1, col > 0, col < self.tiles.cols - 1
        above, below, left, right = (MARGIN if there else 0 for there in sides)
        return above, below, left, right

    def beside(self, tile: TilePixels, half: bool) -> Iterator[tuple[int, Part, Part]]:
        """Neighbours of a tile: (number, where in the neighbour's own pixels, where in the tile's wide ones)."""
        depth = MARGIN // (2 if half else 1)
        rows = _parts(tile.margin[0], tile.margin[1], tile.inside(half)[1], depth)
        columns = _parts(tile.margin[2], tile.margin[3], tile.inside(half)[2], depth)
        for down, there_row, here_row in rows:
            for across, there_col, here_col in columns:
                if down or across:
                    number = self.tiles.number(tile.tile.row + down, tile.tile.col + across)
                    yield number, (slice(None), there_row, there_col), (slice(None), here_row, here_col)

    def frame(self, number: int, half: bool, mean: Floats) -> Frame:
        """The frame of a tile, filled: of the last few that were asked for, from memory."""
        key = number, half, mean.tobytes()
        found = self._frames.pop(key, None)
        if found is None:
            tile = self.one(number)
            pixels = tile.half if half else tile.full
            filled = fill_holes(pixels.astype(np.float32), pixels == self.grid.nodata, mean)
            found = Frame(filled, MARGIN // (2 if half else 1))
        self._frames[key] = found  # the last in order is the last used
        if len(self._frames) > FRAMES:
            self._frames.pop(next(iter(self._frames)))
        return found

    def windows(self, side: int) -> LatticeReader:
        """The same lattice, read in tiles of this side."""
        return LatticeReader(self.source, self.lattice, self.number, side, self.foresight)

    def sample_tiles(self, most: int) -> list[int]:
        """Numbers of up to `most` tiles spread evenly over the grid."""
        count = len(self.tiles)
        chosen = min(most, count)
        return sorted({round((i + 0.5) * count / chosen - 0.5) for i in range(chosen)})

    def statistics(self) -> Statistics:
        """Moments over sample windows; blocks without any valid pixel are left out."""
        moments: Moments | None = None
        bands = len(self.lattice.members)
        windows = self.windows(SAMPLE_SIDE)
        for number in windows.sample_tiles(SAMPLE_WINDOWS):
            tile = windows.one(number)
            if moments is None:
                moments = Moments(self.lattice.half, self._means(tile))
            values = tile.coefficients(moments.centre.astype(np.float32))
            down, across = (-(-side // dct.BLOCK) for side in tile.tile.window[2:])
            values = values[:, :, :down, :across].reshape(bands, dct.CHANNELS, -1)
            every = -(-values.size // SAMPLE_VALUES)  # of many bands, fewer blocks: memory stays bounded
            valid = self.valid_blocks(tile, down, across)
            moments.add((values if valid.all() else values[:, :, valid])[:, :, ::every])
        assert moments is not None
        return moments.statistics()

    def _means(self, tile: TilePixels) -> NDArray[np.float64]:
        out = np.zeros(len(self.lattice.members))
        for chosen, pixels in ((~self.lattice.half, tile.full), (self.lattice.half, tile.half)):
            valid = np.ones(pixels.shape, np.bool_) if self.grid.nodata is None else pixels != self.grid.nodata
            count = valid.sum(axis=(1, 2))
            out[chosen] = np.where(valid, pixels, 0).sum(axis=(1, 2), dtype=np.float64) / np.maximum(1, count)
        return out

    def valid_blocks(self, tile: TilePixels, down: int, across: int) -> NDArray[np.bool_]:
        """Blocks in which some band has some valid pixel; all of them, if none has."""
        hole = tile.nodata()
        if hole is None:
            return np.ones(down * across, np.bool_)
        height, width = hole.shape[1:]
        padded = np.pad(hole.all(axis=0), [(0, down * 8 - height), (0, across * 8 - width)], constant_values=True)
        some = ~padded.reshape(down, 8, across, 8).all(axis=(1, 3)).ravel()
        return some if some.any() else ~some
