"""kill -9 of either node at random moments: no scene that `submit` acknowledged is lost, no chunk that the ground
acknowledged, and all arrive byte for byte, once."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from downlink.checksum import crc32c
from downlink.frame import REVISION, Ack, Chunk, Chunks, EdgeFrame, Hello, Offer, SceneState, State
from downlink.framing import edge_message, ground_frame
from downlink.ranges import Range
from downlink.wire import link_pb2_grpc
from encoder_node.outbox import Outbox
from tests.chaos.rig import (
    chance,
    check_archived,
    committed,
    intact,
    long_only,
    many,
    on_disk,
    rounds,
    submit,
    undelivered,
    wait_committed,
    wait_delivered,
)
from tests.nodes import ENVIRONMENT, WITHIN_S, run, send, serve
from tests.streams import Stream, stream

pytestmark = pytest.mark.chaos


def test_submit_killed_at_any_moment_loses_no_scene_that_it_has_printed(tmp_path: Path) -> None:
    """The id on stdout is the promise. What is in the outbox is whole, whatever was printed. The first is not killed,
    so that it is known how long one takes here."""
    random = chance("submit")
    made = many(rounds(5, 201), side=128, chunk_bytes=2000)
    printed: list[str] = []
    takes_s = 60.0
    for number, scene in enumerate(made):
        path = scene.write(tmp_path / f"{number}.dl")
        command = [sys.executable, "-m", "encoder_node", "submit", str(path), "--outbox", str(tmp_path / "outbox")]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        began, after_s = time.monotonic(), takes_s * float(random.uniform(0.3, 1.2)) if number else takes_s
        killer = threading.Timer(after_s, process.kill)
        killer.start()
        said, _ = process.communicate()
        killer.cancel()
        takes_s = takes_s if number else time.monotonic() - began
        printed += said.split()
        path.unlink()
    assert printed
    assert intact(tmp_path / "outbox" / "outbox.sqlite")
    by_id = {scene.id: scene for scene in made}
    with Outbox(tmp_path / "outbox") as box:
        kept = {entry.scene_id for entry in box.entries()}
        assert set(printed) <= kept
        for scene_id in kept:
            scene, indexes = by_id[scene_id], sorted(by_id[scene_id].sent)
            found = [chunk.content for chunk in box.load(scene_id, indexes)]
            assert found == [scene.chunks[index] for index in indexes]


def test_the_edge_is_killed_at_any_moment(tmp_path: Path) -> None:
    """From its first instruction on: while it starts, offers, sends, hears that a scene is durable, deletes."""
    random = chance("edge")
    made = many(rounds(6, 200), side=160, chunk_bytes=1500)
    submit(tmp_path, made)
    ground, address = serve(tmp_path)
    try:
        for _ in range(rounds(5, 200)):
            edge = send(tmp_path, address, "--rate-kbps", "2000")
            time.sleep(float(random.uniform(0.0, 1.6)))
            edge.kill()
        assert intact(tmp_path / "outbox" / "outbox.sqlite")
        edge = send(tmp_path, address, "--once")
        assert edge.wait(rounds(30, 300)) == 0
        check_archived(tmp_path, made)
    finally:
        ground.kill()


def test_the_ground_is_killed_at_any_moment(tmp_path: Path) -> None:
    """While it starts, receives, syncs, verifies, renames. The edge goes on by itself all the time."""
    random = chance("ground")
    made = many(rounds(6, 200), side=160, chunk_bytes=1500)
    submit(tmp_path, made)
    ground, address = serve(tmp_path)
    edge = send(tmp_path, address, "--rate-kbps", "2000")
    try:
        for _ in range(rounds(5, 200)):
            time.sleep(float(random.uniform(0.0, 1.2)))
            ground.kill()
            assert intact(tmp_path / "archive" / "ledger.sqlite")
            ground, _ = serve(tmp_path, address)
        wait_delivered(tmp_path, rounds(60, 600), edge, ground)
        assert edge.terminate() == 0
        check_archived(tmp_path, made)
    finally:
        ground.kill()
        edge.kill()


class Witness:
    """An edge that writes down what it is told: after any kill of the ground, all of that must be true."""

    def __init__(self, address: str, made: Stream, known: list[Range]) -> None:
        self._made = made
        self.acknowledged = known
        self.durable = False
        self._out: queue.SimpleQueue[EdgeFrame | None] = queue.SimpleQueue()
        self._address = address
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _frames(self) -> Iterator[object]:
        while (frame := self._out.get()) is not None:
            yield edge_message(frame)

    def _talk(self) -> None:
        made = self._made
        try:
            with grpc.insecure_channel(self._address) as channel:
                self._out.put(Hello(REVISION, "witness"))
                self._out.put(Offer(made.id, made.packed))
                for message in link_pb2_grpc.LinkServiceStub(channel).Deliver(self._frames()):
                    match ground_frame(message):
                        case SceneState(_, State.RECEIVING, missing):
                            wanted = {index for item in missing for index in range(item.first, item.end)}
                            for index in sorted(wanted & made.sent):
                                part = Chunk(index, crc32c(made.chunks[index]), made.chunks[index])
                                self._out.put(Chunks(made.id, (part,), flush=index % 5 == 0))
                        case SceneState(_, State.DURABLE):
                            self.durable = True
                            return
                        case Ack(_, committed):
                            self.acknowledged += committed
        except grpc.RpcError:
            pass
        finally:
            self._out.put(None)

    def join(self) -> None:
        self._thread.join(20)


def test_what_the_ground_has_acknowledged_survives_its_kill(tmp_path: Path) -> None:
    random = chance("acknowledged")
    partly = 0
    ground, address = serve(tmp_path)
    try:
        for number in range(rounds(4, 200)):
            made = stream(number, side=224, chunk_bytes=3000, name="witnessed")
            witness = Witness(address, made, [])
            time.sleep(float(random.uniform(0.0, 0.35)))
            ground.kill()
            witness.join()
            partly += bool(witness.acknowledged) and not witness.durable
            if witness.acknowledged:
                assert on_disk(tmp_path / "archive", made, witness.acknowledged), f"round {number}"
            ground, _ = serve(tmp_path, address)
            if witness.durable:
                assert (tmp_path / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file
        assert intact(tmp_path / "archive" / "ledger.sqlite")
        assert partly or rounds(0, 1) == 0  # of 200 kills some came in the middle
    finally:
        ground.kill()


@long_only
def test_both_are_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    random = chance("both")
    made = many(rounds(6, 120), side=160, chunk_bytes=1500, first=500)
    ground, address = serve(tmp_path)
    edge = send(tmp_path, address, "--rate-kbps", "2000")
    try:
        for number in range(rounds(4, 120)):
            batch = made[number :: rounds(4, 120)]
            submit(tmp_path, batch)
            time.sleep(float(random.uniform(0.2, 1.2)))
            if random.random() < 0.5:
                edge.kill()
                edge = send(tmp_path, address, "--rate-kbps", "2000")
            else:
                ground.kill()
                ground, _ = serve(tmp_path, address)
        edge.kill()
        assert run("encoder_node", "status", "--outbox", tmp_path / "outbox").returncode == 0
        edge = send(tmp_path, address, "--once")
        assert edge.wait(rounds(30, 300)) == 0
        assert undelivered(tmp_path) == 0
        check_archived(tmp_path, made)
    finally:
        ground.kill()
        edge.kill()


def test_sigterm_ends_both_within_ten_seconds_without_loss(tmp_path: Path) -> None:
    made = stream(7, name="stopped", side=320, chunk_bytes=4000)
    submit(tmp_path, [made])
    ground, address = serve(tmp_path)
    edge = send(tmp_path, address, "--rate-kbps", "1600")
    try:
        wait_committed(tmp_path, 20)
        began = time.monotonic()
        assert edge.terminate() == 0
        assert time.monotonic() - began < 10
        kept = committed(tmp_path)[made.id]
        assert 20 < kept < len(made.sent)
        edge = send(tmp_path, address, "--rate-kbps", "1600")
        wait_committed(tmp_path, kept)
        began = time.monotonic()
        assert ground.terminate() == 0
        assert time.monotonic() - began < 10
        assert committed(tmp_path)[made.id] > kept
        ground, _ = serve(tmp_path, address)
        wait_delivered(tmp_path, WITHIN_S, edge, ground)
        assert edge.terminate() == 0
        check_archived(tmp_path, [made])
    finally:
        ground.kill()
        edge.kill()
