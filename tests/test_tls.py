"""Mutual TLS: who may connect, and that nobody can speak for another."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from decoder_node.admission import Admission
from decoder_node.identity import Tls as GroundTls
from decoder_node.identity import check_listen, node_name
from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger
from decoder_node.receiver import Receiver
from downlink.checksum import crc32c
from downlink.errors import LinkError
from downlink.frame import REVISION, Chunk, Chunks, EdgeFrame, Hello, Offer
from downlink.framing import edge_message
from downlink.manifest import Manifest
from downlink.wire import link_pb2 as pb
from downlink.wire import link_pb2_grpc
from encoder_node.channel import Tls as EdgeTls
from encoder_node.channel import channel
from encoder_node.outbox import Outbox
from encoder_node.sender import Options, Sender
from tests import nodes
from tests.certificates import SERVER, Authority, Pair
from tests.streams import Stream, stream

x509 = pytest.importorskip("cryptography.x509")


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def ground_pair(ca: Authority) -> Pair:
    return ca.ground()


@contextlib.asynccontextmanager
async def ground(
    folder: Path, ca: Authority, pair: Pair, admission: Admission | None = None
) -> AsyncIterator[tuple[str, Receiver]]:
    """A receiver with TLS on `folder`/archive."""
    archive = folder / "archive"
    archive.mkdir(exist_ok=True)
    disk = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    ledger = await loop.run_in_executor(disk, lambda: Ledger(archive, create=True))
    receiver = Receiver(Inbox(archive, ledger), disk, lambda _: None, "ground in a test", admission)
    try:
        yield await receiver.start("127.0.0.1:0", GroundTls(pair.cert, pair.key, ca.cert)), receiver
    finally:
        await receiver.stop()
        disk.shutdown()
        ledger.close()


async def say(link: grpc.aio.Channel, *frames: EdgeFrame) -> tuple[list[Any], grpc.StatusCode, str]:
    """Say these frames and half-close: all answers, and how the call ended."""
    call = link_pb2_grpc.LinkServiceStub(link).Deliver(iter([edge_message(frame) for frame in frames]), timeout=10)
    answers = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for answer in call:
            answers.append(answer)
    return answers, await call.code(), await call.details()


def against(
    folder: Path,
    ca: Authority,
    pair: Pair,
    talk: Callable[[str, Receiver], Awaitable[Any]],
    admission: Admission | None = None,
) -> Any:
    """Run `talk(address, receiver)` against a ground with TLS."""

    async def main() -> Any:
        async with ground(folder, ca, pair, admission) as (address, receiver):
            return await asyncio.wait_for(talk(address, receiver), 30)

    return asyncio.run(main())


def greet(credentials: grpc.ChannelCredentials | None) -> Callable[[str, Receiver], Awaitable[Any]]:
    """Say Hello and hear what comes back."""

    async def talk(address: str, _: Receiver) -> Any:
        link = grpc.aio.secure_channel(address, credentials) if credentials else grpc.aio.insecure_channel(address)
        async with link:
            return await say(link, Hello(REVISION, "a test"))

    return talk


def client(ca: Authority, pair: Pair | None) -> grpc.ChannelCredentials:
    if pair is None:
        return grpc.ssl_channel_credentials(ca.cert.read_bytes())
    return grpc.ssl_channel_credentials(ca.cert.read_bytes(), pair.key.read_bytes(), pair.cert.read_bytes())


def outbox(folder: Path, made: Stream) -> Outbox:
    box = Outbox(folder / "outbox", create=True)
    box.submit(made.packed, made.chunks)
    return box


def test_a_scene_arrives_over_mutual_tls(tmp_path: Path, ca: Authority, ground_pair: Pair) -> None:
    made, pair = stream(1, side=160), ca.node("sat-1")

    async def talk(address: str, _: Receiver) -> None:
        options = Options(ground=address, tls=EdgeTls(pair.cert, pair.key, ca.cert), give_up_s=10)
        await Sender(outbox(tmp_path, made), options).run(until_empty=True)

    against(tmp_path, ca, ground_pair, talk)
    assert (tmp_path / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file


@pytest.mark.parametrize("who", ["nobody", "of another CA", "expired", "a server", "plain"])
def test_without_a_valid_certificate_nothing_can_be_said(
    tmp_path: Path, ca: Authority, other_ca: Authority, ground_pair: Pair, who: str
) -> None:
    name = x509.DNSName("sat-1")
    credentials = {
        "nobody": lambda: client(ca, None),
        "of another CA": lambda: client(ca, other_ca.node("sat-1")),
        "expired": lambda: client(ca, ca.sign("old", name, days=-1)),
        "a server": lambda: client(ca, ca.sign("server", name, use=SERVER)),
        "plain": lambda: None,
    }[who]()
    admission = Admission()
    answers, code, _ = against(tmp_path, ca, ground_pair, greet(credentials), admission)
    assert answers == []
    assert code is grpc.StatusCode.UNAVAILABLE
    assert admission._arrivals == {}  # it never came so far as to be asked who it is


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([], "has 0 subject alternative names"),
        (["dns sat-1", "dns sat-2"], "has 2 subject alternative names, 2 of them of type DNS"),
        (["uri sat-1"], "has 1 subject alternative names, 0 of them of type DNS"),
        (["dns sat-1", "uri node:sat-1"], "has 2 subject alternative names, 1 of"),
        (["dns *.example"], r"is for '\*\.example'"),
        (["dns SAT-1"], "is for 'SAT-1'"),
        (["dns " + "x" * 64], "is for 'xxx"),
    ],
    ids=["no name", "two names", "a URI", "a name and a URI", "a wildcard", "capitals", "64 letters"],
)
def test_a_certificate_must_name_exactly_one_node(
    tmp_path: Path, ca: Authority, ground_pair: Pair, names: list[str], match: str
) -> None:
    """The common name, which says sat-1 in all of them, does not count."""
    kinds = {"dns": x509.DNSName, "uri": x509.UniformResourceIdentifier}
    pair = ca.sign("odd", *[kinds[name[:3]](name[4:]) for name in names], common_name="sat-1")
    answers, code, details = against(tmp_path, ca, ground_pair, greet(client(ca, pair)))
    assert (answers, code) == ([], grpc.StatusCode.UNAUTHENTICATED)
    assert re.search(match, details)


def test_a_name_of_63_letters_is_one() -> None:
    name = b"x" * 63
    assert node_name({"x509_subject_alternative_name": [name], "peer_dns": [name]}) == "x" * 63


def test_a_node_that_is_not_on_the_list_is_turned_away(tmp_path: Path, ca: Authority, ground_pair: Pair) -> None:
    admission = Admission(nodes=["sat-1", "sat-2"])
    for node, wanted in (("sat-1", grpc.StatusCode.OK), ("sat-3", grpc.StatusCode.PERMISSION_DENIED)):
        answers, code, details = against(tmp_path, ca, ground_pair, greet(client(ca, ca.node(node))), admission)
        assert code is wanted, details
        assert len(answers) == (wanted is grpc.StatusCode.OK)


def offered(
    folder: Path, ca: Authority, pair: Pair, node: str, made: Stream, indexes: list[int],
    admission: Admission | None = None,
) -> list[Any]:  # fmt: skip
    """What the ground says to `node`, which offers a scene and sends some of its chunks."""

    async def talk(address: str, _: Receiver) -> list[Any]:
        async with grpc.aio.secure_channel(address, client(ca, ca.node(node))) as link:
            frames = [Hello(REVISION, "a test"), Offer(made.id, made.packed)]
            if indexes:
                parts = tuple(Chunk(index, crc32c(made.chunks[index]), made.chunks[index]) for index in indexes)
                frames.append(Chunks(made.id, parts, flush=True))
            answers, code, details = await say(link, *frames)
            assert code is grpc.StatusCode.OK, details
            return answers

    return against(folder, ca, pair, talk, admission)  # type: ignore[no-any-return]


@pytest.mark.parametrize("stage", ["begun", "durable"])
def test_a_node_can_neither_send_nor_ask_for_anothers_scene(
    tmp_path: Path, ca: Authority, ground_pair: Pair, stage: str
) -> None:
    """Not even with its whole manifest in hand: the other hears neither what is missing nor that it is durable."""
    made = stream(3)
    first = sorted(made.sent)[:2] if stage == "begun" else sorted(made.sent)
    rest = [index for index in sorted(made.sent) if index not in first]
    states = [answer.scene_state.state for answer in offered(tmp_path, ca, ground_pair, "sat-1", made, first)[1:]]
    assert (pb.STATE_DURABLE in states) is (stage == "durable")
    _, answer, *more = offered(tmp_path, ca, ground_pair, "sat-2", made, rest)
    assert answer.scene_state.state == pb.STATE_REFUSED
    assert answer.scene_state.refusal.code == pb.REFUSAL_CODE_FORBIDDEN
    assert list(answer.scene_state.missing) == []
    assert "sat-1" not in answer.scene_state.refusal.message
    assert all(answer.WhichOneof("frame") == "scene_state" for answer in more)  # the same again, and no Ack
    ledger = Ledger(tmp_path / "archive", read_only=True)
    [entry] = ledger.entries()
    ledger.close()
    assert entry.node == "sat-1"
    assert entry.chunks_committed == (len(first) if stage == "begun" else entry.chunks)
    _, answer, *_ = offered(tmp_path, ca, ground_pair, "sat-1", made, [])  # and its own node goes on
    assert answer.scene_state.state == (pb.STATE_RECEIVING if stage == "begun" else pb.STATE_DURABLE)


def test_a_ground_without_tls_gives_nobody_a_nodes_scene(tmp_path: Path, ca: Authority, ground_pair: Pair) -> None:
    made = stream(3)
    offered(tmp_path, ca, ground_pair, "sat-1", made, [0])

    async def main() -> Any:
        disk = ThreadPoolExecutor(1)
        ledger = await asyncio.get_running_loop().run_in_executor(disk, lambda: Ledger(tmp_path / "archive"))
        receiver = Receiver(Inbox(tmp_path / "archive", ledger), disk, lambda _: None, "ground in a test")
        async with grpc.aio.insecure_channel(await receiver.start("127.0.0.1:0")) as link:
            answers, _, _ = await say(link, Hello(REVISION, "a test"), Offer(made.id, made.packed))
        await receiver.stop()
        disk.shutdown()
        ledger.close()
        return answers[1].scene_state.refusal.code

    assert asyncio.run(main()) == pb.REFUSAL_CODE_FORBIDDEN


def test_scenes_of_a_bundle_that_is_not_trusted_are_refused(tmp_path: Path, ca: Authority, ground_pair: Pair) -> None:
    made = stream(3)
    bundle = Manifest.unpack(made.packed).bundle
    for trusted, wanted in ((bytes(32), pb.STATE_REFUSED), (bundle, pb.STATE_RECEIVING)):
        _, answer = offered(tmp_path, ca, ground_pair, "sat-1", made, [], Admission(bundles=[trusted]))
        assert answer.scene_state.state == wanted
        assert (answer.scene_state.refusal.code == pb.REFUSAL_CODE_FORBIDDEN) is (wanted == pb.STATE_REFUSED)


@pytest.mark.parametrize("wrong", ["the CA", "the name"])
def test_the_edge_sends_nothing_to_a_ground_that_is_not_its_own(
    tmp_path: Path, ca: Authority, other_ca: Authority, wrong: str
) -> None:
    made, pair = stream(), ca.node("sat-1")
    if wrong == "the CA":
        impostor = other_ca.ground()
    else:
        impostor = ca.sign("elsewhere", x509.DNSName("ground.elsewhere"), use=SERVER)
    admission = Admission()

    async def talk(address: str, _: Receiver) -> None:
        options = Options(ground=address, tls=EdgeTls(pair.cert, pair.key, ca.cert), give_up_s=0.5)
        with pytest.raises(LinkError, match=r"gave up .*UNAVAILABLE"):
            await Sender(outbox(tmp_path, made), options).run(until_empty=True)

    against(tmp_path, ca, impostor, talk, admission)
    assert admission._arrivals == {}


def test_a_renewed_certificate_is_used_at_the_next_contact(tmp_path: Path, ca: Authority, ground_pair: Pair) -> None:
    old, new = ca.sign("old", x509.DNSName("sat-1"), days=-1), ca.node("renewed")
    cert, key = tmp_path / "node.pem", tmp_path / "node.key"
    made = stream()

    def install(pair: Pair) -> None:
        cert.write_bytes(pair.cert.read_bytes())
        key.write_bytes(pair.key.read_bytes())

    async def talk(address: str, _: Receiver) -> None:
        options = Options(ground=address, tls=EdgeTls(cert, key, ca.cert), give_up_s=20)
        sending = asyncio.ensure_future(Sender(outbox(tmp_path, made), options).run(until_empty=True))
        await asyncio.sleep(0.4)
        assert not sending.done()
        cert.write_bytes(new.cert.read_bytes())  # half of a renewal: waits, does not end
        await asyncio.sleep(1.0)
        assert not sending.done()
        install(new)
        await sending

    install(old)
    against(tmp_path, ca, ground_pair, talk)
    assert (tmp_path / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file


@pytest.mark.parametrize("fault", ["missing", "no PEM", "another's key", "a CA that is none"])
@pytest.mark.parametrize("end", ["edge", "ground"])
def test_files_that_no_handshake_can_use_are_refused_with_a_sentence(
    tmp_path: Path, ca: Authority, end: str, fault: str
) -> None:
    pair, other = ca.node("sat-1"), ca.node("sat-2")
    noise = tmp_path / "noise.pem"
    noise.write_bytes(b"nothing")
    cert, key, authority = {
        "missing": (tmp_path / "no.pem", pair.key, ca.cert),
        "no PEM": (noise, pair.key, ca.cert),
        "another's key": (pair.cert, other.key, ca.cert),
        "a CA that is none": (pair.cert, pair.key, noise),
    }[fault]
    match = "holds no PEM" if fault == "a CA that is none" else "cannot be read" if fault == "missing" else "own key"
    attempt = {
        "edge": lambda: channel("127.0.0.1:1", [], EdgeTls(cert, key, authority)),
        "ground": lambda: GroundTls(cert, key, authority).credentials(),
    }[end]
    with pytest.raises(LinkError, match=match):
        attempt()


@pytest.mark.parametrize(
    ("listen", "alone"),
    [
        ("127.0.0.1:50551", True),
        ("127.8.8.8:0", True),
        ("[::1]:50551", True),
        ("localhost:50551", True),
        ("0.0.0.0:50551", False),
        ("[::]:50551", False),
        ("10.0.0.7:50551", False),
        ("ground.example:50551", False),
        ("localhost.example:50551", False),
        ("127.0.0.1.example:50551", False),
    ],
)
def test_without_tls_only_loopback_is_listened_on(tmp_path: Path, ca: Authority, listen: str, alone: bool) -> None:
    pair = ca.ground()
    check_listen(listen, GroundTls(pair.cert, pair.key, ca.cert), insecure=False)
    check_listen(listen, None, insecure=True)
    if alone:
        check_listen(listen, None, insecure=False)
    else:
        with pytest.raises(LinkError, match="--insecure-listen"):
            check_listen(listen, None, insecure=False)


def test_the_commands_speak_tls(tmp_path: Path, ca: Authority, ground_pair: Pair) -> None:
    made, pair = stream(), ca.node("sat-1")
    refused = nodes.run("decoder_node", "serve", "--archive", tmp_path / "archive", "--listen", "0.0.0.0:0")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("Error: 0.0.0.0:0 is not a loopback address")
    for module, command in (
        ("decoder_node", ["serve", "--archive", tmp_path / "archive"]),
        ("encoder_node", ["run", "--outbox", tmp_path / "outbox", "--ground", "127.0.0.1:1"]),
    ):
        half = nodes.run(module, *command, "--tls-cert", pair.cert)
        assert half.returncode == 2
        assert "give all three, or none" in half.stderr
    done = nodes.run("encoder_node", "submit", made.write(tmp_path / "scene.dl"), "--outbox", tmp_path / "outbox")
    assert done.returncode == 0, done.stderr
    serving = nodes.Node(
        tmp_path / "ground.log", "decoder_node", "serve", "--archive", tmp_path / "archive", "--workers", "0",
        "--listen", "127.0.0.1:0", "--tls-cert", ground_pair.cert, "--tls-key", ground_pair.key, "--tls-ca", ca.cert,
        "--nodes", "sat-1",
    )  # fmt: skip
    try:
        address = serving.wait_for("listening")["listen"]
        sending = nodes.send(tmp_path, address, "--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-ca",
                             str(ca.cert), "--once")  # fmt: skip
        assert sending.wait() == 0
        assert serving.wait_for("stream opened")["node"] == "sat-1"
        assert (tmp_path / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file
    finally:
        serving.kill()
