"""How much each band's error counts: what is said is done, whatever lattice a band lies on."""

from __future__ import annotations

import numpy as np
import pytest

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink.bundle import find
from downlink.errors import SceneError
from downlink.lattice import lattices
from downlink.scene import Band
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene, resolutions_of
from encoder_node.target import Target
from encoder_node.tiles import LatticeReader
from encoder_node.weights import band_weights, check_names, is_visible, parse
from tests import scenes
from tests.scenes import GridsSource, grids_source, repeated

BANDS = [Band("B04"), Band("B03"), Band(""), Band("2")]
DEVIATIONS = np.array([400.0, 100.0, 50.0, 0.0])
NOISES = np.array([10.0, 20.0, 5.0, 10.0])


def weights(text: str, numbers: tuple[int, ...] = (1, 2, 3, 4)) -> np.ndarray:
    found = band_weights(text, BANDS, numbers, DEVIATIONS, NOISES)
    assert found is not None
    assert found.dtype == np.float32
    assert np.mean(1 / found.astype(float) ** 2) == pytest.approx(1.0)  # the mean error stays what the step promises
    return found


def test_equal_weights_are_none():
    assert band_weights("equal", BANDS, (1, 2, 3, 4), DEVIATIONS, NOISES) is None


def test_named_and_numbered_bands_count_more():
    found = weights("B04=4,3=0.5")
    assert found[0] / found[1] == pytest.approx(4)
    assert found[2] / found[1] == pytest.approx(0.5)
    assert found[3] == found[1]


def test_a_name_goes_before_a_number():
    found = weights("2=8")
    assert found[3] / found[0] == pytest.approx(8)
    assert found[1] == found[0]


def test_numbers_are_those_of_the_scene():
    found = weights("7=8", (5, 6, 7, 9))
    assert found[2] / found[0] == pytest.approx(8)
    assert np.ptp(weights("1=8", (5, 6, 7, 9))) == 0


def test_balanced_weights_are_one_over_deviations():
    found = weights("balanced")
    assert found[:3] * DEVIATIONS[:3] == pytest.approx(found[0] * 400.0)
    assert found[3] / found[0] == pytest.approx(256)
    flat = band_weights("balanced", BANDS, (1, 2, 3, 4), np.zeros(4), NOISES)
    assert flat is not None
    assert np.ptp(flat) == 0


def test_weights_by_noise_are_one_over_noise():
    assert weights("noise") * NOISES == pytest.approx(weights("noise")[0] * 10.0)


def test_noise_of_a_scene_is_found_beneath_what_varies_slowly():
    """Two bands of one smooth field and white noise of 3 and 30 DN; and a third of 6 DN, at half resolution."""
    rows, cols = np.mgrid[0:256, 0:256]
    smooth = 3000 + 500 * np.sin(rows / 150) + 400 * np.cos(cols / 120)
    noise = np.random.default_rng(1).normal(0, 1, (3, 256, 256))
    coarse = (smooth + 6 * noise[2])[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)
    source = grids_source(np.round(np.stack([smooth + 3 * noise[0], smooth + 30 * noise[1], coarse])).astype(np.uint16))
    lattice = lattices(source.scene, resolutions_of(source))[0]
    assert lattice.half.tolist() == [False, False, True]
    assert LatticeReader(source, lattice, 0, 256).statistics().noises == pytest.approx([3, 30, 6], rel=0.06)


def test_visible_bands_are_known_by_wavelength_or_else_by_name():
    named = [Band("B02", 492.4), Band("B01", 442.7), Band("B05", 704.1), Band("Red"), Band("B03"), Band("B3", 1600.0)]
    assert [is_visible(band) for band in named] == [True, False, False, True, True, False]
    found = band_weights("visible", named, range(1, 7), np.ones(6), np.ones(6))
    assert found is not None
    assert (found / found[1]).tolist() == [4, 1, 1, 4, 4, 1]
    check_names("visible", named)
    with pytest.raises(SceneError, match="no band is known to be red"):
        check_names("visible", named[1:3])


@pytest.mark.parametrize(
    "text", ["", "equals", "B04", "B04=", "=4", "B04=x", "B04=0", "B04=-1", "B04=257", "B04=nan", "a=1,,b=2"]
)
def test_what_is_no_weight_is_refused_before_a_scene_is_read(text: str):
    with pytest.raises(SceneError, match="weights"):
        parse(text)
    with pytest.raises(SceneError, match="weights"):
        Target(weights=text)


def test_bands_that_are_not_there_are_refused():
    check_names("B04=2,4=2,2=2", BANDS)
    for name in ("B05", "5", "0"):
        with pytest.raises(SceneError, match=f"no band '{name}'"):
            check_names(f"{name}=2", BANDS)


def errors(source: GridsSource, text: str) -> tuple[np.ndarray, dict[str, str | float]]:
    """Root mean squared error of each band of each grid, and what the manifest says."""
    with encode_scene(source, PlaneEncoder(find("universal")), Target(quality=75, weights=text)) as encoded:
        rows = list(decode_rows(encoded.manifest, encoded.chunk, PlaneDecoder(find("universal"))))
    found = []
    for number, array in enumerate(source.arrays):
        back = np.concatenate([row.pixels for row in rows if row.grid == number], axis=1)
        found += list(np.sqrt(((back.astype(np.float64) - array) ** 2).mean(axis=(1, 2))))
    return np.array(found), encoded.manifest.settings


@pytest.mark.parametrize("joined", [False, True])
def test_a_band_that_counts_more_comes_back_more_exactly_from_whatever_lattice(joined: bool):
    pixels = scenes.pixels(2, 4, 192, 192, nodata=None)
    if joined:
        coarse = pixels[2:].reshape(2, 32, 6, 32, 6).mean(axis=(2, 4)).astype(np.uint16)
        source = grids_source(pixels[:2], coarse)
    else:
        source = grids_source(np.stack([*pixels[:2], repeated(pixels[2], 3), repeated(pixels[3], 3)]))
    plain, settings = errors(source, "equal")
    assert "weights" not in settings
    weighed, settings = errors(source, "4=4,1=4")
    assert settings["weights"] == "4=4,1=4"
    assert weighed[3] / weighed[2] < 0.6 * plain[3] / plain[2]
    assert weighed[0] / weighed[1] < 0.6 * plain[0] / plain[1]
