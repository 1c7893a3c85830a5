"""The walk expects of every symbol what the format's definition expects (downlink.latent.expect_tile), stop by stop,
and knows nothing of later stops."""

from __future__ import annotations

import numpy as np
import pytest

from downlink.context import compand
from downlink.dct import subband
from downlink.latent import TileCode, TileSymbols, expect_tile
from downlink.prior import Expected
from downlink.quarter import PHASES, PLACES
from downlink.walk import Walk, magnitudes
from tests import priors
from tests.priors import PRIOR


class Known:
    """A guide that knows the symbols of some tiles, and notes what was expected of them."""

    def __init__(self, code: TileCode, tiles: list[TileSymbols]) -> None:
        self.code, self.tiles = code, tiles
        self.expected = [
            [
                Expected(np.full(s.shape, 255, np.uint8), np.zeros(s.shape, np.int32))
                for s in map(t.of_subband, range(4))
            ]
            for t in tiles
        ]
        self.stops: list[tuple[int, ...]] = []

    def begin(self, group: int, block: int) -> None:
        self.stops.append((group, block))

    def hyper(self, planes: range) -> np.ndarray:
        return np.stack([[tile.hyper[plane] for tile in self.tiles] for plane in planes])

    def settle(self, group: int, plane: int, phase: int, index: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
        self.stops.append((group, plane, phase))
        out = np.zeros(index.shape, np.int32)
        for number, tile in enumerate(self.tiles):
            for place, quarter in enumerate(range(PHASES[phase].start, PHASES[phase].stop)):
                down, across = PLACES[quarter]
                symbols = tile.of_subband(group)[plane][:, down::2, across::2]
                rows, cols = symbols.shape[-2:]
                out[number, :, place, :rows, :cols] = symbols
                found = self.expected[number][group]
                found.index[plane][:, down::2, across::2] = index[number, :, place, :rows, :cols]
                if mean is not None:
                    found.mean[plane][:, down::2, across::2] = mean[number, :, place, :rows, :cols]
        return out

    def end(self, group: int, block: int) -> None:
        self.stops.append((group, block))


@pytest.mark.parametrize("tiles", [1, 3, 6])
@pytest.mark.parametrize(
    ("counts", "height", "width", "per_chunk"),
    [((1, 1, 1, 1), 4, 4, 1), ((3, 3, 3, 3), 8, 8, 2), ((4, 2, 3, 1), 12, 20, 3), ((2, 3, 1, 0), 4, 16, 1),
     ((1, 0, 0, 0), 8, 12, 1), ((0, 2, 0, 1), 16, 4, 2)],
)  # fmt: skip
def test_what_is_expected_is_what_the_format_says(counts, height: int, width: int, per_chunk: int, tiles: int):
    code = priors.code(counts, per_chunk)
    symbols = [priors.symbols(code, height, width, seed) for seed in range(tiles)]
    guide = Known(code, symbols)
    Walk(code, PRIOR, tiles, height, width).go(guide)
    for found, one in zip(guide.expected, symbols, strict=True):
        for number, wanted in enumerate(expect_tile(code, one, PRIOR)):
            count = counts[number]
            assert (found[number].index[:count] == wanted.index).all()
            assert (found[number].mean[:count] == wanted.mean).all()
            assert (found[number].index[count:] == 255).all()  # never asked


def test_stops_come_in_the_order_of_the_stream():
    code = priors.code((3, 2, 0, 1), 2)
    guide = Known(code, [priors.symbols(code, 8, 8)])
    Walk(code, PRIOR, 1, 8, 8).go(guide)
    expected: list[tuple[int, ...]] = []
    for group, count in enumerate(code.counts):
        for block in range(2):
            planes = range(2 * block, min(count, 2 * block + 2))
            stops = [(group, plane, phase) for plane in planes for phase in range(3)]
            expected += [(group, block), *stops, (group, block)]
    assert guide.stops == expected


@pytest.mark.parametrize("reach", [100, 256, 2**24])
def test_magnitudes_are_companded(reach: int):
    symbols = np.random.default_rng(reach).integers(-reach, reach + 1, (2, 3, 5, 7)).astype(np.int32)
    symbols[0, 0, 0, :2] = (reach, -reach)
    found = magnitudes(symbols)
    assert found.dtype == np.int16
    assert (found == np.abs(compand(symbols))).all()


def test_a_subbands_last_plane_knows_all_of_its_own_earlier_channels():
    """Changing one symbol of subband 1 of plane 2 shows in subbands 2 and 3 of that plane and in no other plane."""
    code = priors.code((3, 3, 3, 3), 3)
    one = priors.symbols(code, 8, 8)
    two = TileSymbols(one.root, one.latent.copy(), one.hyper)
    two.latent[2, 1, 3, 3] += 4000
    both = []
    for symbols in (one, two):
        guide = Known(code, [symbols])
        Walk(code, PRIOR, 1, 8, 8).go(guide)
        both.append(guide.expected[0])
    for number in (2, 3):
        before, after = both[0][number].index, both[1][number].index
        assert (before[:2] == after[:2]).all()
        assert (before[2] != after[2]).any()
    assert subband(1).start == 1
