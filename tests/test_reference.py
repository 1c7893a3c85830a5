"""Scenes coded against another: fewer bits at the same error, symbols that need nothing, chains of references."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink import limits
from downlink.bundle import Bundle, released
from downlink.chunk import ChunkKey, Kind
from downlink.errors import Malformed, ReferenceMissing, StreamError, TooLarge
from downlink.manifest import Manifest
from downlink.plane import unpack_front_end
from downlink.prediction import CELLS, Prediction, cell_counts, split_side
from downlink.reference import Reference, opened, place_of
from downlink.scene import Band, Grid, Scene
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.spool import EncodedScene
from encoder_node.target import Target, step_of_quality

HEIGHT, WIDTH = 72, 664  # three tiles, the last one a sliver
NODATA = 0


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(Bundle.read(released("universal")))


@pytest.fixture(scope="module")
def decoder() -> PlaneDecoder:
    return PlaneDecoder(Bundle.read(released("universal")))


def day(number: int, changed: bool = True, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A place on a day: ground that stays, light that does not, and from day 1 on a cloud somewhere."""
    ground = np.random.default_rng(7).normal(size=(3, height, width))
    for axis in (1, 2):
        ground = (np.roll(ground, 1, axis) + 2 * ground + np.roll(ground, -1, axis)) / 2.4
    out = (1 + 0.03 * number) * (2000 + 300 * ground) + np.random.default_rng(number).normal(size=ground.shape) * 10
    if changed and number:
        out[:, :40, 90 * number : 90 * number + 120] = 6000 + 40 * number
    out[:, -9:, -30:] = NODATA
    return out.astype(np.uint16)


def source(pixels: np.ndarray, name: str = "made") -> ArraySource:
    bands = tuple(Band(f"B{number}") for number in range(len(pixels)))
    return ArraySource(Scene(name, (Grid(*pixels.shape[1:], str(pixels.dtype), bands, NODATA),)), pixels)


def encoded(
    pixels: np.ndarray, encoder: PlaneEncoder, reference: Reference | None = None, **target: float
) -> EncodedScene:
    return encode_scene(source(pixels), encoder, Target(**(target or {"quality": 44})), reference=reference)  # type: ignore[arg-type]


def known(scene: EncodedScene, end: PlaneEncoder | PlaneDecoder, before: Reference | None = None) -> Reference:
    return Reference(scene.scene_id, scene.manifest, scene.chunk, end.codec, before)


def decoded(
    scene: EncodedScene, decoder: PlaneDecoder, reference: Reference | None, lost: frozenset[int] = frozenset()
) -> np.ndarray:
    rows = decode_rows(scene.manifest, lambda i: None if i in lost else scene.chunk(i), decoder, reference)
    return np.concatenate([row.pixels for row in rows], axis=1)


def error(back: np.ndarray, pixels: np.ndarray) -> float:
    return float(np.sqrt(((back.astype(float) - pixels) ** 2)[pixels != NODATA].mean()))


@pytest.fixture(scope="module")
def days(encoder: PlaneEncoder) -> list[EncodedScene]:
    """Three days, each against the one before."""
    out: list[EncodedScene] = []
    reference: Reference | None = None
    for number in range(3):
        out.append(encoded(day(number), encoder, reference))
        reference = known(out[-1], encoder, reference)
    return out


@pytest.fixture(scope="module")
def references(days: list[EncodedScene], decoder: PlaneDecoder) -> list[Reference]:
    """The same on the ground."""
    out: list[Reference] = []
    for scene in days:
        out.append(known(scene, decoder, out[-1] if out else None))
    return out


def test_each_day_takes_fewer_bits_at_the_same_error(days, references, encoder, decoder):
    assert days[0].manifest.reference == b""
    for number in (1, 2):
        pixels = day(number)
        assert days[number].manifest.reference.hex() == days[number - 1].scene_id
        with encoded(pixels, encoder) as alone:
            assert days[number].stream_bytes < 0.75 * alone.stream_bytes
            apart = error(decoded(alone, decoder, None), pixels)
        back = decoded(days[number], decoder, references[number - 1])
        assert error(back, pixels) < 1.1 * apart
        assert ((back == NODATA) == (pixels == NODATA)).all()
    assert references[2].depth == 3


def test_no_symbol_depends_on_the_reference(days, references, decoder):
    """Values of the second day's tiles, decoded without the first: what a reference at hand gives, bit for bit."""
    scene, layout = days[1], days[1].manifest.layout()
    packed, side = split_side(scene.chunk(layout.index(ChunkKey(Kind.SIDE))))
    lattice = scene.manifest.lattices()[0]
    front_end = unpack_front_end(side, lattice.half, lattice.weights, scene.manifest.codings[0].planes, 3)
    beside = references[1].lattices[0].front_end
    assert np.array_equal(front_end.levels, beside.levels)
    other = known(AsIfAlone(scene), decoder)
    own = other.lattices[0].at(0, 0, 9, 83)
    with_it = references[1].lattices[0].at(0, 0, 9, 83)
    prediction = Prediction.unpack(packed, lattice.half, HEIGHT, WIDTH, references[0].lattices[0])
    assert np.array_equal(own + prediction.at(0, 0, 9, 83), with_it)
    assert np.abs(with_it - own).max() > 100


class AsIfAlone:
    """A scene's stream as if it had no reference: the same symbols, the side chunk without its prediction."""

    def __init__(self, scene: EncodedScene) -> None:
        self._scene = scene
        self.scene_id = scene.scene_id
        self.manifest = replace(scene.manifest, reference=b"")
        self._side = scene.manifest.layout().index(ChunkKey(Kind.SIDE))

    def chunk(self, index: int) -> bytes:
        payload = self._scene.chunk(index)
        return split_side(payload)[1] if index == self._side else payload


def test_both_ends_see_the_same(days, references, encoder):
    edge = known(days[1], encoder, known(days[0], encoder))
    for window in ((0, 0, 9, 83), (0, 30, 8, 4), (4, 31, 5, 52)):
        here, there = edge.lattices[0].at(*window), references[1].lattices[0].at(*window)
        assert here.shape == (3, 64, *window[2:])
        assert np.abs(here - there).max() < 0.01
    whole = edge.lattices[0].at(0, 0, 9, 83)
    assert np.array_equal(whole[:, :, 4:, 31:], edge.lattices[0].at(4, 31, 5, 52))


def test_every_prefix_is_a_picture(days, references, decoder):
    pixels, layout = day(2), days[2].manifest.layout()
    errors = []
    for layers in (1, 2, 3, 4):
        keys = [(index, layout.key(index)) for index in range(len(layout))]
        lost = frozenset(index for index, key in keys if key.kind is Kind.LATENT and key.group >= layers)
        errors.append(error(decoded(days[2], decoder, references[1], lost), pixels))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.8 * error(decoded(AsIfAlone(days[2]), decoder, None, lost_layers(layout)), pixels)
    gone = frozenset(layout.latents_of(0, 1))
    back = decoded(days[2], decoder, references[1], gone)
    assert (back[:, :, 256:512] == NODATA).all()
    assert error(back[:, :, :240], pixels[:, :, :240]) < 2 * step_of_quality(44, "uint16")


def lost_layers(layout) -> frozenset[int]:
    """All layers but the first."""
    keys = [(index, layout.key(index)) for index in range(len(layout))]
    return frozenset(index for index, key in keys if key.kind is Kind.LATENT and key.group >= 1)


def test_what_is_of_no_use_is_not_used(encoder, days):
    strange = np.random.default_rng(3).normal(3000, 400, (3, HEIGHT, WIDTH)).astype(np.uint16)
    with encoded(strange, encoder, known(days[0], encoder)) as scene, encoded(strange, encoder) as alone:
        assert scene.manifest.reference == b""
        assert scene.scene_id == alone.scene_id
    smaller = day(1)[:, :64]
    with encoded(smaller, encoder, known(days[0], encoder)) as scene:
        assert scene.manifest.reference == b""


def test_a_rate_is_met_against_a_reference(encoder, days):
    with encoded(day(1), encoder, known(days[0], encoder), bits_per_sample=0.5) as scene:
        assert scene.manifest.reference
        assert 8 * scene.stream_bytes / (3 * HEIGHT * WIDTH) == pytest.approx(0.5, rel=0.1)


def test_another_reference_is_refused_naming_both(days, references, decoder):
    for wrong in (None, references[1]):
        with pytest.raises(Malformed, match=f"reference {days[0].scene_id[:12]}"):
            decoded(days[1], decoder, wrong)
    with pytest.raises(Malformed, match="given was"):
        decoded(days[0], decoder, references[0])


def test_what_is_missing_is_named(days, decoder):
    streams = {scene.scene_id: (scene.manifest, scene.chunk) for scene in days}
    found = opened(days[2].scene_id, streams.get, decoder.codec, "a test")
    assert found.depth == 3
    del streams[days[0].scene_id]
    with pytest.raises(ReferenceMissing, match=f"a test needs scene {days[0].scene_id}"):
        opened(days[2].scene_id, streams.get, decoder.codec, "a test")


def test_references_end_somewhere(days, decoder):
    stream = replace(days[1].manifest, reference=b"x" * 32), days[1].chunk
    with pytest.raises(TooLarge, match=f"limit of {limits.REFERENCES_MAX - 1}"):
        opened((b"x" * 32).hex(), lambda _: stream, decoder.codec, "a ring")


def test_a_prediction_comes_back_and_nothing_else_does():
    random = np.random.default_rng(1)
    half = np.array([False, True, False, True, True])
    for cell in CELLS:
        counts = cell_counts(300, 500, cell)
        gains = random.integers(0, 64, (4, 5)).astype(np.uint8)
        gains[3, half] = 0
        prediction = Prediction(None, gains, cell, random.integers(0, 5, counts).astype(np.uint8))  # type: ignore[arg-type]
        packed = prediction.pack(half)
        body, rest = split_side(packed + b"rest")
        back = Prediction.unpack(body, half, 300, 500, None)  # type: ignore[arg-type]
        assert rest == b"rest"
        assert np.array_equal(back.gains, gains)
        assert np.array_equal(back.factors, prediction.factors)
    refused = 0
    for position in range(len(body)):
        for change in (0x01, 0x40):
            damaged = bytearray(body)
            damaged[position] ^= change
            try:
                found = Prediction.unpack(bytes(damaged), half, 300, 500, None)  # type: ignore[arg-type]
                assert found.gains.max() <= 63
                assert found.factors.max() <= 4
            except StreamError:
                refused += 1
    assert refused > len(body)
    for cut in range(len(packed)):
        with pytest.raises(Malformed):
            split_side(packed[:cut])


def test_places_are_told_apart():
    grid = Grid(8, 8, "uint16", (Band("B02"),), None, "EPSG:32633", (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0))
    scene = Scene("a", (grid,), "2026-01-01")
    assert place_of(scene, ()) == place_of(Scene("b", (grid,), "2026-02-02"), ())
    for other in ({"height": 9}, {"crs": "EPSG:32634"}, {"bands": (Band("B03"),)}, {"dtype": "int16"}):
        assert place_of(Scene("a", (replace(grid, **other),)), ()) != place_of(scene, ())


def test_a_manifest_without_a_reference_is_what_it_was(days):
    manifest = days[1].manifest
    assert Manifest.unpack(manifest.pack()) == manifest
    alone = replace(manifest, reference=b"")
    assert len(alone.pack()) <= len(manifest.pack()) - 32
    with pytest.raises(Malformed, match="reference has 3 bytes"):
        replace(manifest, reference=b"abc").pack()
