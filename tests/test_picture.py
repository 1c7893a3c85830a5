"""Pictures to train on: what the encoder would do on board is done to them, half-resolution bands included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'latent-downlink[training]'")

from downlink import dct, lap  # noqa: E402
from downlink.moments import Moments  # noqa: E402
from downlink.plane import PARTITIONS as ON_BOARD  # noqa: E402
from downlink.repeat import Repeat, Repetition  # noqa: E402
from tests import scenes  # noqa: E402
from training.config import Augment, ConfigError, Corpus, Run  # noqa: E402
from training.corpus import (  # noqa: E402
    PARTITIONS,
    Picture,
    Sampler,
    coefficients,
    planes_of,
    read_corpus,
    read_picture,
    subband_covariances,
)


def write(path: Path, pixels: np.ndarray, nodata: int | None = None) -> Path:
    rasterio = pytest.importorskip("rasterio")
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", **profile, nodata=nodata) as dataset:
        dataset.write(pixels)
    return path


def made(factors: tuple[int, ...], seed: int = 0, side: int = 96) -> Picture:
    pixels = scenes.pixels(seed, len(factors), side, side, nodata=None)
    pixels = np.stack([scenes.repeated(band, factor) for band, factor in zip(pixels, factors, strict=True)])
    mean, given = pixels.reshape(len(factors), -1).mean(axis=1), np.array(factors)
    covariances = subband_covariances(coefficients(pixels.astype(np.float32), mean, given))
    return Picture(f"made{seed}.tif", f"made{seed}", pixels, 10000.0, mean, given, covariances)


def test_bands_repeated_in_twos_are_found_and_the_picture_begins_with_their_blocks(tmp_path: Path):
    pixels = scenes.pixels(1, 4, 80, 90, nodata=None)
    pixels[1], pixels[2] = (scenes.repeated(band, 2, 1, 1) for band in pixels[1:3])
    pixels[3] = scenes.repeated(pixels[3], 6)
    picture = read_picture(write(tmp_path / "a__b.tif", pixels))
    assert picture is not None
    assert picture.source == "a"
    assert picture.factors.tolist() == [1, 2, 2]  # coded on a lattice of its own: left out
    assert picture.pixels.shape == (3, 78, 88)
    assert (picture.pixels == pixels[:3, 1:79, 1:89]).all()
    assert (picture.pixels[1, ::2, ::2].repeat(2, axis=0).repeat(2, axis=1) == picture.pixels[1]).all()


def test_a_run_may_want_some_files_and_some_bands_and_hold_out_places(tmp_path: Path):
    """Names are told apart by their beginnings: a place of a source as well as the source."""
    made = scenes.pixels(1, 3, 64, 64, nodata=None)
    for name in ("a__x_0.tif", "a__x_1.tif", "a__y_0.tif", "b__x_0.tif"):
        write(tmp_path / name, made)
    write(tmp_path / "a__short.tif", made[:2])
    config = Corpus(sources=("a",), bands=(3, 1), validation_sources=("a__x",))
    training, held = read_corpus(tmp_path, config)
    assert [picture.name for picture in training] == ["a__y_0.tif"]
    assert [picture.name for picture in held] == ["a__x_0.tif", "a__x_1.tif"]
    assert (training[0].pixels == made[[2, 0]]).all()
    with pytest.raises(ConfigError, match="no 8/16-bit integer raster of c with bands 1 among 5 files"):
        read_corpus(tmp_path, Corpus(sources=("c",), bands=(1,)))


def test_holes_become_the_mean(tmp_path: Path):
    pixels = scenes.pixels(1, 2, 64, 64, nodata=0)
    picture = read_picture(write(tmp_path / "holes.tif", pixels, 0))
    assert picture is not None
    valid = (pixels != 0).all(axis=0)
    assert (picture.pixels[:, valid] == pixels[:, valid]).all()
    assert np.allclose(picture.mean, pixels[:, valid].mean(axis=1))
    assert (picture.pixels[:, ~valid] == np.round(picture.mean)[:, None]).all()


def test_what_has_nothing_to_teach_is_passed_over(tmp_path: Path):
    assert read_picture(write(tmp_path / "float.tif", np.ones((1, 50, 50), np.float32))) is None
    assert read_picture(write(tmp_path / "small.tif", scenes.pixels(0, 1, 120, 12, nodata=None))) is None
    assert read_picture(write(tmp_path / "empty.tif", np.zeros((1, 64, 64), np.uint8), 0)) is None


def test_coefficients_are_those_of_the_encoder():
    picture = made((1, 2, 2))
    values = coefficients(picture.pixels.astype(np.float32), picture.mean, picture.factors)
    centred = picture.pixels - picture.mean.astype(np.float32)[:, None, None]
    full, half = centred[:1].astype(np.float32), centred[1:, ::2, ::2].astype(np.float32)
    assert np.allclose(values[0], dct.forward(lap.mix(full, 8, (8, 8)))[0], atol=1e-2)
    assert np.allclose(values[1:, :16], dct.forward(lap.mix(half, 4, (4, 4)), half=True), atol=1e-2)
    assert not values[1:, 16:].any()


@pytest.mark.parametrize("factors", [(1,), (1, 1, 1, 1, 1), (1, 1, 2, 2)])
@pytest.mark.parametrize("partition", range(4))
@pytest.mark.parametrize("step", [3.0, 300.0])
def test_planes_are_those_of_the_front_end(factors: tuple[int, ...], partition: int, step: float):
    """Levels, turn and coefficients: up to the sign of a plane and to what rounding the rows costs."""
    picture, bands = made(factors, 4), len(factors)
    values = coefficients(picture.pixels.astype(np.float32), picture.mean, picture.factors)
    half = picture.factors == 2
    if partition == 0 and half.any():
        partition = 1
    planes, levels, turn = planes_of(values, picture.covariances, picture.factors, PARTITIONS[partition], step)
    moments = Moments(half, np.zeros(bands))
    moments.add(values.reshape(bands, 64, -1))
    front, _ = moments.statistics().weighted(np.ones(bands, np.float32), None)._partitioned(partition, step)
    assert PARTITIONS == ON_BOARD
    count = front.planes
    assert not levels[count:].any()
    assert (levels[:count] > 0).tolist() == (front.levels > 0).tolist()
    assert np.abs(levels[:count] - front.levels).max() <= 1
    found = front.forward(values, step)
    for number, rows in enumerate(front.rows):
        at = dct.subband(number)
        one, two = (part[: len(rows), at].astype(np.float64) for part in (planes, found))
        if number == 0:  # means are rounded to DN on board
            one, two = (part - part.mean(axis=(1, 2, 3), keepdims=True) for part in (one, two))
        energy, again = (np.sqrt((part**2).sum(axis=0)) for part in (one, two))  # planes equally loud may be mixed
        assert np.abs(energy - again).max(initial=0) < 0.05 * energy.max(initial=0) + 0.6
        assert not planes[len(rows) :, at].any()
    sent = turn[: front.turn.shape[0], : front.turn.shape[1]]
    assert np.abs(turn).sum() == np.abs(sent).sum()
    scales = [np.linalg.svd(part.astype(float), compute_uv=False) for part in (sent, front.turn)]
    assert np.abs(scales[0] - scales[1]).max() < 3  # up to the order and the signs of planes equally loud
    assert np.abs(np.abs(sent[0]) - np.abs(front.turn[0])).max() < 3


def test_the_same_seed_draws_the_same_batches():
    pictures = [made((1, 1, 2, 2), seed) for seed in range(3)]
    run = Run(corpus=Corpus(crop=64, planes_per_step=8))
    one, two, other = (Sampler(pictures, run, seed) for seed in (1, 1, 2))
    differing = 0
    for _ in range(6):
        a, b, c = one.draw(), two.draw(), other.draw()
        assert a.coefficients.equal(b.coefficients)
        assert a.levels.equal(b.levels)
        assert a.turn.equal(b.turn)
        crops, planes = a.levels.shape[:2]
        assert a.coefficients.shape == (crops, planes, 64, 8, 8)
        assert a.turn.shape == (crops, planes, planes)
        assert crops * planes <= 8
        differing += not (a.coefficients.shape == c.coefficients.shape and a.coefficients.equal(c.coefficients))
    assert differing >= 5


def test_nothing_of_a_subband_is_there_where_its_level_is_zero():
    run = Run(corpus=Corpus(crop=64, planes_per_step=12), quality_range=(8.0, 30.0))
    sampler = Sampler([made((1,) * 6 + (2,) * 6, seed) for seed in range(2)], run, 3)
    dropped = 0
    for _ in range(8):
        batch = sampler.draw()
        for number in range(4):
            silent = batch.levels[..., number] == 0
            assert not batch.coefficients[:, :, dct.subband(number)][silent].any()
            dropped += int(silent.sum())
    assert dropped > 10


def test_what_resampling_calls_half_resolution_repeats_its_pixels():
    sampler = Sampler([made((1,) * 4)], Run(augment=Augment(resample=1.0)), 1)
    doubled = 0
    for seed in range(40):
        sampler.random = np.random.default_rng(seed)
        crop = scenes.pixels(seed, 4, 64, 64, nodata=None).astype(np.float32)
        out, factors = sampler._resample(crop, np.ones(4, np.int64))
        repetition = Repetition(4)
        repetition.add(out, 0, 0)
        for band in range(4):
            found = repetition.found(band)
            assert (factors[band] == 2) == (found == Repeat(2, 0, 0))
            doubled += factors[band] == 2
    assert doubled > 5
