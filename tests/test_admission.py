"""Limits of the link: how many streams, how often, how long silent. Each at the limit, and one past it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from decoder_node.admission import Admission, Denied, Seat, TooBusy
from decoder_node.calls import MENDED
from decoder_node.receiver import Receiver
from decoder_node.server import SERVICE
from downlink import limits
from downlink.frame import Offer
from downlink.framing import edge_message
from downlink.wire import link_pb2_grpc
from tests.streams import stream
from tests.test_receiver import HELLO, against, chunks, say, served


def left(*seats: Seat) -> list[bool]:
    return [seat.wanted.is_set() for seat in seats]


def test_a_stream_too_many_takes_the_place_of_the_nodes_own_oldest() -> None:
    admission = Admission()
    mine = [admission.enter("sat-1", "a", 0.0) for _ in range(limits.STREAMS_PER_NODE_MAX)]
    others = admission.enter("sat-2", "a", 0.0)
    assert not any(left(*mine, others))
    mine.append(admission.enter("sat-1", "b", 0.0))
    assert left(*mine) == [True, False, False]
    mine.append(admission.enter("sat-1", "b", 0.0))  # the one that is leaving has not left yet
    assert left(*mine) == [True, True, False, False]
    assert left(others) == [False]
    for seat in (*mine, others):
        admission.leave(seat)
    assert admission._seats == {}


def test_a_place_that_was_left_is_free() -> None:
    admission = Admission()
    first, second = (admission.enter("sat-1", "a", 0.0) for _ in range(limits.STREAMS_PER_NODE_MAX))
    admission.leave(first)
    third = admission.enter("sat-1", "a", 0.0)
    assert left(second, third) == [False, False]


def test_nobody_has_the_places_of_all_nodes_at_one_address() -> None:
    admission = Admission()
    most = limits.NODES_MAX * limits.STREAMS_PER_NODE_MAX
    seats = [admission.enter("", "10.0.0.1", 0.0) for _ in range(most)]
    elsewhere = admission.enter("", "10.0.0.2", 0.0)
    assert not any(left(*seats, elsewhere))
    admission.enter("", "10.0.0.1", 0.0)
    assert left(*seats, elsewhere) == [True] + [False] * most


@pytest.mark.parametrize(("node", "share"), [("sat-1", 1), ("", limits.NODES_MAX)])
def test_a_node_that_comes_too_often_waits_for_a_minute_to_pass(node: str, share: int) -> None:
    admission = Admission()
    most = share * limits.HELLOS_PER_MINUTE_MAX
    for number in range(most):
        admission.leave(admission.enter(node, "a", number / most))
    with pytest.raises(TooBusy, match=f"{most} streams within a minute"):
        admission.enter(node, "a", 59.9)
    admission.leave(admission.enter("sat-2", "b", 59.9))
    for _ in range(most):
        admission.leave(admission.enter(node, "a", 61.0))
    with pytest.raises(TooBusy):
        admission.enter(node, "a", 61.0)


def test_a_flood_of_addresses_leaves_nothing_behind() -> None:
    admission = Admission()
    for number in range(1000):
        admission.leave(admission.enter("", f"10.0.{number >> 8}.{number & 255}", 0.0))
    admission.leave(admission.enter("", "10.1.0.0", 60.0))
    assert len(admission._arrivals) == 1
    assert admission._seats == {}


def test_only_listed_nodes_come_in() -> None:
    admission = Admission(nodes=["sat-1"])
    admission.enter("sat-1", "a", 0.0)
    for node in ("sat-2", "", "sat-10", "Sat-1"):
        with pytest.raises(Denied, match="is not among the 1 that are let in"):
            admission.enter(node, "a", 0.0)


def test_only_listed_bundles_are_trusted() -> None:
    assert Admission().trusts(bytes(32))
    assert Admission(bundles=[bytes(32)]).trusts(bytes(32))
    assert not Admission(bundles=[bytes(32)]).trusts(bytes(31) + b"\1")


def test_the_newest_stream_works_and_the_oldest_keeps_what_it_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TLS: so many streams of one address as all nodes together may have, made few for the test."""
    monkeypatch.setattr(limits, "NODES_MAX", 1)
    made = stream()

    async def talk(channel: Any, receiver: Receiver) -> Any:
        stub = link_pb2_grpc.LinkServiceStub(channel)
        first = stub.Deliver()
        for frame in (HELLO, Offer(made.id, made.packed), chunks(made, 0, flush=False)):
            await first.write(edge_message(frame))
        await first.read()
        await first.read()
        await asyncio.sleep(0.05)
        rest = [stub.Deliver() for _ in range(limits.STREAMS_PER_NODE_MAX)]
        for call in rest:
            await call.write(edge_message(HELLO))
            assert (await call.read()).WhichOneof("frame") == "welcome"
        acknowledged = (await first.read()).ack.committed
        done = [call.done() for call in rest]
        return [item.count for item in acknowledged], await first.code(), await first.details(), done

    kept, code, details, ended = against(tmp_path, talk)
    assert (kept, code) == ([1], grpc.StatusCode.UNAVAILABLE)
    assert "a newer stream of the same node" in details
    assert ended == [False, False]


def test_a_node_that_floods_with_streams_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELLOS_PER_MINUTE_MAX", 3)
    monkeypatch.setattr(limits, "NODES_MAX", 1)

    async def talk(channel: Any, _: Receiver) -> Any:
        return [(await say(channel, HELLO))[1:] for _ in range(4)]

    *good, (code, details) = against(tmp_path, talk)
    assert {code for code, _ in good} == {grpc.StatusCode.OK}
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "3 streams within a minute" in details


@pytest.mark.parametrize("greeted", [False, True])
def test_a_stream_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeted: bool) -> None:
    """Before Hello within IDLE_STREAM_S, after it within SILENT_STREAM_S, counted from the last frame."""
    monkeypatch.setattr(limits, "IDLE_STREAM_S", 30.0 if greeted else 0.4)
    monkeypatch.setattr(limits, "SILENT_STREAM_S", 0.6 if greeted else 30.0)
    made = stream()

    async def talk(channel: Any, _: Receiver) -> Any:
        call = link_pb2_grpc.LinkServiceStub(channel).Deliver()
        if greeted:
            await call.write(edge_message(HELLO))
            await asyncio.sleep(0.4)
            await call.write(edge_message(Offer(made.id, made.packed)))
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        return await call.code(), await call.details()

    began = time.monotonic()
    code, details = against(tmp_path, talk)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "nothing was heard" in details
    assert (1.0 if greeted else 0.4) <= time.monotonic() - began < 5


def test_probes_are_short_and_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching health for ever, or holding reflection open, ends after PROBE_S; beyond PROBES_MAX it is refused."""
    monkeypatch.setattr(limits, "PROBE_S", 0.5)
    monkeypatch.setattr(limits, "PROBES_MAX", 2)

    async def talk(channel: Any, _: Receiver) -> Any:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert len((await reflect.read()).list_services_response.service) == 3
        one_more = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        refused = await one_more.code()
        codes = [await watch.code(), await reflect.code()]
        again = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return refused, codes, await again.code()

    began = time.monotonic()
    refused, codes, again = against(tmp_path, talk)
    assert time.monotonic() - began < 10
    assert refused is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
    assert again is grpc.StatusCode.OK


def test_one_connection_carries_a_few_calls_only(tmp_path: Path) -> None:
    """Calls beyond CALLS_PER_CONNECTION_MAX wait in the client: gRPC tells it the bound."""

    async def talk(channel: Any, _: Receiver) -> Any:
        stub = link_pb2_grpc.LinkServiceStub(channel)
        calls = [stub.Deliver() for _ in range(limits.CALLS_PER_CONNECTION_MAX + 1)]
        answered: list[int] = []

        async def greet(number: int) -> None:
            await calls[number].write(edge_message(HELLO))
            await calls[number].read()
            answered.append(number)

        tasks = [asyncio.create_task(greet(number)) for number in range(len(calls))]
        await asyncio.sleep(1.0)
        before = len(answered)
        calls[answered[0]].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        return before, len(answered)

    assert against(tmp_path, talk) == (limits.CALLS_PER_CONNECTION_MAX, limits.CALLS_PER_CONNECTION_MAX + 1)


@pytest.mark.parametrize("says", [b"", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_connection_that_never_greets_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bytes) -> None:
    """Slow loris below gRPC: HTTP/2's greeting must come within HANDSHAKE_S."""
    monkeypatch.setattr(limits, "HANDSHAKE_S", 1.0)

    async def main() -> float:
        async with served(tmp_path) as (_, address):
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            began = time.monotonic()
            writer.write(says)
            while await asyncio.wait_for(reader.read(4096), 10):
                pass
            writer.close()
            return time.monotonic() - began

    assert asyncio.run(main()) < 5


def test_pings_at_the_pace_of_our_edges_are_welcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KEEPALIVE_S is the edge's pace: without the matching setting a server cuts with too_many_pings after three."""
    monkeypatch.setattr(limits, "KEEPALIVE_S", 0.9)
    pace = [("grpc.keepalive_time_ms", 500), ("grpc.http2.max_pings_without_data", 0)]

    async def main() -> None:
        async with served(tmp_path) as (_, address), grpc.aio.insecure_channel(address, pace) as channel:
            call = link_pb2_grpc.LinkServiceStub(channel).Deliver()
            await call.write(edge_message(HELLO))
            await call.read()
            with pytest.raises(TimeoutError):  # nothing is said, and the call is not ended
                await asyncio.wait_for(call.read(), 4.0)

    asyncio.run(main())


GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")  # and empty SETTINGS


def test_a_flood_of_pings_is_cut(tmp_path: Path) -> None:
    ping = bytes.fromhex("000008060000000000") + bytes(8)

    async def main() -> bytes:
        async with served(tmp_path) as (_, address):
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(GREETING + 1000 * ping)
            answers = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := await asyncio.wait_for(reader.read(4096), 5.0):
                    answers += piece
            writer.close()
            return answers

    assert b"too_many_pings" in asyncio.run(main())


def call_headers(path: bytes) -> bytes:
    """HTTP/2's HEADERS frame that begins a gRPC call."""
    fields = {
        b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"ground", b"te": b"trailers",
        b"content-type": b"application/grpc",
    }  # fmt: skip
    block = b"".join(b"\0" + bytes([len(key)]) + key + bytes([len(value)]) + value for key, value in fields.items())
    return len(block).to_bytes(3, "big") + b"\x01\x04" + (1).to_bytes(4, "big") + block


@pytest.mark.parametrize("path", [b"/down\xecink.v1.LinkService/Deliver", b"\xff", b"", b"/" + 120 * b"\0"])
def test_no_path_of_a_call_ends_the_server(tmp_path: Path, path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """grpcio 1.85 lets its server die of a path that is not UTF-8. Not ours, where we know how to mend that."""

    async def main() -> grpc.StatusCode:
        async with served(tmp_path) as (_, address):
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(GREETING + call_headers(path))
            with contextlib.suppress(ConnectionResetError, TimeoutError):
                while await asyncio.wait_for(reader.read(4096), 0.5):
                    pass
            writer.close()
            for _ in range(20):
                async with grpc.aio.insecure_channel(address) as channel:
                    _, code, _ = await say(channel, HELLO)
                if code is grpc.StatusCode.OK:
                    break
                await asyncio.sleep(0.1)
            return code

    assert asyncio.run(asyncio.wait_for(main(), 20)) is grpc.StatusCode.OK
    assert not (MENDED and "server died" in caplog.text)


def test_a_server_that_dies_all_the_same_is_replaced(tmp_path: Path) -> None:
    """Its loop ends: the next one is on the same port, and a stream that was open is cut, not left hanging."""

    async def main() -> None:
        async with served(tmp_path) as (receiver, address):
            async with grpc.aio.insecure_channel(address) as channel:
                stream = channel.stream_stream(f"/{SERVICE}/Deliver")()
                await stream.write(edge_message(HELLO).SerializeToString())
                await stream.read()
                [loop] = receiver._server._loops
                loop.cancel()
                assert await stream.code() is not grpc.StatusCode.OK
            for _ in range(40):
                async with grpc.aio.insecure_channel(address) as channel:
                    _, code, _ = await say(channel, HELLO)
                if code is grpc.StatusCode.OK:
                    return
                await asyncio.sleep(0.1)
            pytest.fail("the server has not come back")

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_method_that_nobody_knows_is_said_to_be_unknown(tmp_path: Path) -> None:
    """At once, and again and again: other clients find out by it what a ground can do."""

    async def main() -> None:
        async with served(tmp_path) as (_, address), grpc.aio.insecure_channel(address) as channel:
            for number in range(30):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await channel.unary_unary(f"/downlink.v1.LinkService/Later{number}")(b"", timeout=5)
                assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
            _, code, _ = await say(channel, HELLO)
            assert code is grpc.StatusCode.OK

    asyncio.run(asyncio.wait_for(main(), 20))
