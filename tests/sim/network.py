"""A connection that loses, repeats, reorders, delays and damages messages, and is cut; in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass


class Time:
    """A clock that jumps to the next thing that is to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def at(self, moment: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._waiting, (max(moment, self.now), next(self._order), what))

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        self.at(self.now + seconds, what)

    def step(self) -> bool:
        """Do the next thing; false if there is none."""
        if not self._waiting:
            return False
        self.now, _, what = heapq.heappop(self._waiting)
        what()
        return True


@dataclass
class Weather:
    """How a link behaves. Shares are per message; all zero is a link that works."""

    rate: float  # bytes per second, each way
    delay_s: float  # one way
    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    damage: float = 0.0

    def clear(self) -> None:
        self.lose = self.repeat = self.reorder = self.damage = 0.0


class Direction:
    """One way of a connection. `hear` is given each message that arrives, while `open`."""

    def __init__(self, time: Time, weather: Weather, source: random.Random, hear: Callable[[bytes], object]) -> None:
        self.open = True
        self.carried = 0  # bytes that went over the link, whether they arrived or not
        self._time, self._weather, self._source, self._hear = time, weather, source, hear
        self._free_at = 0.0  # the link is busy until then

    @property
    def backlog_s(self) -> float:
        """How far what was sent is behind."""
        return max(0.0, self._free_at - self._time.now)

    def send(self, message: bytes) -> None:
        weather, source = self._weather, self._source
        self._free_at = max(self._free_at, self._time.now) + len(message) / weather.rate
        self._time.at(self._free_at, lambda: self._count(len(message)))
        arrival = self._free_at + weather.delay_s
        if source.random() < weather.reorder:
            arrival += source.uniform(0, 3 * weather.delay_s + 10 * len(message) / weather.rate)
        copies = 0 if source.random() < weather.lose else 2 if source.random() < weather.repeat else 1
        for copy in range(copies):
            content = message
            if source.random() < weather.damage:
                flipped = bytearray(message)
                flipped[source.randrange(len(flipped))] ^= 1 << source.randrange(8)
                content = bytes(flipped)
            self._time.at(arrival + copy * source.uniform(0, 2), lambda content=content: self._arrive(content))

    def _count(self, size: int) -> None:
        if self.open:
            self.carried += size

    def _arrive(self, message: bytes) -> None:
        if self.open:
            self._hear(message)
