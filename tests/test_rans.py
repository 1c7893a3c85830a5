"""The coder returns what it was given, at the cost of the entropy, and knows when it did not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink import rans
from downlink.errors import Corrupt
from downlink.pmf import frequencies_of
from downlink.table import Tables

LANES = [1 << k for k in range(11)]


def model_of(seed: int, tables: int = 4) -> rans.Model:
    """Tables from nearly certain to flat, with 2 to 256 entries."""
    random = np.random.default_rng(seed)
    frequencies = np.zeros((tables, rans.ENTRIES), np.uint16)
    for row in frequencies:
        n = int(random.choice([2, 3, 17, 200, 256]))
        row[:n] = frequencies_of(random.random(n) ** random.choice([0.1, 3, 40]) + 1e-6)
    return rans.Model(frequencies)


def symbols_of(model: rans.Model, tables: np.ndarray, seed: int) -> np.ndarray:
    """Entries drawn from the tables: a random slot's entry has just the table's probability."""
    slots = np.random.default_rng(seed).integers(0, rans.TOTAL, len(tables))
    return model.slot_entries[tables * rans.TOTAL + slots]


def flat(tables: np.ndarray, entries: np.ndarray) -> np.ndarray:
    return tables * rans.ENTRIES + entries


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 1 << 30), st.sampled_from(LANES), st.lists(st.integers(0, 3000), min_size=1, max_size=4))
def test_every_segment_comes_back_in_order(seed: int, lanes: int, sizes: list[int]) -> None:
    model = model_of(seed)
    random = np.random.default_rng(seed)
    tables = [random.integers(0, model.tables, n) for n in sizes]
    entries = [symbols_of(model, t, seed + i) for i, t in enumerate(tables)]
    states, words = rans.encode(model, [flat(t, e) for t, e in zip(tables, entries, strict=True)], lanes)
    assert len(states) == lanes
    assert states.min() >= rans.START
    decoder = rans.Decoder(model, states, words)
    for t, e in zip(tables, entries, strict=True):
        np.testing.assert_array_equal(decoder.decode(t), e)
    assert decoder.finished
    assert decoder.position == len(words)


def test_scalar_and_row_coders_make_and_read_the_same_stream() -> None:
    model = model_of(5)
    tables = np.random.default_rng(5).integers(0, model.tables, 5003)
    entries = symbols_of(model, tables, 5)
    segments = [flat(tables, entries), flat(tables, entries)[:17]]
    for lanes in (1, 8, 64):
        states, words = rans._encode_scalar(model, segments, lanes)
        row_states, row_words = rans._encode_rows(model, segments, lanes)
        np.testing.assert_array_equal(states, row_states)
        np.testing.assert_array_equal(words, row_words)
        decoder = rans.Decoder(model, states, words)
        decoder._scalar = not decoder._scalar
        decoder._state_list, decoder._word_list = states.tolist(), words.tolist()
        decoder._states, decoder._words = states.copy(), words.astype(np.uint32)
        np.testing.assert_array_equal(decoder.decode(tables), entries)
        np.testing.assert_array_equal(decoder.decode(tables[:17]), entries[:17])
        assert decoder.finished


def test_reciprocals_divide_exactly_for_every_frequency_at_the_ends_of_every_quotient() -> None:
    frequency = np.arange(1, rans.TOTAL, dtype=np.int64)
    frequencies = np.zeros((len(frequency), 2), np.int64)
    frequencies[:, 0], frequencies[:, 1] = frequency, rans.TOTAL - frequency
    limit, reciprocal, _, _ = (a[::2] for a in rans.Model(frequencies).encoding)
    f = frequency.astype(np.uint64)
    random = np.random.default_rng(0)
    quotients = [np.full(len(f), q, np.uint64) for q in (0, 1, 4, 5, (1 << 18) - 1)]
    quotients += [random.integers(0, 1 << 18, len(f)).astype(np.uint64) for _ in range(20)]
    for q in quotients:
        for x in (q * f, q * f + f - np.uint64(1)):
            assert (x < limit).all()
            np.testing.assert_array_equal(x * reciprocal >> np.uint64(46), q)


@pytest.mark.parametrize(("lanes", "bound"), [(1, 0.001), (256, 0.005), (1024, 0.013)])
def test_a_million_symbols_cost_their_cross_entropy_within(lanes: int, bound: float) -> None:
    weights = np.exp(-np.abs(np.arange(-31, 32)) / 1.5)
    frequencies = np.zeros((1, rans.ENTRIES), np.uint16)
    frequencies[0, :63] = frequencies_of(weights)
    model = rans.Model(frequencies)
    count = 1_000_000 if lanes > rans.SCALAR_LANES else 50_000
    tables = np.zeros(count, np.int64)
    entries = symbols_of(model, tables, 1)
    empirical = np.bincount(entries, minlength=63) / count
    entropy = -(empirical[empirical > 0] * np.log2(empirical[empirical > 0])).sum() * count
    states, words = rans.encode(model, [flat(tables, entries)], lanes)
    assert 8 * (states.nbytes + words.nbytes) <= entropy * (1 + bound)


@pytest.mark.parametrize("lanes", [1, 16, 256])
def test_flipped_bits_of_words_and_states_are_noticed_at_the_end(lanes: int) -> None:
    """Measured, not promised: the chunk's checksum is the guarantee. Misses are possible (symbols of equal frequency
    can lead to the same state): 5 of 18 000 flips with these tables, so 5 of some hundreds would be a change."""
    model = Tables.parametric().model
    random = np.random.default_rng(3)
    tables = random.integers(0, model.tables, 3000)
    states, words = rans.encode(model, [flat(tables, symbols_of(model, tables, 3))], lanes)
    flips = missed = 0
    for source in (states, words):
        for position in range(0, len(source), max(1, len(source) // 20)):
            for bit in range(8 * source.itemsize):
                changed = source.copy()
                changed[position] ^= source.dtype.type(1 << bit)
                if source is states and changed[position] < rans.START:
                    continue  # no payload can say that
                decoder = rans.Decoder(model, *((changed, words) if source is states else (states, changed)))
                flips += 1
                try:
                    decoder.decode(tables)
                except Corrupt:
                    continue
                missed += decoder.finished and decoder.position == len(words)
    assert flips > 300
    assert missed < 5


@pytest.mark.parametrize("lanes", LANES)
def test_missing_words_are_refused(lanes: int) -> None:
    model = model_of(8)
    tables = np.random.default_rng(8).integers(0, model.tables, 6000)
    states, words = rans.encode(model, [flat(tables, symbols_of(model, tables, 8))], lanes)
    for kept in (0, 1, len(words) // 2, len(words) - 1):
        with pytest.raises(Corrupt, match="coded words"):
            rans.Decoder(model, states, words[:kept]).decode(tables)


def test_a_number_of_lanes_that_is_no_power_of_two_is_refused() -> None:
    for lanes in (0, 3, 2048):
        with pytest.raises(ValueError, match="power of two"):
            rans.encode(model_of(1), [], lanes)
