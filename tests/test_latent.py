"""Tile symbols and their chunks: what goes in comes out, prefixes decode, and nothing else is ever taken for the
same."""

import numpy as np
import pytest

from downlink.bundle import Bundle, released
from downlink.errors import StreamError
from downlink.latent import TileCode, TileSymbols, decode_tiles, encode_tile, tile_bits
from encoder_node.encoder import PlaneEncoder


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(Bundle.read(released("universal")))


def symbols(encoder: PlaneEncoder, planes: int, side: int, seed: int) -> tuple[TileCode, np.ndarray, np.ndarray]:
    """Random symbols, loud in few channels, with some enormous ones: what no picture would give but the format must
    carry."""
    random = np.random.default_rng(seed)
    spec = encoder.spec
    levels = np.sort(random.integers(20, 70, planes)).astype(np.uint8)[::-1].copy()
    scale = np.geomspace(8, 0.05, spec.latents)[None, :, None, None]
    latent = np.rint(random.laplace(size=(planes, spec.latents, side, side)) * scale).astype(np.int32)
    latent[random.random(latent.shape) < 1e-4] = 1 << 20
    hyper = random.integers(-5, 6, (planes, spec.hyper_latents, side // spec.hyper, side // spec.hyper)).astype(
        np.int32
    )
    return TileCode(spec, encoder.tables, levels, max(1, planes - 1)), latent, hyper


@pytest.mark.parametrize(("planes", "side"), [(1, 4), (3, 8), (5, 12)])
def test_a_tile_comes_back_symbol_for_symbol(encoder: PlaneEncoder, planes: int, side: int):
    code, latent, hyper = symbols(encoder, planes, side, planes)
    tile = TileSymbols(code, side, side, encode_tile(code, latent, hyper, encoder.prior))
    decode_tiles([tile], encoder.prior)
    assert (tile.latent == latent).all()
    assert (tile.hyper == hyper).all()
    assert not tile.broken


def test_tiles_decoded_together_are_the_same_as_alone(encoder: PlaneEncoder):
    code, latent, hyper = symbols(encoder, 3, 8, 1)
    _, other, other_hyper = symbols(encoder, 3, 8, 2)
    tiles = [
        TileSymbols(code, 8, 8, encode_tile(code, one, its_hyper, encoder.prior))
        for one, its_hyper in ((latent, hyper), (other, other_hyper))
    ]
    decode_tiles(tiles, encoder.prior)
    assert (tiles[0].latent == latent).all()
    assert (tiles[1].latent == other).all()


def test_every_prefix_of_a_tiles_chunks_decodes_to_exactly_the_groups_it_holds(encoder: PlaneEncoder):
    code, latent, hyper = symbols(encoder, 3, 8, 7)
    chunks = encode_tile(code, latent, hyper, encoder.prior)
    order = sorted(chunks)
    for count in range(len(order) + 1):
        tile = TileSymbols(code, 8, 8, {key: chunks[key] for key in order[:count]})
        decode_tiles([tile], encoder.prior)
        assert tile.broken == (count < len(order))
        for group, block in order[:count]:
            planes, channels = code.block_planes(block), code.spec.group_channels(group)
            part = np.s_[planes.start : planes.stop, channels]
            assert (tile.latent[part] == latent[part]).all()
        assert np.isfinite(tile.value).all()


def test_a_chunk_after_a_gap_is_not_used(encoder: PlaneEncoder):
    code, latent, hyper = symbols(encoder, 3, 8, 7)
    chunks = encode_tile(code, latent, hyper, encoder.prior)
    order = sorted(chunks)
    tile = TileSymbols(code, 8, 8, {key: chunks[key] for key in order if key != order[1]})
    decode_tiles([tile], encoder.prior)
    last = code.spec.group_channels(order[-1][0])
    assert (tile.latent[:, last] == 0).all()


def test_the_estimate_is_within_two_percent_of_the_bytes(encoder: PlaneEncoder):
    code, latent, hyper = symbols(encoder, 5, 32, 3)
    payloads = encode_tile(code, latent, hyper, encoder.prior)
    written = 8 * sum(len(payload) for payload in payloads.values())
    assert tile_bits(code, latent, hyper, encoder.prior) == pytest.approx(written, rel=0.02)


def test_garbage_raises_only_stream_errors(encoder: PlaneEncoder):
    code, latent, hyper = symbols(encoder, 2, 8, 5)
    chunks = encode_tile(code, latent, hyper, encoder.prior)
    random = np.random.default_rng(0)
    refused = 0
    for key, payload in chunks.items():
        for _ in range(25):
            spoilt = bytearray(payload)
            spoilt[int(random.integers(len(spoilt)))] ^= 1 << int(random.integers(8))
            tile = TileSymbols(code, 8, 8, chunks | {key: bytes(spoilt)})
            try:
                decode_tiles([tile], encoder.prior)
            except StreamError:
                refused += 1
    assert refused > 0
