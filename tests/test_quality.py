from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.errors import SceneError
from downlink.quality import Quality, default_peak, psnr_db, valid_pixels
from tests.scenes import pixels, scene


def noisy(original: np.ndarray, seed: int = 1, scale: float = 30.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=scale, size=original.shape)
    limit = np.iinfo(original.dtype)
    return np.clip(np.rint(original + noise), limit.min, limit.max).astype(original.dtype)


def test_figures_are_those_of_the_textbook() -> None:
    original = pixels(nodata=None, bands=4)
    decoded = noisy(original)
    quality = Quality([4], peak=10_000)
    quality.add(0, original, decoded)

    error = original.astype(np.float64) - decoded
    assert quality.mse == pytest.approx((error**2).mean(), rel=1e-12)
    assert quality.psnr_db == pytest.approx(10 * np.log10(1e8 / (error**2).mean()), rel=1e-12)
    assert quality.max_error == np.abs(error).max()
    assert quality.rmse_per_band == pytest.approx(np.sqrt((error**2).mean((1, 2))), rel=1e-12)
    one, other = original.reshape(4, -1).astype(float), decoded.reshape(4, -1).astype(float)
    cosine = (one * other).sum(0) / np.linalg.norm(one, axis=0) / np.linalg.norm(other, axis=0)
    assert quality.sam_deg == pytest.approx(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean(), rel=1e-9)
    assert quality.samples == original.size
    assert quality.nodata_wrong == 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 119), max_size=6), st.integers(0, 5))
def test_the_cut_into_pieces_changes_nothing(cuts: list[int], seed: int) -> None:
    original = pixels(seed, bands=3, nodata=0)
    decoded = noisy(original, seed)
    whole = Quality([3], 10_000, [0])
    whole.add(0, original, decoded)
    pieces = Quality([3], 10_000, [0])
    edges = sorted({0, 120, *cuts})
    for top, bottom in itertools.pairwise(edges):
        pieces.add(0, original[:, top:bottom], decoded[:, top:bottom])
    assert pieces.mse == whole.mse  # sums of integers: equal, not close
    assert pieces.rmse_per_band == whole.rmse_per_band
    assert (pieces.max_error, pieces.samples, pieces.nodata_wrong) == (
        whole.max_error,
        whole.samples,
        whole.nodata_wrong,
    )
    assert pieces.sam_deg == pytest.approx(whole.sam_deg, rel=1e-12)


def test_blocks_within_one_piece_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pixels(bands=5)
    decoded = noisy(original)
    whole = Quality([5], 10_000, [0])
    whole.add(0, original, decoded)
    monkeypatch.setattr("downlink.quality._BLOCK_SAMPLES", 700)
    blocks = Quality([5], 10_000, [0])
    blocks.add(0, original, decoded)
    assert blocks.mse == whole.mse
    assert blocks.samples == whole.samples


def test_nodata_is_left_out_and_its_damage_counted() -> None:
    original = np.array([[[0, 100, 200]], [[0, 0, 300]]], np.uint16)
    decoded = np.array([[[9, 103, 200]], [[0, 0, 0]]], np.uint16)  # one hole filled, one sample lost
    quality = Quality([2], 10_000, [0])
    quality.add(0, original, decoded)
    assert quality.samples == 3
    assert quality.mse == pytest.approx((9 + 300**2) / 3)
    assert quality.max_error == 300
    assert quality.nodata_wrong == 2
    assert quality.mse_per_band == [9 / 2, 300.0**2]
    # Only the last pixel is valid in both bands: (200, 300) against (200, 0).
    assert quality.sam_deg == pytest.approx(math.degrees(math.acos(200 / math.hypot(200, 300))))


def test_peak_is_explicit_and_psnr_is_of_the_pooled_error() -> None:
    quality = Quality([1, 1], peak=255)
    quality.add(0, np.zeros((1, 10, 10), np.uint8), np.full((1, 10, 10), 4, np.uint8))
    quality.add(1, np.zeros((1, 5, 5), np.uint8), np.zeros((1, 5, 5), np.uint8))
    assert quality.mse == pytest.approx(16 * 100 / 125)
    assert quality.psnr_db == pytest.approx(10 * math.log10(255**2 / 12.8))
    assert quality.rmse_per_band == [4.0, 0.0]
    assert default_peak(scene(pixels(dtype="uint8", nodata=None), None)) == 255
    assert default_peak(scene(pixels(dtype="int16", nodata=None), None)) == 10_000


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_largest_errors_do_not_overflow(dtype: str) -> None:
    limit = np.iinfo(dtype)
    span = limit.max - limit.min
    quality = Quality([1], 10_000)
    quality.add(0, np.full((1, 300, 300), limit.min, dtype), np.full((1, 300, 300), limit.max, dtype))
    assert quality.max_error == span
    assert quality.mse == span**2


def test_directions() -> None:
    def angle(one: list[int], other: list[int]) -> float:
        quality = Quality([2], 255)
        shape = (2, 1, 1)
        quality.add(0, np.array(one, np.uint8).reshape(shape), np.array(other, np.uint8).reshape(shape))
        return quality.sam_deg

    assert angle([10, 0], [0, 10]) == pytest.approx(90)
    assert angle([10, 20], [20, 40]) == pytest.approx(0, abs=1e-5)
    assert angle([10, 10], [0, 0]) == pytest.approx(90)  # came back black
    assert math.isnan(angle([0, 0], [10, 10]))  # black has no direction to keep


def test_what_does_not_exist_is_nan() -> None:
    quality = Quality([1], 10_000, [0])
    hole = np.zeros((1, 4, 4), np.uint16)
    quality.add(0, hole, hole)
    assert quality.samples == 0
    assert math.isnan(quality.mse)
    assert math.isnan(quality.psnr_db)
    assert math.isnan(quality.rmse_per_band[0])
    assert math.isnan(quality.sam_deg)
    assert psnr_db(0.0, 255) == math.inf
    assert valid_pixels(hole, None) is None
    assert valid_pixels(hole + 1, 0) is None


@pytest.mark.parametrize(
    ("original", "decoded", "words"),
    [
        (np.zeros((2, 4, 4), np.uint16), np.zeros((2, 4, 5), np.uint16), r"\(2, 4, 4\).*\(2, 4, 5\)"),
        (np.zeros((3, 4, 4), np.uint16), np.zeros((3, 4, 4), np.uint16), r"\(2, rows, columns\)"),
        (np.zeros((2, 4, 4), np.uint16), np.zeros((2, 4, 4), np.float32), "decoded is float32"),
    ],
)
def test_refusals_say_why(original: np.ndarray, decoded: np.ndarray, words: str) -> None:
    with pytest.raises(SceneError, match=words):
        Quality([2], 10_000).add(0, original, decoded)


def test_no_peak_no_psnr() -> None:
    with pytest.raises(SceneError, match="peak is 0"):
        Quality([1], 0)
