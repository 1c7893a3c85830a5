"""Lattices back to the user's grids: exact repetition, joined grids apart, and partial streams of either."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decoder_node import compose
from decoder_node.compose import Row, decode_rows
from decoder_node.decoder import LatticeRow, PlaneDecoder
from downlink.bundle import find
from downlink.chunk import ChunkKey, GridCoding, Kind
from downlink.errors import BundleError
from downlink.lattice import Lattice, Resolution, join
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.spool import EncodedScene
from encoder_node.target import Target, step_of_quality
from encoder_node.tiles import LatticeReader
from tests import scenes
from tests.scenes import GridsSource, grids_source, repeated

STEP = step_of_quality(50, "uint16")


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(find("universal"))


@pytest.fixture(scope="module")
def decoder() -> PlaneDecoder:
    return PlaneDecoder(find("universal"))


def gathered(rows: Iterator[Row], count: int) -> list[np.ndarray]:
    """Rows of all grids -> grids; they come grid by grid, top to bottom, without a gap."""
    parts: list[list[Row]] = [[] for _ in range(count)]
    order = []
    for row in rows:
        assert row.row == sum(part.pixels.shape[1] for part in parts[row.grid])
        parts[row.grid].append(row)
        order.append(row.grid)
    assert order == sorted(order)
    return [np.concatenate([row.pixels for row in part], axis=1) for part in parts]


# Composition by itself: lattices that a perfect codec has decoded.


class _Perfect:
    """A lattice decoder that gives the source's own native samples."""

    def __init__(self, source: GridsSource, lattice: Lattice, core: int) -> None:
        self.lattice = lattice
        self._reader = LatticeReader(source, lattice, 0, core)  # type: ignore[arg-type]

    def rows(self) -> Iterator[LatticeRow]:
        for row in range(self._reader.tiles.rows):
            tiles = list(self._reader.row(row))
            window = self._reader.tiles.row_window(row)
            full, half = (np.concatenate([getattr(tile, name) for tile in tiles], axis=2) for name in ("full", "half"))
            high, wide = -(-window.height // 2), -(-window.width // 2)
            yield LatticeRow(window.row, full[:, : window.height, : window.width], half[:, :high, :wide], 0.25)


def composed(source: GridsSource, resolutions: tuple[Resolution, ...], monkeypatch: Any, core: int = 32) -> list[Any]:
    from downlink.lattice import lattices

    coding = GridCoding(tile=core, planes=1, planes_per_chunk=1, groups=1, mask="none", step=1.0)
    codings = (coding,) * len(lattices(source.scene, resolutions))
    manifest, chunks = scenes.fake_stream(source.scene, codings, resolutions=resolutions)
    monkeypatch.setattr(compose, "LatticeDecoder", lambda _m, lattice, *_: _Perfect(source, lattice, core))
    decoder: Any = SimpleNamespace(bundle=SimpleNamespace(id=manifest.bundle, name="perfect"))
    return gathered(decode_rows(manifest, lambda i: chunks[i], decoder), len(source.arrays))


def noise(bands: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 60000, (bands, height, width)).astype(np.uint16)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    factors=st.text("1236", min_size=1, max_size=5),
    height=st.integers(1, 140),
    width=st.integers(1, 70),
    row=st.integers(0, 5),
    col=st.integers(0, 5),
)
def test_a_grid_of_any_repetition_is_put_together_exactly(
    monkeypatch: pytest.MonkeyPatch, factors: str, height: int, width: int, row: int, col: int
):
    pixels = noise(len(factors), height, width)
    bands = [repeated(band, int(factor), row, col) for band, factor in zip(pixels, factors, strict=True)]
    source = grids_source(np.stack(bands))
    (back,) = composed(source, (Resolution(0, factors, row, col),), monkeypatch)
    assert back.dtype == np.uint16
    assert (back == source.arrays[0]).all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 15),
    units=st.lists(st.sampled_from((1, 2, 3, 6)), min_size=1, max_size=3),
    data=st.data(),
)
def test_joined_grids_of_any_units_and_repeats_are_taken_apart_exactly(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, units: list[int], data: st.DataObject
):
    arrays, stated = [], []
    for number, unit in enumerate([1, *units]):
        factors = data.draw(st.text("1236", min_size=1, max_size=3))
        pixels = noise(len(factors), 6 * height // unit, 6 * width // unit, number)
        arrays.append(np.stack([repeated(band, int(f)) for band, f in zip(pixels, factors, strict=True)]))
        stated.append(Resolution(unit, factors))
    source = grids_source(*arrays)
    for back, array in zip(composed(source, tuple(stated), monkeypatch), arrays, strict=True):
        assert (back == array).all()


def test_grids_on_their_own_come_in_their_order(monkeypatch: pytest.MonkeyPatch):
    source = grids_source(noise(1, 70, 40), repeated(noise(1, 50, 33)[0], 2)[None], noise(2, 9, 9), placed=False)
    back = composed(source, (Resolution(), Resolution(0, "2"), Resolution()), monkeypatch)
    for one, array in zip(back, source.arrays, strict=True):
        assert (one == array).all()


# Through the codec.


def coded(source: GridsSource, encoder: PlaneEncoder, quality: float = 50) -> EncodedScene:
    return encode_scene(source, encoder, Target(quality=quality))


def decoded(encoded: EncodedScene, decoder: PlaneDecoder, lost: frozenset[int] = frozenset()) -> list[np.ndarray]:
    rows = decode_rows(encoded.manifest, lambda i: None if i in lost else encoded.chunk(i), decoder)
    return gathered(rows, len(encoded.manifest.scene.grids))


def rms(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.sqrt(((one.astype(np.float64) - two) ** 2).mean()))


def resampled(
    factors: str, height: int, width: int, row: int = 0, col: int = 0, nodata: int | None = None
) -> GridsSource:
    pixels = scenes.pixels(3, len(factors), height, width, nodata=nodata)
    bands = [repeated(band, int(factor), row, col) for band, factor in zip(pixels, factors, strict=True)]
    return grids_source(np.stack(bands), nodata=nodata)


@pytest.mark.parametrize(
    ("factors", "height", "width", "row", "col"),
    [("1122", 120, 120, 0, 0), ("1226", 97, 131, 1, 0), ("33", 70, 64, 2, 1), ("222", 32, 32, 0, 1),
     ("6", 61, 13, 5, 3), ("1236", 300, 290, 1, 5), ("12", 5, 4, 0, 0), ("26", 544, 545, 1, 1)],
)  # fmt: skip
def test_repeated_bands_come_back_repeated(encoder, decoder, factors: str, height: int, width: int, row: int, col: int):
    source = resampled(factors, height, width, row, col)
    with coded(source, encoder) as encoded:
        (stated,) = encoded.manifest.resolutions
        (back,) = decoded(encoded, decoder)
    assert stated.repeats == factors
    assert back.shape == source.arrays[0].shape
    for band, original, factor in zip(back, source.arrays[0], factors, strict=True):
        assert (repeated(band, int(factor), row, col) == band).all()
        assert rms(band, original) < STEP


def test_repetition_costs_nothing_but_the_error_that_it_repeats(encoder):
    """A picture said once, and with each pixel repeated 2 x 2: as large at a step half as wide, since each error of a
    sample is seen four times."""
    pixels = scenes.pixels(3, 3, 128, 128, nodata=None)
    twice = pixels.repeat(2, axis=1).repeat(2, axis=2)
    with coded(grids_source(pixels), encoder, 58) as once, coded(grids_source(twice), encoder, 50) as again:
        assert again.manifest.payload_bytes == pytest.approx(once.manifest.payload_bytes, rel=0.01)


@pytest.mark.parametrize(("height", "width"), [(10, 7), (48, 45)])
def test_a_product_of_three_grids_comes_back(encoder, decoder, height: int, width: int):
    full = scenes.pixels(5, 6, 6 * height, 6 * width, nodata=None)
    arrays = [
        full[part].reshape(2, 6 * height // u, u, 6 * width // u, u).mean(axis=(2, 4)).astype(np.uint16)
        for part, u in ((slice(0, 2), 1), (slice(2, 4), 2), (slice(4, 6), 6))
    ]
    source = grids_source(*arrays)
    with coded(source, encoder) as encoded:
        assert encoded.manifest.resolutions == join(source.scene) == (Resolution(1), Resolution(2), Resolution(6))
        back = decoded(encoded, decoder)
    for one, array in zip(back, arrays, strict=True):
        assert one.shape == array.shape
        assert rms(one, array) < STEP


def test_a_band_that_repeats_in_the_sample_windows_only_is_coded_all_the_same(encoder, decoder):
    source = resampled("12", 420, 400)
    source.arrays[0][1, 120, 130] += 900
    with coded(source, encoder) as encoded:
        assert encoded.manifest.resolutions == ()
        (back,) = decoded(encoded, decoder)
    assert rms(back, source.arrays[0]) < STEP
    assert int(back[1, 120, 130]) - int(back[1, 121, 131]) > 300


@pytest.mark.parametrize("alike", [True, False])
def test_nodata_of_repeated_bands_is_exact(encoder, decoder, alike: bool):
    source = resampled("1226", 150, 133, 1, 1, nodata=0)
    pixels = source.arrays[0]
    pixels[pixels == 0] = 1
    holes = np.zeros((4, 150, 133), bool)
    holes[:, 31:49, 19:79] = True  # blocks of 6 begin at 1
    if not alike:
        holes[0, 100:104, 50] = True
        holes[1, 51:53, 3:5] = True
    pixels[holes] = 0
    with coded(source, encoder) as encoded:
        assert encoded.manifest.resolutions[0].repeats == "1226"
        assert encoded.manifest.codings[0].mask == ("shared" if alike else "bands")
        (back,) = decoded(encoded, decoder)
    assert ((back == 0) == holes).all()


def test_layers_of_joined_grids_refine_all_of_them(encoder, decoder):
    arrays = [scenes.pixels(7, 2, 180 // unit, 192 // unit, nodata=None) for unit in (1, 2, 6)]
    with coded(grids_source(*arrays), encoder, 72) as encoded:
        layout = encoded.manifest.layout()
        errors = []
        for groups in (1, 2, 3, 4):
            lost = frozenset(
                i for i in range(len(layout)) if layout.key(i).kind == Kind.LATENT and layout.key(i).group >= groups
            )
            errors.append([rms(one, array) for one, array in zip(decoded(encoded, decoder, lost), arrays, strict=True)])
    assert (np.diff(errors, axis=0) < [0, 0.01, 0.01]).all()  # coarse bands have nothing in the last layer
    assert (np.diff(errors[:3], axis=0) < 0).any(axis=0).all()
    assert max(errors[3]) < 0.4 * step_of_quality(72, "uint16")


def test_a_lattice_of_which_nothing_arrived_leaves_the_others_alone(encoder, decoder):
    """Without its side chunk a lattice is nodata; the bands of the other lattice of the grid are what they were."""
    source = resampled("1126", 130, 120, nodata=0)
    with coded(source, encoder) as encoded:
        layout = encoded.manifest.layout()
        (whole,) = decoded(encoded, decoder)
        for lattice, (gone, there) in enumerate((([0, 1, 2], [3]), ([3], [0, 1, 2]))):
            lost = frozenset({layout.index(ChunkKey(Kind.SIDE, grid=lattice))})
            (back,) = decoded(encoded, decoder, lost)
            assert (back[gone] == 0).all()
            assert (back[there] == whole[there]).all()
            missing = {row.missing for row in decode_rows(encoded.manifest, encoded.chunk, decoder)}
            assert missing == {0.0}


def test_a_lost_tile_of_a_coarse_lattice_is_where_it_was(encoder, decoder):
    source = resampled("13", 2100, 60)
    with coded(source, encoder) as encoded:
        layout = encoded.manifest.layout()
        (whole,) = decoded(encoded, decoder)
        lost = frozenset(layout.latents_of(1, 2))  # rows 512 to 699 of the lattice of 30 m
        rows = list(decode_rows(encoded.manifest, lambda i: None if i in lost else encoded.chunk(i), decoder))
    back = np.concatenate([row.pixels for row in rows], axis=1)
    assert (back[0] == whole[0]).all()
    assert len(np.unique(back[1, 1536:])) == 1
    assert all(row.missing == pytest.approx(1 / 3) for row in rows)
    halo = (decoder.spec.decoder_halo * 8 + 4) * 3  # and half a block that is mixed with the last
    assert (back[1, : 1536 - halo] == whole[1, : 1536 - halo]).all()


def test_constant_and_nodata_bands_beside_repeated_ones(encoder, decoder):
    source = resampled("112", 60, 60, nodata=0)
    source.arrays[0][0] = 4321
    source.arrays[0][1] = 0
    with coded(source, encoder) as encoded:
        (back,) = decoded(encoded, decoder)
    assert np.abs(back[0].astype(int) - 4321).max() <= STEP
    assert (back[1] == 0).all()


def test_a_stream_of_another_bundle_is_refused(encoder, decoder):
    manifest, chunks = scenes.fake_stream()
    with pytest.raises(BundleError, match="planes-1"):
        next(decode_rows(manifest, lambda i: chunks[i], decoder))
