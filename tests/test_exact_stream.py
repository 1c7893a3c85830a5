"""Streams of exact grids: layers, lost and damaged chunks, memory, and the constants of docs/format.md."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
from math import isqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from decoder_node.compose import decode_rows
from downlink.chunk import ChunkKey, Kind
from downlink.errors import Malformed, StreamError
from downlink.exact_model import Model
from downlink.exact_table import exact_tables
from downlink.manifest import NO_BUNDLE
from downlink.scene import Band, Grid, Scene
from downlink.stream import StreamReader
from encoder_node.exact import encode_exact, tile_size
from encoder_node.spool import EncodedScene
from tests import scenes
from tests.test_exact import Pixels, decoded, encoded, noise


def test_exact_streams_name_no_bundle_and_need_none():
    pixels = scenes.pixels(11, 3, 40, 40, nodata=None)
    with encoded(pixels, 2) as stream:
        assert stream.manifest.bundle == NO_BUNDLE
        assert stream.manifest.codings[0].max_error == 2
        file = io.BytesIO()
        stream.write(file)
    reader = StreamReader(io.BytesIO(file.getvalue()))
    reader.verify()
    rows = list(decode_rows(reader.manifest, reader.chunk, None))
    assert np.abs(rows[0].pixels.astype(np.int64) - pixels).max() <= 2


def test_several_grids_are_coded_apart():
    coarse, fine = scenes.pixels(12, 2, 30, 30, nodata=None), scenes.pixels(13, 3, 60, 60, "uint8", nodata=None)
    grids = tuple(Grid(p.shape[1], p.shape[2], str(p.dtype), (Band(),) * len(p)) for p in (coarse, fine))  # type: ignore[arg-type]

    class Both:
        scene, notes = Scene("two", grids), ()

        def read(self, grid: int, window: Any) -> Pixels:
            return (coarse, fine)[grid][:, *window.slices]

        def close(self) -> None: ...

    with encode_exact(Both(), 1, {}) as stream:
        rows = list(decode_rows(stream.manifest, stream.chunk, None))
    assert [row.grid for row in rows] == [0, 1]
    assert np.abs(rows[0].pixels.astype(int) - coarse).max() <= 1
    assert np.abs(rows[1].pixels.astype(int) - fine).max() <= 1


def test_bands_are_cut_into_blocks_so_that_chunks_keep_their_limit():
    pixels = noise((9, 256, 256), "uint16")
    with encoded(pixels, 0) as stream:
        assert 1 <= stream.manifest.codings[0].planes_per_chunk < 9
        assert (decoded(stream) == pixels).all()


@pytest.fixture(scope="module")
def layered() -> tuple[Pixels, EncodedScene]:
    """Two tiles side by side, in three layers, with nodata."""
    pixels = scenes.pixels(14, 4, 100, 300)
    return pixels, encoded(pixels, 0, 0)


def test_every_prefix_is_a_coarser_scene(layered: tuple[Pixels, EncodedScene]):
    pixels, stream = layered
    layout = stream.manifest.layout()
    errors = []
    for group in range(3):
        later = {i for i in range(len(layout)) if layout.key(i).kind is Kind.LATENT and layout.key(i).group > group}
        back = decoded(stream, frozenset(later))
        assert ((back == 0) == (pixels == 0)).all()
        errors.append(float(np.abs(back.astype(np.float64) - pixels).mean()))
        known = slice(None, None, (4, 2, 1)[group])
        assert (back[:, :, :160][:, known, known] == pixels[:, :, :160][:, known, known]).all()
    assert errors[0] > errors[1] > errors[2] == 0


def test_a_lost_chunk_changes_nothing_outside_its_tile(layered: tuple[Pixels, EncodedScene]):
    pixels, stream = layered
    layout = stream.manifest.layout()
    width = stream.manifest.codings[0].tile
    for group in range(3):
        lost = layout.index(ChunkKey(Kind.LATENT, 0, 0, group, 0))
        back = decoded(stream, frozenset([lost]))
        assert (back[:, :, width:] == pixels[:, :, width:]).all()
        assert (back[:, :, :width] == pixels[:, :, :width]).all() == (not stream.chunk(lost))


def test_without_mask_or_side_chunk_a_tile_is_nodata(layered: tuple[Pixels, EncodedScene]):
    pixels, stream = layered
    layout = stream.manifest.layout()
    width = stream.manifest.codings[0].tile
    assert (decoded(stream, frozenset([layout.side_of(0)])) == 0).all()
    back = decoded(stream, frozenset(layout.masks_of(0, 0)))
    assert (back[:, :, :width] == 0).all()
    assert (back[:, :, width:] == pixels[:, :, width:]).all()


def test_bands_of_a_lost_block_are_nodata_and_those_before_it_whole():
    pixels = noise((9, 128, 128), "uint16")
    pixels[pixels == 5] = 6
    with encoded(pixels, 0, 5) as stream:
        coding, layout = stream.manifest.codings[0], stream.manifest.layout()
        assert coding.blocks > 1
        order = Model.unpack(stream.chunk(layout.side_of(0)), 9).order
        back = decoded(stream, frozenset([layout.index(ChunkKey(Kind.LATENT, 0, 0, 0, 1))]))
    first = list(order[: coding.planes_per_chunk])
    assert (back[first] == pixels[first]).all()
    assert (back[[band for band in range(9) if band not in first]] == 5).all()


def test_damaged_payloads_end_in_a_typed_error_or_in_other_pixels_never_in_a_crash():
    """The checksum catches damage before; what gets past it may cost the tile, not the program."""
    pixels = scenes.pixels(15, 3, 64, 64)
    random = np.random.default_rng(0)
    refused = 0
    with encoded(pixels, 1, 0) as stream:
        layout = stream.manifest.layout()
        payloads = {i: stream.chunk(i) for i in range(layout.pages, len(layout))}
        targets = [i for i, payload in payloads.items() if payload and layout.key(i).kind in (Kind.SIDE, Kind.LATENT)]
        for turn in range(160):
            at = targets[turn % len(targets)]
            spoilt = bytearray(payloads[at])
            if turn % 3 == 0:
                spoilt = spoilt[: int(random.integers(len(spoilt)))]
            elif turn % 3 == 1:
                spoilt[int(random.integers(len(spoilt)))] ^= 1 << int(random.integers(8))
            else:
                spoilt = bytearray(random.bytes(int(random.integers(1, 400))))
            changed = payloads | {at: bytes(spoilt)}
            try:
                rows = list(decode_rows(stream.manifest, changed.get, None))
                assert rows[0].pixels.shape == pixels.shape
            except StreamError:
                refused += 1
    assert refused > 100


def test_a_manifest_may_not_promise_what_a_method_cannot_keep():
    pixels = scenes.pixels(16, 2, 32, 32, nodata=None)
    with encoded(pixels, 0) as stream:
        manifest = stream.manifest
    (coding,) = manifest.codings
    replace = msgspec.structs.replace
    for change, reason in (
        ({"planes": 1, "planes_per_chunk": 1}, "has them all"),
        ({"groups": 7}, "levels at most"),
        ({"step": 2.0}, "exact grid is 1"),
        ({"max_error": -1}, "0 .lossless. or more"),
        ({"method": "planes", "max_error": 3}, "cannot keep"),
        ({"method": "planes"}, "names no bundle"),
    ):
        with pytest.raises(Malformed, match=reason):
            replace(manifest, codings=(replace(coding, **change),)).validate()


@pytest.mark.parametrize("side", [1, 31, 32, 33, 120, 256, 257, 264, 512, 513, 10980])
def test_tiles_leave_no_slivers(side: int):
    tile = tile_size(Grid(side, side, "uint8", (Band(),)))
    assert tile % 32 == 0
    assert 32 <= tile <= 256
    assert (side - 1) % tile + 1 >= min(side, tile // 2)


@pytest.mark.parametrize("max_error", [0, 3])
def test_the_same_scene_gives_the_same_bytes(max_error: int):
    pixels = scenes.pixels(18, 4, 150, 130)
    with encoded(pixels, max_error, 0) as one, encoded(pixels, max_error, 0) as other:
        assert one.manifest.pack() == other.manifest.pack()
        assert [one.chunk(i) for i in range(one.manifest.chunk_count)] == [
            other.chunk(i) for i in range(other.manifest.chunk_count)
        ]


def test_memory_is_that_of_a_row_of_tiles_whatever_the_height():
    peaks = []
    for height in (512, 2048):
        pixels = np.tile(scenes.pixels(19, 2, 256, 256, nodata=None), (1, height // 256, 1))
        with encoded(pixels, 0) as stream:
            tracemalloc.start()
            for row in decode_rows(stream.manifest, stream.chunk, None):
                assert (row.pixels == pixels[:, row.row : row.row + row.pixels.shape[1]]).all()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + (1 << 20)


def table(scale: int, mean: int, shift: int, degrees: int) -> tuple[int, list[int]]:
    """Lowest entry and frequencies by docs/format.md, "Exact tables"."""

    def below(k: int) -> int:
        x, v = (512 * k << shift) - 256 - mean, degrees * scale * scale
        sine, c = (abs(x) << 90) // isqrt((v + x * x) << 120), (v << 30) // (v + x * x)
        total = term = 1 << 30
        for n in range(1, degrees // 2):
            term = term * c * (2 * n - 1) // (2 * n) >> 30
            total += term
        return (1 if x >= 0 else -1) * (sine * total >> 30)

    low = high = 1 if mean > 256 and not shift else 0
    while below(high + 2) - below(high + 1) >= 1 << 18:
        high += 1
    while below(low) - below(low - 1) >= 1 << 18:
        low -= 1
    worth = [below(k + 1) - below(k) for k in range(low, high + 1)]
    worth.append((1 << 31) - sum(worth))
    counts = [max(1, one >> 17) for one in worth]
    order = sorted(range(len(counts)), key=lambda k: (counts[k] * 2**17 - worth[k], k))
    while (missing := (1 << 14) - sum(counts)) > 0:
        for k in order[:missing]:
            counts[k] += 1
    counts[counts.index(max(counts))] += missing
    return low, counts


def test_the_tables_are_those_of_the_document():
    tables, packed = exact_tables(), exact_tables().pack()
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
    assert f"{len(packed)} bytes, SHA-256 `{hashlib.sha256(packed).hexdigest()}`" in text
    for family, degrees in ((0, 8), (1, 4)):
        for octave in range(-5, 17, 2):
            for quarter in (0, 3):
                index, shift, like = 1 + 88 * family + 4 * (octave + 5) + quarter, max(0, octave - 3), min(octave, 7)
                assert tables.shift[index] == shift
                width, scale = (1 if like < 1 else 4 if like < 3 else 8), int(64 * (9 + 2 * quarter) * 2.0**like)
                for fraction in range(8):
                    mean = 32 * (2 * (fraction // width) * width + width - 1)
                    low, counts = table(scale, mean, min(shift, 4), degrees)
                    number = tables.route[index, fraction]
                    assert tables.low[number] == low
                    assert tables.frequencies[number].tolist() == counts + [0] * (256 - len(counts))
