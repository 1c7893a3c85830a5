"""Contexts are integers with exact definitions: companding by integer powers, energy by maximum and decay."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from downlink.context import COMPAND_TABLE, compand, level_of, next_energy


def test_companding_is_the_floor_of_eight_times_the_binary_logarithm():
    for magnitude in (0, 1, 2, 3, 4, 7, 100, 1023, 40000):
        t = int(COMPAND_TABLE[magnitude])
        assert 2**t <= (1 + magnitude) ** 8
        assert t == 127 or (1 + magnitude) ** 8 < 2 ** (t + 1)


@given(st.lists(st.integers(-(2**22), 2**22), min_size=1, max_size=50))
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
