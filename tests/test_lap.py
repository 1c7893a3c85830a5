"""Lapping: undone exactly, blind to constants and to how a picture is cut, and worth what its authors say."""

from __future__ import annotations

import numpy as np
import pytest

from downlink import lap


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(1000, 300, shape).astype(np.float32)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (64, 24)])
def test_unmixing_undoes_mixing(size: int, height: int, width: int):
    pixels = noise(3, height, width)
    for first in ((size, size), (size // 2, size), (size // 2, size // 2)):
        mixed = lap.mix(pixels.copy(), size, first)
        assert np.abs(lap.unmix(mixed, size, first) - pixels).max() < 1e-2


@pytest.mark.parametrize("size", [4, 8])
def test_only_pixels_around_borders_change(size: int):
    pixels = noise(1, 3 * size, 2 * size)
    changed = lap.mix(pixels.copy(), size, (size, size))[0] != pixels[0]
    half = size // 2
    assert not changed[:half, :half].any()
    assert not changed[-half:, -half:].any()
    assert changed[half:-half, half:-half].all()
    one = noise(1, size, size)
    assert (lap.mix(one.copy(), size, (size, size)) == one).all()  # a single block has no border


@pytest.mark.parametrize("size", [4, 8])
def test_a_constant_stays_what_it_was(size: int):
    assert np.abs(lap.mix(np.full((1, 32, 48), 1234, np.float32), size, (size, size)) - 1234).max() < 1e-3


@pytest.mark.parametrize("size", [4, 8])
def test_a_part_with_half_a_block_around_it_is_mixed_as_in_the_whole(size: int):
    pixels, half = noise(2, 8 * size, 8 * size), size // 2
    whole = lap.mix(pixels.copy(), size, (size, size))
    part = pixels[:, 2 * size - half : 5 * size + half, size - half :].copy()
    mixed = lap.mix(part, size, (half, half))
    assert np.abs(mixed[:, half:-half, half:] - whole[:, 2 * size : 5 * size, size:]).max() < 1e-2


@pytest.mark.parametrize("size", [4, 8])
def test_norms_are_those_of_what_one_coefficient_becomes(size: int):
    for frequency, norm in enumerate(lap.norms(size)):
        block = np.cos(np.pi * (2 * np.arange(size) + 1) * frequency / (2 * size))
        row = np.zeros((1, 3 * size, 3 * size), np.float32)
        row[0, :, size : 2 * size] = block / np.linalg.norm(block)
        found = lap.unmix(row, size, (size, size))[0, size // 2]
        assert float(np.linalg.norm(found)) == pytest.approx(norm, rel=1e-5)


def test_an_orthogonal_turn_would_be_without_the_stretch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lap, "STRETCH", 1.0)
    turn = lap.mixing.__wrapped__(8)
    assert np.allclose(turn @ turn.T, np.eye(8), atol=1e-12)


def test_the_coding_gain_of_a_smooth_process_is_that_of_long_wavelets():
    """First-order process of correlation 0.95, one dimension: 8.83 dB for the DCT of 8, 9.6 dB for the lapped transform
    (Tran et al., table II), 9.6 dB for the 9/7 wavelet of JPEG 2000."""
    place = np.arange(24)
    covariance = 0.95 ** np.abs(place[:, None] - place)
    middle = np.zeros((24, 24))
    middle[4:12, 4:12] = middle[12:20, 12:20] = lap.mixing(8)
    cosines = np.cos(np.pi * (2 * np.arange(8) + 1) * np.arange(8)[:, None] / 16)
    cosines /= np.linalg.norm(cosines, axis=1)[:, None]

    def gain(rows: np.ndarray, norms: np.ndarray) -> float:
        variances = np.einsum("ki,ij,kj->k", rows, covariance, rows) * norms**2
        return float(-10 * np.log10(variances).mean())

    assert gain(cosines @ np.eye(24)[8:16], np.ones(8)) == pytest.approx(8.83, abs=0.01)
    assert gain(cosines @ middle[8:16], lap.norms(8)) > 9.5
