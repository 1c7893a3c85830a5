"""Exact grids from the hands of an enemy: checksums right, content chosen. Only typed errors, bounded memory and time.

And what the method says of its own arithmetic, held against Python's integers at the largest values that a stream may
bring: if a sum rounded, two machines could differ.
"""

from __future__ import annotations

import time
import tracemalloc
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from downlink import exact
from downlink.errors import Corrupt, Malformed, StreamError, Unsupported
from downlink.exact import ExactCode, Layout, decode_tile, encode_tile
from downlink.exact_lattice import LEVELS, A, Cells
from downlink.exact_model import (
    ACTIVITY_MAX,
    EXPONENT_MAX,
    WEIGHT_MAX,
    Copying,
    Model,
    Rule,
    activities,
    candidates,
    rule_keys,
)
from downlink.exact_predictor import Predictor
from downlink.exact_quantiser import Quantiser
from downlink.exact_table import FAMILIES, QUARTERS, exact_tables
from downlink.exact_tile import TileState
from downlink.lattice import Resolution, lattices
from downlink.limits import BANDS_MAX
from downlink.manifest import Manifest
from downlink.scene import Band, Grid
from downlink.symbol import SymbolEncoder
from encoder_node.exact import encode_exact
from tests import scenes

HUGE = 1 << 24
"""No symbol is larger (docs/format.md)."""
MEGABYTES_MAX = 64


def grid(bands: int = 2, dtype: str = "uint16", nodata: int | None = None) -> Grid:
    return Grid(64, 64, dtype, (Band(),) * bands, nodata)  # type: ignore[arg-type]


def model(bands: int, weight: int = 0, activity: int = 0, exponent: int = 2, copying: Copying | None = None) -> Model:
    """One in which all rules have the same weights and activities."""
    order = tuple(range(bands))
    references = tuple(tuple(range(max(0, band - 8), band))[::-1] for band in order)
    rules = {}
    for band, level, phase in rule_keys(order):
        near = len(references[band])
        weights = np.full(candidates(level, phase, near), weight, np.int64)
        active = np.full(activities(phase, near), activity, np.int64)
        copies = copying if phase != A and near else None
        rules[band, level, phase] = Rule(exponent, weights, 0, active, copies)
    return Model(order, references, np.zeros(bands, np.int64), rules)


def code(of: Model, max_error: int = 0, dtype: str = "uint16", nodata: int | None = None, groups: int = 3) -> ExactCode:
    return ExactCode(grid(of.bands, dtype, nodata), Predictor(of), max_error, groups, of.bands)


def drawn(random: np.random.Generator, shape: tuple[int, int, int], dtype: str = "uint16") -> NDArray[Any]:
    limit = np.iinfo(dtype)
    return random.integers(limit.min, limit.max, shape, dtype, endpoint=True)


def none(bands: int) -> list[Layout]:
    return [Layout()] * bands


class Hostile:
    """Watches a call: typed errors of streams only, no warning of numpy, little memory, little time."""

    def __enter__(self) -> Hostile:
        self.error: StreamError | None = None
        tracemalloc.start()
        self._start = time.process_time()
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("error")
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        seconds, (_, peak) = time.process_time() - self._start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self._caught.__exit__(kind, error, trace)
        assert peak < MEGABYTES_MAX << 20
        assert seconds < 20
        if isinstance(error, Corrupt | Malformed | Unsupported):
            self.error = error
            return True
        return False


# ------------------------------------------------------------------ the side chunk


@given(st.binary(max_size=400), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_model_or_refused(payload: bytes, bands: int) -> None:
    for packed in (payload, b"\x01" + payload):
        with Hostile() as seen:
            found = Model.unpack(packed, bands)
        if seen.error is None:
            assert found.pack() == packed or sorted(found.order) == list(range(bands))
            Predictor(found)


def test_a_flipped_bit_of_a_model_is_refused_or_another_model() -> None:
    packed = model(3, 5, 20, 6, Copying((0,), True, (3, 4, 5, 6, 7))).pack()
    same = refused = 0
    bits = np.random.default_rng(0).choice(8 * len(packed), 40, replace=False).tolist()
    for bit in bits:
        spoilt = bytearray(packed)
        spoilt[bit // 8] ^= 1 << bit % 8
        with Hostile() as seen:
            found = Model.unpack(bytes(spoilt), 3)
            same += found.pack() == packed
            Predictor(found)
        refused += seen.error is not None
    assert same == 0
    assert refused > len(bits) / 2


@pytest.mark.parametrize("bands", [1, 4, 40])
def test_a_model_comes_back_whole(bands: int) -> None:
    for one in (
        model(bands),
        model(bands, 1, 1),
        model(bands, -WEIGHT_MAX, -ACTIVITY_MAX, EXPONENT_MAX, Copying((0,), True, (0, 28, 5, 14, 9))),
    ):
        back = Model.unpack(one.pack(), bands)
        assert back.pack() == one.pack()
        assert (back.order, back.references) == (one.order, one.references)
        for key, rule in one.rules.items():
            assert (back.rules[key].weights == rule.weights).all()
            assert (back.rules[key].activity == rule.activity).all()
            assert back.rules[key].copying == rule.copying


def test_a_model_of_the_most_bands_is_read_in_bounded_time() -> None:
    packed = model(BANDS_MAX, 1, 1).pack()
    start = time.process_time()
    Predictor(Model.unpack(packed, BANDS_MAX))
    assert time.process_time() - start < 10


def changed(field: str, value: Any) -> Model:
    one = model(3, 5, 20, 6, Copying((0,), True, (3, 4, 5, 6, 7)))
    parts = {"order": one.order, "references": one.references, "means": one.means, "rules": dict(one.rules)}
    if field in parts:
        parts[field] = value
    else:
        key = (2, 0, 3)
        rule = parts["rules"][key]
        fields = {name: getattr(rule, name) for name in ("exponent", "weights", "family", "activity", "copying")}
        parts["rules"][key] = Rule(**{**fields, field: value})
    return Model(**parts)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("order", (0, 1, 1), "no order of 0 to 2"),
        ("means", np.array([0, 1 << 17, 0]), "beyond 16 bits"),
        ("exponent", EXPONENT_MAX + 1, "a rule begins with"),
        ("exponent", 0, "a rule begins with"),
        ("weights", np.full(candidates(0, 3, 2), WEIGHT_MAX + 1), "beyond 131072"),
        ("activity", np.full(activities(3, 2), ACTIVITY_MAX + 1), "an activity of"),
        ("copying", Copying((5,), True, (0,) * 5), "witness"),
        ("copying", Copying((0,), True, (0, 0, 0, 0, 29)), "odds"),
        ("copying", Copying((0,), True, (0, 0, 0, 0, -1)), "odds"),
    ],
)
def test_what_a_model_may_not_say_is_refused(field: str, value: Any, words: str) -> None:
    packed = changed(field, value).pack()
    with pytest.raises(Malformed, match=words):
        Model.unpack(packed, 3)


def test_a_model_of_another_version_or_of_nothing_is_refused() -> None:
    packed = model(2).pack()
    with pytest.raises(Unsupported, match="version 2"):
        Model.unpack(b"\x02" + packed[1:], 2)
    with pytest.raises(Unsupported, match="version none"):
        Model.unpack(b"", 2)
    with pytest.raises(StreamError):
        Model.unpack(packed, 3)
    with pytest.raises(StreamError):
        Model.unpack(packed + b"\x00", 2)


# ----------------------------------------------------------------------- manifests


@pytest.mark.parametrize("resolutions", [("12", "11"), ("16", "11"), ("11", "16")])
def test_an_exact_grid_is_one_lattice(resolutions: tuple[str, str]) -> None:
    """A manifest may cut a grid into several lattices, or make its lattice larger than it; then it is none of these."""
    pixels = drawn(np.random.default_rng(0), (2, 40, 50))
    source = scenes.grids_source(pixels, pixels, placed=False)
    with encode_exact(source, 0, {}) as stream:
        manifest = stream.manifest
    replace, repeats = msgspec.structs.replace, tuple(Resolution(0, digits) for digits in resolutions)
    counts = [len(lattice.members) for lattice in lattices(manifest.scene, repeats)]
    codings = tuple(replace(manifest.codings[0], planes=count, planes_per_chunk=count) for count in counts)
    forged = replace(manifest, resolutions=repeats, codings=codings)
    forged = replace(forged, chunk_count=len(forged.layout()))
    with pytest.raises(Malformed, match="coded as it is stored"):
        forged.validate()
    with pytest.raises(StreamError):
        Manifest.unpack(forged.pack())


# ------------------------------------------------------------------------- tiles


def contexts(count: int, scale: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    return np.full(count, scale, np.uint8), np.zeros(count, np.int32)


def begins(*segments: tuple[list[int], int]) -> bytes:
    """A payload of group 0 that begins with these numbers and then ends."""
    coder = SymbolEncoder(exact_tables())
    for numbers, scale in segments:
        coder.add(np.array(numbers, np.int32), *contexts(len(numbers), scale))
    return coder.finish()


COUNT, VALUE, GAP, PATTERN, BEGINS = (
    exact._COUNT_SCALE,
    exact._VALUE_SCALE,
    exact._GAP_SCALE,
    exact._PATTERN_SCALE,
    exact._BEGINS_SCALE,
)


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ([([1, 0], COUNT)], "palettes of"),
        ([([-1, 0], COUNT)], "palettes of"),
        ([([exact.PALETTE_MAX + 1, 0], COUNT)], "palettes of"),
        ([([HUGE, HUGE], COUNT)], "palettes of"),
        ([([2, 0], COUNT), ([65535], VALUE), ([0], GAP)], "does not rise within"),
        ([([2, 0], COUNT), ([-1], VALUE), ([0], GAP)], "does not rise within"),
        ([([3, 0], COUNT), ([0], VALUE), ([5, -2], GAP)], "does not rise within"),
        ([([3, 0], COUNT), ([HUGE], VALUE), ([HUGE, HUGE], GAP)], "does not rise within"),
        ([([0, 0], COUNT), ([], VALUE), ([], GAP), ([2, 0], PATTERN)], "pattern 2, where 0 are known"),
        ([([0, 0], COUNT), ([], VALUE), ([], GAP), ([-1, 0], PATTERN)], "pattern -1"),
        ([([0, 0], COUNT), ([], VALUE), ([], GAP), ([1, 3], PATTERN)], "pattern 3, where 1 are known"),
        ([([0, 0], COUNT), ([], VALUE), ([], GAP), ([1, 0], PATTERN), ([2] + [0] * 125, BEGINS)], "begins a cell"),
        ([([0, 0], COUNT), ([], VALUE), ([], GAP), ([1, 0], PATTERN), ([HUGE] * 126, BEGINS)], "begins a cell"),
    ],
)
def test_layouts_that_cannot_be_are_refused(segments: list[tuple[list[int], int]], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        decode_tile(code(model(2)), (2, 64, 64), None, {(0, 0): begins(*segments)})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("max_error", [0, 10, 65535])
def test_errors_beyond_all_range_end_within_the_dtype(dtype: str, max_error: int) -> None:
    """Every error is the largest that a symbol can be, both ways: samples are clipped, nothing wraps around."""
    limit, random = np.iinfo(dtype), np.random.default_rng(0)
    for weight, activity in ((0, 0), (WEIGHT_MAX, ACTIVITY_MAX), (-WEIGHT_MAX, -ACTIVITY_MAX)):
        one = model(2, weight, activity, 2 if weight < 0 else EXPONENT_MAX)
        state = TileState(
            Predictor(one),
            (2, 64, 64),
            dtype,
            [Quantiser.of(dtype, None, max_error)] * 2,
            [None, Cells(np.arange(64) % 2 == 0, np.arange(64) % 3 == 0)],
            None,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for site in walk(state):
                expected = state.expect(site)
                assert expected.scale.min() >= 1
                assert expected.scale.max() <= FAMILIES * QUARTERS
                errors = random.choice(np.array([-HUGE, 0, HUGE], np.int32), len(expected.scale))
                state.settle(site, expected, errors)
                assert limit.min <= site.values.min()
                assert site.values.max() <= limit.max


def walk(state: TileState) -> Iterator[Any]:
    for level in range(LEVELS, -1, -1):
        for band in range(state.bands):
            yield from state.first_sites(band) if level == LEVELS else state.sites(band, level)


@pytest.mark.parametrize("exponent", [2, EXPONENT_MAX])
@pytest.mark.parametrize("sign", [1, -1, 0])
@pytest.mark.parametrize("max_error", [0, 1, 3, 4, 10])
def test_sums_are_those_of_whole_numbers(exponent: int, sign: int, max_error: int) -> None:
    """Predictions and activities at the largest weights and the widest samples, against Python's integers."""
    random = np.random.default_rng(exponent + sign)
    one = model(9, 1, 1, exponent)
    for rule in one.rules.values():
        for numbers, most in ((rule.weights, WEIGHT_MAX), (rule.activity, ACTIVITY_MAX)):
            numbers[...] = sign * most if sign else random.integers(-most, most, numbers.shape, endpoint=True)
    pixels = drawn(random, (9, 64, 64))
    pixels[random.random(pixels.shape) < 0.5] = 65535
    quantisers = [Quantiser.of("uint16", None, max_error)] * 9
    state = TileState(Predictor(one), (9, 64, 64), "uint16", quantisers, [None] * 9, None)
    checked = 0
    for site in walk(state):
        expected = state.expect(site)
        if site.phase != A and site.band in (0, 1, 8):
            total, spread = state._total(site)
            whole = whole_total(state, site)
            assert total.astype(object).tolist() == whole
            rule = one.rules[site.rule]
            low, high, step = 0, 65535, 2 * max_error + 1
            unit = 1 << rule.shift
            places = [min(max((value + unit // 2) // unit, low), high) for value in whole]
            assert expected.place.tolist() == places
            if step <= 8:
                rest = [
                    max(-step * unit, min(step * unit, value - place * unit))
                    for value, place in zip(whole, places, strict=True)
                ]
                eighths = [(16 * left + step * unit) // (2 * step * unit) for left in rest]
                assert expected.fraction.tolist() == [max(-4, min(4, value)) for value in eighths]
            else:
                assert not expected.fraction.any()
            terms = [8 * int(rule.activity[0])] * len(whole)
            for number in range(1, len(rule.activity)):
                seen = state.activity_term(site, number, spread).ravel().tolist()
                terms = [sum_ + int(rule.activity[number]) * int(term) for sum_, term in zip(terms, seen, strict=True)]
            assert state._activity(site, rule, spread).astype(object).tolist() == terms
            checked += len(whole)
        state.settle(site, expected, state.errors(site, expected, pixels[site.band][site.window()]))
    assert checked > 10000


def whole_total(state: TileState, site: Any) -> list[int]:
    """What docs/format.md says a prediction is, from the rule's own weights, in Python's integers."""
    from downlink.exact_lattice import NEAREST
    from downlink.exact_model import own_candidates, ring_candidates

    rule, band = state.predictor.model.rules[site.rule], site.band
    references = state.predictor.model.references[band]

    def at(plane: int, neighbour: Any) -> list[int]:
        return [int(value) for value in state.near(site, plane, neighbour).ravel()]

    def mean(plane: int) -> list[int]:
        return [sum(four) for four in zip(*(at(plane, n) for n in NEAREST[site.phase]), strict=True)]

    own = mean(band)
    level = site.rule[1]
    columns = [[4 * a - b for a, b in zip(at(band, n), own, strict=True)] for n in own_candidates(level, site.phase)]
    if references:
        ring = mean(references[0])
        columns += [
            [4 * a - b for a, b in zip(at(references[0], n), ring, strict=True)] for n in ring_candidates(site.phase)
        ]
    columns += [[int(value) for value in state.detail(site, near)] for near in references]
    total = [value << rule.exponent for value in own]
    for weight, column in zip(rule.weights.tolist(), columns, strict=True):
        total = [a + weight * b for a, b in zip(total, column, strict=True)]
    return total


@given(st.integers(0, 2**32 - 1), st.binary(max_size=300), st.integers(0, 2))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_payloads_are_pixels_or_refused(seed: int, payload: bytes, group: int) -> None:
    random = np.random.default_rng(seed)
    copying = Copying((0,), True, (3, 9, 14, 20, 25))
    one = code(model(2, int(random.integers(-99, 99)), 30, 6, copying), int(random.integers(0, 3)), "int16", -5)
    pixels = drawn(random, (2, 64, 64), "int16")
    pixels[pixels == -5] = -4
    chunks = encode_tile(one, pixels, None, none(2))
    chunks[group, 0] = payload
    with Hostile() as seen:
        found, unknown = decode_tile(one, (2, 64, 64), None, chunks)
    if seen.error is None:
        assert found.shape == (2, 64, 64)
        assert found.dtype == np.int16
        assert unknown == ()


def test_a_tile_of_many_bands_and_few_bytes_takes_bounded_memory() -> None:
    """Sizes follow from the geometry: a payload of some bytes that promises thousands of values gets no more."""
    bands = 16
    payload = begins(([exact.PALETTE_MAX] * bands, COUNT), ([0] * bands, VALUE), ([0] * (4095 * bands), GAP))
    with Hostile() as seen:
        decode_tile(code(model(bands)), (bands, 64, 64), None, {(0, 0): payload})
    assert seen.error is not None
    with Hostile() as seen:
        decode_tile(code(model(bands)), (bands, 64, 64), None, {(0, 0): b"\xb0\x00"})
    assert seen.error is None or isinstance(seen.error, Corrupt)


@pytest.mark.parametrize("cut", [0, 1, 7, -1])
def test_a_payload_that_is_cut_or_too_long_is_refused(cut: int) -> None:
    random = np.random.default_rng(3)
    one = code(model(2, 3, 30, 6))
    chunks = encode_tile(one, drawn(random, (2, 64, 64)), None, none(2))
    for key, payload in chunks.items():
        for spoilt in (payload[:cut], payload + b"\x00", payload + payload):
            with pytest.raises(StreamError):
                decode_tile(one, (2, 64, 64), None, {**chunks, key: spoilt})
