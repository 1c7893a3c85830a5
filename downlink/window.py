"""How much may be under way at once: enough to fill the link whatever its round trip, and not much more.

What is un-acknowledged at a cut is sent twice, and what waits in buffers delays whatever is more urgent. So the window
follows the link: twice its rate times its shortest round trip, both measured from acknowledgements, as BBR does
(Cardwell et al., "BBR: congestion-based congestion control", ACM Queue 14(5), 2016). While the window is what holds the
sender back, the rate measured is the window per round trip, and so the window doubles with each; when the link is full,
it stays at two of its bandwidth-delay products. It never grows beyond `most`, nor shrinks below what it began with.

Sizes are bytes, times seconds of any monotone clock. Pure; refuses nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

GAIN: Final = 2.0
START_BYTES: Final = 128 * 1024
CLOCK_S: Final = 1e-6  # shorter times mean nothing
RATES_KEPT_S: Final = 60.0  # at least so long, and ten round trips, the best rate of late is believed


@dataclass(frozen=True, slots=True)
class Mark:
    """What was known when something was sent."""

    at: float
    delivered: int
    held_back: bool  # was the window what held the sender back, of late?


class Window:
    """One for all streams to a ground: what was learnt of the link is kept over a cut."""

    def __init__(self, most: int, start: int = START_BYTES) -> None:
        self.most = most
        self.limit = min(most, start)
        self.took_s = 0.0  # from sending to the latest acknowledgement: what is sent now takes about as long
        self._least = self.limit
        self._delivered = 0
        self._held_back = True
        self._round_trip_s = float("inf")
        self._rates: deque[tuple[float, float]] = deque()  # (when, bytes per second), falling

    @property
    def round_trip_s(self) -> float:
        """The shortest so far; 0 before the first acknowledgement."""
        return 0.0 if self._round_trip_s == float("inf") else self._round_trip_s

    @property
    def rate(self) -> float:
        """Bytes per second that the link was seen to carry of late; 0: not known."""
        return self._rates[0][1] if self._rates else 0.0

    def sent(self, now: float) -> Mark:
        """Something goes; keep the mark with it until it is acknowledged."""
        return Mark(now, self._delivered, self._held_back)

    def waits(self, full: bool) -> None:
        """The sender stops for now: because the window is full, or for want of anything to send."""
        self._held_back = full

    def acknowledged(self, marks: list[tuple[Mark, int]], now: float) -> None:
        """These, of so many bytes each, are acknowledged by one word."""
        self._delivered += sum(size for _, size in marks)
        self.took_s = max((now - mark.at for mark, _ in marks), default=self.took_s)
        for mark, _ in marks:
            took_s = now - mark.at
            if took_s < CLOCK_S:
                continue
            self._round_trip_s = min(self._round_trip_s, took_s)
            rate = (self._delivered - mark.delivered) / took_s
            if mark.held_back or rate > self.rate:  # else it says how little there was to send
                while self._rates and self._rates[-1][1] <= rate:
                    self._rates.pop()
                self._rates.append((now, rate))
        kept_s = max(RATES_KEPT_S, 10 * self.round_trip_s)
        while self._rates and self._rates[0][0] < self._rates[-1][0] - kept_s:
            self._rates.popleft()
        if self._rates:
            self.limit = max(self._least, int(min(self.most, GAIN * self.rate * self.round_trip_s)))
