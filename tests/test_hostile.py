"""What a hostile peer can cost the ground: a typed refusal, within 50 ms and 64 MiB and one batch of chunks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from downlink import limits
from downlink.frame import GROUP_CHUNKS, OPEN_SCENES_MAX
from downlink.wire import link_pb2 as pb
from downlink.wire import link_pb2_grpc
from tests import hostile, nodes
from tests.hostile import BATCH_MIB, HELLO, LARGE_CHUNKS, SLACK_MIB
from tests.streams import stream

SECONDS = 0.050
TYPED = re.compile(
    r"refused (MALFORMED|TOO_LARGE|UNSUPPORTED|CORRUPT): |closed (INVALID_ARGUMENT|DATA_LOSS): |LinkError: |Resend"
    r"|google\.protobuf\.message\.DecodeError$"  # which the receiver answers with DATA_LOSS
)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the attacks did to a process under RLIMIT_AS; a MemoryError or a crash in there is an error here."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hostile"], cwd=nodes.ROOT, env=nodes.ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def test_every_attack_is_refused_by_name(found: dict[str, Any]) -> None:
    assert len(found["attacks"]) > 50
    odd = {case["attack"]: case["outcome"] for case in found["attacks"] if not TYPED.match(case["outcome"])}
    assert odd == {}


def test_no_attack_takes_more_than_50_ms(found: dict[str, Any]) -> None:
    slow = {case["attack"]: case["cpu_s"] for case in found["attacks"] if case["cpu_s"] > SECONDS}
    assert slow == {}


def test_one_stream_costs_at_most_64_mib_and_a_batch(found: dict[str, Any]) -> None:
    """The kernel has seen to it (RLIMIT_AS); and the worst case was really there: the largest scenes, with their lists,
    and all chunks that may wait for their fsync."""
    assert found["filled"] == {"opened": OPEN_SCENES_MAX, "held": LARGE_CHUNKS}
    assert LARGE_CHUNKS * limits.CHUNK_BYTES_MAX > (BATCH_MIB - 1) * 2**20
    assert LARGE_CHUNKS + 1 == GROUP_CHUNKS
    assert 20 < found["most_mib"] < SLACK_MIB + BATCH_MIB


def rss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def throw(address: str, messages: list[bytes], results: list[str]) -> None:
    """Say Hello, offer a good scene, then these messages, each on a stream of its own; note how it ended."""
    made = stream()
    with grpc.insecure_channel(address) as channel:
        deliver = channel.stream_stream("/downlink.v1.LinkService/Deliver")  # bytes as they are
        for message in messages:
            first = [HELLO.SerializeToString(), hostile.offer(made.packed).SerializeToString()]
            try:
                for _ in deliver(iter([*first, message]), timeout=20):
                    pass
                results.append("OK")
            except grpc.RpcError as error:
                results.append(error.code().name)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_a_real_node_under_attack_serves_an_honest_one_and_stays_small(tmp_path: Path) -> None:
    """All attacks from 4 peers at once, and an edge among them that only wants to deliver its scene."""
    made = stream(5, side=320, chunk_bytes=2000)
    done = nodes.run("encoder_node", "submit", made.write(tmp_path / "scene.dl"), "--outbox", tmp_path / "outbox")
    assert done.returncode == 0, done.stderr
    messages = [hostile.offer(manifest).SerializeToString() for _, manifest in hostile.manifests()]
    messages += [message for _, message in hostile.frames() if len(message) < limits.MESSAGE_BYTES_MAX]
    ground, address = nodes.serve(tmp_path)
    try:
        warm: list[str] = []
        throw(address, messages[:1], warm)
        before = rss_mib(ground.process.pid)
        results: list[str] = []
        threads = [threading.Thread(target=throw, args=(address, messages, results)) for _ in range(4)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        edge = nodes.send(tmp_path, address, "--once")
        assert edge.wait() == 0
        assert time.monotonic() - began < 20
        for thread in threads:
            thread.join(60)
        assert len(results) == 4 * len(messages)
        assert set(results) <= {"OK", "INVALID_ARGUMENT", "DATA_LOSS"}
        assert rss_mib(ground.process.pid) - before < 4 * SLACK_MIB
        assert (tmp_path / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file
        assert not [event for event in ground.events() if "traceback" in event]
        assert "Traceback" not in ground.log.read_text()
        inside = {path.name for path in (tmp_path / "archive").rglob("*") if path.is_file()}
        assert {re.sub(r"[0-9a-f]{64}", "ID", name) for name in inside} <= {
            "ID.dl", "ID.part", "ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "serve.lock",
        }  # fmt: skip
    finally:
        ground.kill()


def test_a_message_that_is_no_message_ends_one_stream_only(tmp_path: Path) -> None:
    """protobuf's refusal happens within gRPC, before any code of ours."""
    ground, address = nodes.serve(tmp_path)
    try:
        results: list[str] = []
        throw(address, [b"\x0b" * 1000, pb.EdgeFrame().SerializeToString()], results)
        with grpc.insecure_channel(address) as channel:
            answers = link_pb2_grpc.LinkServiceStub(channel).Deliver(iter([HELLO]), timeout=10)
            assert next(answers).WhichOneof("frame") == "welcome"
        assert results == ["DATA_LOSS", "INVALID_ARGUMENT"]
        assert "Traceback" not in ground.log.read_text()
    finally:
        ground.kill()
