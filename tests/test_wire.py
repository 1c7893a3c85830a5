"""The schema, the code generated from it, and the frames that are made of it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from downlink import limits
from downlink.action import Close
from downlink.errors import LinkError
from downlink.frame import (
    FRAME_CHUNKS_MAX,
    FRAME_CONTENT_BYTES_MAX,
    FRAME_RANGES_MAX,
    GROUP_CHUNKS,
    GROUP_S,
    OPEN_SCENES_MAX,
    REASON_BYTES_MAX,
    RETRY_S_MAX,
    Ack,
    Answer,
    Ask,
    BundlePart,
    Chunk,
    Chunks,
    EdgeFrame,
    GroundFrame,
    Hello,
    Offer,
    Pause,
    Progress,
    Refusal,
    RefusalCode,
    Report,
    Resend,
    SceneState,
    State,
    Verdict,
    Welcome,
)  # fmt: skip
from downlink.framing import edge_frame, edge_message, ground_frame, ground_message
from downlink.ranges import Range
from downlink.session import DAMAGED_MAX, GroundSession
from downlink.wire import link_pb2 as pb

ROOT = Path(__file__).parent.parent
ID = "3f" * 32


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_checked_in_code_is_what_the_pinned_generator_makes(generate: ModuleType) -> None:
    try:
        generate.generator()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"grpcio-tools {generate.VERSION} cannot be had here: {error.stderr.strip().splitlines()[-1]}")
    assert generate.stale() == [], "run `make proto`"


def test_checked_in_code_describes_the_schema(tmp_path: Path) -> None:
    """With whatever protoc is installed: also where the pinned generator has no wheel."""
    protoc = pytest.importorskip("grpc_tools.protoc")
    out = tmp_path / "set.bin"
    command = [sys.executable, "-m", protoc.__name__, f"-I{ROOT / 'proto'}", f"--descriptor_set_out={out}"]
    subprocess.run([*command, "downlink/v1/link.proto"], check=True)
    [file] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    checked_in = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")  # derived from the name; generated code leaves it out
    assert file == checked_in, "run `make proto`"


def test_the_schema_passes_buf_lint() -> None:
    buf = Path(sys.executable).with_name("buf")
    command = str(buf) if buf.exists() else shutil.which("buf")
    if command is None:
        pytest.skip("buf is not installed (buf-bin, in the dev extra)")
    done = subprocess.run([command, "lint", "proto"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_generated_code_runs_with_old_runtimes() -> None:
    """No version check that would force the newest protobuf on users."""
    text = (ROOT / "downlink" / "wire" / "link_pb2.py").read_text()
    assert "ValidateProtobufRuntimeVersion" not in text


ranges = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=20).map(
    lambda pairs: tuple(
        Range(sum(gap + count for gap, count in pairs[:i]) + pairs[i][0], pairs[i][1]) for i in range(len(pairs))
    )
)
ids = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.binary(min_size=16, max_size=16).map(bytes.hex)
words = st.text(st.characters(categories=["L", "N", "P"]), max_size=40)
chunks = st.builds(Chunk, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=99))
edge_frames = st.one_of(
    st.builds(Hello, st.integers(0, 2**32 - 1), words),
    st.builds(Offer, ids, st.binary(min_size=1, max_size=99), st.integers(-(2**31), 2**31 - 1)),
    st.builds(Chunks, ids, st.lists(chunks, min_size=1, max_size=5).map(tuple), st.booleans()),
    st.builds(Pause, ids),
    st.builds(Answer, names, st.sampled_from(Verdict), words),
    st.builds(Progress, names, st.integers(0, limits.BUNDLE_BYTES_MAX)),
    st.builds(Report, *[st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)] * 2),
)
reasons = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=40)
others = [code for code in RefusalCode if code is not RefusalCode.REFERENCE]
refusals = st.builds(Refusal, st.sampled_from(others), reasons, st.integers(1, RETRY_S_MAX)) | st.builds(
    Refusal, st.just(RefusalCode.REFERENCE), reasons, st.just(0), ids
)
ground_frames = st.one_of(
    st.builds(Welcome, st.integers(0, 2**32 - 1), words, st.integers(1, 2**32 - 1)),
    st.builds(SceneState, ids, st.just(State.RECEIVING), ranges),
    st.builds(SceneState, ids, st.just(State.DURABLE), payload_sha256=st.binary(min_size=32, max_size=32)),
    st.builds(SceneState, ids, st.just(State.REFUSED), st.just(()), refusals),
    st.builds(Ack, ids, ranges),
    st.builds(Resend, ids, ranges, words),
    st.builds(Ask, names, st.binary(min_size=1, max_size=99)),
    st.builds(BundlePart, names, st.integers(0, limits.BUNDLE_BYTES_MAX), st.binary(min_size=1, max_size=99)),
)


@given(edge_frames)
def test_what_the_edge_says_arrives(frame: EdgeFrame) -> None:
    sent = edge_message(frame).SerializeToString()
    assert edge_frame(pb.EdgeFrame.FromString(sent)) == frame


@given(ground_frames)
def test_what_the_ground_says_arrives(frame: GroundFrame) -> None:
    sent = ground_message(frame).SerializeToString()
    assert ground_frame(pb.GroundFrame.FromString(sent)) == frame


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (pb.EdgeFrame(), "no field set"),
        (pb.EdgeFrame(hello=pb.Hello(software="x" * 257)), "257 bytes, at most 256"),
        (pb.EdgeFrame(offer=pb.Offer(scene_id=b"x" * 31, manifest=b"x")), "31 bytes, a SHA-256 has 32"),
        (pb.EdgeFrame(offer=pb.Offer(scene_id=bytes(32))), "manifest has 0 bytes"),
        (pb.EdgeFrame(offer=pb.Offer(scene_id=bytes(32), manifest=bytes(limits.MANIFEST_BYTES_MAX + 1))), "65537"),
        (pb.EdgeFrame(chunks=pb.Chunks(scene_id=bytes(32))), "without a chunk"),
        (pb.EdgeFrame(chunks=pb.Chunks(scene_id=bytes(32), chunks=[pb.Chunk(index=4)])), "chunk 4 .* has 0 bytes"),
        (
            pb.EdgeFrame(
                chunks=pb.Chunks(scene_id=bytes(32), chunks=[pb.Chunk(content=bytes(limits.CHUNK_BYTES_MAX + 1))])
            ),
            "262145 bytes",
        ),
        (
            pb.EdgeFrame(chunks=pb.Chunks(scene_id=bytes(32), chunks=[pb.Chunk(content=bytes(1 << 18))] * 3)),
            f"786432 bytes .* at most {FRAME_CONTENT_BYTES_MAX}",
        ),
        (
            pb.EdgeFrame(chunks=pb.Chunks(scene_id=bytes(32), chunks=[pb.Chunk(content=b"x")] * 1025)),
            "1025 chunks in a frame, at most 1024",
        ),
    ],
)
def test_what_the_schema_forbids_the_edge_is_refused(message: pb.EdgeFrame, match: str) -> None:
    with pytest.raises(LinkError, match=match):
        edge_frame(message)


@pytest.mark.parametrize(
    "listed",
    [
        [pb.Range(first=3)],
        [pb.Range(first=3, count=2), pb.Range(first=4, count=1)],
        [pb.Range(first=3, count=2), pb.Range(first=5, count=1)],
        [pb.Range(first=3, count=2), pb.Range(first=0, count=1)],
        [pb.Range(first=0, count=limits.CHUNKS_MAX + 1)],
        [pb.Range(first=2 * index, count=1) for index in range(FRAME_RANGES_MAX + 1)],
    ],
    ids=["empty", "overlapping", "touching", "backwards", "beyond", "too many"],
)
def test_ranges_that_make_no_sense_are_refused(listed: list[pb.Range]) -> None:
    with pytest.raises(LinkError):
        ground_frame(pb.GroundFrame(ack=pb.Ack(scene_id=bytes(32), committed=listed)))


def test_the_longest_frames_fit_a_message() -> None:
    missing = tuple(Range(limits.CHUNKS_MAX - 2 * FRAME_RANGES_MAX + 2 * index, 1) for index in range(FRAME_RANGES_MAX))
    state = SceneState(ID, State.RECEIVING, missing)
    parts = tuple(Chunk(2**20 - 1, 2**32 - 1, b"x") for _ in range(64))
    large = Chunks(ID, (*parts, Chunk(1, 2, bytes(limits.CHUNK_BYTES_MAX)), Chunk(1, 2, bytes(1 << 17))), True)
    assert len(ground_message(state).SerializeToString()) < limits.MESSAGE_BYTES_MAX
    assert len(edge_message(large).SerializeToString()) < limits.MESSAGE_BYTES_MAX
    offer = Offer(ID, bytes(limits.MANIFEST_BYTES_MAX), -1)
    assert len(edge_message(offer).SerializeToString()) < limits.MESSAGE_BYTES_MAX


def test_a_small_chunk_costs_few_bytes_beside_its_content() -> None:
    """< 3 % at 256 KiB; and small chunks share a frame, so that they do not pay for the scene's id each."""
    large = Chunks(ID, (Chunk(1000, 2**32 - 1, bytes(limits.CHUNK_BYTES_MAX)),))
    assert len(edge_message(large).SerializeToString()) < 1.001 * limits.CHUNK_BYTES_MAX
    small = Chunks(ID, tuple(Chunk(1000 + index, 2**32 - 1, bytes(500)) for index in range(64)))
    assert len(edge_message(small).SerializeToString()) < 1.03 * 64 * 500


def test_texts_of_a_peer_are_cut_and_cleaned() -> None:
    long = Refusal(RefusalCode.CORRUPT, "é" * REASON_BYTES_MAX)
    message = ground_message(SceneState(ID, State.REFUSED, (), long))
    assert len(message.scene_state.refusal.message.encode()) <= REASON_BYTES_MAX
    frame = edge_frame(pb.EdgeFrame(hello=pb.Hello(revision=1, software="x\x1b[2J\n")))
    assert isinstance(frame, Hello)
    assert frame.software == "x?[2J?"


def test_no_scene_is_given_up_or_forgotten_for_a_flipped_bit() -> None:
    """Every bit of every answer, one at a time: what comes out is no final word that was not said."""
    full = Refusal(RefusalCode.EXHAUSTED, "full", 60)
    states = (SceneState(ID, State.RECEIVING, (Range(0, 9),)), SceneState(ID, State.REFUSED, (), full))
    for said in states:
        raw = ground_message(said).SerializeToString()
        for bit in range(8 * len(raw)):
            flipped = bytearray(raw)
            flipped[bit // 8] ^= 1 << bit % 8
            try:
                heard = ground_frame(pb.GroundFrame.FromString(bytes(flipped)))
            except (DecodeError, LinkError):
                continue
            if isinstance(heard, SceneState) and heard.scene_id == ID:
                assert heard.state is not State.DURABLE
                assert heard.refusal is None or 0 < heard.refusal.retry_after_s <= RETRY_S_MAX


def test_frames_of_a_later_ground_are_ignored() -> None:
    unknown = pb.GroundFrame.FromString(b"\xba\x06\x02\x08\x01")  # field 103
    assert ground_frame(unknown) is None
    with pytest.raises(LinkError, match="state 9"):
        ground_frame(pb.GroundFrame.FromString(b"\x12\x24\x0a\x20" + bytes(32) + b"\x10\x09"))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_frame_or_a_link_error(raw: bytes) -> None:
    try:
        message = pb.EdgeFrame.FromString(raw)
    except DecodeError:  # gRPC refuses such a message before we see it
        return
    try:
        edge_frame(message)
    except LinkError:
        pass


@given(st.lists(edge_frames, max_size=12))
def test_any_frames_in_any_order_give_actions(frames: list[EdgeFrame]) -> None:
    """What a hostile peer can say beyond the bytes: the session answers or ends the stream, and never raises."""
    ground = GroundSession("ground")
    for frame in frames:
        for action in ground.receive(frame, 0.0):
            if isinstance(action, Close):
                return


def test_the_document_states_the_bounds() -> None:
    section = (ROOT / "docs" / "link.md").read_text().split("## Bounds")[1].split("## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    stated = dict(rows)
    assert stated["gRPC message"] == f"{limits.MESSAGE_BYTES_MAX} bytes"
    assert stated["manifest"] == f"{limits.MANIFEST_BYTES_MAX} bytes"
    assert stated["chunk"] == f"{limits.CHUNK_BYTES_MAX} bytes"
    assert stated["chunks in one frame"] == f"{FRAME_CONTENT_BYTES_MAX} bytes"
    assert stated["how many chunks in one frame"] == str(FRAME_CHUNKS_MAX)
    assert stated["ranges in one frame"] == str(FRAME_RANGES_MAX)
    assert stated["chunks of a scene"] == str(limits.CHUNKS_MAX)
    assert stated["open scenes per stream"] == str(OPEN_SCENES_MAX)
    assert stated["group commit"] == f"{GROUP_CHUNKS} chunks or {GROUP_S} s"
    assert stated["window"] == f"{limits.UNACKED_BYTES_MAX} bytes at most"
    assert stated["damaged chunks per stream"] == str(DAMAGED_MAX)


def test_the_most_chunks_in_a_frame_are_taken() -> None:
    parts = tuple(Chunk(index, 0, b"x") for index in range(FRAME_CHUNKS_MAX))
    assert edge_frame(edge_message(Chunks(ID, parts))) == Chunks(ID, parts)
