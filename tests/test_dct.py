"""The block transform: half-resolution bands where an enlargement of them would be, together with lapping nearly
orthonormal, block means exact."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from downlink import dct, lap


def cosine(u: int, size: int) -> np.ndarray:
    """Row u of the orthonormal DCT-II, by its definition."""
    scale = math.sqrt((1 if u == 0 else 2) / size)
    return np.array([scale * math.cos(math.pi * (2 * x + 1) * u / (2 * size)) for x in range(size)])


def test_channels_are_cut_in_subbands_by_frequency():
    order = dct.scan()
    assert sorted(order) == [(u, v) for u in range(8) for v in range(8)]
    assert [max(u, v).bit_length() for u, v in order] == [0] + [1] * 3 + [2] * 12 + [3] * 48
    assert order[:16] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0), (1, 3), (2, 2), (3, 1), (2, 3),
        (3, 2), (3, 3),
    ]  # fmt: skip
    assert [dct.subband(number) for number in range(4)] == [slice(0, 1), slice(1, 4), slice(4, 16), slice(16, 64)]


@pytest.mark.parametrize(("half", "size", "gain"), [(False, 8, 1.0), (True, 4, 2.0)])
def test_every_row_is_the_product_of_two_scaled_cosines(half: bool, size: int, gain: float):
    rows, norms = dct.basis(half), lap.norms(size)
    assert rows.shape == (size * size, size * size)
    for row, (u, v) in zip(rows, dct.scan(), strict=False):
        spelt = gain * norms[u] * norms[v] * np.outer(cosine(u, size), cosine(v, size))
        assert np.allclose(row.reshape(size, size), spelt, atol=1e-6)
    assert np.allclose(dct.inverse_basis(half) @ rows, np.eye(size * size), atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (64, 24)])
def test_the_inverse_undoes_the_transform(half: bool, height: int, width: int):
    pixels = np.random.default_rng(height).normal(1000, 300, (3, height, width)).astype(np.float32)
    channels = dct.forward(pixels, half)
    size = 4 if half else 8
    assert channels.shape == (3, size * size, height // size, width // size)
    assert np.abs(dct.inverse(channels, half) - pixels).max() < 1e-2


@pytest.mark.parametrize("half", [False, True])
def test_an_error_in_coefficients_is_as_large_in_pixels(half: bool):
    """What rate and distortion are weighed by: quantisation noise, alike in all channels, keeps its power."""
    size = 4 if half else 8
    noise = np.random.default_rng(1).normal(0, 1, (4, size * size, 32, 32)).astype(np.float32)
    pixels = lap.unmix(dct.inverse(noise, half), size, (size, size))
    assert float(np.square(pixels).mean()) == pytest.approx(0.25 if half else 1.0, rel=0.02)


def test_a_block_lands_where_it_lies_in_the_picture():
    pixels = np.zeros((1, 24, 32), np.float32)
    pixels[0, 8:16, 16:24] = 5
    channels = dct.forward(pixels)
    assert channels[0, 0, 1, 2] == pytest.approx(5 * dct.FLAT)
    channels[0, 0, 1, 2] = 0
    assert np.abs(channels).max() < 1e-4


def test_a_constant_band_of_half_resolution_is_the_constant_band_it_would_be_enlarged():
    coarse = np.full((1, 8, 12), 7.0, np.float32)
    full = dct.forward(np.full((1, 16, 24), 7.0, np.float32))
    half = dct.forward(coarse, half=True)
    assert np.allclose(full[:, :16], half, atol=1e-4)
    assert np.abs(full[:, 16:]).max() < 1e-4


def test_a_smooth_band_of_half_resolution_lands_in_the_channels_of_its_enlargement():
    """The 8 x 8 DCT of a smooth band at full resolution and the 4 x 4 DCT of its 2 x 2 means agree at low
    frequencies, so that bands of both resolutions can be decorrelated together."""
    rows, cols = np.mgrid[0:64, 0:64] + 0.5
    fine = (1000 + 300 * np.sin(rows / 40) + 200 * np.cos(cols / 55 + 1)).astype(np.float32)[None]
    coarse = fine.reshape(1, 32, 2, 32, 2).mean(axis=(2, 4))
    full, half = dct.forward(fine), dct.forward(coarse, half=True)
    assert np.abs(half[:, :4] - full[:, :4]).max() < 0.05 * np.abs(full[:, 1:4]).max()
    assert np.abs(full[:, 16:]).max() < 0.05 * np.abs(full[:, 1:4]).max()


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float32, (2, 16, 3, 2), elements=st.floats(-(2**20), 2**20, width=32)))
def test_the_root_comes_back(root: np.ndarray):
    means = dct.root_inverse(root)
    assert means.shape == (2, 12, 8)
    assert np.abs(dct.root_forward(means) - root).max() <= 1e-5 * max(1.0, float(np.abs(root).max()))


def test_the_root_is_the_orthonormal_transform_of_sixteen_means():
    means = np.random.default_rng(0).normal(0, 100, (1, 4, 4)).astype(np.float32)
    root = dct.root_forward(means)[0, :, 0, 0]
    for value, (u, v) in zip(root, dct.scan(), strict=False):
        assert value == pytest.approx(float((np.outer(cosine(u, 4), cosine(v, 4)) * means[0]).sum()), abs=1e-3)


def spelt_means(root: np.ndarray) -> np.ndarray:
    """Block means of root symbols (16, h, w) in eighths, in Python's own integers."""
    table = [
        [round(1024 * cosine(u, 4)[row] * cosine(v, 4)[col]) for u, v in dct.scan()[:16]]
        for row in range(4)
        for col in range(4)
    ]
    _, high, wide = root.shape
    out = np.zeros((4 * high, 4 * wide), object)
    for i in range(high):
        for j in range(wide):
            for place, weights in enumerate(table):
                total = sum(weight * int(value) for weight, value in zip(weights, root[:, i, j], strict=True))
                out[4 * i + place // 4, 4 * j + place % 4] = total >> 7
    return out


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.int32, (1, 16, 2, 1), elements=st.integers(-(2**24), 2**24)))
def test_means_that_root_symbols_stand_for_are_exact_integers(root: np.ndarray):
    found = dct.root_means(root)
    assert found.dtype == np.int32
    assert (found[0] == spelt_means(root[0])).all()


def test_means_are_about_eight_times_what_the_floats_give():
    root = np.random.default_rng(3).integers(-4000, 4000, (3, 16, 5, 4)).astype(np.int32)
    exact = 8 * dct.root_inverse(root.astype(np.float32))
    assert np.abs(dct.root_means(root) - exact).max() < 8 * 16 * 4000 * 2**-11  # weights are rounded to 2^-10


def test_means_never_change():
    """Old streams depend on every one of these integers."""
    draws = np.arange(2 * 16 * 3 * 5, dtype=np.int64)
    root = ((draws * 2654435761 >> 7) % 20011 - 10005).astype(np.int32).reshape(2, 16, 3, 5)
    means = dct.root_means(root)
    assert means[0, :3, :4].tolist() == [
        [-5259, -40835, 20616, -9910],
        [-22973, 26694, 38709, -93328],
        [-15814, -91954, -42307, -95031],
    ]
    assert hashlib.sha256(means.astype("<i4").tobytes()).hexdigest() == (
        "11301389d9e6b1fcd97930d0b3eb80e224da2ec773647140013c190917fe3f9b"
    )
