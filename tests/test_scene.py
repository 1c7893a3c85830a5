import doctest
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import downlink.scene
from downlink import limits
from downlink.errors import Malformed, StreamError, TooLarge, Unsupported
from downlink.scene import Band, Grid, Scene, check_text, printable, validate

PLACE = (10.0, 0.0, 300000.0, 0.0, -10.0, 5000040.0)
GRID = Grid(120, 100, "uint16", (Band("B02", 492.4), Band()), 0, "EPSG:32633", PLACE)
SCENE = Scene("patch", (GRID,), "2017-07-01T09:30:31Z", {"platform": "Sentinel-2A"})


def with_grid(**changes: Any) -> Scene:
    return Scene("patch", (msgspec.structs.replace(GRID, **changes),))


def test_sizes_follow_from_the_shape() -> None:
    assert GRID.shape == (2, 120, 100)
    assert GRID.samples == 24_000
    assert GRID.raw_bytes == 48_000
    both = Scene("two", (GRID, Grid(10, 10, "uint8", (Band(),))))
    assert both.samples == 24_100
    assert both.raw_bytes == 48_100


@pytest.mark.parametrize(
    "scene",
    [
        SCENE,
        Scene("", (Grid(1, 1, "int16", (Band(),), -32768),)),
        Scene("../../etc/passwd", (GRID,)),  # a name is only ever shown: it may look like a path
        Scene("Šumava, 木星, 🛰", (GRID, GRID), "2017-07-01"),
        Scene("t", (GRID,), "20170701T093031.026+0200"),
        with_grid(transform=(0.0, 1.0, 5.0, -1.0, 0.0, 7.0)),  # turned by a quarter
        with_grid(crs="GEOGCRS[" + "x" * 3000 + "]"),
    ],
)
def test_good_scenes_pass(scene: Scene) -> None:
    validate(scene)


@pytest.mark.parametrize(
    ("scene", "error", "match"),
    [
        (Scene("none", ()), Malformed, "0 grids"),
        (with_grid(height=0), Malformed, "height is 0 px"),
        (with_grid(width=-3), Malformed, "width is -3 px"),
        (with_grid(width=2**31, height=2**31), TooLarge, "limit of 40000"),
        (with_grid(bands=()), Malformed, "0 bands"),
        (with_grid(bands=(Band(),) * 10**6), TooLarge, "limit of 512"),
        (with_grid(dtype="float32"), Unsupported, "float32"),
        (with_grid(nodata=-9999), Malformed, "nodata -9999 is no uint16 .0 to 65535."),
        (with_grid(nodata=65536), Malformed, "leave it out"),
        (with_grid(crs="EPSG:\n32633"), Malformed, r"crs: character U\+000A at 5"),
        (with_grid(transform=(1.0, 0.0, math.nan, 0.0, 1.0, 0.0)), Malformed, "transform"),
        (with_grid(transform=(1.0, 0.0, 0.0, 0.0, math.inf, 0.0)), Malformed, "transform"),
        (with_grid(transform=(1.0, 2.0, 0.0, 2.0, 4.0, 0.0)), Malformed, "does not map pixels to places"),
        (with_grid(bands=(Band("a\x1b[31m"),)), Malformed, r"name of band 0: character U\+001B"),
        (with_grid(bands=(Band("a", 0.0),)), Malformed, "wavelength 0.0 nm"),
        (with_grid(bands=(Band("a", math.nan),)), Malformed, "wavelength nan nm"),
        (Scene("a\ud800", (GRID,)), Malformed, r"U\+D800"),
        (Scene("x\u202egnp.exe", (GRID,)), Malformed, r"U\+202E"),
        (Scene("x", (GRID,), "yesterday"), Malformed, "'yesterday' is not an ISO 8601"),
        (Scene("x", (GRID,), None, {"key\x00": "v"}), Malformed, "tag key"),
        (Scene("x", (GRID,), None, {"key": "v\x9b"}), Malformed, "tag 'key'"),
    ],
)
def test_bad_scenes_are_refused_by_name_and_value(scene: Scene, error: type[StreamError], match: str) -> None:
    with pytest.raises(error, match=match):
        validate(scene)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30), st.integers(0, 60))
def test_printable_makes_any_text_fit(text: str, bytes_max: int) -> None:
    check_text(printable(text, bytes_max), "text", bytes_max)


@settings(deadline=None)
@given(st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), max_size=40))
def test_printable_leaves_good_text_alone(text: str) -> None:
    assert printable(text) == text


def test_printable_cuts_at_whole_characters() -> None:
    assert printable("é" * 200) == "é" * (limits.TEXT_BYTES_MAX // 2)
    assert printable("木木", 5) == "木"


def test_scenes_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        SCENE.name = "other"  # type: ignore[misc]


def test_examples_in_the_text_are_true() -> None:
    assert doctest.testmod(downlink.scene).failed == 0
