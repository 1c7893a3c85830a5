"""Windows of a scene as the encoder sees them: native samples of every band, whatever repeats from wherever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink import dct, lap
from downlink.lattice import Lattice, Member, Resolution, join, lattices, sample_index
from downlink.scene import Band, Grid
from encoder_node.pipeline import resolutions_of
from encoder_node.tiles import LatticeReader, NotRepeated, TilePixels, sample_windows
from tests.scenes import GridsSource, grids_source, repeated


def noise(bands: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 60000, (bands, height, width)).astype(np.uint16)


def one_grid(factors: str, height: int, width: int, row: int = 0, col: int = 0, seed: int = 0) -> GridsSource:
    """A grid of noise whose bands repeat by these factors."""
    pixels = noise(len(factors), height, width, seed)
    bands = [repeated(band, int(factor), row, col) for band, factor in zip(pixels, factors, strict=True)]
    return grids_source(np.stack(bands))


def readers(source: GridsSource, resolutions: tuple[Resolution, ...], core: int = 256) -> list[LatticeReader]:
    return [LatticeReader(source, lattice, n, core) for n, lattice in enumerate(lattices(source.scene, resolutions))]


def shown(lattice: Lattice, member: Member, native: np.ndarray, height: int, width: int) -> np.ndarray:
    """The band of the user's grid that native samples (rows, cols) are of."""
    rows = sample_index(lattice, member, 0, height, True)
    return native[rows][:, sample_index(lattice, member, 0, width, False)]


def members_of(tiles: list[TilePixels], lattice: Lattice, cols: int) -> list[np.ndarray]:
    """Native samples of each member, from all tiles of a lattice, with what lies beyond the last ones' cores."""
    out = []
    for place, member in enumerate(lattice.members):
        name = "half" if member.factor == 2 else "full"
        at = int((lattice.half[:place] == lattice.half[place]).sum())
        parts = [getattr(tile, name)[at] for tile in tiles]
        out.append(np.concatenate([np.concatenate(parts[i : i + cols], axis=1) for i in range(0, len(parts), cols)]))
    return out


def check_restores(source: GridsSource, resolutions: tuple[Resolution, ...], core: int = 256) -> None:
    """From the tiles of all lattices, each band of each grid is exactly restored; what lies beyond the edge repeats it;
    and a tile by itself is the same as one of its row."""
    for reader in readers(source, resolutions, core):
        tiles = [tile for row in range(reader.tiles.rows) for tile in reader.row(row)]
        assert [tile.number for tile in tiles] == list(range(len(reader.tiles)))
        for tile in tiles:
            high, wide = tile.tile.coded
            assert tile.full.shape[1:] == (high, wide)
            assert tile.half.shape == (int(reader.lattice.half.sum()), high // 2, wide // 2)
            alone = reader.one(tile.number)
            assert (alone.full == tile.full).all()
            assert (alone.half == tile.half).all()
        for member, native in zip(
            reader.lattice.members, members_of(tiles, reader.lattice, reader.tiles.cols), strict=True
        ):
            band = source.arrays[member.grid][member.band]
            assert (shown(reader.lattice, member, native, *band.shape) == band).all()
            rows, cols = (-(-size // member.factor) for size in (reader.lattice.height, reader.lattice.width))
            assert (native[rows:] == native[rows - 1]).all()
            assert (native[:, cols:] == native[:, cols - 1 : cols]).all()


@settings(max_examples=60, deadline=None)
@given(
    factors=st.text("1236", min_size=1, max_size=4),
    height=st.integers(1, 70),
    width=st.one_of(st.integers(1, 70), st.sampled_from((16, 32, 48, 64))),
    row=st.integers(0, 5),
    col=st.integers(0, 5),
)
def test_tiles_hold_the_native_samples_of_every_band(factors: str, height: int, width: int, row: int, col: int):
    check_restores(one_grid(factors, height, width, row, col), (Resolution(0, factors, row, col),), core=32)


@pytest.mark.parametrize("factors", ["2", "12", "3", "6", "1236"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (16, 48), (272, 288), (544, 40), (800, 33)])
def test_scenes_as_wide_as_their_coded_tiles_are_read_as_well(factors: str, height: int, width: int):
    """As many native samples with the padding as there are pixels: still not the same."""
    check_restores(one_grid(factors, height, width), (Resolution(0, factors),))


@pytest.mark.parametrize(("height", "width"), [(6, 6), (96, 54), (300, 540), (384, 96)])
def test_joined_grids_are_read_together(height: int, width: int):
    arrays = [noise(2, height // unit, width // unit, unit) for unit in (1, 2, 6)]
    source = grids_source(*arrays)
    check_restores(source, join(source.scene))


def test_what_repeats_is_found_from_sample_windows():
    assert resolutions_of(one_grid("1126", 150, 170, 1, 5)) == (Resolution(0, "1126", 1, 5),)
    assert resolutions_of(one_grid("11", 150, 170)) == ()
    three = grids_source(noise(1, 60, 60), noise(2, 30, 30), noise(1, 10, 10))
    assert resolutions_of(three) == (Resolution(1), Resolution(2), Resolution(6))
    apart = grids_source(noise(1, 60, 60), one_grid("22", 30, 30).arrays[0], placed=False)
    assert resolutions_of(apart) == (Resolution(), Resolution(0, "22", 0, 0))


def test_sample_windows_lie_inside_and_reach_every_corner():
    for height, width in ((1, 1), (95, 300), (96, 96), (97, 1000)):
        grid = Grid(height, width, "uint8", (Band(),))
        windows = sample_windows(grid)
        seen = np.zeros((height, width), bool)
        for window in windows:
            assert window.row >= 0
            assert window.col >= 0
            assert window.row + window.height <= height
            assert window.col + window.width <= width
            seen[window.slices] = True
        assert seen[0, 0]
        assert seen[0, -1]
        assert seen[-1, 0]
        assert seen[-1, -1]
        assert len(windows) == len(set(windows)) <= 9


@pytest.mark.parametrize("factors", ["2", "12", "16"])
@pytest.mark.parametrize("place", [(-1, -1), (0, 1), (150, 150), (-1, 0), (200, -1)])
def test_a_band_that_does_not_repeat_everywhere_is_noticed(factors: str, place: tuple[int, int]):
    source = one_grid(factors, 300, 299)
    source.arrays[0][-1][place] ^= 1
    resolutions = (Resolution(0, factors),)
    last = readers(source, resolutions)[-1]  # the lattice of the band that was changed
    noticed = []
    for row in range(last.tiles.rows):
        try:
            list(last.row(row))
        except NotRepeated:
            noticed.append(row)
    sample = sample_index(last.lattice, last.lattice.members[-1], range(300)[place[0]], 1, True)[0]
    assert noticed == [sample * last.lattice.members[-1].factor // 256]


def test_nodata_is_told_at_the_resolution_of_the_lattice():
    pixels = one_grid("12", 40, 38, 1, 1).arrays[0]
    hole = np.zeros((40, 38), bool)
    hole[3:7, 5:9] = True  # two of the blocks that begin at odd places, both ways
    pixels[0, 10, 11] = 0
    pixels[:, hole] = 0
    source = grids_source(pixels, nodata=0)
    (reader,) = readers(source, (Resolution(0, "12", 1, 1),))
    found = reader.one(0).nodata()
    assert found is not None
    assert found.shape == (2, *reader.grid.shape[1:]) == (2, 41, 39)
    assert (found[:, 1:, 1:] == (pixels == 0)).all()
    assert not found[:, :, 0].any()


def test_no_nodata_value_and_no_hole_are_no_mask():
    (reader,) = readers(one_grid("1", 20, 20), ())
    assert reader.one(0).nodata() is None
    (reader,) = readers(grids_source(noise(1, 20, 20), nodata=0), ())
    assert reader.one(0).nodata() is None


def test_coefficients_are_those_of_each_bands_own_pixels():
    source = one_grid("122", 64, 64)
    (reader,) = readers(source, (Resolution(0, "122"),))
    values = reader.one(0).coefficients(np.zeros(3, np.float32))
    assert values.shape == (3, 64, 8, 8)
    pixels = source.arrays[0].astype(np.float32)
    full = dct.forward(lap.mix(pixels[:1].copy(), 8, (8, 8)))
    coarse = dct.forward(lap.mix(pixels[1:, ::2, ::2].copy(), 4, (4, 4)), half=True)
    np.testing.assert_allclose(values[:1], full, rtol=1e-6, atol=0.1)  # of native loops, the last bits are others
    np.testing.assert_allclose(values[1:, :16], coarse, rtol=1e-6, atol=0.1)
    assert not values[1:, 16:].any()


def tile_borders(source, pattern: str) -> None:
    """Tiles of 64 pixels hold what one tile of all would: nobody can see where they were cut."""
    grids = (Resolution(0, pattern),) if "2" in pattern else ()
    lattice = lattices(source.scene, grids)[0]
    whole, cut = (LatticeReader(source, lattice, 0, core) for core in (256, 64))
    mean = np.full(len(pattern), 1000, np.float32)
    expected = whole.one(0).coefficients(mean)
    for row in range(cut.tiles.rows):
        for tile in cut.row(row):
            values = tile.coefficients(mean)
            down, across = tile.tile.row * 8, tile.tile.col * 8
            part = expected[:, :, down : down + values.shape[2], across : across + values.shape[3]]
            assert np.abs(values - part).max() < 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("pattern", ["1", "122", "22"])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (192, 130), (66, 256)])
def test_tiles_are_lapped_across_their_borders(pattern: str, height: int, width: int):
    tile_borders(one_grid(pattern, height, width), pattern)


@pytest.mark.parametrize("half", [False, True])
def test_both_sides_of_a_border_take_nodata_for_the_same(half: bool):
    """The margin of a tile is what its neighbour fills its own pixels with: else unmixing would not undo mixing."""
    size = 2 if half else 1
    pixels = 1000 + noise(2, 160, 160) // 60
    pixels[:, 40:90, 30:100] = 0
    pixels[0, :, 120:] = 0
    pixels = pixels.repeat(size, axis=1).repeat(size, axis=2)
    source = grids_source(pixels, nodata=0)
    lattice = lattices(source.scene, (Resolution(0, "22"),) if half else ())[0]
    reader = LatticeReader(source, lattice, 0, 128)
    mean = np.array([700, 900], np.float32)
    tiles = {tile.number: tile for row in range(reader.tiles.rows) for tile in reader.row(row)}
    own = {number: tile._filled(half, mean)[tile.inside(half)] for number, tile in tiles.items()}
    compared = 0
    for tile in tiles.values():
        values = tile._filled(half, mean)
        for number, there, here in reader.beside(tile, half):
            assert (values[here] == own[number][there]).all()
            compared += 1
    assert compared == sum(len(list(reader.beside(tile, half))) for tile in tiles.values()) > 8
    assert all((values > 0).all() for values in own.values())


def test_holes_do_not_reach_the_coefficients_or_the_statistics():
    pixels = 1000 + noise(2, 64, 64) // 60
    pixels[:, 20:40, 8:30] = 0
    pixels[0, 50:] = 0
    clean, spoilt = pixels.copy(), pixels.copy()
    spoilt[pixels == 0] = 65535
    one = readers(grids_source(clean, nodata=0), ())[0]
    two = readers(grids_source(spoilt, nodata=65535), ())[0]
    mean = np.full(2, 1500, np.float32)
    assert (one.one(0).coefficients(mean) == two.one(0).coefficients(mean)).all()
    first, second = one.statistics(), two.statistics()
    assert (first.mean == second.mean).all()
    assert (first.covariances == second.covariances).all()
    valid = [band[band > 0].mean() for band in pixels.astype(np.float64)]
    assert np.abs(first.mean - valid).max() < 30


def test_a_band_without_any_valid_pixel_is_its_mean():
    pixels = noise(2, 32, 32)
    pixels[1] = 0
    (reader,) = readers(grids_source(pixels, nodata=0), ())
    values = reader.one(0).coefficients(np.array([5, 700], np.float32))
    assert np.allclose(values[1, 0], dct.FLAT * 700)
    assert np.abs(values[1, 1:]).max() < 1e-2


def test_statistics_of_one_tile_are_those_of_its_coefficients():
    source = one_grid("112", 128, 96)
    (reader,) = readers(source, (Resolution(0, "112"),))
    found = reader.statistics()
    values = reader.one(0).coefficients(np.zeros(3, np.float32)).reshape(3, 64, -1).astype(np.float64)
    assert np.allclose(found.mean, values[:, 0].mean(axis=1) / dct.FLAT, atol=0.5)
    for number in range(4):
        part = values[:, dct.subband(number)]
        if not number:
            part = part - part.mean(axis=(1, 2), keepdims=True)
        spelt = np.einsum("bcn,dcn->bd", part, part) / part.shape[2]
        assert np.allclose(found.covariances[number], spelt, rtol=1e-3, atol=1e-3 * max(1.0, np.abs(spelt).max()))


def test_sample_tiles_are_spread_and_never_repeat():
    (reader,) = readers(one_grid("1", 320, 320), (), core=32)
    assert reader.sample_tiles(1) == [50]
    assert reader.sample_tiles(1000) == list(range(100))
    chosen = reader.sample_tiles(16)
    assert len(chosen) == 16
    assert max(np.diff(chosen)) <= 7
