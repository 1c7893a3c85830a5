"""What a stream decodes to, hashed: the encoder's own symbols, and the golden streams' for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from decoder_node import digest
from decoder_node.compose import Row
from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests, tile_symbols
from downlink.bundle import find, find_id
from downlink.chunk import ChunkKey, ChunkList, GridCoding, Kind, Layout
from downlink.errors import BundleError
from downlink.latent import TileCode, encode_tile
from downlink.lattice import Resolution, coded_scene, lattices
from downlink.manifest import Manifest, scene_id
from downlink.plane import FrontEnd
from downlink.stream import StreamReader, write_stream
from downlink.tile import TileGrid
from tests import priors
from tests.scenes import PATCH

GOLDEN = sorted((Path(__file__).parent / "golden").rglob("*.dl"))
RESOLUTIONS = (Resolution(0, "1" * 6 + "2" * 5 + "6"),)


@pytest.fixture(scope="module")
def decoder() -> PlaneDecoder:
    return PlaneDecoder(find("universal"))


class Known:
    """A stream of two lattices made of drawn symbols, and the hash of those of each lattice."""

    def __init__(self, decoder: PlaneDecoder) -> None:
        scene = msgspec.structs.replace(PATCH, grids=(msgspec.structs.replace(PATCH.grids[0], height=270),))
        self.sha256: list[str] = []
        self.counts: list[int] = []
        payloads: dict[ChunkKey, bytes] = {}
        codings = []
        for number, lattice in enumerate(lattices(scene, RESOLUTIONS)):
            counts = ((3, 2, 3, 1), (1, 1, 1, 1))[number]
            code = priors.code(counts, 2 - number, number, decoder.spec)
            rows = tuple(np.eye(count, len(lattice.members) - (5 if band == 3 and not number else 0)) * 127
                         for band, count in enumerate(counts))  # fmt: skip
            mean, quantised = np.zeros(len(lattice.members), np.int32), tuple(r.astype(np.int16) for r in rows)
            front = FrontEnd(mean, lattice.half, lattice.weights, None, 3, quantised, (127,) * 4, code.levels)
            payloads[ChunkKey(Kind.SIDE, number)] = front.pack()
            code = TileCode(decoder.spec, decoder.tables, code.levels, front.turn, code.planes_per_chunk)
            codings.append(
                GridCoding(planes=code.planes, planes_per_chunk=code.planes_per_chunk, groups=4, mask="none", step=4.0)
            )
            drawn, count = hashlib.sha256(), 0
            for place, tile in enumerate(TileGrid(lattice.height, lattice.width)):
                symbols = priors.symbols(code, tile.coded[0] // 8, tile.coded[1] // 8, seed=place)
                for part in (symbols.hyper, symbols.root, symbols.latent):
                    drawn.update(part.astype("<i4").tobytes())
                    count += part.size
                for (group, block), payload in encode_tile(code, symbols, decoder.prior).items():
                    payloads[ChunkKey(Kind.LATENT, number, place, group, block)] = payload
            self.sha256.append(drawn.hexdigest())
            self.counts.append(count)
        layout = Layout(coded_scene(scene, RESOLUTIONS), codings)
        chunks = [payloads.get(layout.key(index), b"") for index in range(layout.pages, len(layout))]
        listed = ChunkList.of(chunks)
        self.manifest = Manifest.of(
            scene=scene, bundle=decoder.bundle.id, bundle_name=decoder.bundle.name, codings=codings, settings={},
            listed=listed, chunks=chunks, resolutions=RESOLUTIONS,
        )  # fmt: skip
        self.chunks = [*listed.pages(), *chunks]

    def chunk(self, index: int) -> bytes:
        return self.chunks[index]


@pytest.fixture(scope="module")
def known(decoder: PlaneDecoder) -> Known:
    return Known(decoder)


@pytest.fixture(scope="module")
def path(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digest") / "scene.dl"
    with path.open("wb") as file:
        write_stream(file, known.manifest.pack(), known.chunks)
    return path


def test_the_hash_is_that_of_the_symbols_that_were_coded(known: Known, decoder: PlaneDecoder) -> None:
    found = grid_digests(known.manifest, known.chunk, decoder)
    assert [one["sha256"] for one in found] == known.sha256
    assert [one["count"] for one in found] == known.counts
    assert [(one["grid"], one["method"], one["hashed"]) for one in found] == [
        (n, "planes", "symbols") for n in range(2)
    ]


def test_a_chunk_that_is_not_there_changes_the_hash(known: Known, decoder: PlaneDecoder) -> None:
    layout = known.manifest.layout()
    last = layout.latents_of(0, 1)[-2]
    found = grid_digests(known.manifest, lambda i: None if i == last else known.chunk(i), decoder)
    assert found[0]["sha256"] != known.sha256[0]
    assert found[1]["sha256"] == known.sha256[1]
    side = layout.index(ChunkKey(Kind.SIDE, grid=0))
    assert not list(tile_symbols(known.manifest, lambda i: None if i == side else known.chunk(i), decoder, 0))


def test_the_decoder_must_have_the_streams_bundle(known: Known, decoder: PlaneDecoder) -> None:
    other = msgspec.structs.replace(known.manifest, bundle=bytes(32))
    for one in (decoder, None):
        with pytest.raises(BundleError, match="give the decoder that bundle"):
            grid_digests(other, known.chunk, one)


def test_other_methods_answer_for_their_pixels(
    known: Known, decoder: PlaneDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    coding = msgspec.structs.replace(known.manifest.codings[0], method="another")
    pixels = np.arange(24, dtype=">u2").reshape(2, 3, 4)
    rows = [Row(0, 0, pixels[:, :2], 0.0), Row(1, 0, pixels, 0.0), Row(0, 2, pixels[:, 2:], 0.0)]
    monkeypatch.setattr(digest, "decode_rows", lambda *_: iter(rows))
    (found,) = grid_digests(msgspec.structs.replace(known.manifest, codings=(coding,)), known.chunk, decoder)
    little = pixels.astype("<u2")
    expected = hashlib.sha256(little[:, :2].tobytes() + little[:, 2:].tobytes()).hexdigest()
    assert found == {"grid": 0, "method": "another", "hashed": "pixels", "count": 24, "sha256": expected}


def test_the_command_prints_it(known: Known, path: Path) -> None:
    done = CliRunner().invoke(digest.main, [str(path)])
    said = json.loads(done.stdout)
    assert said["scene_id"] == scene_id(known.manifest.pack())
    assert [grid["sha256"] for grid in said["grids"]] == known.sha256
    assert said["on"]["onnxruntime"]


def test_the_command_refuses_in_one_sentence(path: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.dl").write_bytes(path.read_bytes()[:-1])
    for name, said in (("cut.dl", "copy it again"), ("none.dl", "No such file")):
        done = CliRunner().invoke(digest.main, [str(tmp_path / name)])
        assert done.exit_code == 1
        assert done.stderr.startswith("Error: ")
        assert said in done.stderr


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_streams_decode_to_what_they_did(path: Path) -> None:
    """Never edit a pair; `python -m tests.golden.make_streams` adds one when a bundle is released."""
    stated = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").exists() else {}
    with path.open("rb") as file:
        reader = StreamReader(file)
        reader.verify()
        decoder = None
        if not reader.manifest.exact:
            try:
                decoder = PlaneDecoder(find_id(reader.manifest.bundle, needs="decoder.onnx"))
            except BundleError as missing:
                pytest.skip(f"its bundle is released no more: {missing}")
        found = grid_digests(reader.manifest, reader.chunk, decoder)
    assert found == stated.get("grids", found)
    assert all(grid["count"] for grid in found)
