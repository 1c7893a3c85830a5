"""Contexts are integers with exact definitions, and none looks at what a decoder does not know yet."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from downlink import context
from downlink.context import COMPAND_TABLE, compand, level_of, next_energy

FIELDS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (8, 7), (32, 32)]
SYMBOLS = st.one_of(st.integers(-40, 40), st.integers(-(2**24), 2**24))


def phase(row: int, col: int) -> int:
    return 2 if (row + col) % 2 else row % 2


def test_companding_is_the_floor_of_eight_times_the_binary_logarithm():
    for magnitude in (0, 1, 2, 3, 4, 7, 100, 1023, 40000):
        t = int(COMPAND_TABLE[magnitude])
        assert 2**t <= (1 + magnitude) ** 8
        assert t == 127 or (1 + magnitude) ** 8 < 2 ** (t + 1)


def test_the_table_never_changes():
    assert COMPAND_TABLE[:18].tolist() == [0, 8, 12, 16, 18, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31, 32, 32, 33]
    assert COMPAND_TABLE.shape == (65536,)
    assert COMPAND_TABLE.max() == 127
    digest = hashlib.sha256(COMPAND_TABLE.astype("<i2").tobytes()).hexdigest()
    assert digest == "c49b38a1fd79fb4a306e45d3f9e533d5bc37e89ca1e031d1f5cb6cb0e21b6628"


@given(st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=50))
def test_companding_is_odd_monotone_and_bounded(numbers: list[int]):
    symbols = np.array(sorted(numbers), dtype=np.int32)
    out = compand(symbols)
    assert (compand(-symbols) == -out).all()
    assert (np.diff(out) >= 0).all()
    assert np.abs(out).max() <= 127


def test_energy_remembers_the_loudest_plane_and_forgets_by_half_an_octave():
    quiet, loud = np.array([2], np.int16), np.array([-60], np.int16)
    energy = next_energy(np.zeros(1, np.int16), loud)
    assert energy[0] == 60
    assert next_energy(energy, quiet)[0] == 56  # the format's number: old streams depend on it


def test_a_level_is_four_per_octave_around_thirty_two():
    assert level_of(100.0, 100.0) == 32
    assert level_of(200.0, 100.0) == 36
    assert level_of(0.0, 100.0) == 0
    assert level_of(1e30, 1e-3) == 127


@pytest.mark.parametrize(("height", "width"), FIELDS)
def test_three_phases_cover_every_field_once(height: int, width: int):
    masks = context.phases(height, width)
    assert sum(mask.astype(int) for mask in masks).min() == 1
    assert sum(int(mask.sum()) for mask in masks) == height * width
    for number, mask in enumerate(masks):
        for row, col in np.argwhere(mask):
            assert phase(row, col) == number


def earlier(row: int, col: int, height: int, width: int) -> list[tuple[int, int]]:
    """Neighbours of a field that its phase may look at."""
    around = {0: [], 1: [(-1, -1), (-1, 1), (1, -1), (1, 1)], 2: [(-1, 0), (1, 0), (0, -1), (0, 1)]}[phase(row, col)]
    places = [(row + down, col + across) for down, across in around]
    assert all(phase(*place) < phase(row, col) for place in places)
    return [(r, c) for r, c in places if 0 <= r < height and 0 <= c < width]


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.int16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 127)))
def test_around_is_the_average_of_four_neighbours_of_earlier_phases(magnitudes: np.ndarray):
    found = context.around(magnitudes[None])
    assert found.dtype == np.int16
    for row, col in np.ndindex(magnitudes.shape):
        known = [int(magnitudes[place]) for place in earlier(row, col, *magnitudes.shape)]
        assert found[0, row, col] == sum(known) // 4


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=SYMBOLS))
def test_near_is_what_neighbours_of_earlier_phases_hold(values: np.ndarray):
    average, spread = context.near(values[None])
    assert average.dtype == np.int32
    for row, col in np.ndindex(values.shape):
        known = [max(-16384, min(16384, int(values[place]))) for place in earlier(row, col, *values.shape)]
        assert average[0, row, col] == (8 * sum(known) // len(known) if known else 0)
        span = max(known) - min(known) if known else 0
        assert spread[0, row, col] == compand(np.array(span, np.int32))


@pytest.mark.parametrize("number", range(3))
def test_nothing_changes_where_a_later_phase_changes(number: int):
    """What is said of the fields of a phase does not depend on fields of this phase or later ones."""
    random = np.random.default_rng(number)
    values = random.integers(-1000, 1000, (3, 9, 8)).astype(np.int32)
    masks = context.phases(9, 8)
    changed = values.copy()
    for mask in masks[number:]:
        changed[:, mask] = random.integers(-(2**24), 2**24, (3, int(mask.sum())))
    for name in ("around", "near"):
        function = getattr(context, name)
        one, two = (function(np.abs(compand(v)) if name == "around" else v) for v in (values, changed))
        for a, b in zip(np.atleast_2d(one), np.atleast_2d(two), strict=True):
            assert (a[..., masks[number]] == b[..., masks[number]]).all()


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.int16, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 127)))
def test_smooth_is_the_binomial_average(values: np.ndarray):
    padded = np.pad(values.astype(int), 1)
    weights = np.outer([1, 2, 1], [1, 2, 1])
    found = context.smooth(values[None])
    assert found.dtype == np.int16
    for row, col in np.ndindex(values.shape):
        assert found[0, row, col] == int((weights * padded[row : row + 3, col : col + 3]).sum()) // 16


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.int16, (3, 4), elements=st.integers(-32767, 32767)),
    arrays.arrays(np.int16, (2, 4), elements=st.integers(-32767, 32767)),
    st.sampled_from([15 * 15, 127 * 31, 32767 * 32767]),
)
def test_the_turn_is_the_product_of_rows_to_the_nearest_sixty_fourth(one: np.ndarray, two: np.ndarray, unit: int):
    found = context.rotation(one, two, unit)
    for to, source in np.ndindex(3, 2):
        exact = 64 * sum(int(a) * int(b) for a, b in zip(one[to], two[source], strict=True))
        assert found[to, source] == (2 * exact + unit) // (2 * unit)


def test_one_basis_is_not_turned():
    rows = np.array([[127, 0], [0, 127]], np.int16)
    assert context.rotation(rows, rows, 127 * 127).tolist() == [[64, 0], [0, 64]]
    assert context.rotation(-rows, rows, 127 * 127).tolist() == [[-64, 0], [0, -64]]
    assert context.rotation(rows[:0], rows, 127 * 127).shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.int32, (2, 4, 3), elements=st.integers(-(2**29), 2**29)))
def test_slopes_are_differences_of_neighbouring_means(means: np.ndarray):
    found = context.slopes(means)
    assert found.shape == (2, 2, 4, 3)
    bounded = np.clip(means, -(2**17), 2**17).tolist()
    for plane, row, col in np.ndindex(means.shape):
        here = bounded[plane]
        assert found[plane, 0, row, col] == here[row][min(col + 1, 2)] - here[row][max(col - 1, 0)]
        assert found[plane, 1, row, col] == here[min(row + 1, 3)][col] - here[max(row - 1, 0)][col]


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.int32, (3, 2, 2, 2), elements=st.integers(-(2**18), 2**18)),
    arrays.arrays(np.int64, (4, 2), elements=st.integers(-(2**15), 2**15)),
)
def test_turned_slopes_are_exact(slope: np.ndarray, turn: np.ndarray):
    found = context.turned(slope, turn)
    assert found.shape == (4, 2, 2, 2)
    assert found.dtype == np.int32
    for to, *place in np.ndindex(4, 2, 2, 2):
        exact = sum(int(turn[to, source]) * int(slope[(source, *place)]) for source in range(2)) >> 6
        assert found[(to, *place)] == max(-(2**17), min(2**17, exact))


def test_turned_slopes_of_hundreds_of_loud_planes_are_exact():
    random = np.random.default_rng(0)
    slope = random.integers(-(2**18), 2**18, (512, 2, 1, 2)).astype(np.int32)
    turn = random.integers(-(2**15), 2**15, (3, 512))
    exact = np.array([[[sum(int(a) * int(b) for a, b in zip(turn[to], slope[:, axis, 0, col], strict=True)) >> 6
                        for col in range(2)] for axis in range(2)] for to in range(3)])  # fmt: skip
    assert (context.turned(slope, turn)[:, :, 0] == np.clip(exact, -(2**17), 2**17)).all()


def test_no_plane_of_the_means_turns_to_nothing():
    found = context.turned(np.ones((2, 2, 3, 3), np.int32), np.zeros((2, 0), np.int64))
    assert found.shape == (2, 2, 3, 3)
    assert not found.any()


def test_steepness_adds_both_directions():
    slope = np.array([[[[-80, 8]], [[72, -8]]]], np.int32)
    assert context.steepness(slope).tolist() == [[[int(compand(np.int32(19))), int(compand(np.int32(2)))]]]
    largest = np.full((1, 2, 1, 1), -(2**18), np.int32)
    assert context.steepness(largest)[0, 0, 0] == compand(np.int32(2**16)) == 127
