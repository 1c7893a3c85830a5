"""How well a link is used: far away, slow or fast, cut again and again; measured on the simulator's wire."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from downlink import limits
from downlink.window import START_BYTES, Window
from tests.sim.edge import EdgeMachine
from tests.sim.ground import GroundMachine
from tests.sim.judge import Judge
from tests.sim.network import Time, Weather
from tests.streams import Stream, stream

RTT_S = 5.0
PATIENCE_S = 300.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class _Absent(Judge):
    """Looks at nothing: what is sent here is large, and test_simulator.py judges."""

    def said(self, frame: object) -> None:
        pass

    def step(self) -> None:
        pass

    def forgotten(self, scene_id: str) -> None:
        pass

    def check_outbox(self, outbox: object, scenes: object) -> None:
        pass


class Link:
    """An edge, a ground, and a wire that only takes its time."""

    def __init__(self, rate: float, rtt_s: float, frame_bytes: int, window: Window | None = None) -> None:
        self.time = Time()
        self.ground = GroundMachine(self.time, random.Random(1), Path("/archive"), 1 << 40)
        self.ground.judge = _Absent(Path("/archive"), self.ground.disk, self.ground.database, [])
        self.weather = Weather(rate, rtt_s / 2)
        self.edge = EdgeMachine(self.time, random.Random(2), self.ground, self.weather, frame_bytes, 1 << 30)
        self.edge.window = window or Window(limits.UNACKED_BYTES_MAX)
        self.ground.start()
        self.edge.start()

    def deliver(self, *scenes: Stream) -> tuple[float, float]:
        """Send these: (seconds from the first byte to the last, bytes on the wire)."""
        before = self.carried
        for made in scenes:
            self.edge.submit(made, 0)
        began = ended = None
        while self.edge.undelivered():
            assert self.time.step()
            if self.carried > before:
                began = self.time.now if began is None else began
                if self.carried > self._last:
                    ended = self.time.now
            self._last = self.carried
        assert began is not None
        assert ended is not None
        return ended - began, self.carried - before

    _last = 0

    @property
    def carried(self) -> int:
        return self.edge.carried + (self.edge.wire.down.carried if self.edge.wire else 0)


@pytest.mark.parametrize("kbit_s", [100, 1000, 10_000])
def test_a_link_of_five_seconds_round_trip_uses_over_90_percent_of_its_rate(kbit_s: int) -> None:
    """From nothing known of it: the first scene finds out, the second is measured."""
    rate = kbit_s * 125.0
    side, chunk_bytes = (1024, 8000) if kbit_s < 10_000 else (1536, 16_000)
    link = Link(rate, RTT_S, 65_536)
    link.deliver(stream(1, side=side, chunk_bytes=chunk_bytes))
    made = stream(2, side=side, chunk_bytes=chunk_bytes)
    seconds, _ = link.deliver(made)
    used = len(made.file) / (rate * seconds)
    print(f"{kbit_s} kbit/s, {RTT_S} s: {used:.1%} of the rate is payload; window {link.edge.window.limit} bytes")
    assert used > 0.9
    assert link.edge.window.limit <= 4 * rate * RTT_S + START_BYTES  # and no more is under way than that takes


def test_a_rate_that_is_known_is_used_from_the_start() -> None:
    """As the sender begins with `--rate-kbps`: nothing need be found out."""
    rate = 125_000.0
    made = stream(3, side=1024, chunk_bytes=8000)
    link = Link(rate, RTT_S, 65_536, Window(limits.UNACKED_BYTES_MAX, int(rate * RTT_S * 1.2)))
    seconds, _ = link.deliver(made)
    assert len(made.file) / (rate * seconds) > 0.9


def test_many_small_scenes_fill_a_link_of_five_seconds_round_trip() -> None:
    """Some hundred patches of 5 KB each: without a round trip, or a place, for each."""
    rate = 12_500.0
    link = Link(rate, RTT_S, 65_536, Window(limits.UNACKED_BYTES_MAX, int(rate * RTT_S * 1.2)))
    scenes = [stream(number, chunk_bytes=400) for number in range(200)]
    seconds, carried = link.deliver(*scenes)
    used, payload = carried / (rate * seconds), sum(len(made.file) for made in scenes) / carried
    print(
        f"{len(scenes)} scenes of {len(scenes[0].file)} bytes: {used:.1%} of the rate is used, {payload:.1%} of it well"
    )
    assert used > 0.9
    assert payload > 0.85  # a scene is offered once for each layer, and a manifest has 300 bytes


def test_the_protocol_costs_less_than_3_percent_at_256_kib_chunks() -> None:
    made = stream(4, side=160, chunk_bytes=limits.CHUNK_BYTES_MAX)
    link = Link(1e6, 0.1, 256 * 1024)
    _, carried = link.deliver(made)
    overhead = carried / len(made.file) - 1
    print(f"{len(made.file)} bytes cost {carried} on the wire: {overhead:.3%}")
    assert 0 < overhead < 0.03


@pytest.mark.parametrize("rtt_s", [0.1, RTT_S])
def test_the_end_of_a_pass_costs_nothing(rtt_s: float) -> None:
    """All that is under way is acknowledged while the ground is in sight, and little of the pass is lost for it."""
    made = stream(6, side=1024, chunk_bytes=4000)
    rate, length = 25_000.0, 60.0
    link = Link(rate, rtt_s, 16_384, Window(limits.UNACKED_BYTES_MAX, int(rate * 10)))
    link.edge.passes = (600.0, length)
    seconds, carried = link.deliver(made)
    passes = int(seconds // 600) + 1
    assert passes > 2
    print(f"{len(made.file)} bytes in {passes} passes: {carried - len(made.file)} more on the wire")
    assert carried <= 1.01 * len(made.file) + passes * 3000
    assert len(made.file) > 0.7 * rate * length * (passes - 1)


@pytest.mark.parametrize("rtt_s", [0.1, RTT_S])
def test_a_cut_costs_at_most_a_window(rtt_s: float) -> None:
    made = stream(5, side=1024, chunk_bytes=4000)
    rate, window, cuts = 125_000.0, 200_000, 7
    link = Link(rate, rtt_s, 16_384, Window(window, window))
    whole = len(made.file) / min(rate, window / rtt_s)
    for number in range(cuts):
        link.time.at((number + 0.5) * whole / cuts, link.edge.cut)
    _, carried = link.deliver(made)
    print(f"{carried - len(made.file)} bytes more than the stream with {cuts} cuts and a window of {window}")
    assert carried <= 1.03 * len(made.file) + cuts * (window + 3000)
