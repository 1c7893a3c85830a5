"""The light half of a plane codec, run by onnxruntime: coefficients of a tile's planes -> symbols, and the integer
prior that codes them.

Only latents and hyper-latents come from inexact floats, and both are transmitted; scale indices and means come from
the integer prior, which the bundle's self-test checks on this machine when it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from downlink import dct, selftest
from downlink.accelerator import accelerator_of
from downlink.bundle import Bundle
from downlink.context import LEVEL_ZERO, LEVELS_PER_OCTAVE
from downlink.errors import BundleError
from downlink.latent import TileCode, TileSymbols
from downlink.prior import FEATURES, GRAPHS, Prior
from downlink.spec import plane_spec
from downlink.table import Tables
from encoder_node.refine import Decided, Effort, decide

PLANES_AT_ONCE = 16
"""Planes of a tile that pass the network together: bounds memory for hundreds of bands at no loss of speed."""
SYMBOL_LIMIT = 1 << 20
HYPER = "encoder.onnx"
SIGNED = 4
"""Channels whose signs the hyper-latents' network sees."""

Floats = NDArray[np.float32]


def _session(bundle: Bundle, name: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(bundle.file(name), options, providers=["CPUExecutionProvider"])


def loudness(planes: Floats, levels: NDArray[np.uint8]) -> Floats:
    """What the hyper-latents are made from: log2(1 + |x|) of coefficients (tiles, planes, 64, h, w), the first four
    with their signs again, and what the planes' `levels` (planes, 4) lead to expect: (tiles * planes, 72, h, w)."""
    tiles, count, channels, height, width = planes.shape
    out = np.empty((tiles, count, channels + SIGNED + len(dct.SUBBANDS), height, width), np.float32)
    loud = out[:, :, :channels]
    np.abs(planes, out=loud)
    loud += 1
    np.log(loud, out=loud)
    loud *= np.float32(1 / math.log(2))
    np.copysign(loud[:, :, :SIGNED], planes[:, :, :SIGNED], out=out[:, :, channels : channels + SIGNED])
    expected = (levels.astype(np.float32) - LEVEL_ZERO) * (0.25 / LEVELS_PER_OCTAVE)
    out[:, :, channels + SIGNED :] = expected[:, :, None, None]
    return out.reshape(tiles * count, -1, height, width)


class Analysed(NamedTuple):
    """What the encoder makes of one tile: its symbols, and the squared rounding error of all of them together, in steps
    squared."""

    symbols: TileSymbols
    rounding_error: float


class PlaneEncoder:
    """An encoder bundle, loaded and checked. Not for several threads at once."""

    def __init__(self, bundle: Bundle, threads: int = 1, effort: Effort = "best") -> None:
        self.bundle, self.effort = bundle, effort
        self.spec = plane_spec(bundle.parameters)
        self.tables = Tables.unpack(bundle.file("tables.bin"))
        self._sessions = {name: _session(bundle, name, threads) for name in (HYPER, FEATURES, *GRAPHS)}
        taken = [value.name for value in self._sessions[HYPER].get_inputs()]
        if taken != ["known"]:
            raise BundleError(
                f"bundle {bundle.name}: {HYPER} takes {', '.join(taken)}, this program gives it known; export it again"
            )
        self.prior = Prior(self._run, accelerator_of(bundle.file, self.spec, self.tables))
        selftest.check(self.spec, self.tables, self.prior, bundle.file("selftest.json"), bundle.name)

    def _run(self, name: str, inputs: dict[str, Floats]) -> list[Any]:
        session = self._sessions[name]
        count = len(next(iter(inputs.values())))
        parts = [
            session.run(None, {key: value[first : first + PLANES_AT_ONCE] for key, value in inputs.items()})
            for first in range(0, count, PLANES_AT_ONCE)
        ]
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def decide(
        self, planes: Floats, code: TileCode, cores: Sequence[tuple[int, int]], measures: bool = True
    ) -> Decided:
        """Coefficients (tiles, planes, 64, h, w) in steps -> what is sent of tiles of one size, and, if it `measures`,
        the error that makes. Changes `planes`.

        `cores` are the (height, width) in pixels that matter: latents wholly beyond them are zeros, which cost next to
        nothing; block means there continue the edge, which costs less than a jump.
        """
        tiles, count, _, height, width = planes.shape
        for tile, core in zip(planes, cores, strict=True):
            down, across = (-(-side // dct.BLOCK) for side in core)
            tile[:, 1:, down:] = 0
            tile[:, 1:, :, across:] = 0
        np.clip(planes, np.float32(-SYMBOL_LIMIT), np.float32(SYMBOL_LIMIT), out=planes)
        hypers = [self._run(HYPER, {"known": loudness(tile[None], code.levels)})[0] for tile in planes]
        whole = np.rint(np.stack(hypers)).astype(np.int32)
        root = dct.root_forward(planes[:, :, 0].reshape(tiles * count, height, width))
        root = root.reshape(tiles, count, *root.shape[1:])
        return decide(root, planes, whole, code, self.prior, self.effort, measures)

    def analyse(self, planes: Floats, code: TileCode, core: tuple[int, int]) -> Analysed:
        """`decide` for one tile: its symbols, from coefficients (planes, 64, h, w) in steps."""
        found = self.decide(planes[None], code, [core])
        return Analysed(found.symbols(0), float(found.errors[0]))
