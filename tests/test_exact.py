"""The promise of an exact grid: every valid pixel within D, nodata exact, whatever the scene; and what damage does."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from downlink.chunk import ChunkKey, Kind
from downlink.errors import Malformed, StreamError
from downlink.exact_model import Model
from downlink.manifest import NO_BUNDLE
from downlink.scene import Band, Grid, Scene
from downlink.stream import StreamReader
from encoder_node.exact import encode_exact, tile_size
from encoder_node.source_array import ArraySource
from encoder_node.spool import EncodedScene
from tests import scenes

BOUNDS = (0, 1, 2, 10, 100)
Pixels = NDArray[Any]


def source(pixels: Pixels, nodata: int | None = None) -> ArraySource:
    bands, height, width = pixels.shape
    grid = Grid(height, width, str(pixels.dtype), tuple(Band(f"B{i}") for i in range(bands)), nodata)  # type: ignore[arg-type]
    return ArraySource(Scene("made", (grid,)), pixels)


def encoded(pixels: Pixels, max_error: int, nodata: int | None = None) -> EncodedScene:
    return encode_exact(source(pixels, nodata), max_error, {"max_error": float(max_error)})


def decoded(stream: EncodedScene, lost: frozenset[int] = frozenset()) -> Pixels:
    rows = decode_rows(stream.manifest, lambda i: None if i in lost else stream.chunk(i), None)
    return np.concatenate([row.pixels for row in rows], axis=1)


def check(pixels: Pixels, max_error: int, nodata: int | None = None) -> float:
    """The promise, pixel by pixel; bits per sample of the file."""
    with encoded(pixels, max_error, nodata) as stream:
        back = decoded(stream)
        bits = 8 * stream.stream_bytes / pixels.size
    assert back.shape == pixels.shape
    assert back.dtype == pixels.dtype
    difference = np.abs(back.astype(np.int64) - pixels)
    assert difference.max() <= max_error, f"a pixel is off by {difference.max()}, {max_error} was promised"
    if nodata is not None:
        assert ((back == nodata) == (pixels == nodata)).all(), "nodata moved"
    return bits


def noise(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> Pixels:
    limit = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limit.min, limit.max, shape, dtype, endpoint=True)


def checker(shape: tuple[int, int, int], dtype: str) -> Pixels:
    limit = np.iinfo(dtype)
    odd = np.indices(shape).sum(axis=0) % 2
    return np.where(odd, limit.max, limit.min).astype(dtype)


@pytest.mark.parametrize("max_error", BOUNDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_noise_over_the_whole_range(dtype: str, max_error: int):
    bits = check(noise((3, 70, 45), dtype), max_error)
    assert bits < 8 * np.dtype(dtype).itemsize + 2.2  # noise cannot be coded, nor may it cost much more than itself


@pytest.mark.parametrize("max_error", BOUNDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_extremes_side_by_side(dtype: str, max_error: int):
    check(checker((2, 64, 64), dtype), max_error)


@pytest.mark.parametrize("max_error", BOUNDS)
@pytest.mark.parametrize("value", [0, 1, 255, 40000, 65535])
def test_constant_scenes_cost_next_to_nothing(value: int, max_error: int):
    assert check(np.full((4, 256, 256), value, np.uint16), max_error) < 0.02


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (13, 1, 1), (1, 1, 300), (1, 300, 1), (2, 2, 2), (3, 33, 31), (2, 257, 255), (1, 264, 264),
     (2, 31, 520), (200, 20, 24), (5, 3, 2)],
)  # fmt: skip
@pytest.mark.parametrize("max_error", [0, 3])
def test_any_size(shape: tuple[int, int, int], max_error: int):
    bands, height, width = shape
    check(scenes.pixels(1, bands, height, width, nodata=None), max_error)


@pytest.mark.parametrize("max_error", BOUNDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_pictures(dtype: str, max_error: int):
    check(scenes.pixels(2, 13, 90, 75, dtype, nodata=None), max_error)


@pytest.mark.parametrize("max_error", BOUNDS)
@pytest.mark.parametrize("nodata", [0, 65535, 1500])
@pytest.mark.parametrize("alike", [True, False])
def test_nodata_is_exact_and_only_there(nodata: int, max_error: int, alike: bool):
    pixels = scenes.pixels(3, 4, 70, 80, nodata=None)
    pixels[pixels == nodata] = nodata + 1 if nodata < 65535 else nodata - 1
    random = np.random.default_rng(4)
    hole = np.broadcast_to(random.random((70, 80)) < 0.3, pixels.shape)
    if not alike:
        hole = random.random(pixels.shape) < 0.3
    # A band that is all nodata, a corner that is in all bands, and values right beside the nodata value.
    pixels = np.where(hole, nodata, pixels).astype(np.uint16)
    pixels[:, :40, :33] = nodata
    pixels[:, 50:60, 50:60] = nodata + 1 if nodata < 65535 else nodata - 1
    if not alike:
        pixels[2] = nodata
    check(pixels, max_error, nodata)


@pytest.mark.parametrize("max_error", [0, 10])
def test_a_scene_of_nothing_but_nodata_costs_next_to_nothing(max_error: int):
    assert check(np.full((3, 300, 300), 7, np.int16), max_error, 7) < 0.02


@pytest.mark.parametrize("max_error", [0, 4])
def test_tiles_of_nodata_cost_nothing_and_leave_the_others_alone(max_error: int):
    pixels = scenes.pixels(5, 3, 256, 512, nodata=None)
    alone = check(pixels[:, :, :256], max_error, 0) * pixels.size / 2
    pixels[:, :, 256:] = 0
    assert check(pixels, max_error, 0) * pixels.size < alone * 1.03 + 8 * 200


@pytest.mark.parametrize("max_error", [0, 2])
@pytest.mark.parametrize("kind", ["times 257", "times 10 plus 3", "uneven"])
def test_few_values_cost_no_more_than_their_number(kind: str, max_error: int):
    """8-bit data in 16 bits, whatever the scaling: coded by rank, and so without loss where the gaps are wide."""
    small = scenes.pixels(6, 3, 96, 96, "uint8", nodata=None)
    uneven = np.cumsum(np.random.default_rng(0).integers(5, 90, 256))
    wide = {"times 257": small * np.uint16(257), "times 10 plus 3": small * np.uint16(10) + 3, "uneven": uneven[small]}
    pixels = wide[kind].astype(np.uint16)
    assert check(pixels, max_error) < check(small, 0) * 1.15 + 0.15
    with encoded(pixels, max_error) as stream:
        assert (decoded(stream) == pixels).all()


@pytest.mark.parametrize("nodata", [3, 13, 2043])
@pytest.mark.parametrize("max_error", [0, 4, 5, 10, 25])
def test_few_values_with_nodata_among_them(nodata: int, max_error: int):
    pixels = scenes.pixels(7, 2, 64, 64, "uint8", nodata=None).astype(np.uint16) * 10 + 3
    pixels[:, 10:20, 5:50] = nodata
    check(pixels, max_error, nodata)


@pytest.mark.parametrize("factor", [2, 3, 6])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("max_error", [0, 5])
def test_repeated_pixels_cost_nothing_again(factor: int, shift: int, max_error: int):
    native = scenes.pixels(8, 2, 60, 60, nodata=None)
    repeated = native.repeat(factor, axis=1).repeat(factor, axis=2)[:, shift : shift + 200, shift : shift + 200]
    cells = native[:, : -(-200 // factor), : -(-200 // factor)]
    assert check(repeated, max_error) * repeated.size < 1.25 * check(cells, max_error) * cells.size + 8 * 400


def test_bands_that_repeat_differently_in_each_tile():
    pixels = scenes.pixels(9, 3, 300, 290, nodata=None)
    pixels[1] = pixels[1, ::2, ::2].repeat(2, axis=0).repeat(2, axis=1)[:300, :290]
    pixels[2, :, 1:] = pixels[2, :, :-1]
    pixels[2, 7:40] = pixels[2, 7]
    check(pixels, 0)


@pytest.mark.parametrize("max_error", [0, 10])
def test_bands_alike_are_predicted_from_one_another(max_error: int):
    pixels = scenes.pixels(10, 6, 128, 128, nodata=None)
    alike = np.clip(pixels[:1].astype(np.int64) * np.arange(1, 7)[:, None, None] // 3, 0, 65535).astype(np.uint16)
    assert check(alike, max_error) < 0.75 * check(pixels, max_error)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["uint8", "uint16", "int16"]),
    st.sampled_from([0, 1, 2, 3, 7, 50, 1000, 65535]),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_promise_holds_for_any_scene(
    seed: int, bands: int, height: int, width: int, dtype: str, max_error: int, holes: bool, kind: int
):
    random = np.random.default_rng(seed)
    limit = np.iinfo(dtype)
    pixels = noise((bands, height, width), dtype, seed)
    if kind == 1:  # few values, in runs
        pixels = pixels[:, :, :1] * (random.random(pixels.shape) < 0.1).astype(dtype)
    elif kind == 2:  # smooth
        pixels = np.clip(np.cumsum(random.integers(-3, 4, pixels.shape), axis=2), limit.min, limit.max).astype(dtype)
    elif kind == 3:  # the ends of the range
        pixels = np.where(pixels > limit.max // 2, limit.max - pixels % 3, limit.min + pixels % 3).astype(dtype)
    nodata = int(random.choice(pixels.ravel())) if holes else None
    check(pixels, max_error, nodata)


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
    import msgspec

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
