"""Refinement of symbols: at most one step towards zero, none for nothing, and worth it in bits at equal error."""

import numpy as np
import pytest

from decoder_node.decoder import PlaneDecoder, decode_rows
from downlink.bundle import Bundle, find
from encoder_node import encoder as encoders
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.refine import refine
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import scenes


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return find("universal")


def test_symbols_move_at_most_one_step_and_only_towards_zero(bundle: Bundle):
    encoder = PlaneEncoder(bundle)
    random = np.random.default_rng(0)
    latents = (random.laplace(size=(2, 64, 8, 8)) * np.geomspace(6, 0.2, 64)[None, :, None, None]).astype(np.float32)
    hyper = np.zeros((2, 8, 2, 2), np.int32)
    levels = np.array([50, 40], np.uint8)
    nearest = np.rint(latents).astype(np.int32)
    symbols = refine(latents, hyper, levels, encoder.prior, encoder.spec.bit_price)
    moved = nearest - symbols
    assert (np.abs(moved) <= 1).all()
    assert (np.sign(moved) * np.sign(nearest) >= 0).all()
    assert moved.any()
    assert (refine(latents, hyper, levels, encoder.prior, 0.0) == nearest).all()


def test_it_saves_bits_at_equal_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """On the curve of plain rounding (log bits over PSNR), a refined stream lies below."""
    pixels = scenes.pixels(5, 4, 256, 256, nodata=None)
    source, encoder, decoder = (
        ArraySource(scenes.scene(pixels, None), pixels),
        PlaneEncoder(bundle),
        PlaneDecoder(bundle),
    )

    def point(quality: float) -> tuple[float, float]:
        with encode_scene(source, encoder, Target(quality=quality)) as encoded:
            rows = [row.pixels for row in decode_rows(encoded.manifest, encoded.chunk, decoder)]
            error = ((np.concatenate(rows, axis=1).astype(np.float64) - pixels) ** 2).mean()
            return float(-np.log(error)), float(np.log(encoded.stream_bytes))

    refined = [point(quality) for quality in (38, 44)]
    monkeypatch.setattr(encoders, "refine", lambda latents, *_: np.rint(latents).astype(np.int32))
    plain = [point(quality) for quality in (34, 38, 42, 46)]
    for exactness, size in refined:
        assert plain[0][0] < exactness < plain[-1][0]
        assert size < np.interp(exactness, *zip(*plain, strict=True))


def test_latents_wholly_beyond_a_scenes_edge_are_zeros(bundle: Bundle):
    encoder = PlaneEncoder(bundle)
    side = 32 + 2 * encoder.spec.encoder_halo
    planes = (50 * np.random.default_rng(0).normal(size=(2, side, side))).astype(np.float32)
    levels = np.array([54, 54], np.uint8)
    latent = encoder.analyse(planes, levels, core=(9, 17)).latent
    assert not latent[:, :, 2:].any()
    assert not latent[:, :, :, 3:].any()
    assert latent[:, :, 1, 2].any()
    assert encoder.analyse(planes, levels).latent[:, :, 2:, 3:].any()
