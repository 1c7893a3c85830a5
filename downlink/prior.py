"""The integer prior in coding passes: which symbols a pass codes, and what it may know of them.

A plane's symbols are coded in five passes: block means of the checkerboard's anchors, the other block means, then
subbands 1, 2 and 3. The network of a pass (``prior_<n>.onnx``, integers carried in float32) sees features of the
hyper-latents (``prior_features.onnx``), the plane's levels, the running energy of the planes before at its own
channels, the magnitudes of all earlier passes of its plane, and what `downlink.context` predicts from neighbouring
blocks. It gives a scale index per symbol, for the first passes a mean too, and how far to trust the predictions.

The networks are called through `run`, so that nothing here knows of onnxruntime. Arrays of a pass are (n, channels, h,
w), n planes of any tiles of one size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.context import anchors, compand, near
from downlink.dct import SUBBANDS, subband

Symbols = NDArray[np.int32]
Companded = NDArray[np.int16]
Floats = NDArray[np.float32]
Run = Callable[[str, dict[str, Floats]], Any]
"""(name of a graph, its inputs) -> its one output."""

PASS_SUBBANDS = (0, 0, 1, 2, 3)
PASSES = len(PASS_SUBBANDS)
PASSES_OF_SUBBAND = ((0, 1), (2,), (3,), (4,))
FEATURES = "prior_features.onnx"
GRAPHS = tuple(f"prior_{number}.onnx" for number in range(PASSES))
SLOPED = 2
"""Channels of subband 1 that slopes predict: the first horizontal and the first vertical frequency."""
_TRUST_SHIFT = 4


class Contexts(NamedTuple):
    """What a pass may look at. `energy` and `before` of its own channels; `own`: magnitudes of all earlier channels;
    `means`: symbols of channel 0 (n, h, w), anchors only in pass 1; `slope` (n, 2, h, w) in pass 2."""

    energy: Companded
    before: Companded
    own: Companded
    means: Symbols | None = None
    slope: Symbols | None = None


class Expected(NamedTuple):
    """What the prior expects of a pass's symbols: scale index and mean in eighths, (n, channels, h, w)."""

    index: NDArray[np.uint8]
    mean: Symbols


def _floats(array: NDArray[Any]) -> Floats:
    return np.ascontiguousarray(array, dtype=np.float32)


class Prior:
    """The networks of one bundle, behind `run`."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def features(self, hyper: Symbols) -> Floats:
        """Hyper-latents (n, hyper_latents, h/4, w/4) -> features (n, F, h, w), integers."""
        found: Floats = self._run(FEATURES, {"hyper": _floats(hyper)})
        return found

    def expect(self, number: int, features: Floats, levels: NDArray[np.uint8], known: Contexts) -> Expected:
        """Run pass `number`; levels (n, 4)."""
        inputs = {
            "features": features,
            "level": _floats(levels)[:, :, None, None],
            "energy": _floats(known.energy),
        }
        trusted: Symbols | None = None
        if number:
            inputs["own"] = _floats(known.own)
        if number == 1:
            assert known.means is not None
            trusted, spread = near(known.means)
            inputs["extra"] = _floats(np.stack([known.before[:, 0], compand(trusted >> 3), spread], axis=1))
        elif number == 2:
            assert known.slope is not None
            trusted = -known.slope
            inputs["extra"] = _floats(np.concatenate([known.before, np.abs(compand(known.slope))], axis=1))
        elif number < PASSES - 1:
            inputs["extra"] = _floats(known.before)
        out = self._run(GRAPHS[number], inputs)
        channels = known.energy.shape[1]
        index = out[:, :channels].astype(np.uint8)
        mean = np.zeros(index.shape, np.int32)
        if number < 3:
            mean[...] = out[:, channels : 2 * channels]
        if trusted is not None:
            trust = out[:, 2 * channels :].astype(np.int64)
            if number == 1:
                mean[:, 0] += (trusted * trust[:, 0] >> _TRUST_SHIFT).astype(np.int32)
            else:
                mean[:, :SLOPED] += (trusted * trust >> _TRUST_SHIFT).astype(np.int32)
        return Expected(index, mean)


def expect_known(
    prior: Prior, hyper: Symbols, latent: Symbols, own: Companded, known: KnownTile, levels: NDArray[np.uint8]
) -> Expected:
    """Expectations of all symbols of a tile that are known already (the encoder's side): (planes, 64, h, w).

    Planes beyond a subband's last one keep index 0 and mean 0: nothing of them is coded.
    """
    planes, _, height, width = latent.shape
    index = np.zeros(latent.shape, np.uint8)
    mean = np.zeros(latent.shape, np.int32)
    features = prior.features(hyper)
    anchor = anchors(height, width)
    for number, band in enumerate(PASS_SUBBANDS):
        count = int(np.count_nonzero(levels[:, band]))
        if not count:
            continue
        at = subband(band)
        contexts = Contexts(
            energy=known.energy[:count, at],
            before=known.before[:count, at],
            own=earlier(own[:count], number, anchor),
            means=latent[:count, 0] if number == 1 else None,
            slope=known.slope[:count] if number == 2 else None,
        )
        found = prior.expect(number, features[:count], levels[:count], contexts)
        if number == 1:
            index[:count, 0] = np.where(anchor, index[:count, 0], found.index[:, 0])
            mean[:count, 0] = np.where(anchor, mean[:count, 0], found.mean[:, 0])
        else:
            index[:count, at], mean[:count, at] = found
    return Expected(index, mean)


class KnownTile(NamedTuple):
    """Contexts of all planes of a tile whose symbols are known: each (planes, 64, h, w), slope (planes of subband 1, 2,
    h, w)."""

    before: Companded
    energy: Companded
    slope: Symbols


def earlier(own: Companded, number: int, anchor: NDArray[np.bool_]) -> Companded:
    """Magnitudes that pass `number` knows of its own plane: (n, channels, h, w) from companded symbols (n, 64, h, w)."""
    if number == 0:
        return own[:, :0]
    if number == 1:
        return np.asarray(np.abs(own[:, :1]) * anchor)
    end = SUBBANDS[PASS_SUBBANDS[number] - 1]
    return np.abs(own[:, :end])
