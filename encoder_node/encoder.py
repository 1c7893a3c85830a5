"""The light half of a plane codec, run by onnxruntime: coefficients of a tile's planes -> symbols, and the integer prior
that codes them.

Only latents and hyper-latents come from inexact floats, and both are transmitted; scale indices and means come from
the integer prior, which the bundle's self-test checks on this machine when it is loaded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from downlink import dct, selftest
from downlink.bundle import Bundle
from downlink.latent import TileCode
from downlink.prior import FEATURES, GRAPHS, Prior, Symbols
from downlink.spec import plane_spec
from downlink.table import Tables
from encoder_node.refine import refine

PLANES_AT_ONCE = 16
"""Planes of a tile that pass the network together: bounds memory for hundreds of bands at no loss of speed."""
SYMBOL_LIMIT = 1 << 22

Floats = NDArray[np.float32]


def _session(bundle: Bundle, name: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(bundle.file(name), options, providers=["CPUExecutionProvider"])


class TileSymbols(NamedTuple):
    """What the encoder makes of one tile: `latent` (planes, 64, h, w), `hyper` (planes, hyper_latents, h/4, w/4), both
    int32; `rounding_error` is the squared rounding error of all latents together, in steps squared."""

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
        self._sessions = {name: _session(bundle, name, threads) for name in (FEATURES, *GRAPHS)}
        self.prior = Prior(self._run)
        selftest.check(self.spec, self.prior, bundle.file("selftest.json"), bundle.name)

    def _run(self, name: str, inputs: dict[str, Floats]) -> Any:
        session = self._sessions[name]
        count = len(next(iter(inputs.values())))
        parts = [
            session.run(None, {key: value[first : first + PLANES_AT_ONCE] for key, value in inputs.items()})[0]
            for first in range(0, count, PLANES_AT_ONCE)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def analyse(self, planes: Floats, code: TileCode, core: tuple[int, int]) -> TileSymbols:
        """Coefficients (planes, 64, h + 2 halo, w + 2 halo) in steps -> symbols of the tile.

        `core` is the (height, width) in pixels that matters: latents wholly beyond it are zeros, which cost next to
        nothing.
        """
        parts, hypers = [], []
        level = code.levels.astype(np.float32)[:, :, None, None]
        for first in range(0, len(planes), PLANES_AT_ONCE):
            part = np.s_[first : first + PLANES_AT_ONCE]
            latent, hyper = self._analysis.run(["latent", "hyper"], {"coefficients": planes[part], "level": level[part]})
            parts.append(np.clip(latent, -SYMBOL_LIMIT, SYMBOL_LIMIT))
            hypers.append(np.rint(hyper).astype(np.int32))
        latents, hyper = np.concatenate(parts), np.concatenate(hypers)
        latents[:, :, -(-core[0] // dct.BLOCK) :] = 0
        latents[:, :, :, -(-core[1] // dct.BLOCK) :] = 0
        symbols = refine(latents, hyper, code, self.prior)
        latents -= symbols
        return TileSymbols(symbols, hyper, float(np.dot(latents.ravel(), latents.ravel())))
