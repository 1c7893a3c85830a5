"""Repeated pixels are found with their phase, and nothing that ever changes elsewhere counts as repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.repeat import FACTORS, ONCE, Repeat, Repetition


def repeated(factor: int, row: int, col: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width) of blocks `factor` wide that begin at `row`, `col` modulo it."""
    samples = np.random.default_rng(seed).permutation(2**16)[: (height + 2) * (width + 2)].reshape(height + 2, -1)
    rows = (np.arange(height) - row + factor) // factor
    cols = (np.arange(width) - col + factor) // factor
    return samples[rows][:, cols].astype(np.uint16)


def found(pixels: np.ndarray) -> Repeat:
    repetition = Repetition(1)
    repetition.add(pixels[None], 0, 0)
    return repetition.found(0)


def spelt(pixels: np.ndarray) -> Repeat:
    """The definition: the largest factor whose blocks, from some phase, are each of one value; both ways must show."""
    rows = [i for i in range(1, len(pixels)) if (pixels[i] != pixels[i - 1]).any()]
    cols = [j for j in range(1, pixels.shape[1]) if (pixels[:, j] != pixels[:, j - 1]).any()]
    if not rows or not cols:
        return ONCE
    for factor in FACTORS:
        if len({i % factor for i in rows}) == 1 and len({j % factor for j in cols}) == 1:
            return Repeat(factor, rows[0] % factor, cols[0] % factor)
    return ONCE


@pytest.mark.parametrize("factor", FACTORS)
def test_every_factor_is_found_at_every_phase(factor: int):
    for row in range(factor):
        for col in range(factor):
            assert found(repeated(factor, row, col, 40, 37)) == Repeat(factor, row, col)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_found_is_what_the_definition_says(data: st.DataObject):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    values = data.draw(st.lists(st.integers(0, 1), min_size=height * width, max_size=height * width))
    pixels = np.array(values, np.uint8).reshape(height, width)
    assert found(pixels) == spelt(pixels)


def test_a_band_that_never_changes_one_way_is_not_repeated():
    assert found(np.full((30, 30), 7, np.int16)) == ONCE
    assert found(np.tile(np.arange(30, dtype=np.int16) // 2, (30, 1))) == ONCE
    assert found(np.tile(np.arange(30, dtype=np.int16)[:, None] // 2, (1, 30))) == ONCE
    assert found(np.zeros((1, 1), np.uint8)) == ONCE


@pytest.mark.parametrize("at", [(31, 3), (3, 31), (31, 31)])
def test_one_pixel_of_the_last_row_or_column_is_enough_to_say_no(at: tuple[int, int]):
    pixels = repeated(2, 0, 0, 32, 32)
    assert found(pixels) == Repeat(2, 0, 0)
    pixels[at] += 1
    assert found(pixels) == ONCE


@settings(max_examples=60, deadline=None)
@given(
    factor=st.sampled_from(FACTORS),
    row=st.integers(0, 5),
    col=st.integers(0, 5),
    corners=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6),
)
def test_windows_anywhere_agree_with_the_whole(factor: int, row: int, col: int, corners: list[tuple[int, int]]):
    """Windows never refute what the whole band keeps, and a window that shows two blocks finds it."""
    band = repeated(factor, row % factor, col % factor, 100, 100)
    repetition = Repetition(1)
    for top, left in corners:
        repetition.add(band[None, top : top + 40, left : left + 40], top, left)
    assert repetition.found(0) == Repeat(factor, row % factor, col % factor)


def test_windows_that_disagree_leave_nothing():
    repetition = Repetition(1)
    repetition.add(repeated(2, 0, 0, 20, 20)[None], 0, 0)
    assert repetition.found(0).factor == 2
    repetition.add(repeated(2, 0, 0, 20, 20)[None], 21, 0)
    assert repetition.found(0) == ONCE


def test_bands_are_told_apart():
    fine = np.random.default_rng(1).integers(0, 1000, (36, 36)).astype(np.uint16)
    repetition = Repetition(4)
    repetition.add(np.stack([fine, repeated(2, 1, 0, 36, 36), repeated(6, 0, 0, 36, 36), 0 * fine]), 0, 0)
    assert [repetition.found(band) for band in range(4)] == [ONCE, Repeat(2, 1, 0), Repeat(6, 0, 0), ONCE]


def test_nothing_seen_is_nothing_found():
    assert Repetition(2).found(1) == ONCE
