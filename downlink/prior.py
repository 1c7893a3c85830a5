"""The integer prior: what it may know of a symbol before it is decoded, and what it expects.

A plane's symbols are coded subband by subband (the block means as the root's 16 channels), each in three phases
(`downlink.context.phases`). The network of a subband (``prior_<n>.onnx``, pointwise, integers carried in float32) sees
per field: the running energy of the planes before and its average, the average magnitude of four neighbours of earlier
phases, the magnitudes of all earlier subbands of its plane and theirs averaged, which phase it is, what neighbours
predict, features of the hyper-latents (``prior_features.onnx``) and the plane's levels. It gives a scale index per
symbol, for subbands 0 and 1 means, and how far to trust the predictions.

The networks are called through `run`, so that nothing here knows of onnxruntime. Arrays are (n, channels, h, w), n
planes of any tiles of one size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.context import around, compand, near, phases, smooth
from downlink.dct import SUBBANDS

if TYPE_CHECKING:
    from downlink.accelerator import Accelerator

Symbols = NDArray[np.int32]
Companded = NDArray[np.int16]
Floats = NDArray[np.float32]
Run = Callable[[str, dict[str, Floats]], list[Any]]
"""(name of a graph, its inputs) -> its outputs."""

FEATURES = "prior_features.onnx"
GRAPHS = tuple(f"prior_{number}.onnx" for number in range(len(SUBBANDS)))
MEANS = (1, 3, 0, 0)
"""Per subband: channels that have a mean; and of those, channels that neighbours predict."""
PREDICTED = (1, 2, 0, 0)
TRUST_SHIFTS = (4, 7)
FLAG = 32
"""How a phase is told to the networks."""


class Features(NamedTuple):
    """What the hyper-latents say, in integers, (n, F, h, w) each: at the root's resolution, and at the latents'."""

    coarse: Floats
    fine: Floats

    def of(self, part: slice) -> Features:
        """Of some planes only."""
        return Features(self.coarse[part], self.fine[part])


class Context(NamedTuple):
    """What subband `number` may look at: `energy` and `own` magnitudes (companded) of its own channels (own of later
    phases counts for nothing), `earlier` magnitudes of all earlier channels (none for subband 0); `values`: symbols of
    the root's first channel (subband 0), or the slopes (n, 2, h, w) of the block means (subband 1), else None."""

    number: int
    energy: Companded
    own: Companded
    earlier: Companded
    values: Symbols | None = None


class Expected(NamedTuple):
    """What the prior expects of symbols: scale index and mean in eighths, (n, channels, ...)."""

    index: NDArray[np.uint8]  # type: ignore[assignment]  # tuple.index is a method nobody calls here
    mean: Symbols


class Prior:
    """The networks of one bundle, behind `run`; and what walks through whole tiles faster, where there is such a
    thing."""

    def __init__(self, run: Run, native: Accelerator | None = None) -> None:
        self.run, self.native = run, native

    def features(self, hyper: Symbols) -> Features:
        """Of hyper-latents (n, hyper_latents, h/4, w/4)."""
        return Features(*self.run(FEATURES, {"hyper": hyper.astype(np.float32)}))

    def known(self, features: Features, levels: NDArray[np.uint8], context: Context) -> tuple[Floats, Symbols | None]:
        """The network's input (n, K, h, w), and what neighbours predict in eighths, (n, predicted channels, h, w), if
        anything."""
        number, energy, own, earlier, values = context
        height, width = energy.shape[-2:]
        flags = np.zeros((len(energy), 2, height, width), np.int16)
        _, second, third = phases(height, width)
        flags[:, 0, second] = FLAG
        flags[:, 1, third] = FLAG
        parts: list[NDArray[Any]] = [energy, smooth(energy), around(own)]
        if number:
            parts += [earlier, smooth(earlier)]
        parts.append(flags)
        predicted: Symbols | None = None
        if number == 0:
            assert values is not None
            predicted, spread = near(values)
            parts += [compand(predicted >> 3)[:, None], spread[:, None]]
            predicted = predicted[:, None]
        elif number == 1:
            assert values is not None
            parts.append(compand(values >> 3))
            predicted = -values
        parts.append(features.fine if number else features.coarse)
        parts.append(np.broadcast_to(levels[:, :, None, None], (*levels.shape, height, width)))
        out = np.empty((len(energy), sum(part.shape[1] for part in parts), height, width), np.float32)
        at = 0
        for part in parts:
            out[:, at : at + part.shape[1]] = part
            at += part.shape[1]
        return out, predicted

    def answer(self, number: int, known: Floats) -> Floats:
        """What the network of subband `number` says of any fields (n, K, h, w): scale indices, means and trusts."""
        (out,) = self.run(GRAPHS[number], {"known": known})
        return np.asarray(out)

    def expect(self, number: int, known: Floats, predicted: Symbols | None, channels: int) -> Expected:
        """Run the network of subband `number`, which has so many channels, on any fields: (n, K, h, w)."""
        out = self.answer(number, known)
        index = out[:, :channels].astype(np.uint8)
        mean = mean_of(number, out, predicted, channels)
        return Expected(index, np.zeros(index.shape, np.int32) if mean is None else mean)

    def expect_all(self, features: Features, levels: NDArray[np.uint8], context: Context) -> Expected:
        """Expectations of all fields of a subband whose symbols are known already (the encoder's side)."""
        known, predicted = self.known(features, levels, context)
        return self.expect(context.number, known, predicted, context.energy.shape[1])


def mean_of(number: int, out: Floats, predicted: Symbols | None, channels: int) -> Symbols | None:
    """Means (n, channels, ...) in eighths of what a network says (n, outputs, ...), moved by what neighbours predict
    (n, predicted channels, ...); None in subbands that have none."""
    count = MEANS[number]
    if not count:
        return None
    mean = np.zeros((len(out), channels, *out.shape[2:]), np.int32)
    mean[:, :count] = out[:, channels : channels + count]
    if predicted is not None:
        trust = out[:, channels + count :].astype(np.int64)
        mean[:, : PREDICTED[number]] += (predicted * trust >> TRUST_SHIFTS[number]).astype(np.int32)
    return mean
