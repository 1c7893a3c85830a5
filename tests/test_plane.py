"""The spectral front end: what is quantised and sent is what both ends use, so the inverse undoes the transform."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.errors import Malformed
from downlink.plane import FrontEnd, Moments, Statistics, unpack_front_end


def correlated(bands: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    sources = random.normal(size=(bands, 4000)) * np.geomspace(900, 3, bands)[:, None]
    return random.normal(size=(bands, bands)) @ sources + 2000


def statistics_of(samples: np.ndarray, hole: np.ndarray | None = None, pieces: int = 7) -> Statistics:
    moments = Moments(samples.shape[0])
    for part in np.array_split(np.arange(samples.shape[1]), pieces):
        moments.add(samples[:, part], None if hole is None else hole[:, part])
    return moments.statistics()


def front_end(bands: int, step: float) -> tuple[np.ndarray, FrontEnd]:
    samples = correlated(bands)
    return samples, statistics_of(samples).front_end(step)


@pytest.mark.parametrize(("bands", "step"), [(1, 10.0), (3, 0.5), (12, 0.01), (40, 0.001)])
def test_the_inverse_undoes_the_forward_transform_when_every_plane_is_kept(bands: int, step: float):
    samples, front = front_end(bands, step)
    assert front.planes == bands
    pixels = samples.astype(np.float32).reshape(bands, 40, 100)
    back = front.inverse(front.forward(pixels, step), step)
    assert np.abs(back - pixels).max() < 2e-3 * np.abs(pixels).max()


def test_planes_are_decorrelated_and_fall_in_variance():
    samples, front = front_end(12, 1.0)
    planes = front.forward(samples.astype(np.float32).reshape(12, 40, 100), 1.0).reshape(front.planes, -1)
    correlation = np.corrcoef(planes[:6])
    assert np.abs(correlation - np.eye(6)).max() < 0.05
    assert (np.diff(planes.var(axis=1)[:8]) < 0).all()


def test_dropped_planes_leave_no_more_error_than_stated():
    samples = correlated(12)
    statistics = statistics_of(samples)
    front = statistics.front_end(2000.0)
    assert 1 <= front.planes < 12
    pixels = samples.astype(np.float32).reshape(12, 40, 100)
    error = ((front.inverse(front.forward(pixels, 2000.0), 2000.0) - pixels) ** 2).mean()
    assert error <= 1.1 * statistics.dropped_variance(front) + 1


@given(bands=st.integers(1, 30), step=st.floats(0.01, 5000))
@settings(max_examples=25, deadline=None)
def test_the_side_chunk_comes_back_as_it_was(bands: int, step: float):
    _, front = front_end(bands, step)
    again = unpack_front_end(front.pack(), bands, front.planes)
    assert (again.rows == front.rows).all()
    assert (again.mean == front.mean).all()
    assert (again.levels == front.levels).all()
    assert again.fine == front.fine


def test_every_prefix_and_wrong_count_of_a_side_chunk_is_refused():
    _, front = front_end(5, 3.0)
    packed = front.pack()
    for end in range(len(packed)):
        with pytest.raises(Malformed):
            unpack_front_end(packed[:end], 5, front.planes)
    for bands, planes in ((4, front.planes), (5, front.planes + 1)):
        with pytest.raises(Malformed, match="manifest says"):
            unpack_front_end(packed, bands, planes)
    with pytest.raises(Malformed, match="version"):
        unpack_front_end(b"\x09" + packed[1:], 5, front.planes)


def test_moments_do_not_depend_on_the_pieces_they_came_in():
    samples = correlated(5)
    found = statistics_of(samples)
    assert np.allclose(found.mean, samples.mean(axis=1))
    assert np.allclose(found.covariance, np.cov(samples, bias=True), rtol=1e-6, atol=1e-6 * np.var(samples))


def test_no_sample_at_all_gives_zeros():
    assert not statistics_of(np.empty((3, 0))).covariance.any()


def test_holes_do_not_move_the_mean():
    samples = correlated(3)
    hole = np.random.default_rng(1).random(samples.shape) < 0.3
    spoilt = np.where(hole, 65535, samples)
    clean, found = statistics_of(samples), statistics_of(spoilt, hole)
    assert np.abs(found.mean - clean.mean).max() < 0.05 * np.sqrt(np.diag(clean.covariance)).max()


def test_a_constant_scene_keeps_one_silent_plane():
    samples = np.full((4, 100), 1234.0)
    front = statistics_of(samples).front_end(100.0)
    assert front.planes == 1
    assert front.levels[0] == 0
