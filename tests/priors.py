"""A prior that needs no bundle: small integer networks in numpy in which every input matters, so that the least
difference between what encoder and decoder know shows in the symbols."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downlink.dct import CHANNELS, ROOT_CHANNELS, SUBBANDS, subband
from downlink.latent import TileCode, TileSymbols
from downlink.prior import FEATURES, GRAPHS, MEANS, PREDICTED, Prior
from downlink.spec import PlaneSpec
from downlink.table import Tables
from tests.golden.make_symbols import tables

HYPER_LATENTS, FEATURE_COUNT = 2, 3


def drawn(seed: int, *shape: int) -> NDArray[np.int64]:
    """Integers within -128..127 that no library can change (SplitMix64's finaliser)."""
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) & np.uint64(255)).astype(np.int64).reshape(shape) - 128


def coded_channels(number: int) -> int:
    at = subband(number)
    return at.stop - at.start if number else ROOT_CHANNELS


@cache
def weights(number: int, inputs: int) -> NDArray[np.int64]:
    return drawn(1000 + number, coded_channels(number) + MEANS[number] + PREDICTED[number], inputs)


def run(name: str, inputs: dict[str, NDArray[np.float32]]) -> list[Any]:
    """The networks: scale indices 0 to 5, means of some eighths, trusts 0 to 31."""
    if name == FEATURES:
        hyper = inputs["hyper"].astype(np.int64)
        mixed = np.tensordot(drawn(5, FEATURE_COUNT, HYPER_LATENTS), hyper, axes=(1, 1)).swapaxes(0, 1)
        coarse = (mixed % 100).astype(np.float32)
        return [coarse, (3 * coarse % 64).repeat(4, axis=2).repeat(4, axis=3)]
    number = GRAPHS.index(name)
    known = inputs["known"].astype(np.int64)
    out = np.tensordot(weights(number, known.shape[1]), known, axes=(1, 1)).swapaxes(0, 1) >> 4
    channels, means = coded_channels(number), MEANS[number]
    out[:, :channels] %= 6
    out[:, channels : channels + means] %= 41
    out[:, channels : channels + means] -= 20
    out[:, channels + means :] %= 32
    return [out.astype(np.float32)]


PRIOR = Prior(run)
SPEC = PlaneSpec(
    hyper=4,
    hyper_latents=HYPER_LATENTS,
    decoder_halo=1,
    hyper_limit=31,
    hyper_index=tuple((1 + level % 4, 5) for level in range(128)),
    bit_price=0.1,
    distortion=((0.1, 1.0),),
)


def code(counts: tuple[int, ...], planes_per_chunk: int, seed: int = 0, spec: PlaneSpec = SPEC) -> TileCode:
    """A code of max(counts) planes, subband b of the first counts[b] of them sent."""
    planes = max(counts)
    levels = (drawn(7 + seed, planes, len(SUBBANDS)) % 60 + 20).astype(np.uint8)
    for number, count in enumerate(counts):
        levels[count:, number] = 0
    turn = drawn(8 + seed, counts[1], counts[0]) % 130 - 65
    return TileCode(spec, made_tables(), levels, turn, planes_per_chunk)


@cache
def made_tables() -> Tables:
    return tables()


def symbols(made: TileCode, height: int, width: int, seed: int = 0) -> TileSymbols:
    """Symbols of a tile of height x width blocks, some enormous; none where nothing is sent."""
    planes, spec = made.planes, made.spec

    def shaped(salt: int, *shape: int) -> NDArray[np.int32]:
        values = drawn(100 * seed + salt, *shape)
        values = np.sign(values) * (values**2 >> 9)
        values[drawn(100 * seed + salt + 50, *shape) == 100] *= 300_000
        return values.astype(np.int32)

    root = 5 * shaped(1, planes, ROOT_CHANNELS, height // 4, width // 4)
    latent = shaped(2, planes, CHANNELS, height, width)
    latent[:, 0] = 0
    for number, count in enumerate(made.counts):
        if number:
            latent[count:, subband(number)] = 0
        else:
            root[count:] = 0
    hyper = drawn(100 * seed + 3, planes, spec.hyper_latents, height // spec.hyper, width // spec.hyper) % 63 - 31
    return TileSymbols(root.clip(-(2**24), 2**24), latent.clip(-(2**24), 2**24), hyper.astype(np.int32))
