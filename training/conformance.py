"""The integer prior in every setting of onnxruntime: the same answers, hence the same bytes and the same symbols.

    downlink models verify universal --symbols 1e8

Tiles of symbols are made from a seed by 64-bit integer arithmetic, coded and decoded again with the real entropy path.
Whenever that path asks the prior, sessions in other settings (1 and 2 threads, each level of graph optimisation) answer
beside the encoder node's own, a third of them in turn, and their answers are compared. What a payload holds follows
from symbols and answers alone, so equal answers are equal bytes. The SHA-256 over all answers and symbols depends on
bundle, seed and number of symbols only: two machines, or two versions of onnxruntime, agree where it does.

Needs no torch. Refused: a half of a bundle (`BundleError`, as both nodes take part).
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from decoder_node.decoder import PlaneDecoder
from downlink.bundle import Bundle
from downlink.context import LEVEL_LIMIT, LEVEL_ZERO, LEVELS_PER_OCTAVE, ROTATION_SHIFT
from downlink.dct import ROOT, ROOT_CHANNELS, SUBBANDS
from downlink.errors import BundleError
from downlink.latent import ReceivedTile, TileCode, TileSymbols, decode_tiles, encode_tile
from downlink.prior import Prior, Run
from downlink.selftest import draw
from downlink.spec import PlaneSpec
from encoder_node.encoder import PlaneEncoder

SEED: Final = 20261121
TILES: Final = 2
"""Tiles that are decoded together, so that batches of both kinds are seen."""
PLANES: Final = 4
SIDE: Final = 32
"""Latents along a tile's side: tiles of 256 px at 8 px to a latent."""
LEVELS: Final = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
OCTAVES_MAX: Final = 15
TURNS: Final = 3
"""A symbol's prior is asked for once when it is coded and once when it is decoded, its features once each: a third of
the settings at a time is enough for each setting to answer for many symbols."""


class Setting(NamedTuple):
    """How onnxruntime runs the graphs."""

    threads: int
    optimisation: str


SETTINGS: Final = tuple(Setting(threads, level) for threads in (1, 2) for level in LEVELS)


@contextmanager
def _optimised(level: str) -> Iterator[None]:
    """Sessions that are made meanwhile, by whatever code, optimise their graphs at `level` and no further."""
    real = onnxruntime.SessionOptions

    def options() -> Any:
        made = real()
        made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        return made

    onnxruntime.SessionOptions = options
    try:
        yield
    finally:
        onnxruntime.SessionOptions = real


def decoder_in(bundle: Bundle, setting: Setting) -> PlaneDecoder:
    """The ground's decoder, its sessions in this setting."""
    with _optimised(setting.optimisation):
        decoder = PlaneDecoder(bundle, setting.threads)
    held = [*vars(decoder).values(), *(v for d in vars(decoder).values() if isinstance(d, dict) for v in d.values())]
    made = [value for value in held if isinstance(value, onnxruntime.InferenceSession)]
    found = {session.get_session_options().graph_optimization_level.name for session in made}
    if found != {setting.optimisation}:
        raise RuntimeError(f"sessions were asked for {setting.optimisation} and run at {found or 'no level at all'}")
    return decoder


def drawn_levels(seed: int, planes: int) -> NDArray[np.uint8]:
    """Levels (planes, 4), silent to loud, few so loud that no scene has them; every subband is sent."""
    first, second = (draw(seed, 2 * planes * len(SUBBANDS)) % np.uint64(LEVEL_LIMIT)).reshape(2, planes, len(SUBBANDS))
    return np.asarray(1 + np.minimum(first, second), np.uint8)


def drawn_turn(seed: int, planes: int) -> NDArray[np.int64]:
    """How subband 1's planes see those of subband 0, in 1/64."""
    unit = 1 << ROTATION_SHIFT
    return (draw(seed + 4, planes * planes) % np.uint64(2 * unit + 1)).astype(np.int64).reshape(planes, planes) - unit


def drawn_tile(spec: PlaneSpec, levels: NDArray[np.uint8], seed: int, side: int = SIDE, reach: int = 4) -> TileSymbols:
    """Symbols about as large as planes of these levels have; hyper-latents within `reach`. Integers alone make them, so
    they are the same on every machine."""
    planes, low = len(levels), side // spec.hyper
    octaves = np.repeat(levels.astype(np.int64), np.diff((0, *SUBBANDS)), axis=1) - LEVEL_ZERO
    latent = _drawn(seed + 1, octaves // LEVELS_PER_OCTAVE, side)
    latent[:, 0] = 0
    root = _drawn(seed + 5, np.repeat(octaves[:, :1], ROOT_CHANNELS, axis=1) // LEVELS_PER_OCTAVE, side // ROOT)
    wide = draw(seed + 3, planes * spec.hyper_latents * low * low).reshape(planes, spec.hyper_latents, low, low)
    hyper = (wide % np.uint64(2 * reach + 1)).astype(np.int32) - np.int32(reach)
    return TileSymbols(root, latent, hyper)


def _drawn(seed: int, octaves: NDArray[np.int64], side: int) -> NDArray[np.int32]:
    """Symbols (planes, channels, side, side) with about so many bits in each channel (planes, channels)."""
    shape = (*octaves.shape, side, side)
    octaves = octaves + (draw(seed, octaves.size) % np.uint64(3)).astype(np.int64).reshape(octaves.shape) - 1
    bits = np.clip(octaves, 0, OCTAVES_MAX)[:, :, None, None]
    random = draw(seed + 1, int(np.prod(shape))).view(np.int64).reshape(shape)
    magnitude = random & (random >> 16) & ((1 << bits) - 1)  # small ones more often, as in nature
    return np.asarray(np.where(random < 0, -magnitude, magnitude), np.int32)


@dataclass
class Witness:
    """The prior's graphs in some setting: how many numbers they gave, and how many of them otherwise than the first."""

    run: Run
    answers: int = 0
    differing: int = 0


@dataclass
class Witnesses:
    """Graphs that ask several: the first one's answer is given, the others' are compared with it."""

    first: Run
    others: list[Witness]
    answers: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    calls: int = 0

    def run(self, name: str, inputs: dict[str, Any]) -> list[Any]:
        """`downlink.prior.Run`, whatever the graph is."""
        outputs = self.first(name, inputs)
        for other in self.others[self.calls % TURNS :: TURNS]:
            for mine, its in zip(outputs, other.run(name, inputs), strict=True):
                other.answers += mine.size
                other.differing += int(np.count_nonzero(mine != its))
        self.calls += 1
        for output in outputs:
            self.answers += output.size
            self.digest.update(output.astype("<i4").tobytes())
        return outputs


def prove(
    bundle: Bundle, symbols: int, settings: Sequence[Setting] = SETTINGS, seed: int = SEED, side: int = SIDE
) -> dict[str, Any]:
    """Code and decode at least `symbols` symbols with the prior in all settings.

    Returns what was seen: `agree` is True if no setting answered otherwise than the encoder node, and all symbols came
    back. `sha256` is over all answers and symbols, `bytes` the size of all payloads.
    """
    if not (bundle.has("encoder.onnx") and bundle.has("decoder.onnx")):
        raise BundleError(f"bundle {bundle.name} at {bundle.folder} is one half; give the whole bundle, both nodes run")
    began = time.perf_counter()
    encoder = PlaneEncoder(bundle)
    others = [Witness(decoder_in(bundle, setting).prior.run) for setting in settings]
    witnesses = Witnesses(encoder.prior.run, others)
    prior = Prior(witnesses.run)
    coded = batch = size = returned = 0
    while coded < symbols:
        own_seed = seed + 1000 * batch
        levels = drawn_levels(own_seed, PLANES)
        code = TileCode(encoder.spec, encoder.tables, levels, drawn_turn(own_seed, PLANES), PLANES)
        # Wild hyper-latents make the prior guess badly: symbols escape by the thousand, which is slow: only at times.
        reach = encoder.spec.hyper_limit if batch % 16 == 0 else min(4, encoder.spec.hyper_limit)
        tiles = [drawn_tile(encoder.spec, levels, own_seed + 10 * number, side, reach) for number in range(TILES)]
        found = []
        for tile in tiles:
            payloads = encode_tile(code, tile, prior)
            found.append(ReceivedTile(code, side, side, payloads))
            size += sum(map(len, payloads.values()))
        decode_tiles(found, prior)
        for tile, again in zip(tiles, found, strict=True):
            count = sum(part.size for part in tile) - tile.latent[:, 0].size
            same = all(np.array_equal(a, b) for a, b in zip(again.symbols, tile, strict=True))
            returned += count if same else 0
            coded += count
            for part in again.symbols:
                witnesses.digest.update(part.astype("<i4").tobytes())
        batch += 1
    rows = [
        {**setting._asdict(), "answers": other.answers, "differing": other.differing}
        for setting, other in zip(settings, others, strict=True)
    ]
    return {
        "bundle": bundle.name,
        "id": bundle.id.hex(),
        "seed": seed,
        "symbols": coded,
        "symbols_returned": returned,
        "answers": witnesses.answers,
        "bytes": size,
        "settings": rows,
        "agree": returned == coded and not any(other.differing for other in others),
        "sha256": witnesses.digest.hexdigest(),
        "seconds": round(time.perf_counter() - began, 1),
        "on": {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    }
