"""What reads bytes that a stranger may have written, each as a function of those bytes.

A target returns, or raises one of `ALLOWED`. Anything else that it raises, a hang, or memory out of proportion is a
bug. `TARGETS` gives each with the seeds that fuzzing starts from: golden streams and messages of real conversations.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import zstandard
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink import limits
from downlink.bundle import Bundle, find, find_id, released_names
from downlink.chunk import ChunkList
from downlink.cover import UNKNOWN
from downlink.errors import BundleError, DownlinkError
from downlink.exact_model import Model
from downlink.exact_predictor import Predictor
from downlink.frame import (
    REVISION,
    Ack,
    Answer,
    Ask,
    BundlePart,
    Chunk,
    Chunks,
    Offer,
    Pause,
    Progress,
    Resend,
    SceneState,
    State,
    Verdict,
    Welcome,
)  # fmt: skip
from downlink.framing import edge_message, ground_frame, ground_message
from downlink.graph import check_graph
from downlink.manifest import VERSION, Manifest
from downlink.mask import decode_mask, encode_mask
from downlink.part import PartReader
from downlink.plane import unpack_front_end
from downlink.prediction import FACTOR_ONE, Coefficients, Prediction, cell_counts, split_side
from downlink.ranges import Range
from downlink.request import Cancel, Install, Refine, Rollback, SetPriority, SetTarget, pack, unpack
from downlink.session import EdgeSession
from downlink.stream import StreamReader
from downlink.symbol import SymbolEncoder
from downlink.symbol_decoder import SymbolDecoder
from downlink.table import Tables
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.target import Target as Quality
from tests import hostile, scenes
from tests.streams import stream

GOLDEN = Path(__file__).parents[1] / "golden"
ALLOWED = (DownlinkError, DecodeError)  # the second is protobuf's; gRPC calls it, and the receiver answers DATA_LOSS

MASK_SHAPE = (3, 40, 37)
LISTED = 300


@dataclass(frozen=True)
class Target:
    """Some code that reads, and what it reads when all is well."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    slow: bool = False  # a model is run: some hundred inputs per second at most


@cache
def real_streams() -> tuple[bytes, ...]:
    """Streams that can be decoded here: tiny ones first, made now, of every method and of grids that lie on each other;
    then the golden ones."""
    found = []
    pixels = scenes.pixels(3, 3, 40, 36)
    one, joined = ArraySource(scenes.scene(pixels), pixels), scenes.grids_source(pixels, pixels[:2, ::2, ::2])
    for name in released_names():
        encoder = PlaneEncoder(find(name))
        for source, quality in ((one, Quality()), (joined, Quality()), (one, Quality(max_error=0))):
            with encode_scene(source, encoder, quality) as encoded:
                file = io.BytesIO()
                encoded.write(file)
            found.append(file.getvalue())
    for path in sorted(GOLDEN.rglob("*.dl")):
        content = path.read_bytes()
        try:
            decoder_for(StreamReader(io.BytesIO(content)).manifest)
        except BundleError:
            continue
        found.append(content)
    return tuple(found)


@cache
def small_streams() -> tuple[bytes, ...]:
    """Those that are decoded often enough for mutations to find something."""
    return tuple(content for content in real_streams() if len(content) < 8000)


class Unsynthesised(PlaneDecoder):
    """Decodes all but the pixels: a network's weights are not a stranger's, and its inputs are bounded by then."""

    def synthesise(
        self, values: NDArray[np.float32], levels: NDArray[np.uint8], some: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        return values


@cache
def decoder_of(bundle: bytes) -> PlaneDecoder:
    return Unsynthesised(find_id(bundle, needs="decoder.onnx"))


def decoder_for(manifest: Manifest) -> PlaneDecoder | None:
    """What the scene's codings need; BundleError if it is not here."""
    return None if manifest.exact else decoder_of(manifest.bundle)


def read_stream(data: bytes) -> None:
    """A file: header, manifest, pages, chunks, checksums."""
    StreamReader(io.BytesIO(data)).verify()


def resigned(content: bytes, index: int, payload: bytes) -> tuple[Manifest, list[bytes]]:
    """The stream `content` with another payload in place of a chunk's, and all checksums made right again."""
    reader = StreamReader(io.BytesIO(content))
    pages = len(reader.manifest.pages)
    chunks = list(reader.chunks())[pages:]
    chunks[index % len(chunks)] = payload[: limits.CHUNK_BYTES_MAX]
    truth, listed = reader.manifest, ChunkList.of(chunks)
    manifest = Manifest.of(
        scene=truth.scene,
        bundle=truth.bundle,
        bundle_name=truth.bundle_name,
        codings=truth.codings,
        settings=truth.settings,
        listed=listed,
        chunks=chunks,
        resolutions=truth.resolutions,
    )
    return manifest, [*listed.pages(), *chunks]


def read_chunk(data: bytes) -> None:
    """Three bytes that choose a stream and a chunk of it, then that chunk's payload: rANS, masks and side information,
    behind checksums that are right."""
    streams = small_streams()
    if len(data) < 3 or not streams:
        return
    manifest, chunks = resigned(streams[data[0] % len(streams)], int.from_bytes(data[1:3], "little"), data[3:])
    for _ in decode_rows(manifest, lambda index: chunks[index], decoder_for(manifest)):
        pass


def seeds_of_chunks() -> list[bytes]:
    seeds = []
    for number, content in enumerate(small_streams()):
        reader = StreamReader(io.BytesIO(content))
        pages = len(reader.manifest.pages)
        for index in range(pages, min(len(reader), pages + 400)):
            seeds.append(bytes([number]) + (index - pages).to_bytes(2, "little") + reader.chunk(index))
    return seeds


@cache
def symbol_cases() -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted((GOLDEN / "v1").glob("symbols-*.json"))]


def read_symbols(data: bytes) -> None:
    """A byte that chooses a golden case, then a payload for its tables, scales and means."""
    if not data:
        return
    case = symbol_cases()[data[0] % len(symbol_cases())]
    decoder = SymbolDecoder(Tables.unpack(bytes.fromhex(str(case["tables"]))), data[1:])
    segments: list[dict[str, list[int]]] = case["segments"]  # type: ignore[assignment]
    for segment in segments:
        decoder.take(np.array(segment["index"], np.uint8), np.array(segment["mean"], np.int32))
    decoder.close()


def read_tables(data: bytes) -> None:
    """A bundle's tables: if they are taken, what is coded with them decodes to the same."""
    tables = Tables.unpack(data)
    index = np.arange(60).astype(np.uint8) % np.uint8(tables.scales)
    mean = (np.arange(60) * 7 % 90 - 45).astype(np.int32)
    values = (mean >> 3) + (np.arange(60) % 5 - 2).astype(np.int32)
    encoder = SymbolEncoder(tables)
    encoder.add(values, index, mean)
    decoder = SymbolDecoder(tables, encoder.finish())
    assert np.array_equal(decoder.take(index, mean), values)
    decoder.close()


def read_manifest_facts(data: bytes) -> None:
    """What is inside a manifest's zstd frame."""
    Manifest.unpack(bytes([VERSION]) + zstandard.ZstdCompressor(level=1).compress(data))


def read_pages(data: bytes) -> None:
    ChunkList.from_pages([data], LISTED)


def read_mask(data: bytes) -> None:
    decode_mask(data, MASK_SHAPE)


def read_mask_bits(data: bytes) -> None:
    """What is inside a mask's zstd frame."""
    decode_mask(b"\x02" + zstandard.ZstdCompressor(level=1).compress(data), MASK_SHAPE)


def read_front_end(data: bytes) -> None:
    """Three bytes, then side information for so many bands, so many of them of half resolution, and planes."""
    if len(data) >= 3:
        bands, halves, planes = 1 + data[0] % limits.BANDS_MAX, data[1], data[2]
        half = np.arange(bands) >= bands - halves % bands
        unpack_front_end(data[3:], half, np.ones(bands, np.float32), planes, 4)


def seeds_of_front_ends() -> list[bytes]:
    seeds = []
    for content in real_streams():
        reader = StreamReader(io.BytesIO(content))
        if not reader.manifest.exact:
            side = reader.chunk(reader.manifest.layout().side_of(0))
            half = reader.manifest.lattices()[0].half
            seeds.append(bytes([half.size - 1, int(half.sum()), reader.manifest.codings[0].planes]) + side)
    return seeds


def read_prediction(data: bytes) -> None:
    """A byte that says how many bands, one for those of half resolution, then a side chunk of a scene with a reference:
    within 300 x 500 px."""
    if len(data) >= 2:
        bands = 1 + data[0] % 16
        packed, _ = split_side(data[2:])
        half = np.arange(bands) >= bands - data[1] % bands
        found = Prediction.unpack(packed, half, 300, 500, cast(Coefficients, None))
        assert found.factors.max(initial=0) <= FACTOR_ONE


def seeds_of_predictions() -> list[bytes]:
    random, half = np.random.default_rng(1), np.arange(6) >= 4
    gains = random.integers(0, 64, (4, 6)).astype(np.uint8)
    gains[3, half] = 0
    seeds = []
    for cell in (2, 32):
        factors = random.integers(0, 1 + FACTOR_ONE, cell_counts(300, 500, cell)).astype(np.uint8)
        seeds.append(bytes([5, 2]) + Prediction(cast(Coefficients, None), gains, cell, factors).pack(half))
    return seeds


def read_exact_model(data: bytes) -> None:
    """A byte that says how many bands, then the rules of an exact grid."""
    if data:
        bands = 1 + data[0] % 16
        Predictor(Model.unpack(data[1:], bands))


def seeds_of_exact_models() -> list[bytes]:
    seeds = []
    for content in real_streams():
        reader = StreamReader(io.BytesIO(content))
        if reader.manifest.exact:
            side = reader.chunk(reader.manifest.layout().side_of(0))
            seeds.append(bytes([len(reader.manifest.scene.grids[0].bands) - 1]) + side)
    return seeds


def read_part(data: bytes) -> None:
    """A byte that leaves chunks out, then a file that has not all come."""
    if data:
        reader = PartReader(io.BytesIO(data[1:]), [Range(0, 40), Range(41 + data[0], 10)])
        for index in range(min(60, reader.manifest.chunk_count)):
            reader.chunk(index)


def split(data: bytes) -> Iterator[bytes]:
    """Messages that are written one after the other, each behind its length in two bytes."""
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "little")
        yield data[2 : 2 + size]
        data = data[2 + size :]


def joined(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "little") + message for message in messages)


def read_edge_messages(data: bytes) -> None:
    """What an edge says, against a ground's session that has greeted it."""
    session = hostile.with_offer()
    for message in split(data):
        said = hostile.outcome(session, message)
        if said.startswith(("closed", "LinkError", "google")):
            return


def seeds_of_edges() -> list[bytes]:
    made, other = stream(), stream(1)
    parts = [Chunk(index, hostile.crc32c(made.chunks[index]), made.chunks[index]) for index in sorted(made.sent)]
    offer = edge_message(Offer(other.id, other.packed, 3)).SerializeToString()
    one = [edge_message(Chunks(made.id, (part,), True)).SerializeToString() for part in parts]
    all_at_once = edge_message(Chunks(made.id, tuple(parts))).SerializeToString()
    said = [Answer("ab" * 16, Verdict.DONE, ""), Progress("ab" * 16, 32768), Pause(made.id)]
    answers = [edge_message(frame).SerializeToString() for frame in said]
    return [joined(offer, *one[:4]), joined(*one), joined(all_at_once), joined(*answers, *one)]


def read_ground_messages(data: bytes) -> None:
    """What a ground says, against an edge's session with two scenes on their way."""
    session = EdgeSession("fuzz")
    session.start(0.0)
    for number in range(2):
        session.offer(stream(number).outgoing(order=number), 0.0)
    for message in split(data):
        frame = ground_frame(hostile.pb.GroundFrame.FromString(message))
        if frame is not None:
            session.receive(frame, 0.0)
        while session.take(4096, 0.0):
            pass


def seeds_of_grounds() -> list[bytes]:
    made = stream()
    digest = Manifest.unpack(made.packed).payload_sha256
    frames = [
        Welcome(REVISION, "ground", 4),
        SceneState(made.id, State.RECEIVING, (Range(0, 5), Range(7, 20))),
        Ack(made.id, (Range(0, 3), Range(9, 1))),
        Resend(made.id, (Range(2, 1),), "damaged"),
        Ask("ab" * 16, seeds_of_requests()[0]),
        BundlePart("ab" * 16, 0, b"{}" * 50),
        SceneState(made.id, State.DURABLE, payload_sha256=digest),
    ]
    return [joined(*(ground_message(frame).SerializeToString() for frame in frames))]


def read_request(data: bytes) -> None:
    unpack(data)


def seeds_of_requests() -> list[bytes]:
    scene_id = stream().id
    install = Install(scene_id, (("bundle.json", 100), ("encoder.onnx", 70_000)), bytes(64))
    first = (Range(2, 5), Range(9, 100))
    target = SetTarget("psnr_db", 45.5, 2)
    asked = (Refine(scene_id, 3, first), SetPriority(scene_id, -7), Cancel(scene_id), target, install, Rollback())
    return [pack(request) for request in asked]


def read_bundle_json(data: bytes) -> None:
    Bundle(Path("/nowhere"), data)


def read_graph(data: bytes) -> None:
    check_graph(data, "fuzz")


def released(file: str) -> list[bytes]:
    """This file of every released bundle that lies here, if it is short enough to be mutated with effect."""
    folders = sorted((Path(__file__).parents[2] / "models").glob(f"*/{file}"))
    found = [content for path in folders if len(content := path.read_bytes()) < 300_000]
    assert found, f"no released bundle holds a short {file}: mutations would begin with nothing real"
    return found


def _facts() -> list[bytes]:
    """A manifest without anything that may be left out, and one that says what its nine tiles show."""
    cover = [0, ["water", "cloud"], bytes([0, 1, UNKNOWN] * 3) + bytes([0, 100, UNKNOWN] * 3)]
    return [msgspec.msgpack.encode(facts) for facts in (hostile.facts(), hostile.facts(cover=cover))]


def _masks() -> list[bytes]:
    random = np.random.default_rng(0)
    blocks = [random.random(MASK_SHAPE) < share for share in (0.0, 0.01, 0.5, 1.1)]
    return [encode_mask(block) for block in blocks]


TARGETS = {
    "stream": Target(read_stream, lambda: [*real_streams(), stream().file]),
    "chunk": Target(read_chunk, seeds_of_chunks, slow=True),
    "symbols": Target(
        read_symbols,
        lambda: [bytes([n]) + bytes.fromhex(str(case["payload"])) for n, case in enumerate(symbol_cases())],
    ),
    "tables": Target(read_tables, lambda: [bytes.fromhex(str(case["tables"])) for case in symbol_cases()]),
    "manifest": Target(Manifest.unpack, lambda: [stream().packed, *(manifest for _, manifest in hostile.manifests())]),
    "facts": Target(read_manifest_facts, _facts),
    "pages": Target(read_pages, lambda: hostile.ChunkList.of([b"x" * n for n in range(LISTED)]).pages()),
    "mask": Target(read_mask, _masks),
    "mask bits": Target(read_mask_bits, lambda: [bytes(3 * 40 * 5), b"\xf8" * 600]),
    "side": Target(read_front_end, seeds_of_front_ends),
    "prediction": Target(read_prediction, seeds_of_predictions),
    "exact model": Target(read_exact_model, seeds_of_exact_models),
    "part": Target(read_part, lambda: [b"\x00" + stream().file, *(b"\x05" + content for content in real_streams())]),
    "edge": Target(read_edge_messages, seeds_of_edges),
    "ground": Target(read_ground_messages, seeds_of_grounds),
    "request": Target(read_request, seeds_of_requests),
    "bundle": Target(read_bundle_json, lambda: released("bundle.json")),
    "graph": Target(read_graph, lambda: [*released("prior_0.onnx"), b"\x12\x07encoder\x3a\x00"]),
}


def tolerated(target: Target, data: bytes) -> bool:
    """Read: true if it could be, or was refused by name. Raises what must not be raised."""
    try:
        target.read(data)
    except ALLOWED:
        pass
    return True
