import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.tile import TileGrid, Window, align_up

sides = st.integers(1, 600)
cores = st.sampled_from([32, 64, 96, 256])


@settings(deadline=None)
@given(sides, sides, cores)
def test_cores_cover_every_pixel_once(height: int, width: int, core: int) -> None:
    seen = np.zeros((height, width), np.uint8)
    for tile in TileGrid(height, width, core):
        seen[tile.window.slices] += 1
    assert (seen == 1).all()


@settings(deadline=None)
@given(sides, sides, cores)
def test_numbers_go_row_by_row(height: int, width: int, core: int) -> None:
    grid = TileGrid(height, width, core)
    assert len(grid) == grid.rows * grid.cols == len(list(grid))
    for number, tile in enumerate(grid):
        assert grid.number(tile.row, tile.col) == number
        assert tile == grid.tile(number)
        assert (tile.window.row, tile.window.col) == (tile.row * core, tile.col * core)


@settings(deadline=None)
@given(sides, sides, cores)
def test_coded_size_is_the_next_multiple_of_32(height: int, width: int, core: int) -> None:
    for tile in TileGrid(height, width, core):
        for coded, own in zip(tile.coded, tile.window[2:], strict=True):
            assert coded % 32 == 0
            assert 0 <= coded - own < 32


@settings(deadline=None)
@given(sides, sides, cores, st.integers(0, 40))
def test_halo_holds_the_core_and_stays_on_the_grid(height: int, width: int, core: int, margin: int) -> None:
    grid = TileGrid(height, width, core)
    pixels = np.arange(height * width).reshape(height, width)
    for number, tile in enumerate(grid):
        halo = grid.halo(number, margin)
        assert halo.row >= 0
        assert halo.col >= 0
        assert halo.row + halo.height <= height
        assert halo.col + halo.width <= width
        inner = tile.window.relative_to(halo)
        assert (pixels[halo.slices][inner.slices] == pixels[tile.window.slices]).all()
        assert inner.row in (margin, tile.window.row)  # full, unless the grid's edge is nearer


@settings(deadline=None)
@given(sides, sides, cores)
def test_row_windows_are_the_tiles_of_a_row_side_by_side(height: int, width: int, core: int) -> None:
    grid = TileGrid(height, width, core)
    pixels = np.arange(height * width).reshape(height, width)
    for row in range(grid.rows):
        strip = np.hstack([pixels[grid.tile(number).window.slices] for number in grid.row_tiles(row)])
        assert (pixels[grid.row_window(row).slices] == strip).all()
    assert [number for row in range(grid.rows) for number in grid.row_tiles(row)] == list(range(len(grid)))


def test_the_smallest_grid_is_one_pixel() -> None:
    assert list(TileGrid(1, 1)) == [TileGrid(1, 1).tile(0)]
    assert TileGrid(1, 1).tile(0).coded == (32, 32)
    assert TileGrid(1, 1).halo(0, 12) == Window(0, 0, 1, 1)


def test_a_full_tile_needs_no_padding() -> None:
    assert TileGrid(512, 512).tile(3).coded == (256, 256)
    assert TileGrid(512, 512).tile(3).window == Window(256, 256, 256, 256)
    assert Window(0, 0, 3, 5).samples == 15


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_align_up_is_the_least_multiple_above(number: int, multiple: int) -> None:
    assert align_up(number, multiple) == min(m for m in range(0, number + multiple, multiple) if m >= number)


def test_a_window_outside_has_no_relative_place() -> None:
    for outer in (Window(1, 0, 9, 9), Window(0, 1, 9, 9), Window(0, 0, 4, 9), Window(0, 0, 9, 4)):
        with pytest.raises(ValueError, match="does not lie inside"):
            Window(0, 0, 5, 5).relative_to(outer)


def test_tiles_that_do_not_exist_are_refused() -> None:
    grid = TileGrid(300, 300)
    for number in (-1, 4):
        with pytest.raises(IndexError, match="4 tiles"):
            grid.tile(number)
    for row, col in ((2, 0), (0, 2), (-1, 0), (0, -1)):
        with pytest.raises(IndexError, match="2 x 2 tiles"):
            grid.number(row, col)


@pytest.mark.parametrize("shape", [(0, 1, 256), (1, 0, 256), (1, 1, 0), (-5, 1, 256)])
def test_nonsense_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        TileGrid(*shape)
