"""What the prior's networks are given, input by input, and how their answers become expectations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from downlink.context import around, compand, near, phases, smooth
from downlink.prior import FEATURES, GRAPHS, Context, Features, Prior
from tests import priors
from tests.priors import PRIOR, coded_channels, drawn

HEIGHT, WIDTH, PLANES = 4, 8, 3
EARLIER = (0, 1, 4, 16)


def made(number: int) -> tuple[Features, np.ndarray, Context]:
    """Features, levels and a context of subband `number`, each drawn."""
    channels = coded_channels(number)
    sides = (HEIGHT // 4, WIDTH // 4)
    features = Features(
        drawn(1, PLANES, 3, *(sides if number else (HEIGHT, WIDTH))).astype(np.float32),
        drawn(2, PLANES, 3, HEIGHT, WIDTH).astype(np.float32),
    )
    levels = (drawn(3, PLANES, 4) % 128).astype(np.uint8)
    values = None
    if number == 0:
        values = (drawn(4, PLANES, HEIGHT, WIDTH) * 1000).astype(np.int32)
    elif number == 1:
        values = (drawn(4, PLANES, 2, HEIGHT, WIDTH) * 1000).astype(np.int32)
    energy, own = (np.abs(drawn(salt, PLANES, channels, HEIGHT, WIDTH).clip(-127)).astype(np.int16) for salt in (5, 6))
    before = np.abs(drawn(7, PLANES, EARLIER[number], HEIGHT, WIDTH).clip(-127)).astype(np.int16)
    return features, levels, Context(number, energy, own, before, values)


@pytest.mark.parametrize("number", range(4))
def test_inputs_come_in_the_order_of_the_format(number: int):
    features, levels, context = made(number)
    known, predicted = PRIOR.known(features, levels, context)
    _, second, third = phases(HEIGHT, WIDTH)
    parts: list[Any] = [context.energy, smooth(context.energy), around(context.own)]
    if number:
        parts += [context.earlier, smooth(context.earlier)]
    parts += [np.broadcast_to(32 * mask, (PLANES, 1, HEIGHT, WIDTH)) for mask in (second, third)]
    if number == 0:
        average, spread = near(context.values)
        parts += [compand(average >> 3)[:, None], spread[:, None]]
        assert (predicted == average[:, None]).all()
    elif number == 1:
        parts.append(compand(context.values >> 3))
        assert (predicted == -context.values).all()
    else:
        assert predicted is None
    parts.append(features.fine if number else features.coarse)
    parts += [np.broadcast_to(levels[:, band, None, None, None], (PLANES, 1, HEIGHT, WIDTH)) for band in range(4)]
    assert known.dtype == np.float32
    assert known.flags.c_contiguous
    assert (known == np.concatenate(parts, axis=1)).all()


@pytest.mark.parametrize("number", range(4))
def test_every_input_is_a_small_integer(number: int):
    """Sums of the networks stay below 2^24 only if all that they see does not exceed 255."""
    features, levels, context = made(number)
    if context.values is not None:
        context = context._replace(values=np.where(context.values > 0, 2**24, -(2**24)).astype(np.int32))
    known, _ = PRIOR.known(features, levels, context)
    assert (known == np.rint(known)).all()
    assert np.abs(known).max() <= 255


@pytest.mark.parametrize("number", range(4))
def test_trust_in_what_neighbours_predict_moves_the_mean(number: int):
    channels, shift = coded_channels(number), (4, 7, 0, 0)[number]
    count, trusts = ((1, 1), (3, 2), (0, 0), (0, 0))[number]
    index = drawn(1, 2, channels, 3, 3) % 96
    means, trust = drawn(2, 2, count, 3, 3) * 16, drawn(3, 2, trusts, 3, 3) % 32
    predicted = (drawn(4, 2, trusts, 3, 3) * 1024 + drawn(5, 2, trusts, 3, 3)).astype(np.int32) if trusts else None

    def run(name: str, inputs: dict[str, np.ndarray]) -> list[Any]:
        assert name == GRAPHS[number] == f"prior_{number}.onnx"
        assert list(inputs) == ["known"]
        return [np.concatenate([index, means, trust], axis=1).astype(np.float32)]

    found = Prior(run).expect(number, np.zeros((2, 1, 3, 3), np.float32), predicted, channels)
    assert (found.index == index).all()
    assert found.index.dtype == np.uint8
    assert found.mean.dtype == np.int32
    assert found.mean.shape == index.shape
    for n, channel, row, col in np.ndindex(found.mean.shape):
        expected = int(means[n, channel, row, col]) if channel < count else 0
        if channel < trusts:
            expected += int(predicted[n, channel, row, col]) * int(trust[n, channel, row, col]) >> shift
        assert found.mean[n, channel, row, col] == expected


def test_features_are_asked_of_the_hyper_latents_and_can_be_cut():
    seen = []

    def run(name: str, inputs: dict[str, np.ndarray]) -> list[Any]:
        seen.append(name)
        return priors.run(name, inputs)

    hyper = (drawn(1, 3, 2, 2, 1) % 63 - 31).astype(np.int32)
    features = Prior(run).features(hyper)
    assert seen == [FEATURES] == ["prior_features.onnx"]
    assert features.coarse.shape == (3, 3, 2, 1)
    assert features.fine.shape == (3, 3, 8, 4)
    part = features.of(np.s_[1:])
    assert (part.coarse == features.coarse[1:]).all()
    assert (part.fine == features.fine[1:]).all()


@pytest.mark.parametrize("number", range(4))
def test_expecting_all_fields_at_once_is_expecting_them_one_by_one(number: int):
    features, levels, context = made(number)
    whole = PRIOR.expect_all(features, levels, context)
    known, predicted = PRIOR.known(features, levels, context)
    for row, col in np.ndindex(HEIGHT, WIDTH):
        part = np.s_[:, :, row : row + 1, col : col + 1]
        there = None if predicted is None else predicted[part]
        one = PRIOR.expect(number, known[part], there, coded_channels(number))
        assert (one.index == whole.index[part]).all()
        assert (one.mean == whole.mean[part]).all()
