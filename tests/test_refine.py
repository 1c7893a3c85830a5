"""Refinement of symbols: at most one step towards zero, none for nothing, and worth it in bits at equal error."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink import dct
from downlink.bundle import Bundle, find
from downlink.dct import subband
from downlink.latent import ReceivedTile, TileCode, decode_tiles, encode_tile, tile_bits
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.refine import Decision, refine
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import priors, scenes


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


@pytest.mark.parametrize("effort", ["fast", "best"])
@pytest.mark.parametrize(
    ("counts", "height", "width", "per_chunk", "tiles"),
    [((1, 1, 1, 1), 4, 4, 1, 1), ((3, 3, 3, 3), 8, 12, 2, 2), ((4, 2, 3, 0), 12, 4, 3, 6),
     ((2, 3, 1, 2), 16, 20, 1, 3)],
)  # fmt: skip
def test_what_is_coded_on_the_way_is_what_the_format_says_of_the_symbols(
    counts, height: int, width: int, per_chunk: int, tiles: int, effort: str
):
    """The encoder's own pass makes the payloads that `downlink.latent` makes of its symbols: tile by tile, byte by
    byte; and the decoder finds those symbols in them."""
    made = priors.code(counts, per_chunk)
    drawn = [priors.symbols(made, height, width, seed) for seed in range(tiles)]
    noise = np.random.default_rng(0)
    root, latent = (
        np.stack([getattr(one, name) for one in drawn]).astype(np.float32).clip(-(2**20), 2**20)
        for name in ("root", "latent")
    )
    for exact in (root, latent):
        exact += noise.uniform(-0.49, 0.49, exact.shape).astype(np.float32)
    hyper = np.stack([one.hyper for one in drawn])
    decided = Decision(root.copy(), latent.copy(), hyper, made, priors.PRIOR, effort)
    moved = 0
    for number, encoders in enumerate(decided.encoders):
        found = decided.symbols(number)
        payloads = {key: encoder.finish() for key, encoder in encoders.items()}
        assert payloads == encode_tile(made, found, priors.PRIOR)
        assert decided.bits(number) == pytest.approx(tile_bits(made, found, priors.PRIOR), rel=0.02, abs=40)
        whole = {(g, b): payloads.get((g, b), b"") for g in range(4) for b in range(made.blocks)}
        tile = ReceivedTile(made, height, width, whole)
        decode_tiles([tile], priors.PRIOR)
        assert all((a == b).all() for a, b in zip(tile.symbols, found, strict=True))
        for group, count in enumerate(counts):
            exact = (latent[number][:, subband(group)] if group else root[number])[:count]
            symbols = found.of_subband(group)[:count]
            assert np.abs(symbols - exact).max(initial=0) < 1.51
            moved += int((symbols != np.rint(exact)).sum())
    assert moved > 0


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
