"""The spectral front end: what is quantised and sent is what both ends use, so the inverse undoes the transform."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink import dct, limits
from downlink.dct import FLAT
from downlink.errors import Malformed
from downlink.moments import Moments, Statistics
from downlink.plane import (
    GAIN_MAX,
    PARTITIONS,
    FrontEnd,
    importance_code,
    importance_of,
    unpack_front_end,
)
from downlink.symbol import pack_bits

SHARES = np.concatenate([np.full(end - start, share) for start, end, share in zip(
    (0, *dct.SUBBANDS), dct.SUBBANDS, (8.0, 2.0, 0.5, 0.1), strict=False)])  # fmt: skip
"""About how loud channels of pictures are, relative to each other."""


def coefficients(bands: int, half: int = 0, blocks: int = 600, seed: int = 0) -> np.ndarray:
    """(bands, 64, blocks) of correlated bands around 2000 DN, the last `half` of them of half resolution; what they
    have in common changes with the frequency."""
    random = np.random.default_rng(seed)
    sources = random.normal(size=(bands, 64, blocks)) * np.geomspace(300, 1, bands)[:, None, None]
    mixes = [random.normal(size=(bands, bands))] * 2 + [random.normal(size=(bands, bands)) for _ in range(2)]
    values = np.empty((bands, 64, blocks))
    for number, mix in enumerate(mixes):
        at = dct.subband(number)
        values[:, at] = np.tensordot(mix, sources[:, at], axes=1)
    values *= SHARES[None, :, None]
    values[:, 0] += FLAT * 2000
    values[bands - half :, dct.HALF_CHANNELS :] = 0
    return values.astype(np.float32)


def plain_of(values: np.ndarray, half: int = 0, pieces: int = 5, centre: float = 1990.0) -> Statistics:
    bands = len(values)
    moments = Moments(np.arange(bands) >= bands - half, np.full(bands, centre))
    for part in np.array_split(np.arange(values.shape[2]), pieces):
        moments.add(values[:, :, part])
    return moments.statistics()


def statistics_of(
    values: np.ndarray, half: int = 0, native: np.ndarray | None = None, importance: np.ndarray | None = None
) -> Statistics:
    native = np.ones(len(values), np.float32) if native is None else native
    return plain_of(values, half).weighted(native, importance)


def front_end(bands: int, half: int, step: float, blocks: int = 5000) -> FrontEnd:
    return statistics_of(coefficients(bands, half), half).front_end(step, blocks)


def again(front: FrontEnd, packed: bytes | None = None) -> FrontEnd:
    return unpack_front_end(front.pack() if packed is None else packed, front.half, front.native, front.planes, 3)


def check_same(one: FrontEnd, two: FrontEnd) -> None:
    assert (one.partition, one.limits) == (two.partition, two.limits)
    assert (one.importance is None) == (two.importance is None)
    for name in ("mean", "half", "native", "weights", "levels", "turn"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a == b).all(), name
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a.dtype == b.dtype == np.int16
        assert a.shape == b.shape
        assert (a == b).all()


@pytest.mark.parametrize(
    ("bands", "half", "partition"),
    [(bands, half, number) for bands, half in ((1, 0), (3, 0), (12, 0), (12, 6), (40, 0))
     for number in range(1 if half else 0, len(PARTITIONS))],
)  # fmt: skip
def test_the_inverse_undoes_the_forward_transform_when_every_plane_is_kept(bands: int, half: int, partition: int):
    values, step = coefficients(bands, half), 0.002
    front, cut = statistics_of(values, half)._partitioned(partition, step)
    assert not cut
    assert [len(rows) for rows in front.rows] == [bands, bands, bands, bands - half]
    assert (front.partition, front.planes) == (partition, bands)
    tile = values.reshape(bands, 64, 20, 30)
    planes = front.forward(tile, step)
    assert planes.shape == (bands, 64, 20, 30)
    back = front.inverse(planes, step)
    assert np.abs(back - tile).max() < 2e-4 * np.abs(tile).max()
    assert not back[bands - half :, dct.HALF_CHANNELS :].any()


def test_planes_are_decorrelated_and_fall_in_variance_within_each_subband():
    values = coefficients(12)
    front, _ = statistics_of(values)._partitioned(3, 1.0)
    planes = front.forward(values.reshape(12, 64, 20, 30), 1.0)
    for number in range(4):
        flat = planes[:8, dct.subband(number)].reshape(8, -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        power = flat @ flat.T / flat.shape[1]
        assert (np.diff(np.diag(power)) < 0).all()
        scale = np.sqrt(np.diag(power))
        assert np.abs(power / np.outer(scale, scale) - np.eye(8)).max() < 0.15


def test_levels_state_how_loud_each_subband_of_each_plane_is():
    values = coefficients(6)
    front = front_end(6, 0, 5.0)
    planes = front.forward(values.reshape(6, 64, 20, 30), 5.0)
    for number, rows in enumerate(front.rows):
        part = planes[: len(rows), dct.subband(number)]
        deviation = part.reshape(len(rows), -1).std(axis=1)
        assert np.abs(4 * np.log2(deviation) + 32 - front.levels[: len(rows), number]).max() < 1.0
        assert not front.levels[len(rows) :, number].any()


def test_dropped_planes_leave_about_the_error_that_is_stated():
    for half in (0, 5):
        values = coefficients(12, half)
        statistics = statistics_of(values, half)
        front = statistics.front_end(6000.0, 5000)
        assert 1 <= front.planes < 12
        tile = values.reshape(12, 64, 20, 30)
        back = front.inverse(front.forward(tile, 6000.0), 6000.0)
        error = float(np.square(back - tile, dtype=np.float64).sum()) / (12 * 64 * 600)
        assert error == pytest.approx(statistics.dropped_variance(front), rel=0.02)


def test_weights_make_an_error_count_as_often_as_it_is_seen():
    """A plane of one band: its coefficients times its weight, in steps."""
    values = coefficients(1)
    front = statistics_of(values, 0, np.array([6.0], np.float32)).front_end(2.0, 5000)
    tile = values.reshape(1, 64, 20, 30)
    planes = front.forward(tile, 2.0)
    centred = tile.copy()
    centred[:, 0] -= FLAT * front.mean[0]
    assert np.abs(np.abs(planes) - np.abs(centred) * 3).max() < 1e-3 * np.abs(planes).max()
    assert np.abs(front.inverse(planes, 2.0) - tile).max() < 1e-4 * np.abs(tile).max()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
def test_weights_are_sent_as_octaves(weights: list[float]):
    code = importance_code(np.array(weights, np.float32))
    assert code.dtype == np.uint16
    for sent, found, weight in zip(code.tolist(), importance_of(code), weights, strict=True):
        assert sent == round(1024 * math.log2(np.float32(weight))) + 32768
        assert found == pytest.approx(weight, rel=4e-4)


def test_weights_out_of_range_are_the_least_and_the_largest():
    code = importance_code(np.array([0, 1e-30, 1, 1e30], np.float32))
    assert code.tolist() == [1024, 1024, 32768, 65535]
    assert (importance_code(importance_of(code)) == code).all()


def test_a_band_that_counts_more_is_coded_more_exactly():
    """Errors of the bands fall as their weights rise; weights are in the side chunk."""
    values, step = coefficients(4), 8.0
    importance = np.array([4, 1, 1, 0.25], np.float32)
    tile = values.reshape(4, 64, 20, 30)
    errors = []
    for given_weights in (None, importance):
        front = statistics_of(values, 0, None, given_weights).front_end(step, 5000)
        read = again(front)
        check_same(front, read)
        back = read.inverse(np.rint(front.forward(tile, step)), step)
        errors.append(np.sqrt(np.square(back - tile).mean(axis=(1, 2, 3))))
    assert errors[1][0] < 0.5 * errors[0][0]
    assert errors[1][3] > 2 * errors[0][3]


def test_weights_of_one_are_not_sent():
    front = statistics_of(coefficients(4), 0, None, np.ones(4, np.float32)).front_end(5.0, 5000)
    assert front.importance is None
    assert front.pack()[1] == 0


@pytest.mark.parametrize(("bands", "half"), [(1, 0), (2, 1), (13, 7), (250, 0), (250, 100)])
@pytest.mark.parametrize("step", [0.05, 8.0, 900.0])
def test_the_side_chunk_comes_back_as_it_was(bands: int, half: int, step: float):
    values = coefficients(bands, half, blocks=60)
    front = statistics_of(values, half).front_end(step, 1000)
    check_same(front, again(front))
    assert len(front.pack()) <= limits.CHUNK_BYTES_MAX


@given(
    bands=st.integers(1, 12),
    half=st.integers(0, 11),
    step=st.floats(0.01, 20000),
    blocks=st.integers(1, 20000),
    mean=st.integers(-32768, 65535),
)
@settings(max_examples=40, deadline=None)
def test_any_side_chunk_comes_back_as_it_was(bands: int, half: int, step: float, blocks: int, mean: int):
    half = min(half, bands - 1)
    statistics = statistics_of(coefficients(bands, half, blocks=40), half)
    front = dataclasses.replace(statistics, mean=statistics.mean - 2000 + mean).front_end(step, blocks)
    check_same(front, again(front))


def test_the_side_chunk_never_changes():
    """Old streams depend on every bit: two bands, the second of half resolution, two planes and one, one and none."""
    rows = tuple(
        np.array(r, np.int16).reshape(-1, n) for r, n in (([90, 90, -90, 90], 2), ([127, 3], 2), ([31, 0], 2), ([], 1))
    )
    levels = np.array([[60, 40, 33, 0], [35, 0, 0, 0]], np.uint8)
    mean, half = np.array([1000, -3], np.int32), np.array([False, True])
    front = FrontEnd(mean, half, np.ones(2, np.float32), None, 3, rows, (127, 127, 31, 15), levels)
    packed = front.pack()
    assert packed[:9].hex(" ") == "02 00 03 0b 07 08 08 06 05"
    numbers = [2, 1, 1, 0, 1000 + 1024, -3 + 1024, 60, 35, 40, 33]
    numbers += [90 + 127, 90 + 127, -90 + 127, 90 + 127, 254, 130, 62, 31]
    widths = [10] * 4 + [11] * 2 + [7] * 4 + [8] * 6 + [6] * 2
    bits = "".join(f"{number:0{width}b}" for number, width in zip(numbers, widths, strict=True))
    assert packed[9:] == int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    check_same(front, again(front))
    weighed = dataclasses.replace(front, importance=np.array([32768, 34816], np.uint16))
    numbers[6:6], widths[6:6] = [32768, 34816], [16, 16]
    bits = "".join(f"{number:0{width}b}" for number, width in zip(numbers, widths, strict=True))
    assert weighed.pack()[:2].hex() == "0201"
    assert weighed.pack()[9:] == int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert again(weighed).weights.tolist() == [1, 4]
    assert front.turn.tolist() == [
        [round(64 * (90 * 127 + 90 * 3) / 127**2), round(64 * (-90 * 127 + 90 * 3) / 127**2)]
    ]


def test_every_prefix_and_every_addition_of_a_side_chunk_is_refused():
    front = front_end(5, 2, 3.0)
    packed = front.pack()
    for end in range(len(packed)):
        with pytest.raises(Malformed, match="side chunk"):
            again(front, packed[:end])
    with pytest.raises(Malformed, match="end after"):
        again(front, packed + b"\0")


@pytest.mark.parametrize(("bands", "half", "step", "partition"), [(3, 0, 1000.0, 0), (3, 0, 20.0, 2), (5, 2, 2.0, 3)])
def test_every_damaged_byte_is_refused_or_is_another_side_chunk(bands: int, half: int, step: float, partition: int):
    front = statistics_of(coefficients(bands, half), half)._partitioned(partition, step)[0]
    packed, refused = front.pack(), 0
    tile = coefficients(bands, half, blocks=4).reshape(bands, 64, 2, 2)
    for at in range(len(packed)):
        for change in (0x01, 0x10, 0x80, 0xFF, packed[at]):
            spoilt = bytearray(packed)
            spoilt[at] ^= change
            try:
                found = again(front, bytes(spoilt))
            except Malformed:
                refused += 1
                continue
            assert found.levels.shape == front.levels.shape
            assert found.levels.max() <= 127
            for number, rows in enumerate(found.rows):
                assert rows.shape[1] == len(found.members(number)) or not rows.size
                assert (np.abs(rows.astype(int)) <= found.limits[number]).all()
                assert (found.levels[: len(rows), number] > 0).all()
            assert np.isfinite(found.inverse(found.forward(tile, 20.0), 20.0)).all()
    assert refused > 40


def test_what_the_head_states_must_be_possible():
    front = front_end(5, 0, 3.0, 10**6)
    packed = bytearray(front.pack())
    assert packed[2] == 3
    cases = {
        0: (0, 1, 3, 255), 1: (4, 128, 255), 2: (4, 255), 3: (0, 33, 255), 4: (0, 6, 8), 5: (0, 4, 17),
        8: (0, 4, 17, 255),
    }  # fmt: skip
    for at, values in cases.items():
        for value in values:
            spoilt = bytes([*packed[:at], value, *packed[at + 1 :]])
            with pytest.raises(Malformed, match="version" if at < 2 else "bits"):
                again(front, spoilt)


def test_counts_that_disagree_with_the_manifest_are_refused():
    front = front_end(5, 2, 3.0)
    for half, planes in ((np.zeros(4, bool), front.planes), (front.half, front.planes + 1), (front.half, 1)):
        with pytest.raises(Malformed, match="the manifest says"):
            unpack_front_end(front.pack(), half, np.ones(len(half), np.float32), planes, 3)
    few = dataclasses.replace(front, half=np.arange(5) >= 4)
    with pytest.raises(Malformed, match=r"the manifest says|need more|numbers end"):
        unpack_front_end(front.pack(), few.half, few.native, front.planes, 3)


def side(numbers: list[tuple[int, int]], partition: int = 0, row_bits: tuple[int, ...] = (8, 8, 8, 8)) -> bytes:
    """A side chunk of one band with means of 11 bits."""
    values, widths = zip(*numbers, strict=True)
    return bytes([2, 0, partition, 11, 7, *row_bits]) + pack_bits(np.array(values), np.array(widths))


ONE = [(1, 10), (1, 10), (1, 10), (1, 10), (1024, 11), (32, 7), (32, 7), (32, 7), (32, 7)]


def one_band(packed: bytes) -> FrontEnd:
    return unpack_front_end(packed, np.array([False]), np.ones(1, np.float32), 1, 1)


def test_one_band_spelt_out_is_read():
    front = one_band(side([*ONE, (254, 8)]))
    assert [rows.tolist() for rows in front.rows] == [[[127]]] * 4
    assert front.mean.tolist() == [0]
    assert front.levels.tolist() == [[32, 32, 32, 32]]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (side([*ONE[:5], (0, 7), *ONE[6:], (254, 8)]), "level 0, but it is sent"),
        (side([*ONE[:8], (0, 7), (254, 8)]), "level 0, but it is sent"),
        (side([*ONE, (255, 8)]), "beyond its unit"),
        (side([*ONE, (254, 8), (1, 1)]), "numbers end after"),
        (side([*ONE, (254, 8)], row_bits=(8, 8, 8, 9)), "share a basis but not its bits"),
        (side([(2, 10), *ONE[1:5], (32, 7), *ONE[5:], (254, 8), (0, 8)]), "the manifest says 1"),
        (side([(0, 10)] * 4 + [(1024, 11)]), "the manifest says 1"),
    ],
)
def test_a_side_chunk_that_cannot_be_is_refused(packed: bytes, message: str):
    with pytest.raises(Malformed, match=message):
        one_band(packed)


def test_one_basis_for_all_subbands_needs_all_bands_at_full_resolution():
    front = front_end(3, 0, 1000.0, 1)
    assert front.partition == 0
    with pytest.raises(Malformed, match="no high subband"):
        unpack_front_end(front.pack(), np.array([False, False, True]), front.native, front.planes, 3)


def test_a_small_scene_shares_one_basis_and_a_large_one_has_one_for_each_subband():
    statistics = statistics_of(coefficients(10))
    assert statistics.front_end(1000.0, 20).partition == 0
    assert statistics.front_end(1000.0, 10**6).partition == 3
    with_half = statistics_of(coefficients(10, 4), 4)
    assert with_half.front_end(1000.0, 20).partition == 1
    assert with_half.front_end(1000.0, 10**6).partition == 3


def test_five_hundred_and_twelve_bands_stay_within_a_chunk():
    random = np.random.default_rng(0)
    covariances = np.stack(
        [
            (mix * np.geomspace(1e4, 1, 512)) @ mix.T * 10.0**-number
            for number, mix in enumerate(random.normal(size=(4, 512, 512)))
        ]
    )
    mean, ones = random.uniform(-3e4, 6e4, 512), np.ones(512, np.float32)
    statistics = Statistics(mean, np.zeros(512, bool), covariances).weighted(ones, 2 * ones)
    for step, blocks in ((0.001, 10**7), (50.0, 10**4)):
        front = statistics.front_end(step, blocks)
        assert 1 <= front.planes < 512
        assert max(rows.size for rows in front.rows) <= limits.SIDE_VALUES_MAX
        assert len(front.pack()) <= limits.CHUNK_BYTES_MAX
        check_same(front, again(front))


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_moments_do_not_depend_on_the_pieces_they_came_in(pieces: int):
    values = coefficients(5, 2)
    found = plain_of(values, 2, pieces)
    assert np.allclose(found.mean, values[:, 0].mean(axis=1) / FLAT, rtol=1e-5)
    for number in range(4):
        flat = values[:, dct.subband(number)].astype(np.float64)
        if number == 0:
            flat -= flat.mean(axis=(1, 2), keepdims=True)
        spelt = np.einsum("bcn,dcn->bd", flat, flat) / flat.shape[2]
        assert np.allclose(found.covariances[number], spelt, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(spelt).max()))


def test_no_sample_at_all_gives_zeros():
    found = plain_of(np.empty((3, 64, 0), np.float32))
    assert not found.covariances.any()
    assert (found.mean == 1990).all()


def test_gains_of_tiles_come_back_and_lower_the_levels():
    plain = front_end(4, 1, 20.0)
    gains = np.array([0, 5, GAIN_MAX], np.uint8)
    front = dataclasses.replace(plain, gains=gains)
    back = unpack_front_end(front.pack(), front.half, front.native, front.planes, 3)
    assert back.gains is not None
    assert back.gains.tolist() == gains.tolist()
    check_same(dataclasses.replace(back, gains=None), plain)
    assert [back.gain(tile) for tile in range(3)] == [0, 5, GAIN_MAX]
    assert plain.gain(7) == 0
    assert (front.levels_at(0) == front.levels).all()
    sent = front.levels > 0
    for gain in (1, 5, GAIN_MAX):
        assert (front.levels_at(gain)[sent] == np.maximum(1, front.levels[sent].astype(int) - gain)).all()
        assert not front.levels_at(gain)[~sent].any()
    for tiles in (2, 4, 12):  # the bytes are those of three tiles
        with pytest.raises(Malformed, match="its numbers"):
            unpack_front_end(front.pack(), front.half, front.native, front.planes, tiles)


@pytest.mark.parametrize("bands", [1, 4])
def test_a_constant_scene_is_one_plane_at_the_mean(bands: int):
    values = np.zeros((bands, 64, 50), np.float32)
    values[:, 0] = FLAT * 1234
    front = statistics_of(values).front_end(100.0, 50)
    assert front.levels.shape == (1, 4)
    assert not front.levels[:, 1:].any()
    planes = front.forward(values.reshape(bands, 64, 5, 10), 100.0)
    assert np.abs(planes).max() < 0.01
    assert (front.inverse(np.zeros_like(planes), 100.0)[:, 0] == np.float32(FLAT * 1234)).all()
    check_same(front, again(front))
