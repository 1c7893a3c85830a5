"""Decoded lattices -> rows of the user's grids: repeated pixels repeated again, joined grids taken apart.

The finest lattice of a family streams row by row of tiles; coarser ones (at most a ninth of its samples) are decoded
whole before it. Rows of further grids of the family wait in a temporary file until the first grid is done, so that
grids come one after the other and memory stays bounded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from decoder_node.decoder import LatticeDecoder, LatticeRow, PlaneDecoder
from decoder_node.exact import exact_rows
from downlink.errors import BundleError
from downlink.lattice import Lattice, Member, sample_index
from downlink.manifest import Manifest
from downlink.reference import Reference, check_reference
from downlink.scene import Grid

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """Some rows of a grid, decoded: `pixels` (bands, rows, width) in the grid's dtype, from pixel row `row`.
    `missing` is the share of these rows' latent chunks that were not there."""

    grid: int
    row: int
    pixels: Pixels
    missing: float


@dataclass(frozen=True)
class _Coarse:
    """A coarser lattice, decoded whole."""

    lattice: Lattice
    row: LatticeRow


def decode_rows(
    manifest: Manifest,
    chunk: Callable[[int], bytes | None],
    decoder: PlaneDecoder | None,
    reference: Reference | None = None,
) -> Iterator[Row]:
    """Decode a stream row by row: grid 0 top to bottom, then grid 1, and so on.

    `chunk(i)` gives chunk i's checked payload, or None where it has not arrived. `decoder` may be None if all grids are
    exact; `reference` is the one that the manifest states. Raises BundleError if the decoder is of another bundle,
    StreamError subclasses for payloads that cannot be what the manifest says.
    """
    layout, lattices = manifest.layout(), manifest.lattices()
    check_reference("this", manifest, reference)
    for grids in _families(manifest):
        numbers = [number for number, lattice in enumerate(lattices) if lattice.members[0].grid in grids]
        if manifest.codings[numbers[0]].method == "exact":
            for row in exact_rows(manifest, layout, numbers[0], chunk):
                yield Row(grids[0], *row)
            continue
        fitting = _fitting(manifest, decoder)
        known = [None if reference is None else reference.lattices[n] for n in numbers]
        decoders = [
            LatticeDecoder(manifest, lattices[n], layout, n, chunk, fitting, one)
            for n, one in zip(numbers, known, strict=True)
        ]
        yield from _family(manifest, grids, decoders)


def _fitting(manifest: Manifest, decoder: PlaneDecoder | None) -> PlaneDecoder:
    if decoder is None:
        raise BundleError(
            f"scene needs bundle {manifest.bundle_name}, but no decoder was given; give one of that bundle"
        )
    if decoder.bundle.id != manifest.bundle:
        raise BundleError(
            f"scene was coded with bundle {manifest.bundle_name} {manifest.bundle.hex()[:16]}…, this decoder is "
            f"{decoder.bundle.name} {decoder.bundle.id.hex()[:16]}…; give the decoder that bundle"
        )
    return decoder


def _families(manifest: Manifest) -> list[list[int]]:
    """Grids that share lattices, in the order of their first grid."""
    joined = [number for number, resolution in enumerate(manifest.resolutions) if resolution.unit]
    return [
        joined if number in joined else [number]
        for number in range(len(manifest.scene.grids))
        if number not in joined[1:]
    ]


def _family(manifest: Manifest, grids: list[int], decoders: list[LatticeDecoder]) -> Iterator[Row]:
    finest, *others = sorted(decoders, key=lambda one: one.lattice.unit)
    coarse = [_Coarse(one.lattice, _whole(one)) for one in others]
    with tempfile.TemporaryFile() as waiting:
        later: dict[int, list[tuple[Row, int]]] = {number: [] for number in grids[1:]}
        for row in finest.rows():
            for number in grids:
                found = _compose(manifest.scene.grids[number], number, finest.lattice, row, coarse)
                if found is None:
                    continue
                if number == grids[0]:
                    yield found
                else:
                    later[number].append((_emptied(found), waiting.tell()))
                    waiting.write(np.ascontiguousarray(found.pixels).tobytes())
        for number in grids[1:]:
            for found, place in later[number]:
                yield _restored(found, manifest.scene.grids[number], waiting, place)


def _emptied(row: Row) -> Row:
    """A row that remembers how many rows it has, but not their pixels."""
    return Row(row.grid, row.row, np.empty((0, row.pixels.shape[1], 0), row.pixels.dtype), row.missing)


def _restored(row: Row, grid: Grid, file: IO[bytes], place: int) -> Row:
    shape = (len(grid.bands), row.pixels.shape[1], grid.width)
    file.seek(place)
    flat = np.frombuffer(file.read(int(np.prod(shape)) * row.pixels.dtype.itemsize), row.pixels.dtype)
    return Row(row.grid, row.row, flat.reshape(shape), row.missing)


def _whole(decoder: LatticeDecoder) -> LatticeRow:
    rows = list(decoder.rows())
    full, half = (np.concatenate([getattr(row, name) for row in rows], axis=1) for name in ("full", "half"))
    return LatticeRow(0, full, half, sum(row.missing for row in rows) / len(rows))


def _compose(grid: Grid, number: int, lattice: Lattice, row: LatticeRow, coarse: list[_Coarse]) -> Row | None:
    """The rows of a grid that a row of tiles of the finest lattice completes; None if there are none."""
    pixel = next(m.pixel for one in (lattice, *(c.lattice for c in coarse)) for m in one.members if m.grid == number)
    lines = row.full.shape[1] if len(row.full) else 2 * row.half.shape[1]
    height = min(row.row + lines, lattice.height)
    top, bottom = (-(-max(0, at * lattice.unit + lattice.row) // pixel) for at in (row.row, height))
    bottom = grid.height if height == lattice.height else min(bottom, grid.height)
    if top >= bottom:
        return None
    if not coarse and _straight(lattice, grid):
        return Row(number, row.row, row.full, row.missing)
    out = np.empty((len(grid.bands), bottom - top, grid.width), grid.dtype)
    for one, decoded in ((lattice, row), *((c.lattice, c.row) for c in coarse)):
        for member, place in zip(one.members, _places(one), strict=True):
            if member.grid == number:
                out[member.band] = _shown(one, member, decoded, place, top, bottom - top, grid.width)
    missing = max(row.missing, *(c.row.missing for c in coarse)) if coarse else row.missing
    return Row(number, top, out, missing)


def _straight(lattice: Lattice, grid: Grid) -> bool:
    """Whether the lattice is just the grid."""
    return not lattice.half.any() and len(lattice.members) == len(grid.bands) and lattice.grid.shape == grid.shape


def _places(lattice: Lattice) -> list[int]:
    """Where each member is among those of its own resolution."""
    half = lattice.half
    places: list[int] = (np.where(half, np.cumsum(half), np.cumsum(~half)) - 1).tolist()
    return places


def _shown(
    lattice: Lattice, member: Member, decoded: LatticeRow, place: int, top: int, height: int, width: int
) -> Pixels:
    """What a member's grid shows of it from row `top`: native samples, each repeated over the pixels it covers."""
    native = (decoded.half if member.factor == 2 else decoded.full)[place]
    rows = sample_index(lattice, member, top, height, True) - decoded.row // member.factor
    cols = sample_index(lattice, member, 0, width, False)
    shown: Pixels = native[rows][:, cols]
    return shown
