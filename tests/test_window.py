"""The window finds out what a link carries, and keeps no more under way than that takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downlink.window import GAIN, START_BYTES, Window


def drive(window: Window, rate: float, rtt_s: float, seconds: float, chunk: int = 4096) -> float:
    """Send as the window allows, over a link of this rate and round trip; the share of the rate that was used at the
    end."""
    now = free_at = 0.0
    flying: list[tuple[float, object]] = []
    unacked, late = 0, 0
    while now < seconds:
        if flying and (flying[0][0] <= now or unacked + chunk > window.limit):
            now = max(now, flying[0][0])
            window.acknowledged([(flying.pop(0)[1], chunk)], now)  # type: ignore[list-item]
            unacked -= chunk
            late += chunk if now > seconds / 2 else 0
        elif unacked + chunk > window.limit:
            window.waits(full=True)
        else:
            mark = window.sent(now)
            free_at = max(free_at, now) + chunk / rate
            flying.append((free_at + rtt_s, mark))
            unacked += chunk
            if unacked + chunk > window.limit:
                window.waits(full=True)
    return late / (rate * seconds / 2)


@pytest.mark.parametrize("rate", [1200.0, 125_000.0, 1_250_000.0])
@pytest.mark.parametrize("rtt_s", [0.02, 0.5, 5.0])
def test_it_fills_any_link_and_not_much_more(rate: float, rtt_s: float) -> None:
    window = Window(1 << 30)
    assert drive(window, rate, rtt_s, max(200.0, 1e6 / rate)) > 0.95
    least = rate * rtt_s
    assert least <= window.limit <= max(START_BYTES, 2 * GAIN * (least + 4096))
    assert window.round_trip_s == pytest.approx(rtt_s + 4096 / rate, rel=0.01)
    assert window.rate == pytest.approx(rate, rel=0.05)


def test_it_never_grows_beyond_its_bound() -> None:
    window = Window(50_000)
    assert window.limit == 50_000
    drive(window, 1e6, 5.0, 100)
    assert window.limit == 50_000


def test_a_quiet_hour_does_not_shrink_it() -> None:
    """Little to send says nothing about the link."""
    window = Window(1 << 30)
    drive(window, 125_000.0, 5.0, 200)
    limit, now = window.limit, 1000.0
    for _ in range(100):
        now += 36
        window.waits(full=False)
        window.acknowledged([(window.sent(now), 100)], now + 5)
    assert window.limit == pytest.approx(limit, rel=0.02)


def test_a_link_that_has_become_slower_is_believed_after_a_while() -> None:
    window = Window(1 << 30)
    drive(window, 1_250_000.0, 1.0, 60)
    fast = window.limit
    for step in range(400):
        now = 100.0 + step
        mark = window.sent(now)
        window.waits(full=True)
        window.acknowledged([(mark, 10_000)], now + 1)
    assert window.limit < fast / 15


@given(st.lists(st.tuples(st.integers(1, 300_000), st.floats(0, 10)), max_size=40))
def test_whatever_is_acknowledged_when_the_limit_stays_within_its_bounds(steps: list[tuple[int, float]]) -> None:
    window, now = Window(1 << 20, 1000), 0.0
    for size, seconds in steps:
        mark = window.sent(now)
        now += seconds
        window.acknowledged([(mark, size)], now)
        assert 1000 <= window.limit <= 1 << 20
