"""Looked-up codes and costs are those of the tables."""

from __future__ import annotations

import numpy as np
import pytest

from downlink.bundle import find
from downlink.errors import BundleError
from downlink.lookup import Lookup
from downlink.symbol import SymbolEncoder, lookup_of
from downlink.symbol_decoder import SymbolDecoder
from downlink.table import Tables
from tests.priors import made_tables


@pytest.fixture(scope="module", params=["made", "released"])
def tables(request: pytest.FixtureRequest) -> Tables:
    return made_tables() if request.param == "made" else Tables.unpack(find("universal").file("tables.bin"))


def drawn(tables: Tables, count: int, seed: int, reach: int, means: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    index = random.integers(0, tables.scales, count).astype(np.uint8)
    mean = random.integers(-4000, 4000, count).astype(np.int32) if means else np.zeros(count, np.int32)
    values = (mean >> 3) + np.rint(random.laplace(size=count) * reach).astype(np.int32)
    return values.astype(np.int32), index, mean


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("reach", [1, 20, 3000])
def test_codes_are_the_entries_of_the_tables(tables: Tables, reach: int, means: bool):
    lookup = Lookup(tables)
    values, index, mean = drawn(tables, 4000, reach, reach, means)
    codes = lookup.codes_of(values, index, mean if means else None)
    assert (codes == lookup.codes_of(values, index, mean)).all()
    for code, value, scale, centre in zip(codes.tolist(), values, index, mean, strict=True):
        located = tables.locate(
            *(np.array([x], t) for x, t in ((value, np.int32), (scale, np.uint8), (centre, np.int32)))
        )
        plain = not (len(located.escapes) or len(located.raw) or len(located.exceptions))
        if code == lookup.certain:
            assert located.certain == 1
            assert plain
        elif code != lookup.rare:
            assert plain
            assert located.entries.tolist() == [code]
    assert reach > 100 or (codes != lookup.rare).any()


def test_costs_are_those_of_the_tables(tables: Tables):
    lookup = Lookup(tables)
    values, index, mean = drawn(tables, 3000, 1, 2, True)
    codes = lookup.codes_of(values, index, mean)
    plain = (codes != lookup.rare) & (codes != lookup.certain)
    costs = lookup.costs.reshape(-1)[lookup.keys(values, index, mean)]
    assert plain.sum() > 500
    each = [tables.cost_bits(values[i : i + 1], index[i : i + 1], mean[i : i + 1]) for i in np.flatnonzero(plain)[:400]]
    assert np.allclose(costs[np.flatnonzero(plain)[:400]], each, atol=0.02)
    assert (costs[codes == lookup.certain] == 0).all()


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("reach", [1, 40, 100_000])
def test_a_payload_made_from_codes_is_the_one_made_from_symbols(tables: Tables, reach: int, means: bool):
    slow, fast = SymbolEncoder(tables), SymbolEncoder(tables)
    parts = [drawn(tables, count, seed, reach, means) for seed, count in enumerate((0, 1, 700, 50))]
    for values, index, mean in parts:
        slow.add(values, index, mean)
        codes = lookup_of(tables).codes_of(values, index, mean if means else None)
        fast.add_codes(codes, values, index, mean if means else None)
    payload = slow.finish()
    assert fast.finish() == payload
    decoder = SymbolDecoder(tables, payload)
    for values, index, mean in parts:
        assert (decoder.take(index, mean) == values).all()
    decoder.close()


def test_a_scale_without_tables_is_refused(tables: Tables):
    if tables.scales == 256:
        pytest.skip("all scales have tables")
    index = np.array([tables.scales], np.uint8)
    with pytest.raises(BundleError, match="rebuild the bundle"):
        Lookup(tables).codes_of(np.zeros(1, np.int32), index, None)
