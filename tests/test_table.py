"""Tables are valid integers, close to the distributions they stand for, and refuse everything else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.errors import BundleError, Malformed, StreamError, TooLarge, Unsupported
from downlink.pmf import frequencies_of, laplace, logistic, trim
from downlink.rans import ENTRIES, TOTAL
from downlink.symbol import SymbolEncoder
from downlink.table import MAX_MEAN, MAX_VALUE, Tables


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables.parametric()


def draw(tables: Tables, scales: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values drawn from the logistic distributions of the scales, around random means."""
    random = np.random.default_rng(seed)
    mean = random.integers(-300, 300, len(scales)).astype(np.int32)
    sigma = 0.11 * 2 ** ((scales - 1.0) / 4)
    u = random.random(len(scales))
    values = np.rint(mean / 8 + sigma * np.sqrt(3) / np.pi * np.log(u / (1 - u))).astype(np.int32)
    index = scales.astype(np.uint8)
    values[index == 0] = (mean[index == 0] + 4) >> 3
    return values, index, mean


def test_the_parametric_tables_are_small_and_have_the_promised_shape(tables: Tables) -> None:
    assert tables.scales == 96
    assert len(tables.pack()) < 10_000
    sizes = (tables.frequencies > 0).sum(axis=1)
    assert sizes.max() <= 202
    assert (tables.route[0] == -1).all()
    sigma = 0.11 * 2 ** (np.arange(95) / 4)
    fractions = np.array([len(set(row)) for row in tables.route[1:].tolist()])
    assert (fractions[sigma < 1.5] == 8).all()
    assert (fractions[(sigma > 2) & (sigma < 8)] == 2).all()
    assert (fractions[sigma >= 8] == 1).all()
    assert (np.diff(tables.shift[1:].astype(int)) >= 0).all()


@pytest.mark.parametrize("scale", [1, 5, 12, 20, 27, 40, 60, 95])
def test_symbols_cost_their_distributions_entropy(tables: Tables, scale: int) -> None:
    """Within 1 % or 0.01 bit: what trimming, 14 bits, shared fractions and raw low bits cost together."""
    sigma = 0.11 * 2 ** ((scale - 1) / 4)
    values, index, mean = draw(tables, np.full(100_000, scale))
    off = values - mean / 8
    p = logistic(off + 0.5, sigma) - logistic(off - 0.5, sigma)
    ideal = -np.log2(np.maximum(p, 1e-300)).mean()
    assert tables.cost_bits(values, index, mean) / len(values) <= ideal + max(0.01, 0.01 * ideal)


def test_a_distribution_of_ones_own_can_be_passed() -> None:
    own = Tables.parametric(laplace, [0.3, 1.0, 400.0])
    assert own.shift.tolist() == [0, 0, 0, 4]
    values = np.array([0, 1, -700], np.int32)
    assert own.cost_bits(values, np.array([1, 2, 3], np.uint8), np.zeros(3, np.int32)) < 30
    with pytest.raises(ValueError, match="raw bits"):
        Tables.parametric(laplace, [2.0**33])


def test_the_estimate_is_what_the_payload_takes(tables: Tables) -> None:
    random = np.random.default_rng(4)
    for low, high in ((1, 8), (1, 96), (40, 80)):
        values, index, mean = draw(tables, random.integers(low, high, 40_000), 4)
        index[random.random(len(index)) < 0.3] = 0  # many of these are now exceptions
        values[::500] += 3000  # and some of those escapes
        encoder = SymbolEncoder(tables)
        encoder.add(values, index, mean)
        assert 8 * len(encoder.finish(lanes=1)) == pytest.approx(tables.cost_bits(values, index, mean), rel=0.003)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=ENTRIES).filter(lambda w: sum(w) > 0))
def test_frequencies_are_positive_and_sum_to_the_total(weights: list[float]) -> None:
    f = frequencies_of(np.array(weights))
    assert f.sum() == TOTAL
    assert f.min() >= 1


def test_no_unit_moved_makes_the_frequencies_fit_better() -> None:
    random = np.random.default_rng(2)
    for _ in range(20):
        p = random.random(12) ** 12 + 1e-9
        p /= p.sum()
        f = frequencies_of(p).astype(float)
        best = (p * np.log(f)).sum()
        for a, b in itertools.permutations(range(12), 2):
            if f[b] > 1:
                moved = f.copy()
                moved[a] += 1
                moved[b] -= 1
                assert (p * np.log(moved)).sum() <= best + 1e-12


def test_trimming_gives_the_tails_to_the_escape() -> None:
    low, weights = trim(-3, [1e-6, 1e-6, 0.25, 0.5, 0.25 - 4e-6, 1e-6, 1e-6])
    assert low == -1
    assert weights.tolist()[:3] == pytest.approx([0.25, 0.5, 0.25 - 4e-6])
    assert weights[3] == pytest.approx(4e-6)
    for unusable in ([1.0], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], np.ones(257)):
        with pytest.raises(ValueError, match="weights"):
            frequencies_of(np.array(unusable))


def test_tables_come_back_from_their_bytes(tables: Tables) -> None:
    again = Tables.unpack(tables.pack())
    for name in ("frequencies", "low", "route", "shift"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tables, name))
    wide = Tables.from_pmfs([(-128, np.ones(256)), (0, np.ones(2))], [[-1] * 8, [1, 0] * 4], [0, 19])
    np.testing.assert_array_equal(Tables.unpack(wide.pack()).frequencies, wide.frequencies)


@pytest.fixture(scope="module")
def few() -> Tables:
    return Tables.parametric(sigmas=[0.2, 30.0])


def test_every_truncation_and_every_extension_of_packed_tables_is_refused(few: Tables) -> None:
    packed = few.pack()
    for end in range(len(packed)):
        with pytest.raises(Malformed):
            Tables.unpack(packed[:end])
    with pytest.raises(Malformed, match="were given"):
        Tables.unpack(packed + b"\0")


@settings(deadline=None)
@given(st.data())
def test_damaged_tables_are_refused_or_valid_tables(few: Tables, data: st.DataObject) -> None:
    packed = bytearray(few.pack())
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        damaged = Tables.unpack(bytes(packed))
    except StreamError:
        return
    assert (damaged.frequencies.sum(axis=1, dtype=int) == TOTAL).all()
    assert damaged.pack() == packed, "two byte strings for the same tables"


@given(st.binary(max_size=200))
def test_garbage_is_no_tables(garbage: bytes) -> None:
    for head in (b"", b"LDT\x01", b"LDT\x01\x02\x00\x01\x00"):
        with pytest.raises(StreamError):
            Tables.unpack(head + garbage + b"\xff" * 4)


def test_another_version_is_unsupported(few: Tables) -> None:
    with pytest.raises(Unsupported, match="version 2"):
        Tables.unpack(few.pack().replace(b"LDT\x01", b"LDT\x02"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, w, r, s: (f * 0, w, r, s), "sum to 0, not"),
        (lambda f, w, r, s: (np.roll(f, 1, axis=1), w, r, s), "frequency of 0"),
        (lambda f, w, r, s: (f, w, r + 50, s), "are routed"),
        (lambda f, w, r, s: (f, w, r - 1, s), "are routed"),
        (lambda f, w, r, s: (f, w, r, s + 25), "raw bits"),
        (lambda f, w, r, s: (f, w + (1 << 29), r, s), "reach"),
        (lambda f, w, r, s: (f, w, r[:1], s[:1]), "for 1 scales"),
        (lambda f, w, r, s: (f[:, :9], w, r, s), "shapes"),
        (lambda f, w, r, s: (f[:0], w[:0], r, s), "0 tables for"),
    ],
)
def test_invalid_tables_cannot_be_made(few: Tables, change: object, message: str) -> None:
    parts = (few.frequencies, few.low, few.route, few.shift)
    with pytest.raises(Malformed, match=message):
        Tables(*change(*parts))  # type: ignore[operator]


def test_a_table_of_one_entry_is_refused() -> None:
    frequencies = np.zeros((1, ENTRIES), np.uint16)
    frequencies[0, 0] = TOTAL
    with pytest.raises(Malformed, match="fewer than two"):
        Tables(frequencies, np.zeros(1, np.int32), np.zeros((2, 8), np.int16), np.zeros(2, np.uint8))


def test_contexts_and_values_out_of_range_are_refused(tables: Tables) -> None:
    one, zero = np.ones(1, np.uint8), np.zeros(1, np.int32)
    with pytest.raises(BundleError, match="scale 96"):
        tables.keys(np.array([96], np.uint8), zero)
    for sign in (1, -1):
        tables.locate(zero + sign * MAX_VALUE, one, zero - sign * MAX_MEAN)
        with pytest.raises(TooLarge, match="value"):
            tables.locate(zero + sign * (MAX_VALUE + 1), one, zero)
        with pytest.raises(TooLarge, match="mean"):
            tables.keys(one, zero + sign * (MAX_MEAN + 1))
    with pytest.raises(ValueError, match="equally long"):
        tables.keys(one, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="equally long"):
        tables.locate(np.zeros(2, np.int32), one, zero)
