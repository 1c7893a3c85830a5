"""A payload gives back exactly the symbols, in few bytes, and no bytes at all can do harm."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.errors import Corrupt, StreamError
from downlink.symbol import SymbolEncoder, pack_bits
from downlink.symbol_decoder import SymbolDecoder, unpack_bits
from downlink.table import MAX_MEAN, MAX_VALUE, Tables

GOLDEN = sorted((Path(__file__).parent / "golden" / "v1").glob("symbols-*.json"))
LANES = [None, *(1 << k for k in range(11))]
Segment = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_tables(seed: int) -> Tables:
    """A few tables of any size, each of 1..6 scales with its own raw bits and routes."""
    random = np.random.default_rng(seed)
    pmfs = []
    for _ in range(int(random.integers(1, 6))):
        n = int(random.choice([2, 3, 9, 60, 256]))
        pmfs.append((int(random.integers(-n, 2)), random.random(n) ** random.choice([1, 8]) + 1e-3))
    scales = int(random.integers(2, 8))
    shift = random.choice([0, 0, 1, 5, 17], scales)
    return Tables.from_pmfs(pmfs, random.integers(0, len(pmfs), (scales, 8)), shift)


def random_segment(tables: Tables, n: int, seed: int) -> Segment:
    """Symbols near their means, far from them, at the ends of the range; certain ones as expected and others."""
    random = np.random.default_rng(seed)
    index = random.integers(0, tables.scales, n).astype(np.uint8)
    if random.random() < 0.3:
        index[:] = 0
    mean = random.integers(-100, 100, n).astype(np.int32)
    mean[random.random(n) < 0.02] = random.choice([-MAX_MEAN, MAX_MEAN])
    values = (mean >> 3) + random.integers(-8, 9, n).astype(np.int32) * (1 << random.integers(0, 8, n))
    values[random.random(n) < 0.02] = random.choice([-MAX_VALUE, MAX_VALUE])
    values = np.clip(values, -MAX_VALUE, MAX_VALUE).astype(np.int32)
    expected = (index == 0) & (random.random(n) < random.choice([0, 0.9, 1]))
    values[expected] = (mean[expected] + 4) >> 3
    return values, index, mean


def encode(tables: Tables, segments: list[Segment], lanes: int | None = None) -> bytes:
    encoder = SymbolEncoder(tables)
    for values, index, mean in segments:
        encoder.add(values, index, mean)
    return encoder.finish(lanes)


def decode(tables: Tables, payload: bytes, segments: list[Segment]) -> list[np.ndarray]:
    decoder = SymbolDecoder(tables, payload)
    values = [decoder.take(index, mean) for _, index, mean in segments]
    decoder.close()
    return values


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 30), st.sampled_from(LANES), st.lists(st.integers(0, 1500), max_size=4))
def test_every_symbol_comes_back(seed: int, lanes: int | None, sizes: list[int]) -> None:
    tables = random_tables(seed)
    segments = [random_segment(tables, n, seed + i) for i, n in enumerate(sizes)]
    for (values, _, _), found in zip(segments, decode(tables, encode(tables, segments, lanes), segments), strict=True):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, values)


def test_a_scale_without_raw_bits_above_one_with_them_takes_none() -> None:
    tables = Tables.from_pmfs([(0, np.ones(3))], np.zeros((4, 8)), np.array([0, 0, 5, 0]))
    segment = (np.ones(1, np.int32), np.full(1, 3, np.uint8), np.zeros(1, np.int32))
    np.testing.assert_array_equal(decode(tables, encode(tables, [segment]), [segment])[0], segment[0])


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables.parametric()


def test_certain_symbols_cost_no_byte(tables: Tables) -> None:
    mean = np.arange(-50, 50, dtype=np.int32)
    segment = ((mean + 4) >> 3, np.zeros(100, np.uint8), mean)
    empty = (mean[:0], np.zeros(0, np.uint8), mean[:0])
    for segments in ([], [empty], [segment], [segment, empty, segment]):
        assert encode(tables, segments) == b""
        for (values, _, _), found in zip(segments, decode(tables, b"", segments), strict=True):
            np.testing.assert_array_equal(found, values)


def test_an_exception_alone_costs_a_few_bytes(tables: Tables) -> None:
    mean = np.zeros(1000, np.int32)
    values = mean.copy()
    values[77] = -1
    segments = [(values, np.zeros(1000, np.uint8), mean)]
    payload = encode(tables, segments)
    assert len(payload) == 4
    np.testing.assert_array_equal(decode(tables, payload, segments)[0], values)


def test_a_payload_without_exceptions_or_escapes_has_one_lane_and_no_side(tables: Tables) -> None:
    """Head and lane of a small chunk: 4 or 5 bytes of which one is content."""
    random = np.random.default_rng(0)
    index = np.full(400, 8, np.uint8)
    mean = np.zeros(400, np.int32)
    values = (random.random(400) < 0.06).astype(np.int32)
    payload = encode(tables, [(values, index, mean)])
    assert payload[0] >> 4 == 0
    assert len(payload) <= tables.cost_bits(values, index, mean) / 8 + 5


@pytest.mark.parametrize(("lanes", "bound"), [(None, 0.008), (256, 0.005), (1024, 0.008)])
def test_a_million_symbols_cost_their_cross_entropy_within(tables: Tables, lanes: int | None, bound: float) -> None:
    random = np.random.default_rng(1)
    index = random.integers(1, 40, 1_000_000).astype(np.uint8)
    mean = random.integers(-400, 400, 1_000_000).astype(np.int32)
    u = random.random(1_000_000)
    sigma = 0.11 * 2 ** ((index - 1.0) / 4)
    values = np.rint(mean / 8 + sigma * np.sqrt(3) / np.pi * np.log(u / (1 - u))).astype(np.int32)
    payload = encode(tables, [(values, index, mean)], lanes)
    assert 8 * len(payload) <= tables.cost_bits(values, index, mean) * (1 + bound)


def near(tables: Tables, n: int, highest: int) -> list[Segment]:
    """Segments without exceptions and escapes, so that all bytes are head, words and raw bits."""
    random = np.random.default_rng(3)
    segments = []
    for count in (n, 0, n // 3):
        index = random.integers(0, highest, count).astype(np.uint8)
        mean = random.integers(-50, 50, count).astype(np.int32)
        segments.append(((mean + 4) >> 3, index, mean))
    return segments


@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_a_missing_or_added_byte_anywhere_is_refused(tables: Tables, lanes: int) -> None:
    segments = near(tables, 200, 60)
    payload = encode(tables, segments, lanes)
    for i in range(len(payload)):
        for changed in (payload[:i], payload[:i] + payload[i + 1 :], payload[:i] + b"\x55" + payload[i:]):
            with pytest.raises(StreamError):
                decode(tables, changed, segments)


def test_nearly_every_single_bit_flip_is_refused_where_the_coder_can_see_it(tables: Tables) -> None:
    """Without raw bits, escapes and exceptions every byte is the coder's. Measured, not promised."""
    segments = near(tables, 700, 14)
    flips = missed = 0
    for lanes in (1, 4, 16):
        payload = encode(tables, segments, lanes)
        for bit in range(8 * len(payload)):
            changed = bytearray(payload)
            changed[bit >> 3] ^= 1 << (bit & 7)
            flips += 1
            try:
                decode(tables, bytes(changed), segments)
            except StreamError:
                continue
            missed += 1
    assert flips > 1000
    assert missed * 200 < flips, f"{missed} of {flips} flips went unnoticed"


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 1 << 30), st.data())
def test_damage_and_garbage_raise_typed_errors_only(seed: int, data: st.DataObject) -> None:
    tables = random_tables(seed)
    segments = [random_segment(tables, 80, seed), random_segment(tables, 300, seed + 1)]
    payload = bytearray(encode(tables, segments, data.draw(st.sampled_from(LANES))))
    if data.draw(st.booleans()) or not payload:
        payload = bytearray(data.draw(st.binary(max_size=400)))
    for _ in range(data.draw(st.integers(0, 3)) if payload else 0):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(tables, bytes(payload), segments)
    except StreamError:
        return
    assert all(np.abs(values).max() <= MAX_VALUE for values in found)


@pytest.mark.parametrize(
    ("head", "side", "message"),
    [
        (b"\xc0", b"", "lane code 12"),
        (b"\xa0", b"", "1024 lanes"),
        (b"\x00\x00", b"", "1 lanes need 4 bytes, the payload has 2"),
        (b"\x00\x00\x00\x01", b"", "padding after the lanes"),
        (b"\x00\x00\x00\x00", b"", "do not end where"),
        (b"\xb0", b"", "says nothing"),
        (b"\xb8", b"", "ends before"),
        (b"\xb8", b"\x00", "promises exceptions"),
        (b"\xb8", b"\x05", "5 exceptions among 4"),
        (b"\xb8", b"\x01\x04\x00", "rank 4"),
        (b"\xb8", b"\x01\x00\xff\xff\xff\x7f", "is the limit"),
        (b"\xb8", b"\x81\x00", "longer than it needs"),
        (b"\xb8", b"\x80\x80\x80\x80\x00", "longer than 4"),
        (b"\xb8", b"\x80", "ends before"),
        (b"\xb8", b"\x01\x00\x00\x00", "take 4 bytes, the payload has 5"),
    ],
)
def test_payloads_that_cannot_be_are_refused_with_the_reason(
    tables: Tables, head: bytes, side: bytes, message: str
) -> None:
    """Read for four certain symbols."""
    segments = [(np.zeros(4, np.int32), np.zeros(4, np.uint8), np.zeros(4, np.int32))]
    with pytest.raises(Corrupt, match=message):
        decode(tables, head + side[::-1], segments)


def test_coded_symbols_without_lanes_are_refused(tables: Tables) -> None:
    with pytest.raises(Corrupt, match="no lanes"):
        SymbolDecoder(tables, b"").take(np.ones(3, np.uint8), np.zeros(3, np.int32))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 32).flatmap(lambda w: st.tuples(st.integers(0, (1 << w) - 1), st.just(w))), max_size=60))
def test_bits_come_back(pairs: list[tuple[int, int]]) -> None:
    numbers, widths = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    packed = pack_bits(numbers, widths)
    assert len(packed) == -(-int(widths.sum()) // 8)
    found = unpack_bits(np.frombuffer(packed, np.uint8), np.cumsum(widths) - widths, widths)
    np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_payloads_still_decode_and_are_still_made(path: Path) -> None:
    """Any change of a payload's bytes is a breaking change: add a version, never edit these files."""
    case = json.loads(path.read_text())
    tables = Tables.unpack(bytes.fromhex(case["tables"]))
    types = {"values": np.int32, "index": np.uint8, "mean": np.int32}
    segments = [tuple(np.array(segment[k], types[k]) for k in types) for segment in case["segments"]]
    payload = bytes.fromhex(case["payload"])
    for (values, _, _), found in zip(segments, decode(tables, payload, segments), strict=True):
        np.testing.assert_array_equal(found, values)
    assert encode(tables, segments, case["lanes"]) == payload


def test_there_are_golden_payloads() -> None:
    assert len(GOLDEN) >= 4


class PlainReader:
    """docs/format.md, word for word, without numpy and without any of our code: the document is enough to decode."""

    def __init__(self, tables: bytes, payload: bytes) -> None:
        scales, count = int.from_bytes(tables[4:6], "little"), int.from_bytes(tables[6:8], "little")
        self.shift = [0, *tables[8 : 7 + scales]]
        ids = [
            int.from_bytes(tables[i : i + 2], "little") for i in range(7 + scales, 7 + scales + 16 * (scales - 1), 2)
        ]
        self.route = [[], *(ids[i : i + 8] for i in range(0, len(ids), 8))]
        self.side, self.at = tables, 7 + scales + 16 * (scales - 1)
        self.tables = []
        for _ in range(count):
            n = self.byte()
            low = self.unzigzag(self.varint())
            frequencies = [self.varint() for _ in range(n)]
            self.tables.append((low, [*frequencies, 2**14 - sum(frequencies)]))
        self.payload, self.side, self.at = payload, payload[::-1], 0
        bits = "".join(f"{byte:08b}" for byte in payload)
        lanes = 1 << int(bits[:4], 2) if bits and int(bits[:4], 2) < 11 else 0
        self.exceptions = bits[4:5] == "1"
        extras = [int(bits[5 + 4 * i : 9 + 4 * i], 2) for i in range(lanes)]
        position = 5 + 4 * lanes if bits else 0
        self.states = []
        for e in extras:
            self.states.append((1 << 16 + e) + int(bits[position : position + 16 + e], 2))
            position += 16 + e
        self.head = (position + 7) // 8

    def byte(self) -> int:
        self.at += 1
        return self.side[self.at - 1]

    def varint(self) -> int:
        byte = self.byte()
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    @staticmethod
    def unzigzag(number: int) -> int:
        return -(number + 1) // 2 if number % 2 else number // 2

    def segment(self, index: list[int], mean: list[int]) -> list[int]:
        values = [m + 4 >> 3 for m in mean]
        certain = [i for i, scale in enumerate(index) if scale == 0]
        if self.exceptions and certain:
            rank = -1
            for _ in range(self.varint()):
                rank += 1 + self.varint()
                values[certain[rank]] += self.unzigzag(self.varint() + 1)
        coded = [i for i, scale in enumerate(index) if scale]
        k, escaped = {}, []
        for number, i in enumerate(coded):
            lane = number % len(self.states)
            low, frequencies = self.tables[self.route[index[i]][mean[i] & 7]]
            x = self.states[lane]
            slot, entry, start = x & 0x3FFF, 0, 0
            while slot >= start + frequencies[entry]:
                start += frequencies[entry]
                entry += 1
            x = frequencies[entry] * (x >> 14) + slot - start
            if x < 1 << 16:
                x = x << 16 | int.from_bytes(self.payload[self.head : self.head + 2], "little")
                self.head += 2
            self.states[lane] = x
            k[i] = low + entry
            if entry == len(frequencies) - 1:
                escaped.append(i)
        for i in escaped:
            over = self.varint()
            low, frequencies = self.tables[self.route[index[i]][mean[i] & 7]]
            k[i] = low + (-1 - over // 2 if over % 2 else len(frequencies) - 1 + over // 2)
        width = sum(self.shift[index[i]] for i in coded)
        bits = "".join(f"{self.byte():08b}" for _ in range((width + 7) // 8))
        for i in coded:
            shift = self.shift[index[i]]
            values[i] = (mean[i] >> 3) + (k[i] << shift) + int("0" + bits[:shift], 2)
            bits = bits[shift:]
        return values


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_written_format_is_enough_to_decode(path: Path) -> None:
    case = json.loads(path.read_text())
    reader = PlainReader(bytes.fromhex(case["tables"]), bytes.fromhex(case["payload"]))
    for segment in case["segments"]:
        assert reader.segment(segment["index"], segment["mean"]) == segment["values"]
    assert reader.head + reader.at == len(reader.payload)
    assert all(state == 1 << 16 for state in reader.states)
