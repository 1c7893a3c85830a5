import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downlink.accelerator import SWITCH
from downlink.checksum import crc32c


def by_definition(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.fixture(params=["1", "0"], ids=["native", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What computes it, where there is a choice."""
    monkeypatch.setenv(SWITCH, request.param)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of the polynomial's catalogue entry
        (bytes(32), 0x8A9136AA),  # these four: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 1024, 4095, 4096, 4097, 16385, 70_001])
def test_is_the_definition_at_every_seam(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == by_definition(data)


@pytest.mark.usefixtures("either")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=600), st.integers(0, 600))
def test_continues_from_what_came_before(data: bytes, cut: int) -> None:
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data) == by_definition(data)


@pytest.mark.usefixtures("either")
def test_long_input_is_worked_off_in_pieces() -> None:
    data = np.random.default_rng(0).bytes(3 * 256 * 1024 + 5)
    assert crc32c(data) == crc32c(data[300_000:], crc32c(data[:300_000]))


@pytest.mark.usefixtures("either")
def test_takes_views_of_any_item_size() -> None:
    array = np.arange(500, dtype="<u4")
    assert crc32c(memoryview(array)) == crc32c(array.tobytes())


@pytest.mark.usefixtures("either")
def test_sees_every_single_bit_flip() -> None:
    data = bytearray(np.random.default_rng(1).bytes(300))
    crc = crc32c(bytes(data))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert crc32c(bytes(data)) != crc
        data[bit // 8] ^= 1 << bit % 8


def test_is_not_the_polynomial_of_zlib() -> None:
    assert crc32c(b"123456789") != zlib.crc32(b"123456789")


def test_a_full_chunk_takes_milliseconds() -> None:
    data = np.random.default_rng(2).bytes(256 * 1024)
    crc32c(data)
    best = min(_seconds(data) for _ in range(10))
    assert best < 0.02, f"{best:.4f} s for 256 KiB"  # 0.7 ms on an idle core; the bound leaves room for a busy one


def _seconds(data: bytes) -> float:
    start = time.perf_counter()
    crc32c(data)
    return time.perf_counter() - start
