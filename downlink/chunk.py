"""The chunks of a stream: how many there are, in which order, and how they are listed.

A chunk is the unit of loss, of acknowledgement and of storage: at most 256 KiB, checked by its own CRC-32C. Which
chunks a stream has follows from the scene's geometry and the codings alone, in closed form: nothing is ever counted by
a payload, and no object exists per chunk until one is asked for. In index order:

    PAGE    the chunk list: lengths and checksums of all chunks after the pages, 16384 to a page
    SIDE    one per grid: what the front end needs (statistics, transform)
    MASK    for grid: for tile: for block
    LATENT  for group: for grid: for tile: for block    -- layer by layer, so that every prefix is a coarser whole scene

A chunk may be empty: it then has no checksum, and is never sent over the link. Refused: codings that the format does
not allow (`Malformed`, `Unsupported`), more than `limits.CHUNKS_MAX` chunks (`TooLarge`), pages that do not list
exactly the chunks they should.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from downlink import limits, mask
from downlink.checksum import crc32c
from downlink.errors import Corrupt, Malformed, TooLarge, Unsupported
from downlink.exact_lattice import LEVELS
from downlink.mask import MaskMode
from downlink.scene import Grid, Scene
from downlink.tile import TileGrid

METHODS: Final = ("planes", "exact")
EXACT_GROUPS_MAX: Final = LEVELS + 1  # one per level, and one for the first lattice


class Kind(IntEnum):
    """What a chunk holds."""

    PAGE = 0
    SIDE = 1
    MASK = 2
    LATENT = 3


class ChunkKey(NamedTuple):
    """What a chunk is about; parts that a kind does not have are 0 (a page's number is its `block`)."""

    kind: Kind
    grid: int = 0
    tile: int = 0
    group: int = 0
    block: int = 0


class GridCoding(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """How one grid is coded and cut. Positional on the wire: never reorder the fields.

    Method "planes": decorrelated planes through a bundle's network. Method "exact": the bands themselves by plain
    prediction (`downlink.exact`), each valid pixel with an error of at most `max_error`; its planes are the bands in
    the order of coding.
    """

    method: str = "planes"
    tile: int = 256  # core size, px
    planes: int  # decorrelated planes sent; at most the grid's bands
    planes_per_chunk: int
    groups: int  # layers of latent channels, or of resolution
    mask: MaskMode
    step: float  # of the quantiser, in units of the pixels; 1 if exact
    max_error: int = 0  # of any valid pixel, in units of the pixels; only if exact

    @property
    def blocks(self) -> int:
        """Plane blocks, that is chunks, per tile and group."""
        return -(-self.planes // self.planes_per_chunk)


def validate_coding(coding: GridCoding, grid: Grid, what: str) -> None:
    """Raise unless `coding` is one that the format allows for `grid`."""
    if coding.method not in METHODS:
        raise Unsupported(f"{what}: method {coding.method[:64]!r} is none of {', '.join(METHODS)}; update this program")
    if coding.mask not in mask.MODES:
        raise Unsupported(f"{what}: mask mode {coding.mask[:64]!r} is none of {', '.join(mask.MODES)}")
    if coding.mask != "none" and grid.nodata is None:
        raise Malformed(f"{what}: has a mask ({coding.mask}), but the grid defines no nodata value to fill it with")
    if not 0 < coding.tile <= limits.TILE_PX_MAX or coding.tile % limits.TILE_PX_MULTIPLE:
        allowed = f"a multiple of {limits.TILE_PX_MULTIPLE} up to {limits.TILE_PX_MAX}"
        raise Malformed(f"{what}: tiles of {coding.tile} px; the size must be {allowed}")
    if not 1 <= coding.planes <= len(grid.bands):
        raise Malformed(
            f"{what}: {coding.planes} planes for {len(grid.bands)} bands; there must be 1 to as many as bands"
        )
    if not 1 <= coding.planes_per_chunk <= coding.planes:
        raise Malformed(
            f"{what}: {coding.planes_per_chunk} planes per chunk; must be 1 to {coding.planes} (its planes)"
        )
    if not 1 <= coding.groups <= limits.GROUPS_MAX:
        raise Malformed(f"{what}: {coding.groups} groups; there must be 1 to {limits.GROUPS_MAX}")
    if not limits.STEP_MIN <= coding.step <= limits.STEP_MAX:  # NaN fails as well
        raise Malformed(f"{what}: step {coding.step} is not within {limits.STEP_MIN} to {limits.STEP_MAX}")
    if coding.method == "exact":
        _validate_exact(coding, grid, what)
    elif coding.max_error:
        raise Malformed(f"{what}: promises errors of at most {coding.max_error}, which method 'planes' cannot keep")


def _validate_exact(coding: GridCoding, grid: Grid, what: str) -> None:
    if coding.planes != len(grid.bands):
        raise Malformed(f"{what}: {coding.planes} of {len(grid.bands)} bands; an exact grid has them all")
    if coding.groups > EXACT_GROUPS_MAX:
        raise Malformed(f"{what}: {coding.groups} groups; an exact grid has {EXACT_GROUPS_MAX} levels at most")
    if coding.step != 1:
        raise Malformed(f"{what}: step {coding.step}; that of an exact grid is 1")
    if coding.max_error < 0:
        raise Malformed(f"{what}: error of at most {coding.max_error}; it must be 0 (lossless) or more")
    limits.at_most(coding.max_error, limits.MAX_ERROR_MAX, f"{what}: error allowed", "that is all of 16 bits")


class _Run(NamedTuple):
    """Consecutive chunks of one kind: `chunks` of them from index `start`, `blocks` per tile."""

    start: int
    chunks: int
    blocks: int
    kind: Kind
    grid: int
    group: int


class Layout:
    """The numbering of all chunks of a stream. Holds one entry per grid and group, whatever the scene's size.

    `scene` must have passed `scene.validate`; the codings are validated here.
    """

    def __init__(self, scene: Scene, codings: Sequence[GridCoding]) -> None:
        if len(codings) != len(scene.grids):
            raise Malformed(f"{len(codings)} codings for {len(scene.grids)} grids; each grid needs exactly one")
        for number, (coding, grid) in enumerate(zip(codings, scene.grids, strict=True)):
            validate_coding(coding, grid, f"coding of grid {number}")
        self._tiles = [TileGrid(g.height, g.width, c.tile) for g, c in zip(scene.grids, codings, strict=True)]
        self._groups = [coding.groups for coding in codings]

        shapes: list[tuple[int, int, Kind, int, int]] = [(len(codings), 1, Kind.SIDE, 0, 0)]
        for grid_number, coding in enumerate(codings):
            per_tile = mask.blocks(coding.mask, len(scene.grids[grid_number].bands))
            shapes.append((len(self._tiles[grid_number]) * per_tile, per_tile, Kind.MASK, grid_number, 0))
        for group in range(max(self._groups)):
            for grid_number, coding in enumerate(codings):
                if group < coding.groups:
                    tiles = len(self._tiles[grid_number])
                    shapes.append((tiles * coding.blocks, coding.blocks, Kind.LATENT, grid_number, group))

        listed = sum(shape[0] for shape in shapes)
        self.pages: Final = page_count(listed)  # also the index of the first chunk that is not a page
        limits.at_most(self.pages + listed, limits.CHUNKS_MAX, "chunks of the stream", "cut the scene into several")
        self._runs = [_Run(0, self.pages, 1, Kind.PAGE, 0, 0)]
        for shape in shapes:
            if shape[0]:
                self._runs.append(_Run(self._runs[-1].start + self._runs[-1].chunks, *shape))
        self._starts = [run.start for run in self._runs]
        self._by_name = {(run.kind, run.grid, run.group): run for run in self._runs}
        self._length: Final = self.pages + listed

    def __len__(self) -> int:
        return self._length

    def tiles(self, grid: int) -> TileGrid:
        """How grid `grid` is cut."""
        return self._tiles[grid]

    def groups(self, grid: int) -> int:
        """How many groups of latents grid `grid` has."""
        return self._groups[grid]

    def key(self, index: int) -> ChunkKey:
        """What chunk `index` is about."""
        if not 0 <= index < self._length:
            raise IndexError(f"chunk {index} of a stream that has {self._length} chunks")
        run = self._runs[bisect_right(self._starts, index) - 1]
        offset = index - run.start
        if run.kind is Kind.PAGE:
            return ChunkKey(Kind.PAGE, block=offset)
        if run.kind is Kind.SIDE:
            return ChunkKey(Kind.SIDE, grid=offset)
        tile, block = divmod(offset, run.blocks)
        return ChunkKey(run.kind, run.grid, tile, run.group, block)

    def index(self, key: ChunkKey) -> int:
        """Where the chunk about `key` is; IndexError if this stream has none."""
        kind, grid, tile, group, block = key
        if kind is Kind.PAGE and 0 <= block < self.pages and (grid, tile, group) == (0, 0, 0):
            return block
        if kind is Kind.SIDE and 0 <= grid < len(self._tiles) and (tile, group, block) == (0, 0, 0):
            return self.pages + grid
        run = self._by_name.get((kind, grid, group)) if kind in (Kind.MASK, Kind.LATENT) else None
        if run is None or not 0 <= block < run.blocks or not 0 <= tile < len(self._tiles[grid]):
            raise IndexError(f"this stream has no chunk {key}")
        return run.start + tile * run.blocks + block

    def side_of(self, grid: int) -> int:
        """The index of the side chunk of `grid`."""
        return self.index(ChunkKey(Kind.SIDE, grid))

    def masks_of(self, grid: int, tile: int) -> range:
        """The indices of the mask chunks of a tile, block by block; empty in mask mode "none"."""
        run = self._by_name.get((Kind.MASK, grid, 0))
        return self._blocks(run, grid, tile) if run else range(0)

    def latents_of(self, grid: int, tile: int) -> list[int]:
        """The indices of the latent chunks of a tile in the order in which they decode: by group, then by block."""
        runs = [self._by_name[Kind.LATENT, grid, group] for group in range(self._groups[grid])]
        return [index for run in runs for index in self._blocks(run, grid, tile)]

    def _blocks(self, run: _Run, grid: int, tile: int) -> range:
        if not 0 <= tile < len(self._tiles[grid]):
            raise IndexError(f"tile {tile} of grid {grid}, which has {len(self._tiles[grid])} tiles")
        return range(run.start + tile * run.blocks, run.start + (tile + 1) * run.blocks)


def page_count(listed: int) -> int:
    """How many pages it takes to list `listed` chunks."""
    return -(-listed // limits.PAGE_CHUNKS)


def check_chunk(index: int, payload: bytes, length: int, crc: int) -> None:
    """Raise `Corrupt` unless `payload` has the length and the checksum that the list states for chunk `index`."""
    if len(payload) != length:
        raise Corrupt(f"chunk {index}: {len(payload)} bytes, {length} stated in the chunk list; fetch it again")
    found = crc32c(payload)
    if found != crc:
        raise Corrupt(f"chunk {index}: crc32c {found:#010x}, {crc:#010x} stated in the chunk list; fetch it again")


class ChunkList:
    """Length and CRC-32C of every chunk that is not a page. Methods take chunk indices as the stream counts them."""

    def __init__(self, lengths: NDArray[np.uint32], crcs: NDArray[np.uint32]) -> None:
        if len(lengths) != len(crcs):
            raise ValueError(f"{len(lengths)} lengths and {len(crcs)} checksums; each chunk has one of both")
        longest = int(lengths.max(initial=0))
        limits.at_most(longest, limits.CHUNK_BYTES_MAX, "bytes of a chunk", "send fewer planes per chunk")
        self.lengths: Final = lengths
        self.crcs: Final = crcs
        self.first: Final = page_count(len(lengths))  # the index of the first chunk listed here: pages come before

    @classmethod
    def of(cls, chunks: Iterable[bytes]) -> ChunkList:
        """The list of these chunks: all of a stream's but its pages, in index order."""
        lengths, crcs = array("L"), array("L")  # no objects per chunk: there may be a million
        for chunk in chunks:
            lengths.append(len(chunk))
            crcs.append(crc32c(chunk))
        return cls(np.array(lengths, np.uint32), np.array(crcs, np.uint32))

    @property
    def payload_bytes(self) -> int:
        """Bytes of all chunks listed, that is without the pages."""
        return int(self.lengths.sum(dtype=np.int64))

    def length(self, index: int) -> int:
        """Bytes of chunk `index`."""
        return int(self.lengths[self._place(index)])

    def check(self, index: int, payload: bytes) -> None:
        """Raise `Corrupt` unless `payload` is chunk `index`."""
        check_chunk(index, payload, self.length(index), int(self.crcs[self._place(index)]))

    def _place(self, index: int) -> int:
        place = index - self.first
        if not 0 <= place < len(self.lengths):
            raise IndexError(f"chunk {index} is not one of {self.first} to {self.first + len(self.lengths) - 1}")
        return place

    def pages(self) -> list[bytes]:
        """The pages that state this list."""
        pages = []
        for start in range(0, len(self.lengths), limits.PAGE_CHUNKS):
            lengths = self.lengths[start : start + limits.PAGE_CHUNKS]
            crcs = self.crcs[start : start + limits.PAGE_CHUNKS]
            pages.append(_varints(lengths) + crcs[lengths > 0].astype("<u4").tobytes())
        return pages

    @classmethod
    def from_pages(cls, pages: Sequence[bytes], listed: int) -> ChunkList:
        """The list of `listed` chunks (known from the layout) that `pages` state."""
        if len(pages) != page_count(listed):
            raise Malformed(f"{len(pages)} pages for {listed} chunks; there must be {page_count(listed)}")
        lengths = np.zeros(listed, np.uint32)
        crcs = np.zeros(listed, np.uint32)
        for number, page in enumerate(pages):
            part = slice(number * limits.PAGE_CHUNKS, min(listed, (number + 1) * limits.PAGE_CHUNKS))
            lengths[part], crcs[part] = _read_page(page, part.stop - part.start, f"page {number}")
        return cls(lengths, crcs)


def _varints(lengths: NDArray[np.uint32]) -> bytes:
    """LEB128 of numbers below 2^21, one after the other."""
    size = 1 + (lengths > 0x7F).astype(np.intp) + (lengths > 0x3FFF)
    start = np.cumsum(size) - size
    out = np.zeros(int(size.sum()), np.uint8)
    out[start] = lengths & 0x7F
    for place in (1, 2):
        longer = size > place
        out[start[longer] + place] = (lengths[longer] >> (7 * place)) & 0x7F
        out[start[longer] + place - 1] |= 0x80
    return out.tobytes()


def _read_page(page: bytes, listed: int, what: str) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(lengths, crcs) of the `listed` chunks of one page."""
    octets = np.frombuffer(page, np.uint8)
    end = np.flatnonzero(octets < 0x80)[:listed]
    if len(end) < listed:
        raise Malformed(f"{what}: holds {len(end)} lengths, {listed} chunks are to be listed")
    size = np.diff(end, prepend=-1)
    if size.max(initial=0) > 3:
        raise TooLarge(f"{what}: a length takes {size.max()} bytes; 3 hold the limit of {limits.CHUNK_BYTES_MAX}")
    if ((size > 1) & (octets[end] == 0)).any():
        raise Malformed(f"{what}: a length has a last byte of 0; each must be written as short as it can be")
    start = end - size + 1
    lengths = (octets[start] & 0x7F).astype(np.uint32)
    for place in (1, 2):
        longer = size > place
        lengths[longer] |= (octets[start[longer] + place] & 0x7F).astype(np.uint32) << np.uint32(7 * place)
    stated = page[int(end[-1]) + 1 :] if listed else page
    present = lengths > 0
    if len(stated) != 4 * int(present.sum()):
        raise Malformed(f"{what}: {len(stated)} bytes of checksums for {int(present.sum())} chunks that are not empty")
    crcs = np.zeros(listed, np.uint32)
    crcs[present] = np.frombuffer(stated, "<u4")
    return lengths, crcs
