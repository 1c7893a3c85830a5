"""Tile symbols and their chunks: what goes in comes out, prefixes decode, nothing is foreseen, and nothing else is ever
taken for the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.bundle import Bundle, released
from downlink.context import phases
from downlink.dct import subband
from downlink.errors import Corrupt, StreamError
from downlink.latent import (
    GROUPS,
    ReceivedTile,
    TileCode,
    TileSymbols,
    decode_tiles,
    encode_tile,
    expect_tile,
    tile_bits,
    tile_segments,
)
from downlink.prior import Prior
from encoder_node.encoder import PlaneEncoder
from tests import priors
from tests.priors import PRIOR

Chunks = dict[tuple[int, int], bytes]


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(Bundle.read(released("universal")))


def all_chunks(code: TileCode, payloads: Chunks) -> Chunks:
    """Chunks in which nothing is sent are empty."""
    return {(g, b): payloads.get((g, b), b"") for g in range(GROUPS) for b in range(code.blocks)}


def encoded(code: TileCode, symbols: TileSymbols, prior: Prior = PRIOR) -> Chunks:
    return all_chunks(code, encode_tile(code, symbols, prior))


def received(code: TileCode, symbols: TileSymbols, chunks: Chunks) -> ReceivedTile:
    return ReceivedTile(code, *symbols.latent.shape[2:], chunks)


def decoded(code: TileCode, symbols: TileSymbols, chunks: Chunks, prior: Prior = PRIOR) -> ReceivedTile:
    tile = received(code, symbols, chunks)
    decode_tiles([tile], prior)
    return tile


def same(tile: ReceivedTile, symbols: TileSymbols) -> bool:
    return all(bool((a == b).all()) for a, b in zip(tile.symbols, symbols, strict=True))


@pytest.mark.parametrize("planes_per_chunk", [1, 2, 5])
@pytest.mark.parametrize(
    ("counts", "height", "width"),
    [((1, 1, 1, 1), 4, 4), ((3, 3, 3, 3), 8, 12), ((5, 4, 2, 0), 4, 16), ((2, 5, 1, 3), 12, 4), ((1, 0, 0, 0), 8, 8),
     ((0, 2, 0, 1), 8, 8), ((3, 3, 0, 3), 32, 16)],
)  # fmt: skip
def test_a_tile_comes_back_symbol_for_symbol(counts, height: int, width: int, planes_per_chunk: int):
    code = priors.code(counts, min(planes_per_chunk, max(counts)))
    symbols = priors.symbols(code, height, width)
    assert code.counts == counts
    tile = decoded(code, symbols, encoded(code, symbols))
    assert same(tile, symbols)
    assert not tile.broken
    for number, count in enumerate(counts):
        value = tile.value[:, subband(number)] if number else tile.root_value
        assert (value == symbols.of_subband(number)).all()
        assert not value[count:].any()


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any),
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    per_chunk=st.integers(1, 6),
    seed=st.integers(0, 50),
)
def test_any_tile_comes_back(counts: list[int], sides: tuple[int, int], per_chunk: int, seed: int):
    code = priors.code(tuple(counts), min(per_chunk, max(counts)), seed)
    symbols = priors.symbols(code, 4 * sides[0], 4 * sides[1], seed)
    assert same(decoded(code, symbols, encoded(code, symbols)), symbols)


@pytest.mark.parametrize(
    ("counts", "height", "width"), [((1, 1, 1, 1), 4, 4), ((3, 2, 2, 1), 8, 12), ((2, 2, 2, 2), 32, 8)]
)
def test_a_tile_comes_back_through_the_released_bundle(encoder: PlaneEncoder, counts, height: int, width: int):
    code = priors.code(counts, 2 if max(counts) > 1 else 1, spec=encoder.spec)
    code = TileCode(code.spec, encoder.tables, code.levels, code.turn, code.planes_per_chunk)
    symbols = priors.symbols(code, height, width)
    tile = decoded(code, symbols, encoded(code, symbols, encoder.prior), encoder.prior)
    assert same(tile, symbols)


def test_tiles_decoded_together_are_the_same_as_alone():
    code = priors.code((4, 3, 2, 1), 2)
    many = [priors.symbols(code, 8, 12, seed) for seed in range(5)]
    tiles = [received(code, symbols, encoded(code, symbols)) for symbols in many]
    tiles[2].chunks = {key: chunk for key, chunk in tiles[2].chunks.items() if key != (1, 0)}
    decode_tiles(tiles, PRIOR)
    for number, (tile, symbols) in enumerate(zip(tiles, many, strict=True)):
        assert same(tile, symbols) == (number != 2)
    alone = decoded(code, many[2], tiles[2].chunks)
    assert (alone.value == tiles[2].value).all()
    decode_tiles([], PRIOR)


def test_every_prefix_of_a_tiles_chunks_decodes_to_exactly_the_groups_it_holds():
    code = priors.code((4, 4, 3, 1), 2)
    symbols = priors.symbols(code, 8, 12, 7)
    chunks = encoded(code, symbols)
    order = sorted(chunks)
    assert len(order) == 8
    for count in range(len(order) + 1):
        tile = decoded(code, symbols, {key: chunks[key] for key in order[:count]})
        assert tile.broken == (count < len(order))
        for place, (group, block) in enumerate(order):
            planes = code.block_planes(block, group)
            part = np.s_[planes.start : planes.stop]
            found, sent = tile.symbols.of_subband(group)[part], symbols.of_subband(group)[part]
            assert (found == (sent if place < count else 0)).all()
            if not group:
                planes = code.block_planes(block)
                hyper = tile.symbols.hyper[planes.start : planes.stop]
                assert (hyper == (symbols.hyper[planes.start : planes.stop] if place < count else 0)).all()
        assert np.isfinite(tile.value).all()


def test_what_is_missing_is_the_mean_that_the_prior_expects():
    """The first subband that is not there, of the first plane that is not: from what is known before it."""
    code = priors.code((2, 2, 2, 2), 1)
    symbols = priors.symbols(code, 8, 8, 3)
    chunks = encoded(code, symbols)
    tile = decoded(code, symbols, {key: chunks[key] for key in [(0, 0), (0, 1)]})
    known = TileSymbols(symbols.root, np.zeros_like(symbols.latent), symbols.hyper)
    expected = expect_tile(code, known, PRIOR)[1].mean[:, :, ::2, ::2]  # the first phase knows of no neighbours
    assert (tile.value[:, 1:4, ::2, ::2] == expected / 8).all()
    assert expected.any()
    assert (tile.value[:, 0] == decoded(code, symbols, chunks).value[:, 0]).all()


def test_a_chunk_after_a_gap_is_not_used():
    code = priors.code((3, 3, 3, 3), 2)
    symbols = priors.symbols(code, 8, 8, 7)
    chunks = encoded(code, symbols)
    for gap in sorted(chunks):
        tile = decoded(code, symbols, {key: chunk for key, chunk in chunks.items() if key != gap})
        short = decoded(code, symbols, {key: chunk for key, chunk in chunks.items() if key < gap})
        assert (tile.value == short.value).all()
        assert same(tile, TileSymbols(*short.symbols))


@pytest.mark.parametrize("group", range(GROUPS))
@pytest.mark.parametrize("phase", range(3))
def test_nothing_is_expected_of_a_symbol_from_symbols_that_come_later(group: int, phase: int):
    """Change all symbols of a segment: expectations change in later segments only, and there they do."""
    code = priors.code((3, 3, 3, 3), 3)
    symbols = priors.symbols(code, 16, 16, 2)
    before = expect_tile(code, symbols, PRIOR)
    plane, changed = 1, TileSymbols(*(part.copy() for part in symbols))
    there = changed.of_subband(group)
    mask = phases(*there.shape[-2:])[phase]
    there[plane][:, mask] = 3 * there[plane][:, mask] + 5000
    after = expect_tile(code, changed, PRIOR)
    moved = set()
    for later in range(GROUPS):
        masks = phases(*before[later].index.shape[-2:])
        for one in range(3):
            for number, fields in enumerate(masks):
                differs = any(
                    bool((a[one][:, fields] != b[one][:, fields]).any())
                    for a, b in zip(before[later], after[later], strict=True)
                )
                if differs:
                    moved.add((later, one, number))
    assert all(place > (group, plane, phase) for place in moved)
    if phase < 2:
        assert (group, plane, 2) in moved  # neighbours
    assert (group, 2, 0) in moved  # energy
    assert group == 3 or (group + 1, plane, 0) in moved  # earlier subbands


def test_hyper_latents_are_known_to_their_own_plane_only():
    code = priors.code((3, 3, 3, 3), 3)
    symbols = priors.symbols(code, 8, 8, 2)
    changed = TileSymbols(symbols.root, symbols.latent, symbols.hyper.copy())
    changed.hyper[1] = -changed.hyper[1] + 1
    for one, two in zip(expect_tile(code, symbols, PRIOR), expect_tile(code, changed, PRIOR), strict=True):
        assert (one.index[[0, 2]] == two.index[[0, 2]]).all()
        assert (one.index[1] != two.index[1]).any()


def test_channel_0_of_the_latents_counts_for_nothing():
    code = priors.code((2, 2, 2, 2), 1)
    symbols = priors.symbols(code, 8, 8)
    spoilt = TileSymbols(symbols.root, symbols.latent.copy(), symbols.hyper)
    spoilt.latent[:, 0] = 12345
    assert encoded(code, spoilt) == encoded(code, symbols)


def test_segments_come_in_the_order_of_the_format():
    code = priors.code((3, 2, 3, 1), 2)
    symbols = priors.symbols(code, 8, 8)
    found = [(group, block, values) for group, block, values, _, _ in tile_segments(code, symbols, PRIOR)]
    expected: list[tuple[int, int, np.ndarray]] = []
    for group, count in enumerate(code.counts):
        coded = symbols.of_subband(group)
        for block in range(2):
            if group == 0:
                expected.append((0, block, symbols.hyper[2 * block : 2 * block + 2].ravel()))
            for plane in range(2 * block, min(count, 2 * block + 2)):
                for mask in phases(*coded.shape[-2:]):
                    flat = [coded[plane, c, i, j] for c in range(coded.shape[1]) for i, j in np.argwhere(mask)]
                    expected.append((group, block, np.array(flat)))
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    for (_, _, values), (_, _, wanted) in zip(found, expected, strict=True):
        assert (values == wanted).all()


def test_payloads_never_change():
    """Old streams must decode for ever: the coder, the order of the symbols and every context are in here."""
    code = priors.code((4, 3, 3, 2), 2)
    chunks = encoded(code, priors.symbols(code, 8, 12))
    digest = hashlib.sha256(b"".join(chunks[key] for key in sorted(chunks)))
    assert sum(map(len, chunks.values())) == 22144
    assert digest.hexdigest() == "4fb59cb7db11007c57cf237b05229c92d3fd89ec2560e6f80521a3accb3a21f2"


def test_the_estimate_is_within_two_percent_of_the_bytes(encoder: PlaneEncoder):
    random = np.random.default_rng(3)
    code = priors.code((5, 5, 5, 5), 4, spec=encoder.spec)
    code = TileCode(code.spec, encoder.tables, code.levels, code.turn, 4)
    scale = np.geomspace(8, 0.05, 64)[None, :, None, None]
    latent = np.rint(random.laplace(size=(5, 64, 32, 32)) * scale).astype(np.int32)
    root = np.rint(random.laplace(size=(5, 16, 8, 8)) * 20).astype(np.int32)
    symbols = TileSymbols(root, latent, priors.symbols(code, 32, 32).hyper // 6)
    written = 8 * sum(map(len, encode_tile(code, symbols, encoder.prior).values()))
    assert tile_bits(code, symbols, encoder.prior) == pytest.approx(written, rel=0.02)


def test_garbage_raises_only_stream_errors():
    code = priors.code((3, 2, 2, 1), 2)
    symbols = priors.symbols(code, 8, 8, 5)
    chunks = encoded(code, symbols)
    random = np.random.default_rng(0)
    refused = 0
    for key, payload in chunks.items():
        for _ in range(10 if payload else 0):
            spoilt = bytearray(payload)
            spoilt[int(random.integers(len(spoilt)))] ^= 1 << int(random.integers(8))
            try:
                decoded(code, symbols, chunks | {key: bytes(spoilt)})
            except StreamError:
                refused += 1
    assert refused > 25


def test_cut_and_lengthened_chunks_are_refused():
    code = priors.code((3, 2, 2, 1), 2)
    symbols = priors.symbols(code, 8, 8, 5)
    chunks = encoded(code, symbols)
    for key, payload in chunks.items():
        for spoilt in {payload[:-1], payload[: len(payload) // 2], payload + b"\1"} - {payload}:
            with pytest.raises(StreamError):
                decoded(code, symbols, chunks | {key: spoilt})


def test_bytes_in_a_chunk_of_which_nothing_is_sent_are_refused():
    code = priors.code((3, 2, 2, 1), 2)
    symbols = priors.symbols(code, 8, 8)
    chunks = encoded(code, symbols)
    assert chunks[3, 1] == b""
    with pytest.raises(Corrupt):
        decoded(code, symbols, chunks | {(3, 1): chunks[3, 0]})


def test_hyper_latents_beyond_the_bundles_limit_are_refused():
    code = priors.code((2, 2, 2, 2), 2)
    symbols = priors.symbols(code, 8, 8)
    for value in (32, -32):
        spoilt = TileSymbols(symbols.root, symbols.latent, symbols.hyper.copy())
        spoilt.hyper[1, 1, 0, 1] = value
        with pytest.raises(Corrupt, match="hyper-latents reach 32"):
            decoded(code, spoilt, encoded(code, spoilt))
