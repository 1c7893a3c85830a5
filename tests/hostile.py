"""A peer that means harm, against the ground's session: `python -m tests.hostile`.

Each attack is one message, as bytes from the wire. Before the first the process takes away its own right to allocate
more than the bound (RLIMIT_AS). Prints JSON: what became of each attack, how much CPU time it took, and how much memory
all of them together. `tests/test_hostile.py` runs it and judges.
"""

from __future__ import annotations

import gc
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import zstandard

from downlink import limits
from downlink.action import Close, Commit, Open, Reject, Send
from downlink.checksum import crc32c
from downlink.chunk import ChunkList
from downlink.errors import LinkError
from downlink.frame import FRAME_CHUNKS_MAX, GROUP_CHUNKS, OPEN_SCENES_MAX, REVISION, SceneState, State
from downlink.framing import edge_frame
from downlink.manifest import VERSION, Manifest
from downlink.session import GroundSession
from downlink.wire import link_pb2 as pb
from tests.streams import Stream, stream

SLACK_MIB = 64  # per stream …
BATCH_MIB = 16  # … and one batch of chunks that wait for their fsync
FIRST = bytes([VERSION])
HELLO = pb.EdgeFrame(hello=pb.Hello(revision=REVISION, software="hostile"))


def packed(raw: object) -> bytes:
    """A manifest of these msgpack facts, or of these bytes."""
    content = raw if isinstance(raw, bytes) else msgspec.msgpack.encode(raw)
    return FIRST + zstandard.ZstdCompressor(level=19).compress(content)


def offer(manifest: bytes, scene_id: bytes | None = None) -> pb.EdgeFrame:
    identity = hashlib.sha256(manifest).digest() if scene_id is None else scene_id
    return pb.EdgeFrame(offer=pb.Offer(scene_id=identity, manifest=manifest))


def facts(**changes: Any) -> list[Any]:
    """The facts of a good manifest, in order, some of them changed; `grid`, `coding` and `scene` are dicts."""
    truth = msgspec.to_builtins(Manifest.unpack(stream().packed), builtin_types=(bytes,))
    names = list(Manifest.__struct_fields__)
    whole = dict(zip(names, truth, strict=True))
    scene, coding = whole["scene"], whole["codings"][0]
    grid = scene[1][0]
    for number, value in changes.pop("grid", {}).items():
        grid[number] = value
    for number, value in changes.pop("coding", {}).items():
        coding[number] = value
    for number, value in changes.pop("scene", {}).items():
        scene[number] = value
    return list((whole | changes).values())


HEIGHT, WIDTH, BANDS = 0, 1, 3  # places in a grid
TILE, PLANES, PER_CHUNK, GROUPS = 1, 2, 3, 4  # places in a coding
NAME, GRIDS, ACQUIRED, TAGS = 0, 1, 2, 3  # places in a scene


def zstd_claiming(size: int) -> bytes:
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


def bands(count: int, stated: int | None = None) -> bytes:
    """A manifest whose grid has so many bands, each of one byte: an empty array is a band without a name."""
    raw = msgspec.msgpack.encode(facts(grid={BANDS: ["here"]}))
    many = b"\xdd" + (count if stated is None else stated).to_bytes(4, "big") + b"\x90" * count
    return packed(raw.replace(b"\x91\xa4here", many, 1))


def manifests() -> Iterator[tuple[str, bytes]]:
    """Manifests that must be refused, by what is wrong with them."""
    for side in (40_001, 2**31 - 1, 2**31, 2**63 - 1):
        yield f"{side} x {side} px", packed(facts(grid={HEIGHT: side, WIDTH: side}))
    yield "a negative height", packed(facts(grid={HEIGHT: -1}))
    yield "a height of 2^64 - 1", packed(facts(grid={HEIGHT: 2**64 - 1}))
    yield "10^9 chunks", packed(facts(chunk_count=10**9))
    yield "10^18 chunks", packed(facts(chunk_count=10**18))
    yield "as many chunks as a geometry gives", packed(facts(grid={HEIGHT: 40_000, WIDTH: 40_000}, coding={GROUPS: 64}))
    yield (
        "10^9 chunks of a geometry",
        packed(
            facts(
                grid={HEIGHT: 40_000, WIDTH: 2048, BANDS: [[""]] * 512}, coding={PLANES: 512, PER_CHUNK: 1, GROUPS: 64}
            )
        ),
    )
    yield "2^63 payload bytes", packed(facts(payload_bytes=2**63))
    yield "-1 payload bytes", packed(facts(payload_bytes=-1))
    yield "500 000 bands", bands(500_000)
    yield "4 000 000 000 bands stated", bands(1, 4_000_000_000)
    yield "17 grids", packed(facts(scene={GRIDS: facts()[0][1] * 17}))
    yield "5000 grids", packed(facts(scene={GRIDS: facts()[0][1] * 5000}))
    yield "60 000 tags", packed(facts(scene={TAGS: {str(number): "" for number in range(60_000)}}))
    yield "a name of 500 000 letters", packed(facts(scene={NAME: "x" * 500_000}))
    yield "a time of 500 000 letters", packed(facts(scene={ACQUIRED: "2" * 500_000}))
    yield "a name that is a path", packed(facts(scene={NAME: "../../etc/passwd\0"}))
    yield "60 000 settings", packed(facts(settings={str(number): 1.0 for number in range(60_000)}))
    yield "80 000 pages", packed(facts(pages=[[1, 1]] * 80_000))
    yield "pages of 2^40 bytes", packed(facts(pages=[[2**40, 1]]))
    yield "2 resolutions", packed(facts(resolutions=[[], []]))
    yield "5000 resolutions", packed(facts(resolutions=[[]] * 5000))
    yield "a unit of 2^63 - 1", packed(facts(resolutions=[[2**63 - 1]]))
    yield "joined to nothing", packed(facts(resolutions=[[6]]))
    yield "500 000 repeats", packed(facts(resolutions=[[0, "2" * 500_000]]))
    yield "repeats of 9", packed(facts(resolutions=[[0, "9"]]))
    yield "a phase of -1", packed(facts(resolutions=[[0, "2", -1]]))
    yield (
        "16 grids in 32 lattices of one coding",
        packed(facts(scene={GRIDS: facts(grid={BANDS: [[], []]})[0][1] * 16}, resolutions=[[0, "13"]] * 16)),
    )
    yield (
        "512 bands joined to a sixth",
        packed(
            facts(
                scene={GRIDS: [[24_000, 2048, "uint16", [[]] * 256], [4000, 341, "uint16", [[]] * 256]]},
                resolutions=[[1, "6" * 256], [6, "6" * 256]],
            )
        ),
    )
    yield "a step of NaN", packed(facts(coding={6: float("nan")}))
    yield "tiles of 2^31 px", packed(facts(coding={TILE: 2**31}))
    yield "200 000 arrays in each other", packed(b"\x91" * 200_000)
    yield "200 000 maps in each other", packed(b"\x81\xa0" * 200_000)
    yield "a bomb of 1 GiB", FIRST + zstandard.ZstdCompressor().compress(bytes(2**30))
    yield "a bomb that states 16 GiB", FIRST + zstd_claiming(2**34)
    yield "a bomb that states 2^64 - 2", FIRST + zstd_claiming(2**64 - 2)
    yield "a bomb that understates", FIRST + zstd_claiming(100) + b"\x02\x00\x00" * 10_000
    yield "512 KiB of zeros", packed(bytes(limits.MANIFEST_RAW_BYTES_MAX))
    yield "64 KiB of noise", FIRST + np.random.default_rng(0).bytes(limits.MANIFEST_BYTES_MAX - 1)
    yield "64 KiB of frames", FIRST + zstandard.compress(b"x") * 6000
    yield "version 255", b"\xff" + bytes(100)
    yield "one byte", FIRST


LARGEST = bytes(limits.CHUNK_BYTES_MAX)
LARGE_CHUNKS = GROUP_CHUNKS - 1


def large(seed: int) -> tuple[bytes, list[bytes]]:
    """The largest scene that is let in, as its manifest and its pages: some 2^20 chunks, a few of them of the largest
    size."""
    rows = 40_000 // 32
    groups = 32
    cols = (limits.CHUNKS_MAX - 64 - 2) // groups // rows
    coding = {TILE: 32, PLANES: 1, PER_CHUNK: 1, GROUPS: groups, 5: "none"}
    listed = rows * cols * groups + 1
    lengths = np.ones(listed, np.uint32)
    lengths[:LARGE_CHUNKS] = len(LARGEST)
    crcs = np.full(listed, crc32c(LARGEST), np.uint32)
    pages = ChunkList(lengths, crcs).pages()
    raw = facts(
        grid={HEIGHT: 32 * rows, WIDTH: 32 * cols, 4: None},
        coding=coding,
        chunk_count=listed + len(pages),
        payload_bytes=sum(map(len, pages)) + int(lengths.sum()),
        payload_sha256=bytes([seed]) * 32,
        pages=[[len(page), crc32c(page)] for page in pages],
    )
    return packed(raw), pages


def chunk_frame(made: Stream, chunks: list[pb.Chunk], flush: bool = False) -> pb.EdgeFrame:
    return pb.EdgeFrame(chunks=pb.Chunks(scene_id=bytes.fromhex(made.id), chunks=chunks, flush=flush))


def frames() -> Iterator[tuple[str, bytes]]:
    """Messages after an offer that was accepted: each must end the stream, or be thrown away."""
    made = stream()
    page = pb.Chunk(index=0, crc32c=crc32c(made.chunks[0]), content=made.chunks[0])
    yield "a chunk beyond the last", chunk_frame(made, [pb.Chunk(index=2**32 - 1, content=b"x")]).SerializeToString()
    yield "a chunk before the list", chunk_frame(made, [pb.Chunk(index=7, content=b"x")]).SerializeToString()
    yield "an empty chunk", chunk_frame(made, [pb.Chunk(index=0)]).SerializeToString()
    yield "no chunk", chunk_frame(made, []).SerializeToString()
    empty = pb.Chunk()
    yield "500 000 empty chunks", chunk_frame(made, [empty] * 500_000).SerializeToString()
    small = pb.Chunk(index=0, crc32c=1, content=b"x")
    yield "as many damaged chunks as may be", chunk_frame(made, [small] * FRAME_CHUNKS_MAX).SerializeToString()
    yield "80 000 damaged chunks", chunk_frame(made, [small] * 80_000).SerializeToString()
    yield "the same page 7 000 times", chunk_frame(made, [page] * 7_000).SerializeToString()
    yield "a chunk of 900 KiB", chunk_frame(made, [pb.Chunk(index=0, content=bytes(900 * 1024))]).SerializeToString()
    zeros = pb.Chunk(index=0, content=bytes(len(made.chunks[0])))
    yield "a page of zeros", chunk_frame(made, [zeros]).SerializeToString()
    yield "another scene", chunk_frame(stream(9), [page]).SerializeToString()
    yield "Hello again", HELLO.SerializeToString()
    yield "an empty frame", b""
    yield "a frame of a later revision", b"\xfa\x01\x01x"
    yield "half a frame", chunk_frame(made, [page]).SerializeToString()[:-5]
    yield "noise", np.random.default_rng(1).bytes(1000)
    yield "groups in each other", b"\x0b" * 100_000
    yield "a manifest under another id", offer(made.packed, bytes(32)).SerializeToString()
    yield "an id of 2 bytes", offer(made.packed, b"ab").SerializeToString()
    yield "software of 1 MB", pb.EdgeFrame(hello=pb.Hello(revision=1, software="x" * 10**6)).SerializeToString()


def outcome(session: GroundSession, message: bytes) -> str:
    """What the ground does about a message: the answer, or the class of the error that ends the stream."""
    try:
        frame = edge_frame(pb.EdgeFrame.FromString(message))
    except LinkError as error:
        return f"LinkError: {error}"
    except Exception as error:  # protobuf's own: gRPC ends the call before we see it
        return f"{type(error).__module__}.{type(error).__name__}"
    said = []
    for action in session.receive(frame, 0.0):
        match action:
            case Send(SceneState(_, State.REFUSED, _, refusal)):
                assert refusal is not None
                said.append(f"refused {refusal.code.name}: {refusal.message}")
            case Close(status, reason):
                said.append(f"closed {status}: {reason}")
            case Open(incoming):
                said.append("opened")
                session.opened(incoming.scene_id, incoming, 0.0)
            case Commit(arrivals):
                said.append(f"commit of {len(arrivals)}")
                session.committed(action, 0.0)
            case Reject(_, reason):
                said.append(f"rejected: {reason}")
            case Send(frame):
                said.append(type(frame).__name__)
    return "; ".join(said) or "nothing"


def fresh() -> GroundSession:
    session = GroundSession("ground")
    outcome(session, HELLO.SerializeToString())
    return session


def status(field: str) -> float:
    """A size of this process, in MiB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def attack(name: str, message: bytes, prepare: Callable[[], GroundSession] = fresh) -> dict[str, Any]:
    session = prepare()
    gc.collect()
    began = time.process_time()  # of this process alone: the machine may be busy
    what = outcome(session, message)
    return {"attack": name, "outcome": what, "cpu_s": time.process_time() - began}


def with_offer() -> GroundSession:
    session = fresh()
    assert outcome(session, offer(stream().packed).SerializeToString()) == "opened"
    return session


def fill(scenes: list[tuple[bytes, list[bytes]]]) -> dict[str, int]:
    """The most that one stream can make the ground hold: as many of the largest scenes as may be open, with their
    lists, and one chunk less than a commit of the largest chunks. Counts what was taken."""
    session = fresh()
    opened = held = 0
    for manifest, pages in scenes:
        identity = hashlib.sha256(manifest).digest()
        opened += outcome(session, offer(manifest).SerializeToString()) == "opened"
        for index, page in enumerate(pages):
            part = pb.Chunk(index=index, crc32c=crc32c(page), content=page)
            said = outcome(session, pb.EdgeFrame(chunks=_one(identity, part, flush=True)).SerializeToString())
            assert said == "commit of 1", said
    for index in range(len(pages), len(pages) + LARGE_CHUNKS):
        part = pb.Chunk(index=index, crc32c=crc32c(LARGEST), content=LARGEST)
        held += outcome(session, pb.EdgeFrame(chunks=_one(identity, part)).SerializeToString()) == "nothing"
    return {"opened": opened, "held": held}


def _one(scene_id: bytes, part: pb.Chunk, flush: bool = False) -> pb.Chunks:
    return pb.Chunks(scene_id=scene_id, chunks=[part], flush=flush)


def main() -> None:
    prepared = [(name, offer(manifest).SerializeToString()) for name, manifest in manifests()]
    afterwards = list(frames())
    scenes = [large(seed) for seed in range(OPEN_SCENES_MAX)]
    with_offer()  # whatever is loaded or made on first use
    gc.collect()
    before = status("VmSize")
    bound = int((before + SLACK_MIB + BATCH_MIB) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    rss = status("VmRSS")
    found = [attack(name, message) for name, message in prepared]
    found += [attack(name, message, with_offer) for name, message in afterwards]
    small = status("VmHWM") - rss
    filled = fill(scenes)
    json.dump({"attacks": found, "filled": filled, "taken_mib": small, "most_mib": status("VmHWM") - rss}, sys.stdout)


if __name__ == "__main__":
    main()
