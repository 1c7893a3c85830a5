"""What a stream decodes to, hashed: the encoder's own symbols, and the golden streams' for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from decoder_node import digest
from decoder_node.compose import Row
from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests, tile_symbols
from downlink.bundle import find, find_id
from downlink.chunk import ChunkKey, Kind
from downlink.dct import BLOCK, CHANNELS, ROOT_CHANNELS
from downlink.errors import BundleError
from downlink.stream import StreamReader
from encoder_node import pipeline
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.spool import EncodedScene
from encoder_node.target import Target
from tests import scenes

GOLDEN = sorted((Path(__file__).parent / "golden").rglob("*.dl"))


@pytest.fixture(scope="module")
def decoder() -> PlaneDecoder:
    return PlaneDecoder(find("universal"))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncodedScene, str, Path]:
    """A scene of two tiles, the hash of the symbols that the encoder put into it, and its file."""
    by_encoder = hashlib.sha256()
    real = PlaneEncoder.decide

    def overheard(encoder: PlaneEncoder, *given: Any) -> Any:
        decided = real(encoder, *given)
        for tile in range(len(given[0])):
            root, latent, hyper = (part.astype("<i4").tobytes() for part in decided.symbols(tile))
            by_encoder.update(hyper + root + latent)
        return decided

    pixels = scenes.pixels(seed=3, bands=3, height=40, width=270)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlaneEncoder, "decide", overheard)
        encoded = encode_scene(ArraySource(scenes.scene(pixels), pixels), PlaneEncoder(find("universal")), Target())
    path = tmp_path_factory.mktemp("digest") / "scene.dl"
    with path.open("wb") as file:
        encoded.write(file)
    return encoded, by_encoder.hexdigest(), path


def test_the_hash_is_that_of_the_symbols_the_encoder_had(
    encoded: tuple[EncodedScene, str, Path], decoder: PlaneDecoder
) -> None:
    scene, by_encoder, _ = encoded
    (found,) = grid_digests(scene.manifest, scene.chunk, decoder)
    assert found["sha256"] == by_encoder
    planes, spec = scene.manifest.codings[0].planes, decoder.spec
    coded = 64 * 256 + 64 * 32  # 40 x 270 px in tiles of 256: each rounded up to multiples of 32
    latents = coded // BLOCK**2
    small = latents // spec.hyper**2 * (spec.hyper_latents + ROOT_CHANNELS)
    assert found["count"] == planes * (latents * CHANNELS + small)
    assert (found["method"], found["hashed"]) == ("planes", "symbols")


def test_a_chunk_that_is_not_there_changes_the_hash(
    encoded: tuple[EncodedScene, str, Path], decoder: PlaneDecoder
) -> None:
    scene, by_encoder, _ = encoded
    layout = scene.manifest.layout()
    second = layout.latents_of(0, 0)[1]  # the last may hold nothing but zeros
    (found,) = grid_digests(scene.manifest, lambda i: None if i == second else scene.chunk(i), decoder)
    assert found["sha256"] != by_encoder
    side = layout.index(ChunkKey(Kind.SIDE, grid=0))
    assert not list(tile_symbols(scene.manifest, lambda i: None if i == side else scene.chunk(i), decoder, 0))


def test_the_decoder_must_have_the_streams_bundle(
    encoded: tuple[EncodedScene, str, Path], decoder: PlaneDecoder
) -> None:
    scene = encoded[0]
    other = msgspec.structs.replace(scene.manifest, bundle=bytes(32))
    with pytest.raises(BundleError, match="give the decoder that bundle"):
        grid_digests(other, scene.chunk, decoder)


def test_other_methods_answer_for_their_pixels(
    encoded: tuple[EncodedScene, str, Path], decoder: PlaneDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = encoded[0]
    coding = msgspec.structs.replace(scene.manifest.codings[0], method="another")
    pixels = np.arange(24, dtype=">u2").reshape(2, 3, 4)
    rows = [Row(0, 0, pixels[:, :2], 0.0), Row(1, 0, pixels, 0.0), Row(0, 2, pixels[:, 2:], 0.0)]
    monkeypatch.setattr(digest, "decode_rows", lambda *_: iter(rows))
    (found,) = grid_digests(msgspec.structs.replace(scene.manifest, codings=(coding,)), scene.chunk, decoder)
    little = pixels.astype("<u2")
    expected = hashlib.sha256(little[:, :2].tobytes() + little[:, 2:].tobytes()).hexdigest()
    assert found == {"grid": 0, "method": "another", "hashed": "pixels", "count": 24, "sha256": expected}


def test_the_command_prints_it(encoded: tuple[EncodedScene, str, Path]) -> None:
    scene, by_encoder, path = encoded
    done = CliRunner().invoke(digest.main, [str(path)])
    said = json.loads(done.stdout)
    assert (said["scene_id"], said["grids"][0]["sha256"]) == (scene.scene_id, by_encoder)
    assert said["on"]["onnxruntime"]


def test_the_command_refuses_in_one_sentence(encoded: tuple[EncodedScene, str, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.dl").write_bytes(encoded[2].read_bytes()[:-1])
    for name, said in (("cut.dl", "copy it again"), ("none.dl", "No such file")):
        done = CliRunner().invoke(digest.main, [str(tmp_path / name)])
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ")
        assert said in done.stderr


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_streams_decode_to_what_they_did(path: Path) -> None:
    """Never edit a pair; `python tests/golden/make_streams.py` adds one when a bundle is released."""
    stated = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").exists() else {}
    with path.open("rb") as file:
        reader = StreamReader(file)
        reader.verify()
        try:
            bundle = find_id(reader.manifest.bundle, needs="decoder.onnx")
        except BundleError as missing:
            pytest.skip(f"its bundle is released no more: {missing}")
        found = grid_digests(reader.manifest, reader.chunk, PlaneDecoder(bundle))
    assert found == stated.get("grids", found)
    assert all(grid["count"] for grid in found)
