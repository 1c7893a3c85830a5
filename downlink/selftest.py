"""A bundle's self-test: integers that the prior network must map to the same indices on every machine.

The inputs are made from a seed by 64-bit integer arithmetic (SplitMix64, Steele, Lea, Flood 2014), so only seed,
sizes and the SHA-256 of the answer travel. Both nodes run it when they load a bundle, before the first symbol is coded.
"""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from downlink.accelerator import Accelerator
from downlink.context import COMPAND_LIMIT, LEVEL_LIMIT, ROTATION_SHIFT
from downlink.dct import CHANNELS, ROOT, ROOT_CHANNELS, SUBBANDS
from downlink.errors import BundleError
from downlink.latent import TileCode, TileSymbols, expect_tile
from downlink.prior import Prior
from downlink.spec import PlaneSpec
from downlink.table import Tables


class SelfTest(Struct, frozen=True, forbid_unknown_fields=True):
    """selftest.json: `planes` planes of `size` x `size` latents drawn from `seed`, and the answer's hash."""

    seed: int
    planes: int
    size: int
    sha256: str


def draw(seed: int, count: int) -> NDArray[np.uint64]:
    """`count` numbers of 64 random bits that follow from `seed`, the same on every machine: SplitMix64's."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def answer(
    spec: PlaneSpec, tables: Tables, prior: Prior, seed: int, planes: int, size: int, native: Accelerator | None = None
) -> str:
    """SHA-256 of index (uint8) and mean (int32, little-endian) of each subband that `prior`, or `native` instead, gives
    for drawn symbols."""

    def integers(salt: int, shape: tuple[int, ...], limit: int) -> NDArray[np.int64]:
        spread = draw(seed + salt, int(np.prod(shape))) % np.uint64(2 * limit + 1)
        return spread.astype(np.int64).reshape(shape) - limit

    small = size // ROOT
    hyper = integers(1, (planes, spec.hyper_latents, size // spec.hyper, size // spec.hyper), spec.hyper_limit)
    latent = integers(2, (planes, CHANNELS, size, size), COMPAND_LIMIT) >> 3
    root = integers(3, (planes, ROOT_CHANNELS, small, small), 8 * COMPAND_LIMIT)
    levels = 1 + (draw(seed + 4, planes * len(SUBBANDS)) % np.uint64(LEVEL_LIMIT)).astype(np.uint8)
    turn = integers(5, (planes, planes), 1 << ROTATION_SHIFT)
    code = TileCode(spec, tables, levels.reshape(planes, len(SUBBANDS)), turn, planes)
    symbols = TileSymbols(*(array.astype(np.int32) for array in (root, latent, hyper)))
    expected = native.expect(code, *symbols) if native else [*expect_tile(code, symbols, prior)]
    digest = hashlib.sha256()
    for index, mean in expected:
        digest.update(index.tobytes())
        digest.update(mean.astype("<i4").tobytes())
    return digest.hexdigest()


def check(spec: PlaneSpec, tables: Tables, prior: Prior, packed: bytes, bundle: str) -> None:
    """Run the self-test `packed` (selftest.json); BundleError if this machine's answer is another. Native loops that
    give another are left out."""
    try:
        test = msgspec.json.decode(packed, type=SelfTest)
    except msgspec.MsgspecError as error:
        raise BundleError(f"bundle {bundle}: selftest.json: {error}; fetch the bundle again") from error
    if not (0 < test.planes <= 64 and 0 < test.size <= 256 and test.size % spec.hyper == 0):
        raise BundleError(f"bundle {bundle}: self-test of {test.planes} planes of {test.size} latents cannot be run")
    found = answer(spec, tables, prior, test.seed, test.planes, test.size)
    if found != test.sha256:
        raise BundleError(
            f"bundle {bundle}: its prior gives {found[:16]}… on this machine, the bundle states {test.sha256[:16]}…; "
            "streams made here could not be decoded elsewhere: use another onnxruntime version"
        )
    native = prior.native
    if native is not None and answer(spec, tables, prior, test.seed, test.planes, test.size, native) != test.sha256:
        prior.native = None
