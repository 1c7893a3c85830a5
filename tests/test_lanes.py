"""Streams coded side by side come out as each would alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink import rans
from downlink.lanes import Stream, encode_together
from downlink.rans import ENTRIES
from downlink.symbol import SymbolDecoder, SymbolEncoder, finish_together
from tests.priors import made_tables

TABLES = made_tables()


def entries(count: int, seed: int) -> np.ndarray:
    """Flat entries that have a frequency, likely ones more often."""
    random = np.random.default_rng(seed)
    table = random.integers(0, len(TABLES.frequencies), count)
    sizes = (TABLES.frequencies > 0).sum(axis=1)[table]
    return (table * ENTRIES + (random.random(count) ** 2 * sizes).astype(int)).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 300), max_size=4).filter(any), st.integers(0, 10)), min_size=1, max_size=9
    ),
    st.integers(0, 99),
)
def test_states_and_words_are_those_of_each_stream_alone(shapes: list[tuple[list[int], int]], seed: int):
    streams = [
        Stream([entries(count, seed + 10 * i + j) for j, count in enumerate(counts)], 1 << lanes)
        for i, (counts, lanes) in enumerate(shapes)
    ]
    for stream, found in zip(streams, encode_together(TABLES.model, streams), strict=True):
        states, words = rans.encode(TABLES.model, stream.segments, stream.lanes)
        assert (found.states == states).all()
        assert found.states.shape == states.shape
        assert (found.words == words).all()
        assert found.words.shape == words.shape


@pytest.mark.parametrize("count", [1, 2, 30])
def test_payloads_finished_together_are_those_finished_alone(count: int):
    random = np.random.default_rng(count)
    made = []
    for _ in range(count):
        parts = []
        for size in random.integers(0, 2000, 3):
            index = random.integers(0, TABLES.scales, size).astype(np.uint8)
            mean = random.integers(-90, 90, size).astype(np.int32)
            values = ((mean >> 3) + np.rint(random.laplace(size=size) * 3)).astype(np.int32)
            parts.append((values, index, mean))
        made.append(parts)

    def encoders() -> list[SymbolEncoder]:
        out = []
        for parts in made:
            out.append(SymbolEncoder(TABLES))
            for part in parts:
                out[-1].add(*part)
        return out

    payloads = finish_together(encoders())
    assert payloads == [encoder.finish() for encoder in encoders()]
    for payload, parts in zip(payloads, made, strict=True):
        decoder = SymbolDecoder(TABLES, payload)
        for values, index, mean in parts:
            assert (decoder.take(index, mean) == values).all()
        decoder.close()
    assert finish_together([]) == []
