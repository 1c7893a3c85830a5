"""Least squares for the rules of the exact method: weights of neighbours, and activities, as integers.

Weights: weighted least squares, each sample by the inverse of the error variance expected there, because otherwise a
few edges decide for all (measured: a tenth of the bits of bands that were interpolated). Neighbours join one by one
(orthogonal matching pursuit), while they save more bits than their weights cost to send. Activities: the absolute
error is regressed on the errors around. Everything in floats: the decoder gets the integers.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from downlink.exact_model import ACTIVITY_MAX, EXPONENT_MAX, WEIGHT_MAX, activities_sent
from downlink.exact_table import FAMILIES, QUARTERS, exact_tables, scale_index
from downlink.table import FRACTIONS

Floats = NDArray[np.float64]

FIRST_ROWS: Final = 3072
"""Samples of the first, unweighted fit, which only has to find where errors are large."""
ACTIVITY_ROWS: Final = 3072
ROWS_PER_WEIGHT: Final = 8
ROWS_MIN: Final = 48
"""With fewer samples than this nothing is fitted but the size of the error."""
NOISE: Final = 0.02
"""Share of the error variance that rounding the weights may add."""
REFINEMENTS: Final = 1
TAIL: Final = 0.15
_PATIENCE: Final = 6
_MULTIPLES: Final = (0.85, 1.0, 1.2, 1.5)
_ACTIVITY_BITS: Final = 5.0
REACH: Final = 127
"""Errors of so many steps have their bits in a table."""


def fit_weights(
    design: Floats, target: Floats, active: Floats, step: float, price: float, most: int
) -> tuple[int, NDArray[np.int64]]:
    """(exponent, weights): of the columns of `design` (samples, candidates) that are worth `price` bits each on these
    samples; at most `most` of them. `active` (samples, terms) tells where errors are large, `step` is the quantiser's,
    in units of `target`."""
    whole = np.zeros(design.shape[1], np.int64)
    most = min(most, len(target) // ROWS_PER_WEIGHT)
    if not most or len(target) < ROWS_MIN:
        return 2, whole
    every = max(1, len(target) // FIRST_ROWS)
    first, goal = design[::every], target[::every]
    chosen, weights, _ = _pursue(first.T @ first, first.T @ goal, float(goal @ goal), len(goal), step, price, most)
    trust = _trust(target - design[:, chosen] @ weights, active, step)
    trusted = design * trust[:, None]
    gram, product = design.T @ trusted, trusted.T @ target
    energy = float((trust * target * target).sum())
    chosen, weights, variance = _pursue(gram, product, energy, len(target), step, price, most)
    if not len(chosen):
        return 2, whole
    used = np.ascontiguousarray(design[:, chosen])
    for _ in range(REFINEMENTS):
        left = target - used @ weights
        trust = _trust(left, active, step)
        trusted = used * trust[:, None]
        part = used.T @ trusted
        part.flat[:: len(chosen) + 1] *= 1 + 1e-7
        weights = np.asarray(np.linalg.solve(part, trusted.T @ target), np.float64)
        variance = float((trust * left * left).mean())
    power = float(np.diag(gram)[chosen].sum()) / len(target)
    finest = np.sqrt(12 * NOISE * max(variance, 0.1 * step**2) / max(power, 1e-9))
    exponent = int(np.clip(np.ceil(-np.log2(finest)), 2, EXPONENT_MAX))
    whole[chosen] = np.clip(np.rint(weights * 2.0**exponent), -WEIGHT_MAX, WEIGHT_MAX)
    return exponent, whole


def trial_bits(
    design: Floats,
    target: Floats,
    active: Floats,
    step: float,
    price: float,
    most: int,
    phase: int,
    references: int,
) -> float:
    """Bits of these samples, about, under a rule fitted to them."""
    if not len(target):
        return 0.0
    exponent, weights = fit_weights(design, target, active, step, price, most)
    errors = np.rint((target - design @ (weights * 2.0**-exponent)) / step).astype(np.int32)
    nothing = np.zeros(len(errors), np.int32)
    family, activity = fit_activity(errors, nothing, active, phase, references, 1.0)
    return exact_tables().cost_bits(errors, scale_index(active @ activity.astype(np.float64), family), nothing)


def _trust(left: Floats, active: Floats, step: float) -> Floats:
    """Weights of samples with these errors, mean 1: those of the maximum likelihood under Student's t."""
    size = np.abs(left)
    expected = np.maximum(active @ _regress(size, active), 0.05 * (size.mean() + step))
    trust = 1 / (expected**2 + (0.15 * step) ** 2 + TAIL * size**2)
    return np.asarray(trust / trust.mean(), np.float64)


def _pursue(
    gram: Floats, product: Floats, energy: float, rows: int, step: float, price: float, most: int
) -> tuple[NDArray[np.intp], Floats, float]:
    """Columns joined one by one (the one that lowers the error most is next) as long as they pay; their weights; the
    variance left."""
    count = len(product)
    floor = np.diag(gram) * 1e-6 + 1e-6 * rows
    open_, left, energy_left = np.diag(gram).copy(), product.copy(), energy
    factor = np.zeros((min(most, count), count))
    chosen: list[int] = []
    best, best_count = rows * _bits(energy / rows / step**2), 0
    while len(chosen) < min(most, count):
        gain = np.where(open_ > floor, left * left / np.maximum(open_, floor), 0.0)
        gain[chosen] = 0
        column = int(gain.argmax())
        if gain[column] <= 0:
            break
        at = len(chosen)
        root = np.sqrt(open_[column])
        row = factor[at] = (gram[column] - factor[:at, column] @ factor[:at]) / root
        energy_left -= gain[column]
        left = left - row * (left[column] / root)
        open_ = open_ - row * row
        chosen.append(column)
        cost = rows * _bits(max(energy_left, 0.0) / rows / step**2) + price * len(chosen)
        if cost < best:
            best, best_count = cost, len(chosen)
        elif len(chosen) >= best_count + _PATIENCE:
            break
    kept = np.array(chosen[:best_count], np.intp)
    if not len(kept):
        return kept, np.empty(0), energy / rows
    part = gram[np.ix_(kept, kept)]
    weights: Floats = np.asarray(np.linalg.solve(part + np.diag(floor[kept] * 0.1), product[kept]), np.float64)
    return kept, weights, max(0.0, energy - 2 * float(weights @ product[kept]) + float(weights @ part @ weights)) / rows


def _bits(variance: float) -> float:
    """Entropy, about, of errors of this variance (in steps) after rounding."""
    return 0.5 * float(np.log2(1 + 17 * variance))


def _regress(size: Floats, active: Floats) -> Floats:
    """Coefficients with which the columns of `active` sum to the expected `size`: least squares, each row in
    proportion to what is expected of it."""
    terms = active.shape[1]
    trust = np.ones(len(size))
    least = 0.05 * float(size.mean()) + 1e-3
    found: Floats = np.zeros(terms)
    for _ in range(3):
        weighted = active * trust[:, None]
        gram = weighted.T @ active
        gram.flat[:: terms + 1] *= 1 + 1e-4
        gram.flat[:: terms + 1] += 1e-9
        found = np.asarray(np.linalg.solve(gram, weighted.T @ size), np.float64)
        trust = 1 / np.maximum(active @ found, least) ** 2
    return found


def fit_activity(
    errors: NDArray[np.int32],
    fractions: NDArray[np.int32],
    active: Floats,
    phase: int,
    references: int,
    scale: float,
) -> tuple[int, NDArray[np.int64]]:
    """(family, activities) that cost the fewest bits, `scale` being how many samples each of these stands for."""
    every = -(-len(errors) // ACTIVITY_ROWS)
    errors, fractions, active, scale = errors[::every], fractions[::every], active[::every], scale * every
    size = np.abs(8.0 * errors - fractions) + 0.1
    terms = active.shape[1]

    def whole(found: Floats, multiple: float) -> NDArray[np.int64]:
        activity = np.zeros(terms, np.int64)
        activity[: len(found)] = np.clip(np.rint(64 * multiple * found), -ACTIVITY_MAX, ACTIVITY_MAX)
        return activity

    counts = sorted({activities_sent(phase, references, mode) for mode in range(3 if len(errors) >= ROWS_MIN else 1)})
    found = [_regress(size, active[:, :count]) for count in counts]
    best = found[0]
    if len(found) > 1:
        bits = _activity_costs(errors, fractions, active, [whole(one, _MULTIPLES[1]) for one in found])[0] * scale
        best = found[int(np.argmin(bits + _ACTIVITY_BITS * np.array(counts)))]
    tried = [whole(best, multiple) for multiple in _MULTIPLES]
    bits = _activity_costs(errors, fractions, active, tried)
    family, place = np.unravel_index(int(bits.argmin()), bits.shape)
    return int(family), tried[place]


def _activity_costs(
    errors: NDArray[np.int32], fractions: NDArray[np.int32], active: Floats, tried: list[NDArray[np.int64]]
) -> Floats:
    """(families, tried): bits of errors with each of these activities."""
    activity = (active @ np.stack(tried, axis=1).astype(np.float64)).T
    scales = scale_index(np.ascontiguousarray(activity).ravel(), 0).reshape(activity.shape)
    return np.stack([error_bits(errors, scales + family * QUARTERS, fractions) for family in range(FAMILIES)])


def error_bits(errors: NDArray[np.int32], scales: NDArray[np.integer[Any]], fractions: NDArray[np.int32]) -> Floats:
    """(n): bits of errors (samples) with scale indices (n, samples) and fractions (samples), by table."""
    known = _bits_of_errors()
    reach = known.shape[-1] // 2
    offset = errors - (fractions >> 3)
    far = np.abs(offset) > reach
    place = (scales.astype(np.intp) << 3) + (fractions & 7)
    place *= known.shape[-1]
    place += np.clip(offset, -reach, reach) + reach
    bits = known.take(place)
    if far.any():
        bits[:, far] = 0
        tables, far_errors, far_fractions = exact_tables(), errors[far], fractions[far]
        rest = [tables.cost_bits(far_errors, one[far].astype(np.uint8), far_fractions) for one in scales]
        return np.asarray(bits.sum(axis=1, dtype=np.float64) + rest, np.float64)
    return np.asarray(bits.sum(axis=1, dtype=np.float64), np.float64)


@cache
def _bits_of_errors() -> NDArray[np.float32]:
    """(scales, fractions, 2 `REACH` + 1): bits of an error of so much, less -REACH."""
    tables, errors = exact_tables(), np.arange(-REACH, REACH + 1, dtype=np.int32)
    shape = tables.scales - 1, FRACTIONS, len(errors)
    index = np.arange(1, tables.scales, dtype=np.uint8)[:, None, None]
    fractions = np.arange(FRACTIONS, dtype=np.int32)[:, None]
    spread = [np.ascontiguousarray(np.broadcast_to(one, shape)).ravel() for one in (errors, index, fractions)]
    located = tables.locate(*spread)
    bits = tables.entry_bits.take(located.entries)
    bits[located.shifted] += located.raw_widths
    bits[located.escaped] += 8 * np.maximum(1, np.ceil(np.log2(located.escapes + 1.0) / 7)).astype(np.float32)
    return np.concatenate([np.zeros((1, *shape[1:]), np.float32), bits.reshape(shape)])
