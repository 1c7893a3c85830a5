"""Passes: what may be written, and when the ground is in sight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder_node.config import ConfigError
from encoder_node.schedule import Contacts, Pass, Schedule, parse_pass, read_passes

NOON = 1795262400.0  # 2026-11-21T12:00:00Z


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21T12:00:00Z/2026-11-21T12:10:00Z",
        "2026-11-21T12:00:00/2026-11-21T12:10:00",
        "2026-11-21 14:00:00+02:00/2026-11-21T12:10:00+00:00",
        "20261121T120000Z / 20261121T121000Z",
    ],
)
def test_times_are_iso_8601_and_utc_unless_they_say_otherwise(text: str) -> None:
    assert parse_pass(text) == Pass(NOON, NOON + 600)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-11-21T12:00:00Z", "is not START/END"),
        ("noon/2026-11-21T12:10:00Z", "'noon' is not a time"),
        ("2026-11-21T12:10:00Z/2026-11-21T12:00:00Z", "ends 600 s before it starts"),
        ("2026-11-21T12:00:00Z/2026-11-21T12:00:00Z", "ends 0 s before"),
    ],
)
def test_what_is_no_pass_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_pass(text)


passes = st.lists(
    st.tuples(st.integers(0, 100), st.integers(1, 30)).map(lambda pair: Pass(pair[0], pair[0] + pair[1])), max_size=8
)


@given(passes, st.integers(-1, 140))
def test_the_current_pass_is_one_that_holds_the_moment_and_ends_last(given_: list[Pass], now: int) -> None:
    schedule = Schedule(given_)
    holding = [item for item in given_ if item.start <= now < item.end]
    current = schedule.current(now)
    assert (current is None) == (not holding)
    if current is not None:
        assert current.end == max(item.end for item in holding)
    later = [item.start for item in given_ if item.start > now]
    assert schedule.next_start(now) == min(later, default=None)


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "passes.toml"
    file.write_text("[[contact]]\nstart = 2026-11-21T12:00:00Z\nend = 2026-11-21T12:10:00Z\nrate_kbps = 2000\n")
    contacts = Contacts(["2026-11-22T12:00:00Z/2026-11-22T12:10:00Z"], file)
    schedule = contacts.schedule()
    assert schedule is not None
    assert schedule.current(NOON) == Pass(NOON, NOON + 600, 2000.0)
    assert len(schedule) == 2
    assert contacts.schedule() is schedule
    file.write_text('[[contact]]\nstart = "2026-11-21T13:00:00"\nend = "2026-11-21T13:10:00"\n')
    os.utime(file, ns=(1, 1))
    again = contacts.schedule()
    assert again is not None
    assert again.current(NOON) is None
    assert again.current(NOON + 3600) == Pass(NOON + 3600, NOON + 4200)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[contact]]\nstart = 2026-11-21T12:00:00Z\n", "missing required field `end`"),
        ("[[contact]]\nstart = 2026-11-21T12:00:00Z\nend = 2026-11-21T11:00:00Z\n", "before it starts"),
        ("[[contact]]\nstart = 1\nend = 2\n", "1 is not a time"),
        ("[[pass]]\n", "unknown field `pass`"),
        ("[[contact]]\nstart = 2026-11-21T12:00:00Z\nend = 2026-11-21T12:01:00Z\nrate_kbps = 0\n", "> 0"),
        ("?", "contact"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "passes.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as caught:
        read_passes(file)
    assert str(file) in str(caught.value)


def test_without_passes_there_is_no_schedule(tmp_path: Path) -> None:
    assert Contacts().schedule() is None
    with pytest.raises(ConfigError, match="No such file"):
        Contacts(file=tmp_path / "none.toml")
