"""Filling nodata: valid pixels are untouched, holes take smooth values within the range of what surrounds them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.fill import fill_holes


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_valid_pixels_stay_and_holes_stay_within_the_valid_range(height: int, width: int, share: float, seed: int):
    random = np.random.default_rng(seed)
    pixels = random.uniform(100, 200, (2, height, width)).astype(np.float32)
    hole = random.random((2, height, width)) < share
    filled = fill_holes(np.where(hole, np.float32(65535), pixels), hole, np.array([150, 150], np.float32))
    assert (filled[~hole] == pixels[~hole]).all()
    assert filled.min() >= 99.9
    assert filled.max() <= 200.1


def test_a_band_without_any_valid_pixel_becomes_what_was_given():
    pixels = np.zeros((2, 8, 8), np.float32)
    hole = np.stack([np.ones((8, 8), bool), np.zeros((8, 8), bool)])
    filled = fill_holes(pixels, hole, np.array([7, 9], np.float32))
    assert (filled[0] == 7).all()
    assert (filled[1] == 0).all()


def test_a_shared_mask_serves_all_bands():
    pixels = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    hole = np.zeros((1, 4, 4), bool)
    hole[0, 0, 0] = True
    filled = fill_holes(pixels, hole, np.zeros(2, np.float32))
    assert filled[0, 0, 0] != 0
    assert filled[1, 1, 1] == pixels[1, 1, 1]
