"""Through the symbols of tiles of one size in the order in which they are coded, with all that the prior may know.

Both ends walk the same way: subband by subband, plane by plane, phase by phase (`downlink.latent`). At each stop the
prior says what it expects of the fields of that phase, in all tiles at once, and a `Guide` answers which symbols they
hold: the decoder takes them from the stream, the encoder decides. What the prior may know are the symbols of earlier
stops alone: contexts are made from the guide's answers, so neither end can see what the other cannot.

The contexts are those that `downlink.context` and `Prior.known` define; here they are kept in quarters
(`downlink.quarter`), and made once for all phases where they do not change. Arrays of a stop are (tiles, channels,
quarters of the phase, rows, columns).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from downlink.context import COMPAND_TABLE, ENERGY_DECAY, NEAR_LIMIT, compand, slopes, steepness, turned
from downlink.dct import ROOT, ROOT_CHANNELS, SUBBANDS, root_means, subband
from downlink.prior import FLAG, Prior, Symbols, mean_of
from downlink.quarter import PHASES, Magnitudes, Order, Shape, around, inner, neighbours, scatter, smooth, split

TILES_AT_ONCE = 4
"""Tiles that pass a network together: what it works on stays in the cache."""
_EARLIER = SUBBANDS[-2]
"""Channels that the last subband knows of."""
_OF_BYTES = COMPAND_TABLE[np.abs(np.arange(256).astype(np.int8).astype(np.int64))].astype(np.uint8).tobytes()
"""Companded magnitude of each int8, by its byte."""
_DECAY = np.int16(ENERGY_DECAY)

Floats = NDArray[np.float32]
Index = NDArray[np.uint8]


class Code(Protocol):
    """What a walk needs of `downlink.latent.TileCode`."""

    @property
    def blocks(self) -> int: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def levels(self) -> NDArray[np.uint8]: ...
    @property
    def turn(self) -> NDArray[np.int64]: ...
    def block_planes(self, block: int, band: int | None = None) -> range: ...


class Guide(Protocol):
    """Who knows the symbols."""

    def begin(self, group: int, block: int) -> None:
        """A chunk begins."""

    def hyper(self, planes: range) -> Symbols:
        """Hyper-latents (planes, tiles, hyper_latents, h/4, w/4); asked after `begin` of a block of subband 0."""

    def settle(self, group: int, plane: int, phase: int, index: Index, mean: Symbols | None) -> NDArray[Any]:
        """The symbols of a stop, int32 or, where all fit, int8, of which the prior expects these scale indices and
        means (None: all zero)."""

    def end(self, group: int, block: int) -> None:
        """A chunk ends."""


class Walk:
    """Walks once through `tiles` tiles of (height, width) latents, whose sides are multiples of 4."""

    def __init__(self, code: Code, prior: Prior, tiles: int, height: int, width: int) -> None:
        self.code, self.prior, self.tiles = code, prior, tiles
        self.shape, self.small = Shape(height, width), Shape(height // ROOT, width // ROOT)
        self.order, self.small_order = Order(self.shape), Order(self.small)
        planes = len(code.levels)
        self.root = np.zeros((planes, tiles, ROOT_CHANNELS, *self.small), np.int32)
        self._coarse: list[Index] = []
        self._fine: list[Index] = []
        self._earlier: list[Magnitudes] = []
        self._smoothed: list[Magnitudes] = []
        self._slope = np.zeros((0, tiles, 2, height, width), np.int32)
        self._space: dict[tuple[int, ...], Floats] = {}

    def go(self, guide: Guide) -> None:
        """All the way."""
        for group in range(len(SUBBANDS)):
            if group == 1:
                self._means_known()
            self._group(group, guide)

    def orders(self, group: int) -> Order:
        """How the fields of a subband stand in the stream."""
        return self.order if group else self.small_order

    def _group(self, group: int, guide: Guide) -> None:
        channels = _channels(group)
        shape = self.shape if group else self.small
        energy = shape.blank(self.tiles, channels)
        quiet = True
        for block in range(self.code.blocks):
            guide.begin(group, block)
            if group == 0:
                self._hear(guide.hyper(self.code.block_planes(block)))
            for plane in self.code.block_planes(block, group):
                own = self._plane(group, plane, energy, quiet, guide)
                np.subtract(energy, _DECAY, out=energy)
                np.maximum(energy, own, out=energy)
                quiet = False
                if 0 < group < len(SUBBANDS) - 1:
                    self._keep(plane, subband(group), own)
            guide.end(group, block)

    def _hear(self, hyper: Symbols) -> None:
        """Features of a block's planes."""
        for plane in hyper:
            features = self.prior.features(plane)
            for values, shape, kept in (
                (features.coarse, self.small, self._coarse),
                (features.fine, self.shape, self._fine),
            ):
                out = np.zeros((4, *values.shape[:2], shape.rows, shape.stride), np.uint8)
                split(values, out)
                kept.append(out)

    def _means_known(self) -> None:
        """What the block means say, once all are there."""
        planes, tiles = self.root.shape[:2]
        means = root_means(self.root.reshape(planes * tiles, ROOT_CHANNELS, *self.small))
        fall = slopes(means)
        steep = steepness(fall).reshape(planes, tiles, 1, *self.shape)
        self._slope = turned(fall.reshape(planes, tiles, 2, *self.shape), self.code.turn)
        most = max(self.code.counts[1:])
        for plane in range(most):
            self._earlier.append(self.shape.blank(self.tiles, _EARLIER))
            self._smoothed.append(self.shape.blank(self.tiles, _EARLIER))
            own = self.shape.blank(self.tiles, 1)
            split(steep[plane], inner(own))
            self._keep(plane, subband(0), own)

    def _keep(self, plane: int, channels: slice, own: Magnitudes) -> None:
        """Magnitudes that later subbands of the plane will know of."""
        self._earlier[plane][:, :, channels] = own
        self._smoothed[plane][:, :, channels] = smooth(own)

    def _plane(self, group: int, plane: int, energy: Magnitudes, quiet: bool, guide: Guide) -> Magnitudes:
        """The three stops of a plane; its magnitudes."""
        shape = self.shape if group else self.small
        own = shape.blank(self.tiles, _channels(group))
        still = [energy, energy if quiet else smooth(energy)]
        beside: list[NDArray[Any]] = []
        predicted: Symbols | None = None
        if group:
            still += [kept[plane][:, :, : subband(group).start] for kept in (self._earlier, self._smoothed)]
        if group == 1:
            predicted = np.zeros((4, self.tiles, 2, shape.rows, shape.stride), np.int32)
            split(self._slope[plane], predicted)
            beside.append(compand(predicted >> 3))
            predicted = -predicted
        still = [part[..., 1:-1, :] for part in still]
        features = (self._fine if group else self._coarse)[plane]
        for phase, quarters in enumerate(PHASES):
            if group == 0:
                predicted, spread = self._near(plane, phase)
                beside = [compand(predicted >> 3), spread]
            index, mean = self._expect(group, plane, phase, still, own, [*beside, features], predicted)
            values = guide.settle(group, plane, phase, index, mean)
            own[quarters, :, :, 1:-1, :-1] = magnitudes(values).transpose(2, 0, 1, 3, 4)
            if group == 0:
                scatter(values, phase, self.root[plane])
        return own

    def _near(self, plane: int, phase: int) -> tuple[Symbols, NDArray[np.int16]]:
        """What neighbours of earlier phases predict of the root's first channel: `downlink.context.near`."""
        shape = self.small
        predicted = np.zeros((4, self.tiles, 1, shape.rows, shape.stride), np.int32)
        spread = np.zeros(predicted.shape, np.int16)
        if phase == 0:
            return predicted, spread
        values = np.clip(self.root[plane, :, :1], -NEAR_LIMIT // 8, NEAR_LIMIT // 8)
        found = []
        for fill in (0, -NEAR_LIMIT, NEAR_LIMIT):
            padded = np.full((4, self.tiles, 1, shape.rows + 2, shape.stride), fill, np.int32)
            split(values, inner(padded))
            found.append(neighbours(padded, phase))
        there = shape.blank(1, 1)
        split(np.ones((1, 1, *shape), np.int16), inner(there))
        count = sum(neighbours(there, phase))
        total, highest, lowest = sum(found[0]), np.maximum.reduce(found[1]), np.minimum.reduce(found[2])
        quarters = PHASES[phase]
        predicted[quarters] = total * 8 // np.maximum(1, count)
        spread[quarters] = compand(np.where(count > 0, highest - lowest, 0))
        return predicted, spread

    def _expect(
        self,
        group: int,
        plane: int,
        phase: int,
        still: list[NDArray[Any]],
        own: Magnitudes,
        beside: list[NDArray[Any]],
        predicted: Symbols | None,
    ) -> tuple[Index, Symbols | None]:
        """Scale indices and means of a stop. `still` are contexts that are the same in all phases, `beside` what the
        network's head sees, too; both quarters without their upper and lower border."""
        quarters, channels = PHASES[phase], _channels(group)
        rows, stride = own.shape[-2] - 2, own.shape[-1]
        between = around(own, phase)[..., 1:-1, :] if phase else None
        inputs = sum(part.shape[2] for part in (*still, *beside)) + channels + 2 + len(SUBBANDS)
        count = quarters.stop - quarters.start
        index = np.empty((self.tiles, channels, count, rows, stride - 1), np.uint8)
        means = []
        for first in range(0, self.tiles, TILES_AT_ONCE):
            tiles = slice(first, min(first + TILES_AT_ONCE, self.tiles))
            size = tiles.stop - tiles.start
            known = self._space.get((group, count, size))
            if known is None:
                known = self._space[group, count, size] = np.empty((size, inputs, count, rows, stride), np.float32)
            at = 0
            for place, part in enumerate((*still[:2], between, *still[2:], None, *beside)):
                if part is None:  # nothing around in the first phase; flags
                    flags = place != 2
                    width = 2 if flags else channels
                    known[:, at : at + width] = 0
                    if flags and phase:
                        known[:, at + phase - 1] = FLAG
                else:
                    width = part.shape[2]
                    chosen = part[:, tiles] if place == 2 else part[quarters, tiles]
                    known[:, at : at + width] = chosen.transpose(1, 2, 0, 3, 4)
                at += width
            known[:, at:] = self.code.levels[plane][:, None, None, None]
            flat = known.reshape(size, inputs, count * rows, stride)
            out = self.prior.answer(group, flat).reshape(size, -1, count, rows, stride)[..., :-1]
            index[tiles] = out[:, :channels]
            there = None if predicted is None else predicted[quarters, tiles, ..., :-1].transpose(1, 2, 0, 3, 4)
            means.append(mean_of(group, out, there, channels))
        if means[0] is None:
            return index, None
        return index, np.concatenate([mean for mean in means if mean is not None])


def _channels(group: int) -> int:
    at = subband(group)
    return at.stop - at.start if group else ROOT_CHANNELS


def magnitudes(symbols: NDArray[Any]) -> NDArray[Any]:
    """Companded magnitudes of symbols."""
    if symbols.dtype != np.int8:
        return compand(np.abs(symbols))
    return np.frombuffer(symbols.tobytes().translate(_OF_BYTES), np.uint8).reshape(symbols.shape)
