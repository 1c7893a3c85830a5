"""A scene that another one is coded against: the coefficients of its lattices, tile by tile, from its symbols alone.

Both ends have a reference's *stream*, and both make the same of it: symbols (integers, the same everywhere), planes,
and back through its KLTs to coefficients of bands (`downlink.dct`), where a prediction is taken from
(`downlink.prediction`). There is no network in between but the integer prior, no pixel is rounded, nodata need not be
filled again (what the encoder had filled it with is in the symbols), and a tile needs no neighbour.

A reference may have a reference itself: its prediction is added to what its stream holds. Coefficients are floats and
may differ between machines in their last bits (1e-7 of them); no symbol depends on them, and nothing that is computed
from one scene's pixels enters the next, so differences do not add up beyond that. See docs/format.md, "Reference".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from downlink import dct, limits
from downlink.chunk import ChunkKey, Kind, Layout
from downlink.errors import BundleError, Malformed, ReferenceMissing
from downlink.latent import ReceivedTile, TileCode, decode_tiles
from downlink.lattice import Lattice, Resolution
from downlink.manifest import Manifest
from downlink.plane import GAINS_PER_OCTAVE, unpack_front_end
from downlink.prediction import Prediction, split_side
from downlink.prior import Prior
from downlink.scene import Scene
from downlink.spec import PlaneSpec
from downlink.table import Tables
from downlink.tile import TileGrid

BYTES_KEPT = 96 << 20
"""Tiles that are kept decoded: two rows of tiles, as those who look beyond a tile's edge ask for, or as many as these
bytes hold, but at least `TILES_KEPT`; of a reference's reference no more than that."""
TILES_KEPT = 6

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Codec:
    """What decodes a bundle's symbols: the half that every half of a bundle has."""

    bundle: bytes
    spec: PlaneSpec
    tables: Tables
    prior: Prior


def place_of(scene: Scene, resolutions: Sequence[Resolution]) -> bytes:
    """Scenes with the same are of the same place, and may be each other's reference: SHA-256 over CRS, transform, size,
    dtype and band names of every grid, and how they resolve (`downlink.lattice`)."""
    grids = [
        (grid.height, grid.width, grid.dtype, grid.crs, grid.transform, [band.name for band in grid.bands])
        for grid in scene.grids
    ]
    return hashlib.sha256(msgspec.msgpack.encode((grids, tuple(resolutions)))).digest()


def alike(one: Sequence[Lattice], other: Sequence[Lattice]) -> bool:
    """Whether lattices cover the same pixels with the same bands, so that coefficients may be compared."""

    def facts(lattice: Lattice) -> tuple[object, ...]:
        return lattice.unit, lattice.row, lattice.col, lattice.height, lattice.width, lattice.members

    return [facts(lattice) for lattice in one] == [facts(lattice) for lattice in other]


def check_reference(scene_id: str, manifest: Manifest, reference: Reference | None) -> None:
    """Refuse, with `Malformed`, a reference that is not the one that a manifest states, or not like its scene."""
    stated, given = manifest.reference.hex() or "none", "none" if reference is None else reference.scene_id
    if stated != given:
        raise Malformed(
            f"scene {scene_id[:12]} has reference {stated[:12]}, given was {given[:12]}; give the stated one"
        )
    if reference is not None and not alike(manifest.lattices(), reference.manifest.lattices()):
        raise Malformed(
            f"scene {scene_id[:12]} and its reference {given[:12]}… do not cover the same pixels; the encoder was wrong"
        )
    if reference is not None and reference.depth >= limits.REFERENCES_MAX:
        raise Malformed(
            f"scene {scene_id[:12]} has {reference.depth} references, one behind the other; "
            f"{limits.REFERENCES_MAX - 1} are allowed"
        )


class Reference:
    """A decoded stream to predict from: one `ReferenceLattice` for each of its lattices."""

    def __init__(
        self,
        scene_id: str,
        manifest: Manifest,
        chunk: Callable[[int], bytes],
        codec: Codec,
        before: Reference | None = None,
    ) -> None:
        """`chunk(i)` gives chunk i, checked. `before` is the reference's own reference, exactly if it has one."""
        self.scene_id, self.manifest, self.before = scene_id, manifest, before
        if manifest.bundle != codec.bundle:
            raise BundleError(
                f"reference {scene_id[:12]} was coded with bundle {manifest.bundle_name} {manifest.bundle.hex()[:12]}, "
                f"this is {codec.bundle.hex()[:12]}; a scene and its reference have the same"
            )
        check_reference(scene_id, manifest, before)
        layout, lattices = manifest.layout(), manifest.lattices()
        earlier: Sequence[ReferenceLattice | None] = [None] * len(lattices) if before is None else before.lattices
        self.lattices: list[ReferenceLattice] = [
            ReferenceLattice(manifest, lattice, layout, number, chunk, codec, known)
            for number, (lattice, known) in enumerate(zip(lattices, earlier, strict=True))
        ]

    @property
    def depth(self) -> int:
        """Streams that decoding this one takes."""
        return 1 if self.before is None else 1 + self.before.depth


Stream = tuple[Manifest, Callable[[int], bytes]]
"""A stream's manifest, and its chunks by index, checked."""


def opened(scene_id: str, find: Callable[[str], Stream | None], codec: Codec, why: str) -> Reference:
    """Reference `scene_id` with all the references behind it, which `find` gives by id. Raises `ReferenceMissing` if
    one of them is not here, `why` saying what it is for; `StreamError`s of what is not as it should be."""
    wanted, found = scene_id, list[tuple[str, Stream]]()
    while wanted:
        stream = find(wanted)
        if stream is None:
            raise ReferenceMissing(f"{why} needs scene {wanted} as its reference, which is not here; send or give it")
        found.append((wanted, stream))
        limits.at_most(
            len(found), limits.REFERENCES_MAX - 1, "references, one behind the other", "the encoder was wrong"
        )
        wanted = stream[0].reference.hex()
    reference: Reference | None = None
    for name, (manifest, chunk) in reversed(found):
        reference = Reference(name, manifest, chunk, codec, reference)
    assert reference is not None
    return reference


class ReferenceLattice:
    """Coefficients of one lattice, by windows of blocks. Not for several threads at once. `most` tiles are kept."""

    most: int

    def __init__(
        self,
        manifest: Manifest,
        lattice: Lattice,
        layout: Layout,
        number: int,
        chunk: Callable[[int], bytes],
        codec: Codec,
        before: ReferenceLattice | None,
    ) -> None:
        self._codec, self._layout, self._number, self._chunk = codec, layout, number, chunk
        self._coding = manifest.codings[number]
        self._tiles: TileGrid = layout.tiles(number)
        side = chunk(layout.index(ChunkKey(Kind.SIDE, grid=number)))
        self._prediction: Prediction | None = None
        if before is not None:
            self._prediction, side = conditioned(side, lattice, before)
        self.front_end = unpack_front_end(side, lattice.half, lattice.weights, self._coding.planes, len(self._tiles))
        self.bands = len(lattice.members)
        self._kept: dict[int, Floats] = {}
        self._edges: dict[int, Floats] = {}  # the last row of blocks of tiles that were decoded
        self._codes: dict[int, TileCode] = {}
        if before is not None:
            before.most = TILES_KEPT
        size = 4 * self.bands * self._tiles.core**2
        self.most = max(TILES_KEPT, min(2 * self._tiles.cols + TILES_KEPT, BYTES_KEPT // size))

    @property
    def mean(self) -> Floats:
        """About that of channel 0 of each band: (bands). What a reference adds to it has none."""
        return np.asarray(dct.FLAT * self.front_end.mean.astype(np.float32))

    def at(self, row: int, col: int, height: int, width: int) -> Floats:
        """Coefficients (bands, 64, height, width) of these blocks in DN; zeros, and the mean in channel 0, of blocks
        beyond all tiles."""
        out = np.zeros((self.bands, dct.CHANNELS, height, width), np.float32)
        out[:, 0] = self.mean[:, None, None]
        core = self._tiles.core // dct.BLOCK
        for tile_row in range(row // core, min(-(-(row + height) // core), self._tiles.rows)):
            for tile_col in range(col // core, min(-(-(col + width) // core), self._tiles.cols)):
                number = self._tiles.number(tile_row, tile_col)
                there, here = [], []
                for first, count, start, size in zip(
                    (row, col), (height, width), (tile_row * core, tile_col * core), self._size(number), strict=True
                ):
                    begin, end = max(first, start), min(first + count, start + size)
                    there.append(slice(begin - start, end - start))
                    here.append(slice(begin - first, end - first))
                out[:, :, here[0], here[1]] = self._part(number, there[0])[:, :, :, there[1]]
        return out

    def _size(self, number: int) -> tuple[int, int]:
        """Blocks (down, across) of a tile's coded size."""
        height, width = self._tiles.tile(number).coded
        return height // dct.BLOCK, width // dct.BLOCK

    def _part(self, number: int, rows: slice) -> Floats:
        """Some rows of blocks of a tile. The last one alone, which the tile below looks at, is kept longer."""
        if rows.start == self._size(number)[0] - 1 and number not in self._kept and number in self._edges:
            return self._edges[number]
        found = self._kept.pop(number, None)
        if found is None:
            found = self._decoded(number)
            self._edges[number] = found[:, :, -1:].copy()
            while len(self._edges) > 2 * self._tiles.cols + TILES_KEPT:
                self._edges.pop(next(iter(self._edges)))
        self._kept[number] = found  # the last in order is the last used
        while len(self._kept) > self.most:
            self._kept.pop(next(iter(self._kept)))
        return found[:, :, rows]

    def _decoded(self, number: int) -> Floats:
        """Coefficients of a tile's coded size."""
        tile = self._tiles.tile(number)
        gain = self.front_end.gain(number)
        height, width = self._size(number)
        chunks = {}
        for index in self._layout.latents_of(self._number, number):
            key = self._layout.key(index)
            chunks[key.group, key.block] = self._chunk(index)
        received = ReceivedTile(self._code(gain), height, width, chunks)
        decode_tiles([received], self._codec.prior)
        step = self._coding.step * 2.0 ** (gain / GAINS_PER_OCTAVE)
        found = self.front_end.inverse(received.value, step)
        if self._prediction is not None:
            core = self._tiles.core // dct.BLOCK
            found += self._prediction.at(tile.row * core, tile.col * core, height, width)
        return found

    def _code(self, gain: int) -> TileCode:
        found = self._codes.get(gain)
        if found is None:
            front_end, codec = self.front_end, self._codec
            per_chunk = self._coding.planes_per_chunk
            found = TileCode(codec.spec, codec.tables, front_end.levels_at(gain), front_end.turn, per_chunk)
            self._codes[gain] = found
        return found


def conditioned(side: bytes, lattice: Lattice, reference: ReferenceLattice) -> tuple[Prediction | None, bytes]:
    """What precedes the front end in the side chunk of a lattice that has a reference; None: it is coded alone."""
    packed, front_end = split_side(side)
    if not packed:
        return None, front_end
    return Prediction.unpack(packed, lattice.half, lattice.height, lattice.width, reference), front_end
