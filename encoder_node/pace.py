"""How fast to send and how long to wait: a token bucket and an exponential back-off. No clock and no sleep of their
own."""

from __future__ import annotations

import math
import random

BURST_S = 0.25  # a pause may be made up for by at most this much of the rate at once


class Bucket:
    """Lets `rate` bytes per second through on average; None: everything.

    A message goes when the bucket is not in debt and may then take it into debt, so that messages larger than a burst
    get through as well and the average still holds.
    """

    def __init__(self, rate: float | None, now: float) -> None:
        self._rate = rate
        self._tokens = 0.0
        self._filled_at = now

    def change(self, rate: float | None, now: float) -> None:
        """From now on, another rate."""
        if rate != self._rate:
            self.delay(now)
            self._tokens = 0.0 if self._rate is None else min(0.0, self._tokens)
            self._rate, self._filled_at = rate, now

    def delay(self, now: float) -> float:
        """Seconds until the next message may go."""
        if self._rate is None:
            return 0.0
        self._tokens = min(self._rate * BURST_S, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        return max(0.0, -self._tokens / self._rate)

    def spend(self, size: int) -> None:
        """A message of `size` bytes goes."""
        self._tokens -= size


class Backoff:
    """Waits that double from `first_s` to `most_s`, each drawn from its upper half, so that many nodes do not come
    back at once."""

    def __init__(self, first_s: float = 0.5, most_s: float = 60.0, seed: int | None = None) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._random = random.Random(seed)
        self._tries = 0

    def next_s(self, most_s: float = math.inf) -> float:
        """How long to wait now; `most_s` while time is precious."""
        full = min(self._most_s, most_s, self._first_s * 2.0**self._tries)
        self._tries = min(self._tries + 1, 32)
        return full * self._random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It works again."""
        self._tries = 0
