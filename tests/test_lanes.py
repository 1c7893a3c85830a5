"""Streams coded side by side come out as each would alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink import rans
from downlink.errors import Corrupt
from downlink.lanes import Stream, encode_together
from downlink.rans import ENTRIES
from downlink.symbol import SymbolEncoder, finish_together
from downlink.symbol_decoder import SymbolDecoder, TogetherSymbols
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


Segments = list[list[np.ndarray]]
"""Per payload: values, scale indices and means of each segment; segments of equal length in all payloads."""


def drawn(payloads: int, sizes: tuple[int, ...], seed: int, certain: float = 0.3, reach: float = 2.0) -> Segments:
    random = np.random.default_rng(seed)
    out: Segments = []
    for number in range(payloads):
        parts = []
        for size in sizes:
            index = random.integers(1, TABLES.scales, size).astype(np.uint8)
            index[random.random(size) < (1.0 if number == 1 else certain)] = 0  # of the second nothing is coded
            mean = random.integers(-90, 90, size).astype(np.int32)
            values = (mean + 4 >> 3) + np.rint(random.laplace(size=size) * reach).astype(np.int32) * (index > 0)
            values[random.random(size) < 0.002] += 7000
            parts.append([values.astype(np.int32), index, mean])
        out.append(parts)
    return out


def payload_of(parts: list[list[np.ndarray]], lanes: int) -> bytes:
    encoder = SymbolEncoder(TABLES)
    for part in parts:
        encoder.add(*part)
    return encoder.finish(lanes)


def together(payloads: list[bytes], segments: Segments, plain: bool = False) -> list[np.ndarray]:
    decoder = TogetherSymbols([SymbolDecoder(TABLES, payload) for payload in payloads])
    found = []
    for number in range(len(segments[0])):
        index, mean = (np.stack([parts[number][which] for parts in segments]) for which in (1, 2))
        found.append(decoder.take(index, None if plain else mean))
    decoder.close()
    return found


@pytest.mark.parametrize("lanes", [1, 8, 32, 256])
@pytest.mark.parametrize("payloads", [1, 2, 3, 9])
def test_payloads_taken_together_give_the_symbols_of_each(payloads: int, lanes: int):
    sizes = (0, 1, 37, 900, 0, 256)
    segments = drawn(payloads, sizes, 7 * payloads + lanes)
    made = [payload_of(parts, min(lanes, 2**number * 8)) for number, parts in enumerate(segments)]
    for number, values in enumerate(together(made, segments)):
        assert (values == np.stack([parts[number][0] for parts in segments])).all()


def test_means_that_are_all_zero_need_not_be_given():
    segments = drawn(4, (300, 20), 3)
    for parts in segments:
        for part in parts:
            part[0] -= (part[2] + 4) >> 3
            part[2][:] = 0
    made = [payload_of(parts, 32) for parts in segments]
    for number, values in enumerate(together(made, segments, plain=True)):
        assert (values == np.stack([parts[number][0] for parts in segments])).all()


def alone(payload: bytes, parts: list[list[np.ndarray]]) -> list[np.ndarray] | None:
    decoder = SymbolDecoder(TABLES, payload)
    found = [decoder.take(index, mean) for _, index, mean in parts]
    decoder.close()
    return found


@pytest.mark.parametrize("which", range(3))
def test_what_is_refused_alone_is_refused_together_and_spoils_no_other(which: int):
    segments = drawn(3, (400, 60), 5)
    made = [payload_of(parts, 32) for parts in segments]
    random = np.random.default_rng(which)
    refused = 0
    for attempt in range(60):
        spoilt = bytearray(made[which])
        if attempt % 4 == 3:
            del spoilt[int(random.integers(len(spoilt))) :]
        else:
            spoilt[int(random.integers(len(spoilt)))] ^= 1 << int(random.integers(8))
        payloads = [*made[:which], bytes(spoilt), *made[which + 1 :]]
        try:
            expected = alone(bytes(spoilt), segments[which])
        except Corrupt:
            refused += 1
            with pytest.raises(Corrupt):
                together(payloads, segments)
            continue
        for number, values in enumerate(together(payloads, segments)):
            others = [parts[number][0] for parts in segments]
            others[which] = expected[number]
            assert (values == np.stack(others)).all()
    assert refused > 20


def test_a_payload_of_another_length_of_symbols_is_refused_together():
    segments = drawn(3, (500,), 5)
    made = [payload_of(parts, 32) for parts in segments]
    with pytest.raises(Corrupt):
        together([made[0], made[1], made[2][:-8]], segments)
    with pytest.raises(Corrupt):
        together([made[0], made[1], b""], segments)
