"""Requests from the ground to the edge, over real gRPC: kept until they are answered, carried out once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from decoder_node.asks import Asks, Entry
from decoder_node.cli import main as ground_cli
from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger, LedgerError
from decoder_node.receiver import Receiver
from downlink.bundle import Bundle, released
from downlink.chunk import Kind
from downlink.errors import LinkError
from downlink.frame import Answer, Verdict
from downlink.manifest import Manifest
from downlink.region import region_chunks
from downlink.request import Cancel, Install, SetTarget
from downlink.stream import StreamReader
from downlink.tile import Window
from encoder_node.cli import main as edge_cli
from encoder_node.outbox import Outbox
from encoder_node.sender import Options, Sender
from tests import scenes
from tests.nodes import send, serve
from tests.streams import Stream, stream


class Ground:
    """A receiver on `folder`/archive, as `serve` runs it, without workers."""

    def __init__(self, folder: Path) -> None:
        self.archive = folder / "archive"
        self.disk = ThreadPoolExecutor(1)
        self.ledger: Ledger
        self.asks: Asks
        self.address = ""

    async def do(self, what: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.disk, what)

    async def answered(self, ask_id: str) -> Entry:
        for _ in range(600):
            entries = {entry.ask_id: entry for entry in await self.do(self.asks.entries)}
            if entries[ask_id].state != "waiting":
                found: Entry = entries[ask_id]
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(entries)


@contextlib.asynccontextmanager
async def serving(folder: Path, tls: Any = None) -> AsyncIterator[Ground]:
    ground = Ground(folder)
    ground.archive.mkdir(exist_ok=True)
    ground.ledger = await ground.do(partial(Ledger, ground.archive, create=True))
    inbox = await ground.do(partial(Inbox, ground.archive, ground.ledger))
    ground.asks = Asks(ground.archive, ground.ledger)
    receiver = Receiver(inbox, ground.disk, lambda _: None, "ground in a test", asks=ground.asks)
    ground.address = await receiver.start("127.0.0.1:0", tls)
    try:
        yield ground
    finally:
        await receiver.stop()
        ground.disk.shutdown()
        ground.ledger.close()


@contextlib.asynccontextmanager
async def listening(box: Outbox, address: str) -> AsyncIterator[Sender]:
    sender = Sender(box, Options(ground=address))
    running = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        sender.stop()
        await running


async def until(check: Callable[[], bool]) -> None:
    for _ in range(500):
        if check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to that")


def state(box: Outbox, made: Stream) -> str:
    with Outbox(box.folder, read_only=True) as looking:
        return looking.entry(made.id).state


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(120):
            await main()

    asyncio.run(in_time())


def ask(folder: Path, *arguments: str | Path) -> Entry:
    """`decoder-node ask ...`, beside a running node."""
    name, *rest = map(str, arguments)
    command = ["ask", name, "--archive", str(folder / "archive"), "--json", *rest]
    result = CliRunner().invoke(ground_cli, command)
    assert result.exit_code == 0, result.output
    return Entry(**json.loads(result.stdout))


def kept(folder: Path, *streams: Stream) -> Outbox:
    """An outbox whose scenes were sent up to their first layer, and the ground that has these."""
    box = Outbox(folder / "outbox", create=True)
    for made in streams:
        box.submit(made.packed, made.chunks, layers=1)

    async def main() -> None:
        async with serving(folder) as ground:
            await Sender(box, Options(ground=ground.address)).run(until_empty=True)

    run(main)
    assert [state(box, made) for made in streams] == ["kept"] * len(streams)
    return box


def test_what_was_kept_is_sent_when_it_is_asked_for_whoever_was_away(tmp_path: Path) -> None:
    """Asked while both are away; the request survives the restarts of both."""
    made = stream()
    box = kept(tmp_path, made)
    asked = ask(tmp_path, "refine", made.id[:9])
    assert (asked.state, asked.scene_id, asked.what) == ("waiting", made.id, "refine: 64 layers")
    box.close()

    async def main() -> None:
        async with serving(tmp_path) as ground, listening(Outbox(tmp_path / "outbox"), ground.address):
            answer = await ground.answered(asked.ask_id)
            assert (answer.state, answer.message) == ("done", "all layers will be sent")
            await until(lambda: state(box, made) == "delivered")

    run(main)
    assert (tmp_path / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file


def test_a_region_is_sent_and_the_rest_stays(tmp_path: Path) -> None:
    made = stream(side=320)  # 10 x 10 tiles of 32 px
    box = kept(tmp_path, made)
    asked = ask(tmp_path, "refine", made.id, "--region", "40", "70", "30", "90")  # columns 1..2, rows 2..4 of tiles
    manifest = Manifest.unpack(made.packed)
    chunks = [
        index for item in region_chunks(manifest, Window(70, 40, 90, 30)) for index in range(item.first, item.end)
    ]
    keys = [manifest.layout().key(index) for index in chunks]
    wanted = {(row * 10 + col, group) for row in (2, 3, 4) for col in (1, 2) for group in (0, 1)}
    assert {(key.tile, key.group) for key in keys} == wanted
    assert {key.kind for key in keys} == {Kind.LATENT}

    async def main() -> None:
        async with serving(tmp_path) as ground:
            before = {i for item in ground.ledger.committed(made.id) for i in range(item.first, item.end)}
            async with listening(box, ground.address):
                assert (await ground.answered(asked.ask_id)).state == "done"
                await until(lambda: state(box, made) == "kept")
            committed = await ground.do(lambda: ground.ledger.committed(made.id))
            after = {i for item in committed for i in range(item.first, item.end)}
            assert after - before == (set(chunks) & made.sent) - before
            assert after - before

    run(main)


@pytest.mark.parametrize("region", [(0, 0, 0, 5), (0, 0, 97, 5), (90, 0, 7, 5), (0, 96, 1, 1)])
def test_a_region_outside_of_the_scene_is_refused(region: tuple[int, int, int, int]) -> None:
    col, row, width, height = region
    with pytest.raises(LinkError, match="is not within grid 0, which has 96 x 96 px"):
        region_chunks(Manifest.unpack(stream().packed), Window(row, col, height, width))
    with pytest.raises(LinkError, match="there is no grid 3"):
        region_chunks(Manifest.unpack(stream().packed), Window(0, 0, 1, 1), grid=3)


def test_a_region_of_a_scene_of_several_resolutions_is_the_same_place_on_each() -> None:
    """Bands of 10, 20 and 60 m: wherever the lattices put the tiles, those that the place touches are asked for."""
    random = np.random.default_rng(0)
    fine = random.integers(1, 9000, (2, 720, 720), np.uint16)
    coarse = random.integers(1, 9000, (1, 360, 360), np.uint16)
    manifest, _ = scenes.fake_stream(
        scenes.grids_source(fine, coarse).scene, [scenes.PATCH_CODING.__class__(
            tile=64, planes=1, planes_per_chunk=1, groups=2, mask="none", step=4.0)] * 2,
    )  # fmt: skip
    window = Window(300, 0, 100, 720)
    layout = manifest.layout()
    found = [layout.key(i) for item in region_chunks(manifest, window, layers=1) for i in range(item.first, item.end)]
    assert {key.group for key in found} == {0}
    rows = {number: {key.tile // layout.tiles(number).cols for key in found if key.grid == number} for number in (0, 1)}
    assert rows == {0: {4, 5, 6}, 1: {2, 3}}
    all_of_it = region_chunks(manifest, Window(0, 0, 360, 360), grid=1)
    latents = [index for index in range(manifest.chunk_count) if layout.key(index).kind is Kind.LATENT]
    assert [index for item in all_of_it for index in range(item.first, item.end)] == latents


def test_what_is_called_off_goes_and_the_archive_says_so(tmp_path: Path) -> None:
    made = stream()
    box = kept(tmp_path, made)
    asked = ask(tmp_path, "cancel", made.id)

    async def main() -> None:
        async with serving(tmp_path) as ground:
            async with listening(box, ground.address):
                assert (await ground.answered(asked.ask_id)).state == "done"
            assert state(box, made) == "dropped"
            [entry] = await ground.do(ground.ledger.entries)
            assert (entry.state, entry.reason) == ("receiving", "called off")

    run(main)
    with pytest.raises(Exception, match="is gone"):
        box.load(made.id, [0])
    after = ask(tmp_path, "refine", made.id)

    async def again() -> None:
        async with serving(tmp_path) as ground, listening(box, ground.address):
            answer = await ground.answered(after.ask_id)
            assert (answer.state, answer.message) == ("refused", "the scene is dropped: called off by the ground")

    run(again)


def test_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    made, other = stream(0), stream(1)
    box = kept(tmp_path, made, other)
    asked = [ask(tmp_path, "priority", made.id, str(number)) for number in (5, -7, 3)]

    async def main() -> None:
        async with serving(tmp_path) as ground, listening(box, ground.address):
            answers = [await ground.answered(one.ask_id) for one in asked]
            assert [answer.state for answer in answers] == ["done"] * 3
            times = [answer.answered_at or 0.0 for answer in answers]
            assert times == sorted(times)
            entry = await ground.do(lambda: ground.ledger.find(made.id))
            assert entry.priority == 3  # it is decoded sooner as well

    run(main)
    assert box.entry(made.id).priority == 3


def test_a_scene_being_sent_is_called_off_in_the_middle(tmp_path: Path) -> None:
    made = stream(3, side=640, chunk_bytes=4000)
    box = Outbox(tmp_path / "outbox", create=True)
    box.submit(made.packed, made.chunks)

    async def main() -> None:
        async with serving(tmp_path) as ground:
            options = Options(ground=ground.address, rate_kbps=400.0)  # some 16 s for all of it
            sender = Sender(box, options)
            running = asyncio.create_task(sender.run())
            found: list[Any] = []
            while not found:
                await asyncio.sleep(0.05)
                found = await ground.do(ground.ledger.entries)
            asked = ask(tmp_path, "cancel", made.id)
            assert (await ground.answered(asked.ask_id)).state == "done"
            assert state(box, made) == "dropped"
            sender.stop()
            await running
            [entry] = await ground.do(ground.ledger.entries)
            assert entry.durable_at is None

    run(main)


def test_a_node_without_a_name_may_not_have_the_scene_that_another_has(tmp_path: Path) -> None:
    made = stream()
    box = kept(tmp_path, made)
    asked = ask(tmp_path, "refine", made.id)
    stranger = Outbox(tmp_path / "stranger", create=True)

    async def main() -> None:
        async with serving(tmp_path) as ground:
            async with listening(stranger, ground.address):
                await asyncio.sleep(0.5)
            [entry] = await ground.do(ground.asks.entries)
            assert entry.state == "waiting"
            async with listening(box, ground.address):
                assert (await ground.answered(asked.ask_id)).state == "done"

    run(main)


# --- on the ground ---


@pytest.fixture
def asks(tmp_path: Path) -> Asks:
    ledger = Ledger(tmp_path, create=True)
    for seed, node in enumerate(["sat-1", "sat-2"]):
        made = stream(seed)
        ledger.begin(made.id, Manifest.unpack(made.packed), made.packed, 0, len(made.file), node)
    return Asks(tmp_path, ledger)


def test_a_node_hears_only_what_is_asked_of_it_and_answers_only_for_itself(asks: Asks) -> None:
    entry = asks.add(Cancel(stream(0).id), node="sat-2")  # whatever is said: the scene belongs to sat-1
    assert entry.node == "sat-1"
    assert [one.ask.ask_id for one in asks.waiting("sat-1", frozenset())] == [entry.ask_id]
    assert asks.waiting("sat-2", frozenset()) == asks.waiting("", frozenset()) == []
    done = Answer(entry.ask_id, Verdict.DONE, "")
    assert asks.answered("sat-2", done) is None
    assert asks.answered("", done) is None
    assert asks.entries()[0].state == "waiting"
    answered = asks.answered("sat-1", done)
    assert answered is not None
    assert answered.state == "done"
    assert asks.answered("sat-1", Answer(entry.ask_id, Verdict.REFUSED, "")) is None  # the first word counts
    assert asks.waiting("sat-1", frozenset()) == []


def test_a_named_node_that_has_no_such_scene_has_had_its_say(asks: Asks) -> None:
    entry = asks.add(Cancel(stream(0).id))
    unknown = Answer(entry.ask_id, Verdict.UNKNOWN_SCENE, "no")
    answered = asks.answered("sat-1", unknown)
    assert answered is not None
    assert (answered.state, answered.message) == ("refused", "no")


def test_bundles_wait_beside_the_ledger_and_go_with_the_answer(asks: Asks, tmp_path: Path) -> None:
    request = Install("ab" * 32, (("bundle.json", 3), ("encoder.onnx", 5)))
    entry = asks.add(request, "sat-1", [b"{ }", b"12345"])
    other = asks.add(SetTarget("quality", 40.0), "sat-1")
    found = asks.waiting("sat-1", frozenset())
    assert [(one.ask.ask_id, one.bundle_bytes) for one in found] == [(other.ask_id, 0), (entry.ask_id, 8)]
    assert asks.waiting("sat-1", frozenset({entry.ask_id, other.ask_id})) == []
    assert asks.part(entry.ask_id, 2, 3) == b"}12"
    asks.answered("sat-1", Answer(entry.ask_id, Verdict.DONE, ""))
    assert list((tmp_path / "asks").iterdir()) == []
    lost = asks.add(request, "sat-1", [b"{ }", b"12345"])
    (tmp_path / "asks" / lost.ask_id).write_bytes(b"short")
    assert asks.part(lost.ask_id, 2, 6) is None
    assert [one.state for one in asks.entries()] == ["done", "waiting", "refused"]
    assert "cannot be read on the ground any more" in str(asks.entries()[-1].message)


def test_bundles_that_nobody_waits_for_go_at_the_next_start(asks: Asks, tmp_path: Path) -> None:
    """A crash came between a bundle's file and its row, or between an answer and the file's end."""
    entry = asks.add(Install("ab" * 32, (("bundle.json", 3), ("encoder.onnx", 5))), "sat-1", [b"{ }", b"12345"])
    for name in ("0" * 32, "1" * 32):
        (tmp_path / "asks" / name).write_bytes(b"left over")
    for name in ("0" * 32, entry.ask_id):
        os.utime(tmp_path / "asks" / name, (1e9, 1e9))
    asks.recover()
    assert {path.name for path in (tmp_path / "asks").iterdir()} == {
        "1" * 32,
        entry.ask_id,
    }  # one may be just being made


def test_what_cannot_be_asked_is_refused_before_it_is_kept(asks: Asks) -> None:
    with pytest.raises(LedgerError, match="holds no scene"):
        asks.add(Cancel("ab" * 32))
    with pytest.raises(LinkError, match="quality of 900"):
        asks.add(SetTarget("quality", 900.0))
    assert asks.entries() == []


def test_a_request_can_be_withdrawn(asks: Asks) -> None:
    entry = asks.add(Cancel(stream(0).id))
    with pytest.raises(LedgerError, match="0 requests have an id that begins with 'x'"):
        asks.withdraw("x")
    after = asks.withdraw(entry.ask_id[:8])
    assert (after.state, after.message) == ("refused", "withdrawn")
    assert asks.waiting("sat-1", frozenset()) == []


def test_a_bundle_is_installed_over_the_link_and_used_and_rolled_back(tmp_path: Path) -> None:
    """Real nodes: `ask install`, a link that is cut by a restart of the edge, a watched scene, `ask rollback`."""
    made = tmp_path / "made"
    shutil.copytree(str(released("universal")), made)
    stated = json.loads((made / "bundle.json").read_bytes())
    (made / "bundle.json").write_text(json.dumps({**stated, "version": "99.9"}))
    ground, address = serve(tmp_path)
    watched = tmp_path / "watched"
    watched.mkdir()
    edge = send(tmp_path, address, "--watch", str(watched))
    try:
        edge.wait_for("started")
        asked = ask(tmp_path, "install", str(made))
        assert edge.wait_for("trying bundle")["bundle"] == Bundle.read(made).id.hex()
        edge.kill()
        edge = send(tmp_path, address, "--watch", str(watched))
        assert ground.wait_for("answered")["ask"] == asked.ask_id
        [entry] = listed_asks(tmp_path)
        assert (entry.state, entry.message) == ("done", f"bundle {Bundle.read(made).id.hex()[:12]} is active")
        assert list((tmp_path / "archive" / "asks").iterdir()) == []
        np.save(watched / "patch.npy", scenes.pixels(bands=2, height=64, width=64))
        scene = edge.wait_for("delivered")["scene"]
        with (tmp_path / "archive" / "streams" / f"{scene}.dl").open("rb") as file:
            assert StreamReader(file).manifest.bundle == Bundle.read(made).id
        back = ask(tmp_path, "rollback")
        for _ in range(300):
            if (last := listed_asks(tmp_path)[-1]).state != "waiting":
                break
            time.sleep(0.05)
        assert (last.ask_id, last.state, last.message) == (
            back.ask_id, "done", "the operator's own bundle is active again",
        )  # fmt: skip
        shown = CliRunner().invoke(edge_cli, ["models", "--outbox", str(tmp_path / "outbox"), "--json"])
        assert json.loads(shown.stdout)["bundle_id"] == Bundle.read(released("universal")).id.hex()
    finally:
        assert edge.terminate() == 0
        assert ground.terminate() == 0


def listed_asks(folder: Path) -> list[Entry]:
    result = CliRunner().invoke(ground_cli, ["ask", "list", "--archive", str(folder / "archive"), "--json"])
    assert result.exit_code == 0, result.output
    return [Entry(**row) for row in json.loads(result.stdout)]


def test_the_region_of_a_whole_scene_is_all_of_its_latents(tmp_path: Path) -> None:
    np.save(tmp_path / "patch.npy", scenes.pixels(bands=2, height=96, width=96, nodata=None))
    out = tmp_path / "patch.dl"
    result = CliRunner().invoke(edge_cli, ["encode", str(tmp_path / "patch.npy"), str(out), "--max-error", "0"])
    assert result.exit_code == 0, result.output
    with out.open("rb") as file:
        manifest = StreamReader(file).manifest
    layout, found = manifest.layout(), region_chunks(manifest, Window(0, 0, 96, 96))
    latents = [index for index in range(manifest.chunk_count) if layout.key(index).kind is Kind.LATENT]
    assert [index for item in found for index in range(item.first, item.end)] == latents


def test_with_certificates_a_node_hears_what_is_asked_of_it_and_nothing_else(tmp_path: Path) -> None:
    """The request about sat-1's scene is not said to sat-2, and sat-2's word about it does not count."""
    pytest.importorskip("cryptography.x509")
    import grpc

    from decoder_node.identity import Tls as GroundTls
    from downlink.frame import REVISION, Hello
    from downlink.framing import edge_message, ground_frame
    from downlink.wire import link_pb2_grpc
    from encoder_node.channel import Tls as EdgeTls
    from tests.certificates import Authority

    (tmp_path / "ca").mkdir()
    ca = Authority(tmp_path / "ca")
    pair, one, two = ca.ground(), ca.node("sat-1"), ca.node("sat-2")
    made = stream()
    box = Outbox(tmp_path / "outbox", create=True)
    box.submit(made.packed, made.chunks, layers=1)
    tls = EdgeTls(one.cert, one.key, ca.cert)

    async def main() -> None:
        async with serving(tmp_path, GroundTls(pair.cert, pair.key, ca.cert)) as ground:
            await Sender(box, Options(ground=ground.address, tls=tls)).run(until_empty=True)
            asked = ask(tmp_path, "refine", made.id)
            assert asked.node == "sat-1"
            roots = ca.cert.read_bytes()
            credentials = grpc.ssl_channel_credentials(roots, two.key.read_bytes(), two.cert.read_bytes())
            async with grpc.aio.secure_channel(ground.address, credentials) as link:
                stub: Any = link_pb2_grpc.LinkServiceStub
                call = stub(link).Deliver(timeout=20)
                await call.write(edge_message(Hello(REVISION, "a test")))
                await call.write(edge_message(Answer(asked.ask_id, Verdict.DONE, "believe me")))
                await asyncio.sleep(3)  # it looks for requests every two seconds
                await call.done_writing()
                heard = [ground_frame(message) async for message in call]
            assert [type(frame).__name__ for frame in heard] == ["Welcome"]
            [entry] = await ground.do(ground.asks.entries)
            assert entry.state == "waiting"
            sender = Sender(box, Options(ground=ground.address, tls=tls))
            running = asyncio.create_task(sender.run())
            assert (await ground.answered(asked.ask_id)).state == "done"
            sender.stop()
            await running

    run(main)
