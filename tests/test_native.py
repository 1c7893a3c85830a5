"""The native loops make the same bytes as numpy, symbol by symbol, and are not missed where they are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from decoder_node.decoder import LOUD_LEVEL, PlaneDecoder
from downlink import accelerator, bundle, dct, lap, network
from downlink.accelerator import SWITCH, Accelerator, accelerator_of
from downlink.dct import SUBBANDS
from downlink.errors import BundleError, Corrupt
from downlink.latent import ReceivedTile, TileCode, TileSymbols, decode_tiles, expect_tile
from downlink.prior import FEATURES, GRAPHS, Prior
from downlink.stream import StreamReader
from encoder_node.cli import main
from encoder_node.encoder import HYPER, SYMBOL_LIMIT, PlaneEncoder, loudness
from encoder_node.refine import Decision, Effort, NativeDecision, decide
from tests import scenes

ROOT = Path(__file__).parents[1]
BUILT = accelerator.native() is not None
needs_loops = pytest.mark.skipif(not BUILT, reason="downlink._native is not built, or switched off")
if "universal" not in bundle.released_names():
    pytest.skip("models/universal is not here", allow_module_level=True)

COUNTS = [(3, 3, 3, 0), (5, 4, 2, 1), (0, 2, 1, 0), (1, 0, 0, 0), (2, 5, 1, 3), (4, 4, 4, 4)]
SIDES = [(4, 4), (4, 32), (20, 12), (32, 32), (12, 8), (28, 4)]


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(bundle.find("universal"))


@pytest.fixture(params=[0, 1, 2], ids=["plain", "avx2", "avx512"])
def loops(request: pytest.FixtureRequest, encoder: PlaneEncoder) -> Iterator[Accelerator]:
    """The loops for each kind of processor (the best that there is, at most)."""
    assert encoder.prior.native is not None
    accelerator._native.limit(request.param)
    yield encoder.prior.native
    accelerator._native.limit(2)


def made(encoder: PlaneEncoder, case: int) -> tuple[TileCode, list[NDArray[np.float32]], NDArray[np.int32]]:
    """A code, and exact root and latent values and hyper-latents of two tiles: from all but silent to very loud."""
    random = np.random.default_rng(case)
    counts, (height, width) = COUNTS[case % len(COUNTS)], SIDES[case % len(SIDES)]
    planes = max(counts)
    levels = np.zeros((planes, len(SUBBANDS)), np.uint8)
    for number, count in enumerate(counts):
        levels[:count, number] = random.integers(1, 128, count)
    turn = random.integers(-64, 65, (counts[1], counts[0])).astype(np.int64)
    code = TileCode(encoder.spec, encoder.tables, levels, turn, int(random.integers(1, planes + 1)))
    scale = 10 ** random.uniform(-1, 4)
    falling = 1 / (1 + np.arange(64))[:, None, None]
    latent = random.laplace(size=(2, planes, 64, height, width)) * scale * falling
    root = random.laplace(size=(2, planes, 16, height // 4, width // 4)) * scale * 5
    limit, latents = encoder.spec.hyper_limit, encoder.spec.hyper_latents
    hyper = random.integers(-limit, limit + 1, (2, planes, latents, height // 4, width // 4)).astype(np.int32)
    return code, [root.astype(np.float32), latent.astype(np.float32)], hyper


@needs_loops
@pytest.mark.parametrize("effort", ["best", "fast"])
@pytest.mark.parametrize("case", range(6))
def test_symbols_and_payloads_are_those_of_numpy(
    encoder: PlaneEncoder, loops: Accelerator, case: int, effort: Effort
) -> None:
    code, exact, hyper = made(encoder, case)
    wanted = Decision(*exact, hyper, code, Prior(encoder.prior.run), effort)
    found = decide(*exact, hyper, code, encoder.prior, effort)
    assert isinstance(found, NativeDecision)
    for tile in range(2):
        for one, two in zip(wanted.symbols(tile), found.symbols(tile), strict=True):
            np.testing.assert_array_equal(one, two)
        assert wanted.encoders[tile].keys() == found.chunks[tile].keys()
        for key, chunk in wanted.encoders[tile].items():
            assert found.chunks[tile][key].payload == chunk.finish()
            assert found.chunks[tile][key].coded == chunk.coded
        assert found.bits(tile) == wanted.bits(tile)  # sums of 1/65536: exact in any order
    np.testing.assert_allclose(found.errors, wanted.errors, rtol=1e-4)


@needs_loops
@pytest.mark.parametrize("case", range(6))
def test_the_prior_expects_what_numpy_expects(encoder: PlaneEncoder, loops: Accelerator, case: int) -> None:
    code, exact, hyper = made(encoder, case)
    symbols = TileSymbols(*(np.rint(one[0]).astype(np.int32) for one in exact), hyper[0])
    for number, count in enumerate(code.counts):
        symbols.of_subband(number)[count:] = 0  # what is not sent
    for found, wanted in zip(loops.expect(code, *symbols), expect_tile(code, symbols, encoder.prior), strict=True):
        np.testing.assert_array_equal(found[0], wanted.index)
        np.testing.assert_array_equal(found[1], wanted.mean)


def tiles_of(code: TileCode, chunks: dict[tuple[int, int], bytes], shape: tuple[int, int]) -> list[ReceivedTile]:
    return [ReceivedTile(code, *shape, dict(chunks)) for _ in range(2)]


@needs_loops
@pytest.mark.parametrize("case", range(6))
def test_values_are_those_of_numpy_whatever_is_missing(encoder: PlaneEncoder, loops: Accelerator, case: int) -> None:
    code, exact, hyper = made(encoder, case)
    sent = decide(*exact, hyper, code, encoder.prior).chunks[0]
    keys = [(group, block) for group in range(len(SUBBANDS)) for block in range(code.blocks)]
    whole = {key: sent[key].payload if key in sent else b"" for key in keys}
    for lost in [None, *keys]:
        chunks = {key: payload for key, payload in whole.items() if key != lost}
        one, two = tiles_of(code, chunks, exact[1].shape[-2:])
        decode_tiles([one], encoder.prior)
        decode_tiles([two], Prior(encoder.prior.run))
        assert one.stopped == two.stopped
        for name in ("hyper", "root_value", "value"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@needs_loops
@pytest.mark.parametrize("case", range(3))
def test_what_numpy_refuses_is_refused_and_what_it_takes_is_the_same(
    encoder: PlaneEncoder, loops: Accelerator, case: int
) -> None:
    code, exact, hyper = made(encoder, case)
    sent = {key: chunk.payload for key, chunk in decide(*exact, hyper, code, encoder.prior).chunks[0].items()}
    random = np.random.default_rng(case)
    refused = 0
    for _ in range(60):
        key = list(sent)[random.integers(len(sent))]
        payload = bytearray(sent[key])
        if not payload:
            continue
        kind, at = random.integers(3), int(random.integers(len(payload)))
        if kind == 0:
            payload[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del payload[at:]
        else:
            payload[at:at] = bytes(random.integers(0, 256, 3, dtype=np.uint8))
        tiles = tiles_of(code, sent | {key: bytes(payload)}, exact[1].shape[-2:])
        outcomes = []
        for tile, prior in zip(tiles, (encoder.prior, Prior(encoder.prior.run)), strict=True):
            try:
                decode_tiles([tile], prior)
                outcomes.append("")
            except Corrupt as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
        if outcomes[0]:
            refused += 1
        else:
            np.testing.assert_array_equal(tiles[0].value, tiles[1].value)
    assert refused > 20


@needs_loops
@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "golden" / "streams").glob("*.dl")), ids=lambda path: path.name
)
def test_golden_streams_decode_to_the_same_pixels(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with path.open("rb") as file:
        reader = StreamReader(file)
        if all(coding.method == "exact" for coding in reader.manifest.codings):
            pytest.skip("an exact stream has no symbols of these")
        try:
            found = bundle.find_id(reader.manifest.bundle)
        except BundleError:
            pytest.skip("its bundle is not here")
        native = PlaneDecoder(found)
        monkeypatch.setenv(SWITCH, "0")
        plain = PlaneDecoder(found)
        assert native.prior.native is not None
        assert plain.prior.native is None
        rows = [list(decode_rows(reader.manifest, reader.chunk, decoder)) for decoder in (native, plain)]
    for one, two in zip(*rows, strict=True):
        np.testing.assert_array_equal(one.pixels, two.pixels)


@needs_loops
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("half", [False, True], ids=["full", "half"])
def test_coefficients_are_those_of_numpy(loops: Accelerator, half: bool, dtype: type) -> None:
    random = np.random.default_rng(1)
    size = 4 if half else 8
    for beside in product((False, True), repeat=4):
        for height, width in ((1, 1), (4, 20), (3, 33)):
            above, below, left, right = (size // 2 if there else 0 for there in beside)
            shape = above + height * size + below, left + width * size + right
            pixels = random.integers(0, 120, (3, shape[0], shape[1] + 5)).astype(dtype)[:, :, 2:-3]
            found = np.full((5, 64, height, width), np.nan, np.float32)
            places = np.array([4, 0, 2])
            assert accelerator.forward(accelerator.Part(pixels, half, beside, places), found)
            mixed = lap.mix(pixels.astype(np.float32), size, (above or size, left or size))
            own = mixed[:, above : above + height * size, left : left + width * size]
            np.testing.assert_allclose(found[places, : size * size], dct.forward(own, half), atol=2e-3)
            assert np.isnan(found[[1, 3]]).all()
            assert np.isnan(found[places, size * size :]).all()


@needs_loops
@pytest.mark.parametrize(("rows", "columns", "side"), [(1, 1, 4), (12, 12, 32), (3, 10, 8), (17, 5, 12)])
def test_planes_are_those_of_numpy(loops: Accelerator, rows: int, columns: int, side: int) -> None:
    random = np.random.default_rng(rows)
    source = random.normal(size=(columns + 2, 64, side, side)).astype(np.float32)
    matrix = random.normal(size=(rows, columns)).astype(np.float32)
    offset = random.normal(size=rows).astype(np.float32)
    taken, put = random.permutation(columns + 2)[:columns], random.permutation(rows + 3)[:rows]
    found = np.zeros((rows + 3, 64, side, side), np.float32)
    assert accelerator.mix(matrix, offset, source, taken, found, put, slice(4, 16))
    wanted = np.einsum("pb,bchw->pchw", matrix, source[taken, 4:16]) + offset[:, None, None, None]
    np.testing.assert_allclose(found[put, 4:16], wanted, atol=1e-4)
    assert not found[:, :4].any()
    assert not found[:, 16:].any()


@needs_loops
@pytest.mark.parametrize("halves", [0, 2, 5])
@pytest.mark.parametrize(("height", "width"), [(4, 32), (3, 7)])
def test_pixels_become_planes_at_once_as_in_two_steps(loops: Accelerator, halves: int, height: int, width: int) -> None:
    random = np.random.default_rng(halves)
    bands, planes = 5, 4
    coarse = np.sort(random.permutation(bands)[:halves])
    parts, coefficients = [], np.zeros((bands, 64, height, width), np.float32)
    for half, places in ((False, np.setdiff1d(np.arange(bands), coarse)), (True, coarse)):
        if len(places):
            size = 4 if half else 8
            shape = len(places), (height + 1) * size, width * size + size // 2
            pixels = random.integers(0, 9000, shape).astype(np.uint16)
            parts.append(accelerator.Part(pixels, half, (True, True, False, True), places))
            assert accelerator.forward(parts[-1], coefficients)
    mixings, wanted = [], np.zeros((planes, 64, height, width), np.float32)
    for number, end in enumerate(SUBBANDS):
        rows, columns = planes - number, np.arange(bands) if number < 3 else np.setdiff1d(np.arange(bands), coarse)
        matrix = random.normal(size=(rows, len(columns))).astype(np.float32)
        mixings.append(accelerator.Mixing(matrix, random.normal(size=rows).astype(np.float32), columns))
        at = slice(SUBBANDS[number - 1] if number else 0, end)
        assert accelerator.mix(*mixings[-1][:2], coefficients, columns, wanted, np.arange(rows), at)
    found = np.full_like(wanted, np.nan)
    assert accelerator.front(parts, bands, mixings, 900.0, found)
    np.testing.assert_allclose(found, wanted.clip(-900, 900), rtol=1e-5, atol=1e-2)
    assert np.abs(found).max() == 900


@needs_loops
@pytest.mark.parametrize("case", range(6))
def test_hyper_latents_are_those_of_onnxruntime(encoder: PlaneEncoder, loops: Accelerator, case: int) -> None:
    code, (_, latent), _ = made(encoder, case)
    planes = latent[0].clip(-SYMBOL_LIMIT, SYMBOL_LIMIT)
    planes[0, :, :2, :2] = 0
    planes[-1, 5] = [[-SYMBOL_LIMIT]]
    heard = accelerator.ear_of(encoder.bundle.file(HYPER), encoder.spec.hyper_limit)
    assert heard is not None
    wanted = encoder._run(HYPER, {"loudness": loudness(planes[None], code.levels)})[0]
    assert np.ptp(wanted) > 0
    np.testing.assert_array_equal(heard.hear(planes, code.levels), wanted)


@needs_loops
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (9, 40), (33, 64)])
def test_corrections_are_those_of_onnxruntime(loops: Accelerator, height: int, width: int) -> None:
    decoder = PlaneDecoder(bundle.find("universal"))
    assert decoder._corrector is not None
    random = np.random.default_rng(height)
    values = (random.laplace(size=(4, 64, height, width)) * 10 ** random.uniform(-1, 3)).astype(np.float32)
    values[1, 5] = 1 << 20
    levels = random.integers(LOUD_LEVEL, 90, (4, 4)).astype(np.uint8)
    levels[2, 3] = 0
    some = np.array([False, True, True, False])  # 3 follows a plane that is something
    found = decoder.synthesise(values, levels, some)
    decoder._corrector = None
    wanted = decoder.synthesise(values, levels, some)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found[0], values[0])
    np.testing.assert_array_equal(found[2, 16:], values[2, 16:])
    assert (found[3] != values[3]).any()


@needs_loops
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("half", [False, True], ids=["full", "half"])
@pytest.mark.parametrize(
    ("height", "width", "down", "across"), [(3, 20, 3, 20), (5, 33, 4, 31), (1, 1, 1, 1), (4, 3, 2, 2)]
)
def test_coefficients_become_pixels_as_in_numpy(
    loops: Accelerator, height: int, width: int, down: int, across: int, half: bool, dtype: str
) -> None:
    random, size, limits = np.random.default_rng(height), 4 if half else 8, np.iinfo(dtype)
    coefficients = (random.normal(size=(3, 64, height, width)) * limits.max / 20).astype(np.float32)
    coefficients[:, 0] += limits.max * 4.0
    places = np.array([2, 0])
    pixels = dct.inverse(coefficients[places, : size * size], half)
    lap.unmix(pixels[:, : down * size, : across * size], size, (size, size))
    wanted = np.clip(np.rint(pixels), limits.min, limits.max)[:, 1 : down * size, 2 : across * size]
    window = 1, down * size - 1, 2, across * size - 2
    found = accelerator.back(coefficients, places, half, (down, across), window, dtype)
    assert found is not None
    assert found.dtype == dtype
    off = np.abs(found.astype(int) - wanted)
    assert off.max() <= 1  # floats that lie between two integers
    assert (off > 0).sum() <= max(1, 0.01 * off.size)
    assert len(np.unique(wanted)) > min(8, wanted.size // 2)


@needs_loops
def test_a_synthesis_of_another_form_is_left_to_onnxruntime() -> None:
    graph = bundle.find("universal").file("decoder.onnx")
    assert network.synthesis_weights(graph) is not None
    assert network.synthesis_weights(graph.replace(b"\x05Floor", b"\x05Round", 1)) is None
    assert (
        network.synthesis_weights(graph.replace(np.float32(1 / 16).tobytes(), np.float32(1 / 8).tobytes(), 1)) is None
    )
    assert network.synthesis_weights(graph.replace(np.float32(2047).tobytes(), np.float32(2046).tobytes(), 1)) is None


@needs_loops
def test_hyper_latents_of_networks_of_another_form_are_left_to_onnxruntime(encoder: PlaneEncoder) -> None:
    graph, limit = encoder.bundle.file(HYPER), encoder.spec.hyper_limit
    assert network.hyper_weights(graph, limit) is not None
    assert network.hyper_weights(graph, limit + 1) is None
    assert network.hyper_weights(graph.replace(b"\x05Floor", b"\x05Round", 1), limit) is None
    assert (
        network.hyper_weights(graph.replace(np.float32(1 / 128).tobytes(), np.float32(0.01).tobytes()), limit) is None
    )


@needs_loops
def test_arrays_and_codes_that_do_not_fit_are_refused_before_anything_runs(encoder: PlaneEncoder) -> None:
    code, (root, latent), hyper = made(encoder, 5)
    native = encoder.prior.native
    assert native is not None
    bounds = np.zeros((encoder.tables.scales, 256), np.float32)

    def encode(
        code: TileCode = code, root: NDArray[np.float32] = root[0], bounds: NDArray[np.float32] = bounds
    ) -> None:
        native.encode(code, root, latent[0], hyper[0], 0.1, 0.0, bounds, False)

    encode()
    with pytest.raises(ValueError, match=r"root: \d+ bytes, \d+ expected"):
        encode(root=root[0, :, 1:])
    with pytest.raises(ValueError, match="bounds"):
        encode(bounds=bounds[1:])
    loud = TileCode(code.spec, code.tables, np.full_like(code.levels, 200), code.turn, 1)
    with pytest.raises(ValueError, match="level"):
        native.expect(loud, *(np.zeros(a.shape[1:], np.int32) for a in (root, latent, hyper)))
    far = TileCode(code.spec, code.tables, code.levels, np.full((4, 4), 1 << 40), 1)
    assert not native.takes(far, 32, 32)
    assert not native.takes(code, 6, 8)
    assert not native.takes(code, 128, 8)


@needs_loops
def test_only_networks_of_the_known_form_are_taken(encoder: PlaneEncoder) -> None:
    found = encoder.bundle
    graphs = {name: found.file(name) for name in (FEATURES, *GRAPHS)}
    assert accelerator_of(graphs.__getitem__, encoder.spec, encoder.tables) is not None
    assert network.subband_weights(graphs[GRAPHS[2]], 3) is None
    floor = graphs[GRAPHS[3]].replace(b"\x05Floor", b"\x05Round", 1)
    assert floor != graphs[GRAPHS[3]]
    assert network.subband_weights(floor, 3) is None
    assert accelerator_of((graphs | {GRAPHS[3]: floor}).__getitem__, encoder.spec, encoder.tables) is None
    half = graphs[FEATURES].replace(np.float32(1 / 64).tobytes(), np.float32(1 / 32).tobytes())
    assert network.feature_weights(half, encoder.spec.hyper) is None


def test_without_the_extension_numpy_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_native", None)
    assert accelerator.native() is None
    found = PlaneEncoder(bundle.find("universal"))
    assert found.prior.native is None
    code, exact, hyper = made(found, 3)
    assert isinstance(decide(*exact, hyper, code, found.prior), Decision)


def test_encode_says_which_loops_ran(tmp_path: Path) -> None:
    np.save(tmp_path / "scene.npy", scenes.pixels(bands=2, height=40, width=40, nodata=None))
    built = None if accelerator._native is None else accelerator._native.level()
    for switch, wanted in (("1", built), ("0", None)):
        ran = CliRunner().invoke(
            main,
            ["encode", str(tmp_path / "scene.npy"), str(tmp_path / f"{switch}.dl"), "--json"],
            env={SWITCH: switch},
        )
        assert ran.exit_code == 0, ran.output
        assert json.loads(ran.output)["native"] == wanted


def test_a_switch_turns_it_off() -> None:
    code = "from downlink.accelerator import native; print(native())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={SWITCH: "0", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "None"
