"""What is asked of an encoding: one thing at a time, within bounds, and met."""

from __future__ import annotations

import math

import numpy as np
import pytest

from downlink.bundle import find
from downlink.errors import SceneError
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.target import Estimate, Target, search_step, step_of_quality
from tests import scenes
from tests.scenes import grids_source


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(find("universal"))


def test_eight_of_quality_halve_the_step():
    assert step_of_quality(0, "uint16") == 10000
    assert step_of_quality(50, "int16") == pytest.approx(2 * step_of_quality(58, "int16"))
    assert step_of_quality(16, "uint8") == 255 / 4


@pytest.mark.parametrize(
    ("given", "settings"),
    [({}, {"quality": 50.0}), ({"quality": 0}, {"quality": 0.0}), ({"bits_per_sample": 2}, {"bits_per_sample": 2.0}),
     ({"psnr_db": 40}, {"psnr_db": 40.0}), ({"stream_bytes": 5000}, {"stream_bytes": 5000.0}),
     ({"quality": 1, "weights": "balanced"}, {"weights": "balanced", "quality": 1.0})],
)  # fmt: skip
def test_the_manifest_says_what_was_asked_for(given: dict, settings: dict):
    assert Target(**given).settings == settings


@pytest.mark.parametrize(
    "given",
    [{"quality": 121}, {"quality": -1}, {"quality": math.nan}, {"bits_per_sample": 0}, {"psnr_db": 5},
     {"stream_bytes": 100}, {"quality": 50, "stream_bytes": 5000}],
)  # fmt: skip
def test_two_targets_or_one_out_of_bounds_are_refused(given: dict):
    with pytest.raises(SceneError, match=r"outside|give one"):
        Target(**given)


@pytest.mark.parametrize("bits", [0.05, 0.7, 4.0])
def test_the_search_finds_the_step_of_a_rate(bits: float):
    """On a made-up source: half a bit less for each octave of the step, and never below nothing."""

    def estimate(step: float) -> Estimate:
        return Estimate(0.5 * math.log2(1 + (300 / step) ** 2), step**2 / 12, 10000)

    step = search_step(Target(bits_per_sample=bits), 40.0, estimate, 10**6)
    assert estimate(step).bits_per_sample == pytest.approx(bits, rel=0.01)
    step = search_step(Target(stream_bytes=round(bits * 10**6 / 8)), 40.0, estimate, 10**6)
    assert 0.97 * bits < estimate(step).bits_per_sample <= bits
    step = search_step(Target(psnr_db=60.0), 40.0, estimate, 10**6)
    assert estimate(step).psnr_db == pytest.approx(60.0, abs=0.05)


@pytest.mark.parametrize("budget", [3000, 20000])
def test_a_budget_is_kept_and_used(encoder: PlaneEncoder, budget: int):
    source = grids_source(scenes.pixels(4, 3, 200, 200, nodata=None))
    with encode_scene(source, encoder, Target(stream_bytes=budget)) as encoded:
        assert 0.95 * budget <= encoded.stream_bytes <= budget


def test_a_budget_for_several_lattices_is_kept(encoder: PlaneEncoder):
    arrays = [scenes.pixels(4, 2, 180 // unit, 180 // unit, nodata=None) for unit in (1, 2, 6)]
    with encode_scene(grids_source(*arrays), encoder, Target(stream_bytes=6000)) as encoded:
        assert 0.95 * 6000 <= encoded.stream_bytes <= 6000


def test_a_budget_that_cannot_be_kept_is_refused(encoder: PlaneEncoder):
    random = np.random.default_rng(0)
    noise = random.integers(0, 60000, (200, 8, 8)).astype(np.uint16)  # the chunk list and means of 200 bands alone
    with pytest.raises(SceneError, match="512 were allowed"):
        encode_scene(grids_source(noise), encoder, Target(stream_bytes=512))
