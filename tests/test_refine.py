"""Refinement of symbols: at most one step towards zero, none for nothing, and worth it in bits at equal error."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink import dct
from downlink.bundle import Bundle, find
from downlink.latent import TileCode
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.refine import refine
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import scenes


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return find("universal")


def priced(encoder: PlaneEncoder, price: float) -> PlaneEncoder:
    encoder.spec = msgspec.structs.replace(encoder.spec, bit_price=price)
    return encoder


def code(encoder: PlaneEncoder, levels: list[list[int]]) -> TileCode:
    stated = np.array(levels, np.uint8)
    counts = np.count_nonzero(stated, axis=0)
    turn = 64 * np.eye(counts[1], counts[0], dtype=np.int64)
    return TileCode(encoder.spec, encoder.tables, stated, turn, len(levels))


def exact(planes: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Root and latents that fall off with the frequency as pictures' do."""
    random = np.random.default_rng(seed)
    latent = random.laplace(size=(planes, 64, side, side)) * np.geomspace(6, 0.2, 64)[None, :, None, None]
    root = random.laplace(size=(planes, 16, side // 4, side // 4)) * np.geomspace(40, 8, 16)[None, :, None, None]
    return root.astype(np.float32), latent.astype(np.float32)


def test_symbols_move_at_most_one_step_and_only_towards_zero(bundle: Bundle):
    encoder = PlaneEncoder(bundle)
    made = code(encoder, [[50, 48, 44, 36], [40, 38, 34, 30]])
    root, latent = exact(2, 16)
    hyper = np.zeros((2, 8, 4, 4), np.int32)
    symbols = refine(root, latent, hyper, made, encoder.prior)
    assert (symbols.hyper == hyper).all()
    assert not symbols.latent[:, 0].any()
    for found, wanted in ((symbols.root, root), (symbols.latent[:, 1:], latent[:, 1:])):
        nearest = np.rint(wanted).astype(np.int32)
        moved = nearest - found
        assert found.dtype == np.int32
        assert (np.abs(moved) <= 1).all()
        assert (np.sign(moved) * np.sign(nearest) >= 0).all()
        assert moved.any()
    free = code(priced(encoder, 0.0), [[50, 48, 44, 36], [40, 38, 34, 30]])
    plain = refine(root, latent, hyper, free, encoder.prior)
    assert (plain.root == np.rint(root)).all()
    assert (plain.latent[:, 1:] == np.rint(latent[:, 1:])).all()
    assert not plain.latent[:, 0].any()


def test_nothing_is_left_of_what_is_not_sent(bundle: Bundle):
    encoder = PlaneEncoder(bundle)
    made = code(encoder, [[50, 48, 44, 36], [40, 0, 34, 0]])
    root, latent = exact(2, 8)
    symbols = refine(root, latent, np.zeros((2, 8, 2, 2), np.int32), made, encoder.prior)
    assert not symbols.latent[1, 1:4].any()
    assert not symbols.latent[1, 16:].any()
    assert symbols.latent[1, 4:16].any()
    assert symbols.latent[0, 16:].any()
    assert symbols.root[1].any()


def test_it_saves_bits_at_equal_error(bundle: Bundle):
    """On the curve of plain rounding (log bits over PSNR), a refined stream lies below."""
    pixels = scenes.pixels(5, 4, 256, 256, nodata=None)
    source, decoder = ArraySource(scenes.scene(pixels, None), pixels), PlaneDecoder(bundle)

    def point(encoder: PlaneEncoder, quality: float) -> tuple[float, float]:
        with encode_scene(source, encoder, Target(quality=quality)) as encoded:
            rows = [row.pixels for row in decode_rows(encoded.manifest, encoded.chunk, decoder)]
            error = ((np.concatenate(rows, axis=1).astype(np.float64) - pixels) ** 2).mean()
            return float(-np.log(error)), float(np.log(encoded.stream_bytes))

    refined = [point(PlaneEncoder(bundle), quality) for quality in (38, 44)]
    rounding = priced(PlaneEncoder(bundle), 0.0)
    plain = [point(rounding, quality) for quality in (34, 38, 42, 46)]
    for exactness, size in refined:
        assert plain[0][0] < exactness < plain[-1][0]
        assert size < np.interp(exactness, *zip(*plain, strict=True))


def test_latents_wholly_beyond_a_scenes_edge_are_zeros(bundle: Bundle):
    encoder = PlaneEncoder(bundle)
    made = code(encoder, [[54, 54, 54, 54]] * 2)
    planes = (50 * np.random.default_rng(0).normal(size=(2, 64, 4, 4))).astype(np.float32)
    symbols = encoder.analyse(planes.copy(), made, core=(9, 17)).symbols
    assert not symbols.latent[:, :, 2:].any()
    assert not symbols.latent[:, :, :, 3:].any()
    assert symbols.latent[:, :, 1, 2].any()
    assert encoder.analyse(planes.copy(), made, core=(32, 32)).symbols.latent[:, :, 2:, 3:].any()


def test_the_rounding_error_that_is_stated_is_that_of_the_symbols(bundle: Bundle):
    encoder = PlaneEncoder(bundle)
    made = code(encoder, [[54, 50, 44, 38]] * 3)
    _, planes = exact(3, 8)
    planes[:, 0] *= 30
    found = encoder.analyse(planes.copy(), made, core=(64, 64))
    means = dct.root_inverse(found.symbols.root.astype(np.float32))
    error = np.square(planes[:, 0] - means, dtype=np.float64).sum()
    error += np.square(planes[:, 1:] - found.symbols.latent[:, 1:], dtype=np.float64).sum()
    assert found.rounding_error == pytest.approx(error, rel=1e-3)
    assert found.rounding_error > 0.03 * planes.size


def test_symbols_that_no_table_could_carry_are_clipped(bundle: Bundle):
    encoder = PlaneEncoder(bundle)
    made = code(encoder, [[127, 127, 127, 127]])
    symbols = encoder.analyse(np.full((1, 64, 4, 4), 1e9, np.float32), made, core=(32, 32)).symbols
    assert symbols.latent.max() <= 1 << 20
    assert symbols.root.max() <= 1 << 23
