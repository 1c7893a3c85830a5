"""Full disks. On the ground: what was acknowledged is kept, new scenes are refused with a time to come back, and when
space is there again all goes on without a restart. On the edge: `submit` refuses and says so, nothing that was taken is
dropped, and what is queued is still sent.

A real small file system (tmpfs, which needs root) where we may mount one, and the limit on a file's size (RLIMIT_FSIZE,
changed from outside while the node runs) everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import encoder_node.watch
from decoder_node.inbox import FREE_BYTES_MIN
from encoder_node.outbox import Outbox, OutboxFull
from encoder_node.sender import Options, Sender
from encoder_node.watch import Standing, Watch
from tests.chaos.rig import check_archived, committed, intact, long_only, submit, wait_committed, wait_delivered
from tests.nodes import WITHIN_S, Node, run, send, serve
from tests.streams import Stream, stream

pytestmark = pytest.mark.chaos

MIB = 2**20


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of its own in the folder `place`; skips where it cannot be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("a tmpfs cannot be mounted here; the same with RLIMIT_FSIZE is tested")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(ballast: Path, leave: int) -> None:
    """Leave so many bytes of the file system free."""
    free = os.statvfs(ballast.parent).f_bavail * os.statvfs(ballast.parent).f_frsize
    with ballast.open("ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), max(1, free - leave))


def wait_for(node: Node, event: str, count: int = 1) -> None:
    until = time.monotonic() + WITHIN_S
    while sum(found["event"] == event for found in node.events()) < count:
        assert time.monotonic() < until, node.log.read_text()
        time.sleep(0.02)


def test_the_grounds_disk_fills_in_the_middle_and_is_emptied(tmp_path: Path) -> None:
    made = [stream(number, name="full", side=320, chunk_bytes=4000) for number in range(2)]
    with small_disk(tmp_path / "archive", FREE_BYTES_MIN + 16 * MIB) as archive:
        submit(tmp_path, made)
        ground, address = serve(tmp_path)
        edge = send(tmp_path, address, "--rate-kbps", "2500")
        try:
            wait_committed(tmp_path, 60)
            before = committed(tmp_path)
            fill(archive / "ballast", 4096)
            wait_for(ground, "cannot store")
            wait_for(edge, "link down")
            assert ground.process.poll() is None
            assert intact(archive / "ledger.sqlite")
            after = committed(tmp_path)
            assert all(after[scene_id] >= count for scene_id, count in before.items())
            (archive / "ballast").unlink()
            time.sleep(2.0)  # one of its tries may just have been answered with "in a minute"
            assert run("encoder_node", "resend", "--outbox", tmp_path / "outbox").returncode == 0
            wait_delivered(tmp_path, WITHIN_S, edge, ground)
            reasons = [event["reason"] for event in edge.events() if event["event"] == "link down"]
            assert any("RESOURCE_EXHAUSTED" in reason and "disk is full" in reason for reason in reasons)
            check_archived(tmp_path, made)
        finally:
            edge.kill()
            ground.kill()


@long_only
def test_a_ground_that_is_nearly_full_refuses_new_scenes_and_names_a_time(tmp_path: Path) -> None:
    made = stream(0, name="refused", side=160, chunk_bytes=2000)
    with small_disk(tmp_path / "archive", FREE_BYTES_MIN + 16 * MIB) as archive:
        submit(tmp_path, [made])
        ground, address = serve(tmp_path)
        fill(archive / "ballast", FREE_BYTES_MIN - MIB)
        edge = send(tmp_path, address)
        try:
            refusal = edge.wait_for("refused")
            assert (refusal["code"], refusal["retry_s"]) == ("exhausted", 60)
            with Outbox(tmp_path / "outbox", read_only=True) as box:
                assert [entry.state for entry in box.entries()] == ["queued"]
            (archive / "ballast").unlink()
            resent = run("encoder_node", "resend", "--outbox", tmp_path / "outbox")  # not to wait a minute
            assert resent.returncode == 0
            wait_delivered(tmp_path, WITHIN_S, edge, ground)
            check_archived(tmp_path, [made])
        finally:
            edge.kill()
            ground.kill()


def test_no_file_of_the_ground_can_grow_for_a_while(tmp_path: Path) -> None:
    """RLIMIT_FSIZE from outside: in the middle of a transfer every write beyond 64 KiB fails. (The log is shorter.)"""
    made = [stream(number, name="limited", side=320, chunk_bytes=4000) for number in range(2)]
    submit(tmp_path, made)
    ground, address = serve(tmp_path)
    edge = send(tmp_path, address, "--rate-kbps", "2500")
    try:
        wait_committed(tmp_path, 60)
        before = resource.prlimit(ground.process.pid, resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
        wait_for(ground, "cannot store")
        wait_for(edge, "link down")
        assert ground.process.poll() is None
        kept = sum(committed(tmp_path).values())
        resource.prlimit(ground.process.pid, resource.RLIMIT_FSIZE, before)
        wait_delivered(tmp_path, 60, edge, ground)
        assert kept > 60
        check_archived(tmp_path, made)
    finally:
        edge.kill()
        ground.kill()


def submitted(folder: Path, scene: Stream, *options: str) -> bool:
    """Submit a scene by the command: was it taken? If not, it was refused as the documents say."""
    done = run("encoder_node", "submit", scene.write(folder / "scene.dl"), "--outbox", folder / "outbox", *options)
    if done.returncode == 0:
        assert done.stdout.split() == [scene.id]
        return True
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    return False


def test_a_full_disk_on_the_edge_refuses_new_scenes_and_still_sends_the_old(tmp_path: Path) -> None:
    """Filled to the last byte by another program: even then deliveries are recorded, from the outbox's own reserve."""
    made = [stream(number, name="edge", side=320, chunk_bytes=6000) for number in range(3)]
    with small_disk(tmp_path / "outbox", 24 * MIB) as outbox:
        assert submitted(tmp_path, made[0])
        assert submitted(tmp_path, made[1])
        fill(outbox / "ballast", 0)
        assert not submitted(tmp_path, made[2])
        ground, address = serve(tmp_path)
        try:
            edge = send(tmp_path, address, "--once")
            assert edge.wait(60) == 0, edge.log.read_text()
            check_archived(tmp_path, made[:2])
            assert intact(outbox / "outbox.sqlite")
            (outbox / "ballast").unlink()
            assert submitted(tmp_path, made[2])
        finally:
            ground.kill()


@long_only
def test_an_outbox_takes_scenes_until_its_disk_is_full_and_loses_none_of_them(tmp_path: Path) -> None:
    made = [stream(number, name="many", side=320, chunk_bytes=6000) for number in range(16)]
    kept = []
    with small_disk(tmp_path / "outbox", 10 * MIB) as outbox:
        with Outbox(outbox, create=True, reserve=True) as box:
            for scene in made:
                with contextlib.suppress(OutboxFull):
                    kept.append((scene, box.submit(scene.packed, scene.chunks)))
            assert 0 < len(kept) < len(made)
        assert intact(outbox / "outbox.sqlite")
        ground, address = serve(tmp_path)
        try:
            assert send(tmp_path, address, "--once").wait(60) == 0
            check_archived(tmp_path, [scene for scene, _ in kept])
            assert submitted(tmp_path, made[-1])  # there is room now
        finally:
            ground.kill()


def test_the_operators_bound_on_the_outbox_is_kept_and_said(tmp_path: Path) -> None:
    made = [stream(number, name="bound", side=160, chunk_bytes=2000) for number in range(3)]
    bytes_max = len(made[0].file) + len(made[1].file)
    with Outbox(tmp_path / "outbox", create=True, bytes_max=bytes_max) as box:
        for scene in made[:2]:
            box.submit(scene.packed, scene.chunks)
        with pytest.raises(OutboxFull, match=r"bytes of 2 scenes, \d+ more would pass its bound"):
            box.submit(made[2].packed, made[2].chunks)
        box.submit(made[0].packed, made[0].chunks, priority=5)  # it is there already, which takes no room
        assert [entry.scene_id for entry in box.entries()] == [made[0].id, made[1].id]
        assert not submitted(tmp_path, made[2], "--outbox-mb", str(bytes_max / 1e6))
        box.delivered(made[0].id)
        box.submit(made[2].packed, made[2].chunks)


def test_a_watched_scene_that_finds_no_room_is_reported_and_taken_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process that watches, with a short pause instead of half a minute between tries."""
    made = [stream(number, name="watched", side=160, chunk_bytes=2000) for number in range(2)]
    folder = tmp_path / "incoming"
    folder.mkdir()
    monkeypatch.setattr(encoder_node.watch, "FULL_S", 0.2)
    submit(tmp_path, made[:1])
    made[1].write(folder / "late.dl")

    async def main() -> list[str]:
        with Outbox(tmp_path / "outbox") as box:
            sender = Sender(box, Options(ground="127.0.0.1:1"))
            watch = Watch(folder, sender, Standing([f"--outbox-mb={len(made[0].file) / 1e6}"]), settle_s=0.1)
            watching = asyncio.create_task(watch.run())
            async with asyncio.timeout(20):
                while not watch.failed:
                    await asyncio.sleep(0.02)
                assert box.seen(str(folder / "late.dl")) is None  # nothing is noted against the file
                box.delivered(made[0].id)
                while len(box.entries()) < 2:
                    await asyncio.sleep(0.02)
                sender.stop()
                await watching
            return watch.failed

    failed = asyncio.run(main())
    assert "raise --outbox-mb" in failed[0]
