"""What is measured on decoded pixels beside PSNR: similarity, indices and land cover, seams; and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from downlink.scene import Band, Grid, Scene
from evaluation import cache
from evaluation.cache import Cache
from evaluation.codecs import CodecSpec, Contestant
from evaluation.evaluate import evaluate
from evaluation.indices import CLASSES, classes, indices, roles
from evaluation.scenes import Entry
from evaluation.seams import seam_ratio
from evaluation.similarity import MS_SSIM_SIDE_MIN, SCALE_WEIGHTS, similarity
from evaluation.worker import Here, Outcome, Task
from tests import scenes

PEAK = 10_000.0


def noisy(pixels: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=sigma, size=pixels.shape)
    return np.clip(np.rint(pixels + noise), 1, 65535).astype(pixels.dtype)


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    pixels = scenes.pixels(1, 2, 60, 70, nodata=None)
    other = noisy(pixels, 300)
    expected = [
        metrics.structural_similarity(
            one.astype(float), two.astype(float), data_range=PEAK, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )[1].mean()
        for one, two in zip(pixels, other, strict=True)
    ]  # fmt: skip
    found = similarity(scenes.scene(pixels, None), [pixels], [other], PEAK)
    assert found.ssim == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.ms_ssim is None  # a side below 176 px


def test_ms_ssim_weighs_five_scales() -> None:
    """Noise of single pixels is gone at coarser scales; as strong a one in large blocks is not."""
    pixels = scenes.pixels(1, 1, MS_SSIM_SIDE_MIN, 200, nodata=None)
    described = scenes.scene(pixels, None)
    same = similarity(described, [pixels], [pixels], PEAK)
    assert (same.ssim, same.ms_ssim) == (pytest.approx(1), pytest.approx(1))
    fine = similarity(described, [pixels], [noisy(pixels, 400)], PEAK)
    coarse = noisy(pixels[:, ::16, ::16], 400).repeat(16, 1).repeat(16, 2)[:, :176, :200]
    assert fine.ms_ssim is not None
    assert fine.ssim is not None
    assert fine.ms_ssim > fine.ssim + 0.05
    blocks = similarity(described, [pixels], [coarse], PEAK)
    assert blocks.ms_ssim is not None
    assert blocks.ms_ssim < fine.ms_ssim
    assert sum(SCALE_WEIGHTS) == pytest.approx(1, abs=1e-3)


def test_nodata_does_not_count_as_likeness() -> None:
    pixels = scenes.pixels(1, 1, 64, 64, nodata=0)
    other = np.where(pixels == 0, 0, noisy(pixels, 300)).astype(np.uint16)
    whole = scenes.pixels(1, 1, 64, 64, nodata=None)
    with_holes = similarity(scenes.scene(pixels, 0), [pixels], [other], PEAK).ssim
    without = similarity(scenes.scene(whole, None), [whole], [noisy(whole, 300)], PEAK).ssim
    assert with_holes == pytest.approx(without, abs=0.06)
    empty = np.zeros((1, 64, 64), np.uint16)
    assert similarity(scenes.scene(empty, 0), [empty], [empty], PEAK) == (None, None)


def grid_of(bands: list[Band], side: int = 20, nodata: int | None = None) -> Grid:
    return Grid(side, side, "uint16", tuple(bands), nodata)


def test_bands_are_known_by_wavelength_or_by_name() -> None:
    by_wave = [Band("a", 443.0), Band("b", 860.0), Band("c", 561.0), Band("d", 835.0), Band("e", 655.0)]
    assert roles(grid_of(by_wave)) == {"green": 2, "red": 4, "nir": 3}
    names = [Band(name) for name in ("B02", "B03", "B04", "B8A", "B11")]
    assert roles(grid_of(names)) == {"green": 1, "red": 2, "nir": 3, "swir": 4}
    assert roles(grid_of([Band("1"), Band("2")])) == {}


def test_indices_and_land_cover_say_what_changed() -> None:
    bands = [Band("B03"), Band("B04"), Band("B08"), Band("B11")]
    before = np.broadcast_to(np.array([600, 400, 3600, 1500], np.uint16)[:, None, None], (4, 20, 20)).copy()
    after = before.copy()
    after[1, :5] = 1200  # NDVI 0.8 becomes 0.5 in a quarter: dense vegetation becomes vegetation
    described = Scene("s", (grid_of(bands, nodata=0),))
    found = indices(described, [before], [after], PEAK)
    assert found.ndvi_error == pytest.approx(0.3 / 4)
    assert found.ndwi_error == 0
    assert found.land_cover_agreement == pytest.approx(0.75)
    before[:, :5] = 0  # nodata: no longer counted
    assert indices(described, [before], [after], PEAK).land_cover_agreement == 1
    none = Scene("s", (grid_of([Band("x")] * 4),))
    assert indices(none, [before], [after], PEAK) == (None, None, None)
    dark = np.full((4, 20, 20), 50, np.uint16)
    assert indices(described, [dark], [dark], PEAK).ndvi_error is None


@pytest.mark.parametrize(
    ("reflectance", "expected"),
    [
        ((0.05, 0.03, 0.02, 0.01), "water"),
        ((0.60, 0.60, 0.60, 0.10), "snow"),
        ((0.05, 0.03, 0.40, 0.20), "dense vegetation"),
        ((0.08, 0.10, 0.12, 0.30), "bare or built-up"),
        ((0.40, 0.42, 0.44, 0.40), "bright"),
    ],
)
def test_the_classifier_knows_the_textbooks_examples(reflectance: tuple[float, ...], expected: str) -> None:
    bands = dict(zip(("green", "red", "nir", "swir"), (np.array([[v]]) for v in reflectance), strict=True))
    assert CLASSES[classes(bands)[0, 0]] == expected


def test_seams_are_seen_where_they_are_and_nowhere_else() -> None:
    pixels = scenes.pixels(2, 2, 320, 600, nodata=None)
    described = scenes.scene(pixels, None)
    plain = seam_ratio(described, [pixels], [noisy(pixels, 30)])
    assert plain == pytest.approx(1, abs=0.15)
    stepped = noisy(pixels, 30)
    stepped[:, :, 256:512] += 60
    found = seam_ratio(described, [pixels], [stepped])
    assert found is not None
    assert found > 2
    assert seam_ratio(described, [pixels], [pixels]) is None
    small = pixels[:, :256, :256]
    assert seam_ratio(scenes.scene(small, None), [small], [noisy(small, 30)]) is None


class Counting(Here):
    """Says how often it was asked."""

    asked = 0

    def run(self, task: Task) -> Outcome:
        self.asked += 1
        return super().run(task)


def measured(path: Path, kept: Cache, settings: tuple[float, ...] = (3.0, 9.0)) -> tuple[int, list[dict]]:
    runner = Counting()
    contestant = Contestant(CodecSpec("zstd", classical="zstd"), "", settings)
    report = evaluate([Entry(path, path.stem)], [contestant], None, runner, lambda *_: None, kept)
    runner.close()
    return runner.asked, report.rows


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    """An interrupted run goes on; other pixels, settings and sources are other measurements."""
    kept, path = Cache(tmp_path / "kept"), tmp_path / "one.npy"
    np.save(path, scenes.pixels(1, 2, 40, 40, nodata=None))
    asked, rows = measured(path, kept, (3.0,))
    assert asked == 1
    asked, more = measured(path, kept)
    assert asked == 1
    assert more[0] == rows[0]
    renamed = tmp_path / "two.npy"
    renamed.write_bytes(path.read_bytes())
    asked, again = measured(renamed, kept)
    assert asked == 0
    assert [row["scene"] for row in again] == ["two", "two"]
    np.save(path, scenes.pixels(2, 2, 40, 40, nodata=None))
    assert measured(path, kept)[0] == 2
    for file in (tmp_path / "kept").rglob("*.json"):
        file.write_text("cut sh")
    assert measured(renamed, kept)[0] == 2


def test_sources_have_names_of_their_own() -> None:
    assert cache.sources("evaluation/seams.py") != cache.sources("evaluation/indices.py")
    specs = [CodecSpec("a", classical="zstd"), CodecSpec("a", classical="lerc"), CodecSpec("a", "zstd", None, 2)]
    assert len({cache.key_of(cache.of_codec(spec)) for spec in specs}) == 3
