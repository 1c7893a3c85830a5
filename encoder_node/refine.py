"""Rate-distortion optimised quantisation: symbols that cost more bits than they are worth move one step towards zero.

An encoder may send any symbols it likes; the format does not care. At each stop of the walk (`downlink.walk`) the prior
says what every symbol would cost there, from symbols that are decided already; each symbol is its nearest integer, or
the next one towards zero if the bits that saves are worth more (`bit_price`, in squared steps per bit) than the error
it adds. So one pass over the prior decides and codes. The bits are those of the frequency tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from downlink.accelerator import Accelerator, Sent
from downlink.dct import CHANNELS, ROOT_CHANNELS, subband
from downlink.latent import TileCode, TileSymbols
from downlink.lookup import COLUMNS, REACH, Lookup
from downlink.prior import Prior, Symbols
from downlink.quarter import gather, scatter
from downlink.symbol import Segments, SymbolEncoder, add_codes_together, lookup_of
from downlink.table import FRACTIONS
from downlink.walk import Index, Walk

Effort = Literal["fast", "best"]

DEAD_ZONE = 0.6
"""Magnitude below which the fast effort takes a latent for zero: about what refinement would do at low rates."""

Floats = NDArray[np.float32]
Integers = NDArray[Any]
"""Symbols: int8 where they all fit, else int32."""


class Decided(Protocol):
    """What an encoder has decided on tiles of one size. `errors` holds, if it was measured, the squared rounding error
    of each tile's symbols, in steps squared."""

    errors: NDArray[np.float64]

    @property
    def chunks(self) -> Sequence[Mapping[tuple[int, int], SymbolEncoder | Sent]]:
        """Of each tile, what makes its chunks, or the finished ones, by (group, block)."""

    def bits(self, tile: int) -> float:
        """Estimated bits of a tile's chunks, without the few bytes that each costs by itself."""

    def symbols(self, tile: int) -> TileSymbols:
        """What was decided for a tile."""


def decide(
    root: Floats,
    latent: Floats,
    hyper: Symbols,
    code: TileCode,
    prior: Prior,
    effort: Effort = "best",
    measures: bool = True,
) -> Decided:
    """Decide on tiles, natively where that can be: see `Decision`."""
    native = prior.native
    if native is not None and native.tables is code.tables and native.takes(code, *latent.shape[-2:]):
        return NativeDecision(root, latent, hyper, code, native, effort, measures)
    return Decision(root, latent, hyper, code, prior, effort, measures)


def _steering(code: TileCode, effort: Effort) -> tuple[float, float]:
    """Price of a bit and dead zone."""
    price = code.spec.bit_price
    return price if effort == "best" else 0.0, DEAD_ZONE if price and effort == "fast" else 0.0


class Decision:
    """Decides on the symbols of tiles of one size and codes them: a guide of `Walk`.

    `root` (tiles, planes, 16, h/4, w/4) and `latent` (tiles, planes, 64, h, w) are exact, in steps; `hyper` (tiles,
    planes, hyper_latents, h/4, w/4) is decided. Afterwards `encoders` holds what makes the chunks of each tile, by
    (group, block), and, if it `measures`, `errors` the squared rounding error of each tile's symbols, in steps squared.
    """

    def __init__(
        self,
        root: Floats,
        latent: Floats,
        hyper: Symbols,
        code: TileCode,
        prior: Prior,
        effort: Effort = "best",
        measures: bool = True,
    ) -> None:
        self._root, self._latent, self._hyper, self._code = root, latent, hyper, code
        self._lookup: Lookup = lookup_of(code.tables)
        self._price, self._dead_zone = map(np.float32, _steering(code, effort))
        self._bounds = _bounds(self._lookup, code.spec.bit_price)
        self._measures = measures
        self._walk = Walk(code, prior, len(latent), *latent.shape[-2:])
        self._found: dict[tuple[int, int, int], Integers] = {}
        self._open: list[SymbolEncoder] = []
        self.encoders: list[dict[tuple[int, int], SymbolEncoder]] = [{} for _ in latent]
        self.errors = np.zeros(len(latent))
        self._walk.go(self)

    def begin(self, group: int, block: int) -> None:
        self._open = [SymbolEncoder(self._code.tables) for _ in self.encoders]
        for encoders, encoder in zip(self.encoders, self._open, strict=True):
            if group == 0 or self._code.block_planes(block, group):
                encoders[group, block] = encoder
        if group == 0:
            planes = self._code.block_planes(block)
            for hyper, encoder in zip(self._hyper, self._open, strict=True):
                values = hyper[planes.start : planes.stop]
                index = self._code.hyper_index(planes, values.shape).ravel()
                encoder.add(values.ravel(), index, np.zeros(values.size, np.int32))

    def hyper(self, planes: range) -> Symbols:
        return self._hyper[:, planes.start : planes.stop].swapaxes(0, 1)

    def settle(self, group: int, plane: int, phase: int, index: Index, mean: Symbols | None) -> Integers:
        exact = self._exact(group, plane, phase, index.shape)
        nearest = np.rint(exact)
        if self._dead_zone:
            nearest[np.abs(exact) < self._dead_zone] = 0
        fits = nearest.size == 0 or (float(nearest.max()) < REACH and float(nearest.min()) > -REACH)
        symbols: Integers = nearest.astype(np.int8 if fits else np.int32)
        if self._price:
            self._lower(exact, symbols, index, mean)
        if self._measures:
            exact -= symbols
            flat = exact.reshape(len(exact), -1)
            self.errors += np.einsum("ij,ij->i", flat, flat)
        self._write(group, phase, symbols, index, mean)
        self._found[group, plane, phase] = symbols
        return symbols

    def end(self, group: int, block: int) -> None:
        for encoder in self._open:
            encoder.settle()

    def _exact(self, group: int, plane: int, phase: int, shape: tuple[int, ...]) -> Floats:
        """Exact values of a stop; zero beyond the edge of a grid of odd size."""
        natural = self._latent[:, plane, subband(group)] if group else self._root[:, plane]
        out = (np.empty if group else np.zeros)(shape, np.float32)
        gather(natural, phase, out)
        return out

    def _lower(self, exact: Floats, symbols: Integers, index: Index, mean: Symbols | None) -> None:
        """Move symbols one step closer to zero where that is worth it: where the exact magnitude is below that at which
        bits saved, times their price, are the error added."""
        flat = symbols.reshape(-1)
        (at,) = (flat != 0).nonzero()
        if not len(at):
            return
        value, scale = flat.take(at), index.reshape(-1).take(at)
        there = np.abs(exact.reshape(-1).take(at))
        if mean is None:
            bound = self._bounds.take(self._lookup.keys(value, scale, None), mode="clip")
        else:
            centre, costs = mean.reshape(-1).take(at), self._lookup.costs.reshape(-1)
            saved = costs.take(self._lookup.keys(value, scale, centre))
            saved -= costs.take(self._lookup.keys(value - np.sign(value), scale, centre))
            bound = np.abs(value).astype(np.float32) + (saved * self._price - 1) / 2
        lower = there < bound
        flat[at] = value - np.sign(value) * lower.view(np.int8)

    def _write(self, group: int, phase: int, symbols: Integers, index: Index, mean: Symbols | None) -> None:
        order, tiles = self._walk.orders(group), len(symbols)
        codes = order.stream(phase, self._lookup.codes_of(symbols, index, mean)).reshape(tiles, -1)

        def segments() -> Segments:
            values, scales = (order.stream(phase, part).reshape(tiles, -1) for part in (symbols, index))
            return values, scales, None if mean is None else order.stream(phase, mean).reshape(tiles, -1)

        add_codes_together(self._open, codes, segments)

    @property
    def chunks(self) -> list[dict[tuple[int, int], SymbolEncoder]]:
        """What makes the chunks of each tile."""
        return self.encoders

    def bits(self, tile: int) -> float:
        """Estimated bits of a tile's chunks, without the few bytes that each costs by itself."""
        return sum(encoder.bits for encoder in self.encoders[tile].values())

    def symbols(self, tile: int) -> TileSymbols:
        """What was decided for a tile."""
        planes, (height, width) = self._latent.shape[1], self._latent.shape[-2:]
        root = np.zeros((planes, ROOT_CHANNELS, height // 4, width // 4), np.int32)
        latent = np.zeros((planes, CHANNELS, height, width), np.int32)
        for (group, plane, phase), values in self._found.items():
            scatter(values[tile], phase, latent[plane, subband(group)] if group else root[plane])
        return TileSymbols(root, latent, self._hyper[tile])


class NativeDecision:
    """As `Decision`, by the native loops: the chunks are there at once."""

    def __init__(
        self,
        root: Floats,
        latent: Floats,
        hyper: Symbols,
        code: TileCode,
        native: Accelerator,
        effort: Effort = "best",
        measures: bool = True,
    ) -> None:
        self._given = root, latent, hyper
        self._code, self._native, self._effort = code, native, effort
        self.chunks: list[dict[tuple[int, int], Sent]] = []
        self.errors = np.zeros(len(latent))
        for tile in range(len(latent)):
            sent, self.errors[tile] = self._encode(tile, measures)
            keys = [divmod(number, code.blocks) for number in range(len(sent))]
            self.chunks.append(
                {
                    (group, block): chunk
                    for (group, block), chunk in zip(keys, sent, strict=True)
                    if group == 0 or code.block_planes(block, group)
                }
            )

    def _encode(
        self, tile: int, measures: bool, symbols: tuple[Symbols, Symbols] | None = None
    ) -> tuple[list[Sent], float]:
        bounds = _bounds(lookup_of(self._code.tables), self._code.spec.bit_price)
        root, latent, hyper = (array[tile] for array in self._given)
        price, dead_zone = _steering(self._code, self._effort)
        return self._native.encode(self._code, root, latent, hyper, price, dead_zone, bounds, measures, symbols)

    def bits(self, tile: int) -> float:
        """Estimated bits of a tile's chunks, without the few bytes that each costs by itself."""
        return sum(chunk.bits for chunk in self.chunks[tile].values())

    def symbols(self, tile: int) -> TileSymbols:
        """What was decided for a tile: it is decided once more."""
        root, latent, hyper = self._given
        found = np.zeros(root.shape[1:], np.int32), np.zeros(latent.shape[1:], np.int32)
        self._encode(tile, False, found)
        return TileSymbols(*found, hyper[tile])


@lru_cache(maxsize=8)
def _bounds(lookup: Lookup, price: float) -> Floats:
    """Magnitude below which a symbol whose mean is zero is better one step closer to zero, by key."""
    v = np.abs(np.arange(COLUMNS).astype(np.int8).astype(np.float32))
    bounds = v + (lookup.savings[::FRACTIONS] * np.float32(price) - 1) / 2
    return np.ascontiguousarray(bounds, np.float32).reshape(-1)


def refine(root: Floats, latent: Floats, hyper: Symbols, code: TileCode, prior: Prior) -> TileSymbols:
    """Symbols of one tile for its exact `root` (planes, 16, h/4, w/4) and `latent` (planes, 64, h, w), given its
    hyper-latents."""
    return decide(root[None], latent[None], hyper[None], code, prior).symbols(0)
