"""The light half of a plane codec, run by onnxruntime: planes of a tile -> symbols, and the integer prior that codes
them.

Only latents and hyper-latents come from inexact floats, and both are transmitted; scale indices and means come from
the integer prior, which the bundle's self-test checks on this machine when it is loaded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from downlink import selftest
from downlink.bundle import Bundle
from downlink.latent import Symbols
from downlink.spec import plane_spec
from downlink.table import Tables
from encoder_node.refine import refine

PLANES_AT_ONCE = 16
"""Planes of a tile that pass the network together: bounds memory for hundreds of bands at no loss of speed."""
SYMBOL_LIMIT = 1 << 22


def _session(bundle: Bundle, name: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(bundle.file(name), options, providers=["CPUExecutionProvider"])


class TileSymbols(NamedTuple):
    """What the encoder makes of one tile: `latent` (planes, latents, h, w), `hyper` (planes, hyper_latents, h/4,
    w/4), both int32; `rounding_error` is the mean squared rounding error of latents per sample, in steps squared."""

    latent: Symbols
    hyper: Symbols
    rounding_error: float


class PlaneEncoder:
    """An encoder bundle, loaded and checked. Not for several threads at once."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self.spec = plane_spec(bundle.parameters)
        self.tables = Tables.unpack(bundle.file("tables.bin"))
        self._analysis = _session(bundle, "encoder.onnx", threads)
        self._prior = _session(bundle, "prior.onnx", threads)
        selftest.check(self.spec, self.prior, bundle.file("selftest.json"), bundle.name)

    def analyse(
        self, planes: NDArray[np.float32], levels: NDArray[np.uint8], core: tuple[int, int] | None = None
    ) -> TileSymbols:
        """Planes (planes, h + 2 halo, w + 2 halo) in steps, h and w multiples of 32 -> symbols of the tile.

        `core` is the (height, width) that matters: latents wholly beyond it are zeros, which cost next to nothing.
        """
        parts, hypers = [], []
        for first in range(0, len(planes), PLANES_AT_ONCE):
            part = np.s_[first : first + PLANES_AT_ONCE]
            inputs = {"pixels": planes[part, None], "level": levels[part].astype(np.float32).reshape(-1, 1, 1, 1)}
            latent, hyper = self._analysis.run(["latent", "hyper"], inputs)
            parts.append(np.clip(latent, -SYMBOL_LIMIT, SYMBOL_LIMIT))
            hypers.append(np.rint(hyper).astype(np.int32))
        latents, hyper = np.concatenate(parts), np.concatenate(hypers)
        if core is not None:
            latents[:, :, -(-core[0] // self.spec.patch) :] = 0
            latents[:, :, :, -(-core[1] // self.spec.patch) :] = 0
        symbols = refine(latents, hyper, levels, self.prior, self.spec.bit_price)
        latents -= symbols
        samples = latents[:, 0].size * self.spec.patch**2
        return TileSymbols(symbols, hyper, float(np.dot(latents.ravel(), latents.ravel())) / samples)

    def prior(
        self,
        hyper: Symbols,
        own: NDArray[np.int16],
        before: NDArray[np.int16],
        energy: NDArray[np.int16],
        levels: NDArray[np.uint8],
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Scale index and mean (eighths) of every latent: `downlink.latent.Prior`."""
        indices, means = [], []
        for first in range(0, len(levels), PLANES_AT_ONCE):
            part = np.s_[first : first + PLANES_AT_ONCE]
            arrays: dict[str, NDArray[Any]] = {"hyper": hyper, "own": own, "before": before, "energy": energy}
            inputs = {name: array[part].astype(np.float32) for name, array in arrays.items()}
            inputs["level"] = levels[part].astype(np.float32).reshape(-1, 1, 1, 1)
            index, mean = self._prior.run(["index", "mean"], inputs)
            indices.append(index.astype(np.uint8))
            means.append(mean.astype(np.int32))
        return np.concatenate(indices), np.concatenate(means)
