"""Quarters of a grid: contexts made on them are those of the whole grid, and fields keep their order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink import context
from downlink.quarter import PHASES, PLACES, Order, Shape, around, inner, joined, smooth, split

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def quarters_of(values: np.ndarray) -> np.ndarray:
    """(n, channels, h, w) -> quarters with their border of zeros."""
    out = Shape(*values.shape[-2:]).blank(*values.shape[:-2])
    split(values, inner(out))
    return out


def magnitudes(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 128, (2, 3, height, width)).astype(np.int16)


@given(SIDES)
@settings(max_examples=40, deadline=None)
def test_joining_undoes_splitting(sides: tuple[int, int]):
    values = np.arange(6 * sides[0] * sides[1]).reshape(2, 3, *sides).astype(np.int16)
    quarters = quarters_of(values)
    assert (joined(inner(quarters), *sides) == values).all()
    border = quarters.copy()
    inner(border)[...] = 0
    assert not border.any()


@given(SIDES)
@settings(max_examples=40, deadline=None)
def test_phases_are_the_formats(sides: tuple[int, int]):
    for phase, mask in zip(PHASES, context.phases(*sides), strict=True):
        marked = np.zeros(sides, bool)
        for quarter in range(phase.start, phase.stop):
            down, across = PLACES[quarter]
            marked[down::2, across::2] = True
        assert (marked == mask).all()


@given(SIDES, st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_averages_are_those_of_the_whole_grid(sides: tuple[int, int], seed: int):
    values = magnitudes(*sides, seed)
    quarters = quarters_of(values)
    assert (joined(inner(smooth(quarters)), *sides) == context.smooth(values)).all()
    found = np.zeros_like(quarters)
    for phase in (1, 2):
        found[PHASES[phase]] = around(quarters, phase)
    assert (joined(inner(found), *sides) == context.around(values)).all()


@given(SIDES)
@settings(max_examples=40, deadline=None)
def test_fields_stand_in_the_streams_order(sides: tuple[int, int]):
    order = Order(Shape(*sides))
    values = np.arange(2 * sides[0] * sides[1]).reshape(2, *sides)
    padded = np.full((4, 2, order.shape.rows, order.shape.columns), -1)
    split(values, padded)
    for phase, (quarters, mask) in enumerate(zip(PHASES, context.phases(*sides), strict=True)):
        here = np.ascontiguousarray(padded[quarters].swapaxes(0, 1))
        stream = order.stream(phase, here)
        assert (stream == values[:, mask]).all()
        back = order.quarters(phase, stream)
        assert (back == np.where(here < 0, 0, here)).all()


@pytest.mark.parametrize(("sides", "straight"), [((4, 6), (True, True, False)), ((3, 5), (True, False, False))])
def test_most_phases_need_no_sorting(sides: tuple[int, int], straight: tuple[bool, ...]):
    assert Order(Shape(*sides)).straight == straight
