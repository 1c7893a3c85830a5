"""The promise of an exact grid: every valid pixel within D, nodata exact, whatever the scene; and what damage does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from downlink.errors import SceneError, StreamError
from downlink.scene import Band, Grid, Scene
from downlink.tile import Window
from encoder_node.exact import encode_exact
from encoder_node.source import open_source
from encoder_node.source_array import ArraySource
from encoder_node.spool import EncodedScene
from tests import scenes

BOUNDS = (0, 1, 10, 100, 65535)
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
     (2, 31, 520), (30, 20, 24), (5, 3, 2)],
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


@pytest.mark.parametrize("nodata", [None, 0, 2040])
def test_samples_close_about_few_values_cost_no_more_than_these(nodata: int | None):
    """8-bit data that somebody has scaled and corrected a little: a bound wider than that gives the 8 bits back."""
    levels = scenes.pixels(20, 2, 96, 96, "uint8", nodata=None)
    around = np.random.default_rng(1).integers(-3, 4, levels.shape)
    pixels = (levels.astype(np.int64) * 60 + 100 + around).astype(np.uint16)
    if nodata is not None:
        pixels[:, 30:50, 20:60] = nodata
    assert check(pixels, 3, nodata) < check(levels, 0) * 1.1 + 0.2
    assert check(pixels, 2, nodata) > check(pixels, 3, nodata) + 0.5


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


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "float32"])
def test_other_types_are_refused_with_the_reason(dtype: str, tmp_path: Path):
    pixels = np.zeros((2, 20, 20), dtype)
    np.save(tmp_path / "scene.npy", pixels)
    with pytest.raises(SceneError, match=dtype):
        open_source(tmp_path / "scene.npy")
    with pytest.raises(StreamError, match=dtype):
        encoded(pixels, 0)


@pytest.mark.parametrize(("bands", "side"), [(31, 17), (250, 5)])
def test_many_bands(bands: int, side: int):
    check(scenes.pixels(17, bands, side, side + 1, nodata=None), 1)


def test_nodata_lets_no_error_reach_the_valid_pixels_beside_it():
    """Rounding to the bound would make some of these samples nodata; every distance from it is there."""
    beside = 500 + np.arange(-40, 41)
    pixels = np.tile(np.where(beside == 500, 499, beside).astype(np.uint16), (1, 60, 1))
    pixels[0, 20:30, 20:30] = 500
    for max_error in (1, 2, 3, 7, 19, 60):
        check(pixels, max_error, 500)
        check(np.rot90(pixels, axes=(1, 2)).copy(), max_error, 500)


def test_real_scenes_in_8_bits_come_back_whole():
    """Photographs that scikit-image brings along."""
    data = pytest.importorskip("skimage.data")
    photograph = np.ascontiguousarray(data.astronaut().transpose(2, 0, 1)[:, 60:160, 140:250])
    bits = [check(photograph, max_error) for max_error in (0, 2, 10)]
    assert bits[0] < 5.2
    assert bits[2] < bits[1] < bits[0]
    check(photograph, 3, nodata=int(photograph[0, 50, 50]))


CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus is not beside this checkout")
@pytest.mark.parametrize(
    "name",
    ["sentinel2/barkbeetle__226535_201909.tif", "landsat/datacube__LS5_NBAR_090084.tif", "other/vhr_solaris__ms2.tif"],
)
def test_real_scenes_of_satellites_come_back_whole(name: str):
    found = open_source(CORPUS / name)
    try:
        (grid,) = found.scene.grids
        pixels = found.read(0, Window(0, 0, min(grid.height, 130), min(grid.width, 130)))
    finally:
        found.close()
    for max_error in (0, 4):
        check(np.ascontiguousarray(pixels), max_error, grid.nodata)
