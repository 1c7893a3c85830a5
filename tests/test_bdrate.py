from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.bdrate import Curve, NoDelta, delta, mean_percent

PSNR = [36.0, 39.0, 42.0, 45.0, 48.0, 51.0, 54.0]


def line(factor: float = 1.0, shift: float = 0.0, count: int = 7) -> Curve:
    """An ideal codec: 6.02 dB per bit and sample at high rate, exponential here for simplicity."""
    return Curve([(factor * 0.1 * 2 ** ((psnr - 40) / 4), psnr + shift) for psnr in PSNR[:count]])


def test_interpolation_is_exact_on_an_exponential_and_at_its_points() -> None:
    curve = line()
    assert curve.bits_at(44) == pytest.approx(0.2)
    assert curve.bits_at(40) == pytest.approx(0.1)
    for bits, psnr in curve.points:
        assert curve.bits_at(psnr) == pytest.approx(bits)


def test_nothing_is_extrapolated() -> None:
    curve = line()
    assert curve.bits_at(35.9) is None
    assert curve.bits_at(54.1) is None
    assert Curve([(1.0, 40.0)]).bits_at(40) is None


def test_settings_that_nobody_would_choose_are_left_out() -> None:
    curve = Curve([(0.3, 45.0), (0.1, 40.0), (0.2, 39.0), (0.1, 38.0), (0.4, 45.0), (9.0, math.inf)])
    assert curve.points == [(0.1, 40.0), (0.3, 45.0)]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 2.0])
def test_a_constant_factor_in_rate_is_the_delta(factor: float) -> None:
    found = delta(anchor=line(), test=line(factor))
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-6)
    assert (found.low, found.high) == (36, 54)


def test_overlap_is_what_both_curves_cover() -> None:
    found = delta(anchor=line(), test=line(shift=5.0))
    assert (found.low, found.high) == (41, 54)
    assert found.percent == pytest.approx(100 * (2 ** (-5 / 4) - 1), rel=1e-6)


def test_delta_is_the_mean_log_ratio_over_the_overlap() -> None:
    """Against numerical integration of our own interpolation: another method, so close but not equal."""
    anchor = Curve([(0.02, 36.1), (0.05, 39.2), (0.13, 42.0), (0.3, 44.8), (0.62, 48.1), (1.1, 51.0), (1.7, 54.2)])
    test = Curve([(0.01, 35.0), (0.08, 41.0), (0.27, 46.3), (0.8, 52.0), (1.4, 56.2)])
    found = delta(anchor, test)
    grid = np.linspace(found.low, found.high, 201)
    ratio = np.mean([math.log((test.bits_at(psnr) or 0) / (anchor.bits_at(psnr) or 0)) for psnr in grid])
    assert found.percent == pytest.approx(100 * math.expm1(ratio), abs=1.0)


def test_too_little_in_common_is_refused_with_the_ranges() -> None:
    with pytest.raises(NoDelta, match=r"share 2\.0 dB \(36\.0 to 54\.0 and 52\.0 to 70\.0\)"):
        delta(anchor=line(), test=line(shift=16.0))
    with pytest.raises(NoDelta, match=r"share 0\.0 dB"):
        delta(anchor=line(), test=line(shift=100.0))
    with pytest.raises(NoDelta, match="codec's curve has 3 points"):
        delta(anchor=line(), test=line(count=3))


def test_percents_average_as_ratios() -> None:
    assert mean_percent([-50.0, 100.0]) == pytest.approx(0)
    assert mean_percent([-20.0]) == pytest.approx(-20)
    assert math.isnan(mean_percent([]))
