"""The receiver against peers that are not our sender: what it refuses, and what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger
from decoder_node.receiver import Receiver
from decoder_node.server import SERVICE
from downlink.checksum import crc32c
from downlink.errors import LinkError
from downlink.frame import REVISION, Chunk, Chunks, EdgeFrame, Hello, Offer
from downlink.framing import edge_message
from downlink.incoming import Incoming
from downlink.limits import MESSAGE_BYTES_MAX
from downlink.wire import link_pb2 as pb
from downlink.wire import link_pb2_grpc
from tests.streams import Stream, stream

HELLO = Hello(REVISION, "a test")


@contextlib.asynccontextmanager
async def served(archive: Path) -> AsyncIterator[tuple[Receiver, str]]:
    disk = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    ledger = await loop.run_in_executor(disk, lambda: Ledger(archive, create=True))
    receiver = Receiver(Inbox(archive, ledger), disk, lambda _: None, "ground in a test")
    try:
        yield receiver, await receiver.start("127.0.0.1:0")
    finally:
        await receiver.stop()
        disk.shutdown()
        ledger.close()


def against(archive: Path, talk: Callable[[Any, Receiver], Awaitable[Any]]) -> Any:
    """Run `talk(channel, receiver)` against a receiver."""

    async def main() -> Any:
        async with served(archive) as (receiver, address), grpc.aio.insecure_channel(address) as channel:
            return await asyncio.wait_for(talk(channel, receiver), 20)

    return asyncio.run(main())


def chunks(made: Stream, *indexes: int, flush: bool = True) -> Chunks:
    parts = tuple(Chunk(index, crc32c(made.chunks[index]), made.chunks[index]) for index in indexes)
    return Chunks(made.id, parts, flush)


async def say(channel: Any, *frames: EdgeFrame | pb.EdgeFrame) -> tuple[list[pb.GroundFrame], grpc.StatusCode, str]:
    """Say these frames and half-close: all answers, and how the call ended."""
    messages = [frame if isinstance(frame, pb.EdgeFrame) else edge_message(frame) for frame in frames]
    call = link_pb2_grpc.LinkServiceStub(channel).Deliver(iter(messages))
    answers = []
    try:
        async for answer in call:
            answers.append(answer)
    except grpc.aio.AioRpcError:
        pass
    return answers, await call.code(), await call.details()


@pytest.mark.parametrize(
    ("frames", "code", "match"),
    [
        ([Offer(stream().id, stream().packed)], "INVALID_ARGUMENT", "Offer before Hello"),
        ([HELLO, HELLO], "INVALID_ARGUMENT", "second Hello"),
        ([Hello(REVISION + 1, "later")], "FAILED_PRECONDITION", "revision 2"),
        ([HELLO, pb.EdgeFrame()], "INVALID_ARGUMENT", "no field set"),
        ([HELLO, chunks(stream(), 0)], "INVALID_ARGUMENT", "not offered"),
        ([HELLO, pb.EdgeFrame(offer=pb.Offer(scene_id=b"../../etc/passwd"))], "INVALID_ARGUMENT", "manifest has 0"),
    ],
    ids=["no hello", "two hellos", "revision", "empty frame", "no offer", "no manifest"],
)  # fmt: skip
def test_a_peer_that_breaks_the_rules_is_told_how(tmp_path: Path, frames: list[Any], code: str, match: str) -> None:
    _, found, details = against(tmp_path, lambda channel, _: say(channel, *frames))
    assert found.name == code
    assert match in details
    assert str(tmp_path) not in details


def test_a_message_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    large = pb.EdgeFrame(offer=pb.Offer(scene_id=bytes(32), manifest=bytes(MESSAGE_BYTES_MAX)))
    _, code, details = against(tmp_path, lambda channel, _: say(channel, HELLO, large))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details


def test_one_conversation(tmp_path: Path) -> None:
    made = stream()
    sent = sorted(made.sent)

    async def talk(channel: Any, receiver: Receiver) -> Any:
        frames = [HELLO, Offer(made.id, made.packed), chunks(made, *sent[:5]), chunks(made, *sent[5:])]
        return await say(channel, *frames)

    answers, code, _ = against(tmp_path, talk)
    assert code is grpc.StatusCode.OK
    assert [answer.WhichOneof("frame") for answer in answers] == [
        "welcome", "scene_state", "ack", "ack", "scene_state",
    ]  # fmt: skip
    assert answers[0].welcome.revision == REVISION
    assert answers[1].scene_state.state == pb.STATE_RECEIVING
    assert answers[4].scene_state.state == pb.STATE_DURABLE
    assert (tmp_path / "streams" / f"{made.id}.dl").read_bytes() == made.file


def test_what_came_before_a_half_close_is_kept_and_acknowledged(tmp_path: Path) -> None:
    made = stream()

    async def talk(channel: Any, _: Receiver) -> Any:
        return await say(channel, HELLO, Offer(made.id, made.packed), chunks(made, 0, 1, flush=False))

    answers, code, _ = against(tmp_path, talk)
    assert code is grpc.StatusCode.OK
    assert [(item.first, item.count) for item in answers[-1].ack.committed] == [(0, 2)]
    looking = Ledger(tmp_path, read_only=True)
    assert looking.entries()[0].chunks_committed == 2
    looking.close()


def test_chunks_are_acknowledged_after_a_quarter_of_a_second(tmp_path: Path) -> None:
    made = stream()

    async def talk(channel: Any, _: Receiver) -> float:
        call = link_pb2_grpc.LinkServiceStub(channel).Deliver()
        for frame in (HELLO, Offer(made.id, made.packed), chunks(made, 0, flush=False)):
            await call.write(edge_message(frame))
        began = asyncio.get_running_loop().time()
        while (await call.read()).WhichOneof("frame") != "ack":
            pass
        call.cancel()
        return asyncio.get_running_loop().time() - began

    assert 0.1 < against(tmp_path, talk) < 2


def test_shutdown_commits_what_is_held_and_says_unavailable(tmp_path: Path) -> None:
    made = stream()

    async def talk(channel: Any, receiver: Receiver) -> Any:
        call = link_pb2_grpc.LinkServiceStub(channel).Deliver()
        for frame in (HELLO, Offer(made.id, made.packed), chunks(made, 0, flush=False)):
            await call.write(edge_message(frame))
        await call.read()
        await call.read()
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(receiver.stop())
        answer = await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        await stopping
        return answer, caught.value.code()

    answer, code = against(tmp_path, talk)
    assert answer.WhichOneof("frame") == "ack"
    assert code is grpc.StatusCode.UNAVAILABLE


def test_errors_of_ours_are_not_shown_to_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError(f"{tmp_path}/secret")

    monkeypatch.setattr(Inbox, "open", broken)
    made = stream()
    _, code, details = against(tmp_path, lambda channel, _: say(channel, HELLO, Offer(made.id, made.packed)))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details


def test_a_full_disk_is_said_and_nothing_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(Inbox, "commit", full)
    made = stream()
    frames = [HELLO, Offer(made.id, made.packed), chunks(made, 0)]
    answers, code, details = against(tmp_path, lambda channel, _: say(channel, *frames))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "disk is full" in details
    assert str(tmp_path) not in details
    assert "ack" not in [answer.WhichOneof("frame") for answer in answers]


@pytest.mark.parametrize("step", ["open", "verify", "seal"])
def test_a_scene_that_the_disk_fails_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A bad sector, not a full disk: the scene is refused for a while, and the stream goes on."""
    sick, well = stream(1), stream(2)
    works = getattr(Inbox, step)

    def fails(inbox: Inbox, incoming: Incoming, *rest: object) -> object:
        if incoming.scene_id == sick.id:
            raise OSError(5, "Input/output error", str(tmp_path))
        return works(inbox, incoming, *rest)

    monkeypatch.setattr(Inbox, step, fails)
    frames = [HELLO, Offer(sick.id, sick.packed), Offer(well.id, well.packed)]
    sendings = [chunks(well, *sorted(well.sent))]
    if step != "open":
        sendings.insert(0, chunks(sick, *sorted(sick.sent)))
    answers, code, _ = against(tmp_path, lambda channel, _: say(channel, *frames, *sendings))
    assert code is grpc.StatusCode.OK
    said = {
        (answer.scene_state.scene_id.hex(), answer.scene_state.state): answer.scene_state
        for answer in answers
        if answer.WhichOneof("frame") == "scene_state"
    }
    assert (well.id, pb.STATE_DURABLE) in said
    refusal = said[sick.id, pb.STATE_REFUSED].refusal
    assert refusal.retry_after_s > 0
    assert str(tmp_path) not in refusal.message
    assert (tmp_path / "streams" / f"{well.id}.dl").read_bytes() == well.file


def test_health_is_served(tmp_path: Path) -> None:
    async def talk(channel: Any, _: Receiver) -> list[int]:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ("", SERVICE)
        return [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]

    assert against(tmp_path, talk) == [health_pb2.HealthCheckResponse.SERVING] * 2


def test_the_schema_is_told_by_reflection(tmp_path: Path) -> None:
    async def talk(channel: Any, _: Receiver) -> list[str]:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            return [service.name for service in answer.list_services_response.service]
        return []

    assert SERVICE in against(tmp_path, talk)


@pytest.mark.parametrize("other", ["256.0.0.1:1", "the same"])
def test_an_address_that_cannot_be_had_is_refused_with_a_sentence(tmp_path: Path, other: str) -> None:
    async def main() -> None:
        async with served(tmp_path) as (receiver, address):
            wanted = address if other == "the same" else other
            second = Receiver(receiver.inbox, ThreadPoolExecutor(1), lambda _: None, "another")
            with pytest.raises(LinkError, match=f"cannot listen on {wanted}"):
                await second.start(wanted, insecure=True)

    asyncio.run(main())
