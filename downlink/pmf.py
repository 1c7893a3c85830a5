"""Distributions of symbols, and the integer frequencies that stand for them best.

Floats, used when tables are made (`Tables.parametric`, `Tables.from_pmfs`), never when a stream is read.
`frequencies_of` refuses weights that no table can hold (`ValueError`: it is the trainer's own input).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink.rans import ENTRIES, TOTAL

Cdf = Callable[[NDArray[np.float64], float], NDArray[np.float64]]
"""(x, scale) -> probability of at most x, of a distribution with mean 0."""
Pmf = tuple[int, NDArray[np.float64]]
"""The value of entry 0, and the weights of all entries, the escape's last."""


def logistic(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Distribution function of the logistic distribution with standard deviation sigma."""
    return np.asarray(0.5 + 0.5 * np.tanh(x * (np.pi / np.sqrt(12)) / sigma), np.float64)


def laplace(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Distribution function of the Laplace distribution with standard deviation sigma."""
    tail = 0.5 * np.exp(-np.abs(x) * np.sqrt(2) / sigma)
    return np.asarray(np.where(x < 0, tail, 1 - tail), np.float64)


def trim(low: int, weights: NDArray[Any], below: float = 2.0**-13) -> Pmf:
    """A distribution without the tails whose probabilities are smaller than `below`: the escape gets them."""
    p = np.asarray(weights, np.float64) / np.sum(weights)
    kept = np.flatnonzero(p >= below)
    first, last = int(kept[0]), int(kept[-1]) + 1
    return low + first, np.append(p[first:last], max(0.0, 1 - p[first:last].sum()))


def frequencies_of(weights: NDArray[Any]) -> NDArray[np.uint16]:
    """The integers >= 1 with sum 2^14 whose Kullback-Leibler divergence from the weights is smallest.

    The gain of one more unit falls as a frequency grows, so moving single units while that gains ends at the optimum.
    """
    p = np.asarray(weights, np.float64)
    if p.ndim != 1 or not 2 <= len(p) <= ENTRIES or not (np.isfinite(p).all() and (p >= 0).all() and p.sum() > 0):
        raise ValueError(f"a table needs 2 to {ENTRIES} finite weights >= 0 with a positive sum, not shape {p.shape}")
    p = p / p.sum()
    f = np.maximum(1, np.floor(p * TOTAL).astype(np.int64))
    while True:
        gain = p * np.log1p(1 / f)
        loss = np.where(f > 1, -p * np.log1p(-1 / np.maximum(f, 2)), np.inf)
        up, down = int(gain.argmax()), int(loss.argmin())
        missing = TOTAL - int(f.sum())
        if missing > 0:
            f[up] += 1
        elif missing < 0:
            f[down] -= 1
        elif gain[up] > loss[down] * (1 + 1e-9) and up != down:
            f[up] += 1
            f[down] -= 1
        else:
            return np.asarray(f, np.uint16)
