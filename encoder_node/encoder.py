"""The light half of a plane codec, run by onnxruntime: coefficients of a tile's planes -> symbols, and the integer
prior that codes them.

Only latents and hyper-latents come from inexact floats, and both are transmitted; scale indices and means come from
the integer prior, which the bundle's self-test checks on this machine when it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from downlink import dct, selftest
from downlink.accelerator import accelerator_of, ear_of
from downlink.bundle import Bundle
from downlink.context import LEVEL_ZERO
from downlink.errors import BundleError
from downlink.latent import TileCode, TileSymbols
from downlink.prior import FEATURES, GRAPHS, Prior, Symbols
from downlink.reference import Codec
from downlink.spec import plane_spec
from downlink.table import Tables
from encoder_node.refine import Decided, Effort, decide

TILES_AT_ONCE = 8
"""Tiles that numpy decides on together."""
PLANES_AT_ONCE = 16
"""Planes of a tile that pass the network together: bounds memory for hundreds of bands at no loss of speed."""
SYMBOL_LIMIT = 1 << 20
HYPER = "encoder.onnx"
SIGNED = 4
"""Channels whose signs the hyper-latents' network sees."""
LOUD_PER_OCTAVE = 12
"""Units of loudness to a doubling: coefficients up to SYMBOL_LIMIT fit 8 bits."""

Floats = NDArray[np.float32]


def _session(bundle: Bundle, name: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(bundle.file(name), options, providers=["CPUExecutionProvider"])


def loudness(planes: Floats, levels: NDArray[np.uint8]) -> Floats:
    """What the hyper-latents are made from, in integers: of coefficients x (tiles, planes, 64, h, w) LOUD_PER_OCTAVE
    log2(1 + |x|), half of that with its sign for the first four, and how far the planes' `levels` (planes, 4) are from
    LEVEL_ZERO: (tiles * planes, 72, h, w).

    The logarithm is read from the float's own bits and bent by a parabola, so that every machine gives the same.
    """
    tiles, count, channels, height, width = planes.shape
    out = np.empty((tiles, count, channels + SIGNED + len(dct.SUBBANDS), height, width), np.float32)
    octaves = (np.abs(planes) + np.float32(1)).view(np.int32)
    octaves >>= 15
    octaves -= 127 << 8  # in 1/256, as if straight between powers of two
    rest = octaves & 255
    octaves += rest * (256 - rest) * 88 >> 16
    loud = octaves * LOUD_PER_OCTAVE + 128 >> 8
    out[:, :, :channels] = loud
    signed = (loud[:, :, :SIGNED] + 1 >> 1).astype(np.float32)
    np.copysign(signed, planes[:, :, :SIGNED], out=out[:, :, channels : channels + SIGNED])
    out[:, :, channels + SIGNED :] = (levels.astype(np.float32) - LEVEL_ZERO)[:, :, None, None]
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
        if taken != ["loudness"]:
            raise BundleError(
                f"bundle {bundle.name}: {HYPER} takes {', '.join(taken)}, this program gives it loudness; export it "
                "again"
            )
        self.prior = Prior(self._run, accelerator_of(bundle.file, self.spec, self.tables))
        self._ear = ear_of(bundle.file(HYPER), self.spec.hyper_limit)
        selftest.check(self.spec, self.tables, self.prior, bundle.file("selftest.json"), bundle.name)

    @property
    def codec(self) -> Codec:
        """What decodes references."""
        return Codec(self.bundle.id, self.spec, self.tables, self.prior)

    def _run(self, name: str, inputs: dict[str, Floats]) -> list[Any]:
        session = self._sessions[name]
        count = len(next(iter(inputs.values())))
        parts = [
            session.run(None, {key: value[first : first + PLANES_AT_ONCE] for key, value in inputs.items()})
            for first in range(0, count, PLANES_AT_ONCE)
        ]
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    @property
    def tiles_at_once(self) -> int:
        """Tiles that are best decided on together: numpy gains by many, the native loops by what is in the cache."""
        return 1 if self.prior.native else TILES_AT_ONCE

    def _hyper(self, planes: Floats, levels: NDArray[np.uint8]) -> Symbols:
        """Hyper-latents of a tile's planes (planes, 64, h, w)."""
        if self._ear is not None:
            return self._ear.hear(planes, levels)
        return np.asarray(self._run(HYPER, {"loudness": loudness(planes[None], levels)})[0], np.int32)

    def decide(
        self, planes: Floats, code: TileCode, cores: Sequence[tuple[int, int]], measures: bool = True
    ) -> Decided:
        """Coefficients (tiles, planes, 64, h, w) in steps, within +-SYMBOL_LIMIT -> what is sent of tiles of one size,
        and, if it `measures`, the error that makes. Changes `planes`.

        `cores` are the (height, width) in pixels that matter: latents wholly beyond them are zeros, which cost next to
        nothing; block means there continue the edge, which costs less than a jump.
        """
        tiles, count, _, height, width = planes.shape
        for tile, core in zip(planes, cores, strict=True):
            down, across = (-(-side // dct.BLOCK) for side in core)
            tile[:, 1:, down:] = 0
            tile[:, 1:, :, across:] = 0
        hyper = np.stack([self._hyper(tile, code.levels) for tile in planes])
        root = dct.root_forward(planes[:, :, 0].reshape(tiles * count, height, width))
        root = root.reshape(tiles, count, *root.shape[1:])
        return decide(root, planes, hyper, code, self.prior, self.effort, measures)

    def analyse(self, planes: Floats, code: TileCode, core: tuple[int, int]) -> Analysed:
        """`decide` for one tile: its symbols, from coefficients (planes, 64, h, w) in steps."""
        found = self.decide(np.clip(planes[None], -SYMBOL_LIMIT, SYMBOL_LIMIT), code, [core])
        return Analysed(found.symbols(0), float(found.errors[0]))
