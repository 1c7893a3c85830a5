"""Grids and lattices: every pixel shows exactly one native sample, and resolutions that cannot be are refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.errors import Malformed
from downlink.lattice import Lattice, Resolution, coded_scene, join, lattices, native_index, resolution_of, sample_index
from downlink.repeat import ONCE, Repeat
from downlink.scene import Band, Grid, Scene


def grid(bands: int, height: int, width: int, dtype: str = "uint16", **more: object) -> Grid:
    return Grid(height, width, dtype, tuple(Band(f"B{i}") for i in range(bands)), **more)  # type: ignore[arg-type]


def product(height: int = 5, width: int = 7, **more: object) -> Scene:
    """Sentinel-2's three grids: 4, 6 and 3 bands of 10, 20 and 60 m."""
    sizes = [(4, 1), (6, 2), (3, 6)]
    return Scene(
        "product",
        tuple(
            grid(
                bands, 6 * height // unit, 6 * width // unit,
                transform=(10.0 * unit, 0.0, 300000.0, 0.0, -10.0 * unit, 6e6), **more,
            )
            for bands, unit in sizes
        ),
    )  # fmt: skip


def check_cover(scene: Scene, resolutions: tuple[Resolution, ...]) -> tuple[Lattice, ...]:
    """Every band lies on exactly one lattice; each of its pixels shows exactly one native sample; those of one
    sample lie together; and the pixel that a sample is read from shows it."""
    found = lattices(scene, resolutions)
    assert len(found) <= 2 * len(scene.grids)  # limits.LATTICES_MAX
    places = Counter((member.grid, member.band) for lattice in found for member in lattice.members)
    assert places == {(n, band): 1 for n, one in enumerate(scene.grids) for band in range(len(one.bands))}
    for lattice in found:
        assert lattice.grid.bands == tuple(scene.grids[m.grid].bands[m.band] for m in lattice.members)
        assert not lattice.half.all()
        for member in lattice.members:
            own = scene.grids[member.grid]
            for extent, size, rows in ((own.height, lattice.height, True), (own.width, lattice.width, False)):
                shown = sample_index(lattice, member, 0, extent, rows)
                first = int(shown[0])  # a half block of a coarser band before the grid leaves a sample that none shows
                assert first == 0 or (first == member.factor == 1 and lattice.half.any())
                assert set(np.diff(shown)) <= {0, 1}
                samples = int(shown[-1]) + 1
                assert samples == -(-size // member.factor)
                read = native_index(lattice, member, 0, samples, rows)
                assert (shown[read] == np.arange(samples).clip(first)).all()
                each = lattice.unit * member.factor // member.pixel
                assert (np.bincount(shown)[first + 1 : -1] == each).all()
                assert np.bincount(shown).max() <= each
                part = sample_index(lattice, member, extent // 2, extent - extent // 2, rows)
                assert (part == shown[extent // 2 :]).all()
    return found


def test_a_scene_of_which_nothing_is_stated_is_its_own_lattices():
    scene = Scene("two", (grid(3, 40, 50, nodata=0), grid(2, 10, 9, "uint8")))
    found = check_cover(scene, ())
    assert found == lattices(scene, (Resolution(), Resolution()))
    assert [(one.unit, one.row, one.col, one.grid) for one in found] == [(1, 0, 0, g) for g in scene.grids]
    assert coded_scene(scene, ()).grids == scene.grids
    assert all((one.weights == 1).all() for one in found)


def test_joined_grids_of_ten_twenty_and_sixty_metres_are_two_lattices():
    scene = product(nodata=0)
    resolutions = join(scene)
    assert resolutions == (Resolution(1), Resolution(2), Resolution(6))
    ten, sixty = check_cover(scene, resolutions)
    assert (ten.unit, ten.grid.shape, ten.half.tolist()) == (1, (10, 30, 42), [False] * 4 + [True] * 6)
    assert (sixty.unit, sixty.grid.shape, sixty.half.any()) == (6, (3, 5, 7), False)
    assert ten.grid.nodata == sixty.grid.nodata == 0
    assert ten.weights.tolist() == [1] * 4 + [0.5] * 6  # four pixels of the lattice are one of the grid
    assert sixty.weights.tolist() == [1] * 3


def test_bands_repeated_in_one_grid_are_the_same_two_lattices():
    scene = Scene("resampled", (grid(13, 30, 42),))
    ten, sixty = check_cover(scene, (Resolution(0, "1" * 4 + "2" * 6 + "6" * 3),))
    assert (ten.unit, ten.grid.shape, sixty.unit, sixty.grid.shape) == (1, (10, 30, 42), 6, (3, 5, 7))
    assert ten.weights.tolist() == [1] * 10
    assert sixty.weights.tolist() == [6] * 3  # each sample is 36 of the user's pixels


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    repeats=st.lists(st.sampled_from("1236"), min_size=1, max_size=8),
    row=st.integers(0, 5),
    col=st.integers(0, 5),
)
def test_any_repeats_from_any_phase_cover_their_grid(height: int, width: int, repeats: list[str], row: int, col: int):
    scene = Scene("any", (grid(len(repeats), height, width),))
    check_cover(scene, (Resolution(0, "".join(repeats), row, col),))


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    units=st.lists(st.sampled_from((1, 2, 3, 6)), max_size=4),
    data=st.data(),
)
def test_any_joined_grids_whose_bands_repeat_cover_them(height: int, width: int, units: list[int], data: st.DataObject):
    units = [1, *units]
    grids = [grid(data.draw(st.integers(1, 4)), 6 * height // unit, 6 * width // unit) for unit in units]
    repeats = [
        "".join(data.draw(st.lists(st.sampled_from("1236"), min_size=len(g.bands), max_size=len(g.bands))))
        for g in grids
    ]
    stated = tuple(Resolution(unit, digits) for unit, digits in zip(units, repeats, strict=True))
    found = check_cover(Scene("joined", tuple(grids)), stated)
    natives = {unit * int(digit) for unit, digits in zip(units, repeats, strict=True) for digit in digits}
    assert [one.unit for one in found] == sorted({one.unit for one in found})
    assert {one.unit for one in found} <= natives


def test_joined_grids_come_after_grids_on_their_own():
    scene = Scene("mixed", (grid(1, 12, 12), grid(2, 5, 5), grid(1, 6, 6)))
    found = check_cover(scene, (Resolution(1), Resolution(), Resolution(2)))
    assert [[member.grid for member in one.members] for one in found] == [[1, 1], [0, 2]]


@pytest.mark.parametrize(
    ("resolutions", "message"),
    [
        ((Resolution(),), "1 resolutions for 2 grids"),
        ((Resolution(),) * 3, "3 resolutions for 2 grids"),
        ((Resolution(4), Resolution()), "unit 4 is none of"),
        ((Resolution(-1), Resolution()), "unit -1 is none of"),
        ((Resolution(0, "12"), Resolution()), "repeats '12' for 3 bands"),
        ((Resolution(0, "1111"), Resolution()), "repeats '1111' for 3 bands"),
        ((Resolution(0, "114"), Resolution()), "repeats '114'"),
        ((Resolution(0, "110"), Resolution()), "repeats '110'"),
        ((Resolution(0, "1\u00b21"), Resolution()), "repeats"),
        ((Resolution(2), Resolution(1)), "begin with unit 2"),
        ((Resolution(2), Resolution()), "begin with unit 2"),
        ((Resolution(1), Resolution(1)), "does not lie on one of"),
        ((Resolution(1), Resolution(3)), "does not lie on one of"),
        ((Resolution(1), Resolution(2, "", 1, 0)), "begin their blocks at"),
        ((Resolution(1, "222", 1, 1), Resolution(2, "22", 1, 1)), "begin their blocks at"),
    ],
)
def test_resolutions_that_cannot_be_are_refused(resolutions: tuple[Resolution, ...], message: str):
    scene = Scene("refused", (grid(3, 12, 18), grid(2, 6, 9)))
    with pytest.raises(Malformed, match=message):
        lattices(scene, resolutions)


@pytest.mark.parametrize("other", [grid(2, 6, 9, "uint8"), grid(2, 6, 9, nodata=0), grid(2, 6, 8), grid(2, 7, 9)])
def test_grids_that_do_not_lie_on_each_other_are_not_joined(other: Grid):
    with pytest.raises(Malformed, match="not joined"):
        lattices(Scene("refused", (grid(3, 12, 18), other)), (Resolution(1), Resolution(2)))


def test_join_wants_the_same_place_the_same_size_and_the_same_type():
    assert join(product())
    assert join(Scene("one", product().grids[:1])) == ()
    ten, twenty, sixty = product().grids
    moved = grid(6, 15, 21, transform=(20.0, 0.0, 300010.0, 0.0, -20.0, 6e6))
    placeless, typed = grid(6, 15, 21), grid(6, 15, 21, "int16", transform=twenty.transform)
    shorter = grid(6, 14, 21, transform=twenty.transform)
    ninety = grid(1, 3, 4, transform=(90.0, 0.0, 300000.0, 0.0, -90.0, 6e6))
    for other in (moved, placeless, typed, shorter, ninety):
        assert join(Scene("refused", (ten, other, sixty))) == ()
    assert join(Scene("coarse first", (twenty, ten))) == ()
    assert join(Scene("no place", (grid(4, 30, 42), twenty))) == ()


@pytest.mark.parametrize(
    ("repeats", "expected"),
    [
        ([ONCE, ONCE], Resolution()),
        ([ONCE, Repeat(2, 1, 0)], Resolution(0, "12", 1, 0)),
        ([Repeat(2, 0, 0), Repeat(2, 1, 1), Repeat(2, 1, 1)], Resolution(0, "122", 1, 1)),
        ([Repeat(6, 3, 4), Repeat(2, 1, 0), Repeat(3, 0, 1)], Resolution(0, "623", 3, 4)),
        ([Repeat(6, 3, 4), Repeat(2, 0, 0)], Resolution(0, "12", 0, 0)),
    ],
)
def test_the_phase_that_most_bands_share_decides(repeats: list[Repeat], expected: Resolution):
    assert resolution_of(repeats) == expected


def test_a_chosen_phase_is_that_of_every_band_that_stays_repeated():
    random = np.random.default_rng(0)
    for _ in range(100):
        factors = random.choice([1, 2, 3, 6], 5)
        repeats = [Repeat(int(f), int(random.integers(f)), int(random.integers(f))) for f in factors]
        found = resolution_of(repeats)
        for band, repeat in enumerate(repeats):
            if found.repeat(band) > 1:
                assert found.repeat(band) == repeat.factor
                assert (found.row % repeat.factor, found.col % repeat.factor) == (repeat.row, repeat.col)
        assert bool(found.repeats) == bool((factors > 1).any())
