"""Cuts of the connection at every chunk boundary and one byte to either side, in both directions, at random places and
while nothing moves: what was acknowledged is not sent again, and at most a window is sent twice for each cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.proxy import Cut, CutAfter, CutAt, Fate, Proxy, Stall, Throttle
from tests.chaos.rig import chance, check_archived, long_only, rounds, submit, wait_delivered
from tests.nodes import WITHIN_S, Node, send, serve
from tests.streams import Stream, stream

pytestmark = pytest.mark.chaos

WINDOW = 16  # KiB
GREETING = 2500  # bytes of HTTP/2's and our own greetings, headers and offer, per connection
SENT_TWICE = 1.03  # of what is sent: frames around chunks


@contextmanager
def both(folder: Path, window: int = WINDOW) -> Iterator[tuple[Proxy, Node, Node]]:
    """A ground, a proxy before it and an edge that keeps running."""
    ground, address = serve(folder)
    try:
        with Proxy(address) as proxy:
            submit(folder, [])
            edge = send(folder, proxy.address, "--window-kib", str(window))
            try:
                yield proxy, edge, ground
            finally:
                edge.kill()
    finally:
        ground.kill()


def deliver(folder: Path, made: Stream, proxy: Proxy, *nodes: Node) -> tuple[int, int]:
    """Submit a scene and wait until it is delivered: (bytes that went down, cuts)."""
    before = proxy.bytes_down, proxy.cuts
    submit(folder, [made])
    wait_delivered(folder, WITHIN_S, *nodes)
    return proxy.bytes_down - before[0], proxy.cuts - before[1]


def most(made: Stream, cuts: int, connections: int) -> float:
    """The bytes that a scene may cost with so many cuts."""
    return SENT_TWICE * (len(made.file) + cuts * WINDOW * 1024) + connections * GREETING


def test_a_cut_at_every_chunk_boundary(tmp_path: Path) -> None:
    """A byte before it, on it, a byte after it; a scene of its own for each."""
    shape = {"side": 128, "chunk_bytes": 900}
    boundaries = sorted(stream(0, name="boundary", **shape).sent)
    chosen = chance("boundary").choice(boundaries, rounds(1, len(boundaries)), replace=False)
    made = []
    with both(tmp_path) as (proxy, edge, ground):
        for number in sorted(int(index) for index in chosen):
            for beyond in (-1, 0, 1):
                scene = stream(len(made), name="boundary", **shape)
                made.append(scene)
                index = min((index for index in scene.sent if index >= number), default=max(scene.sent))
                fates = iter([CutAt(scene.chunks[index][-24:], beyond)])
                proxy.down = lambda _, fates=fates: next(fates, Fate())
                proxy.drop()  # an idle connection must not carry it past the fate
                connections = proxy.connections
                spent, cuts = deliver(tmp_path, scene, proxy, edge, ground)
                assert cuts == 1, f"chunk {index}, {beyond:+d}: {cuts} cuts"
                assert spent <= most(scene, cuts, proxy.connections - connections), f"chunk {index}, {beyond:+d}"
        check_archived(tmp_path, made)


def test_cuts_of_what_the_ground_says(tmp_path: Path) -> None:
    """Acknowledgements and the word that a scene is durable, cut anywhere: said again, and nothing is stored twice."""
    random = chance("up")
    made = []
    with both(tmp_path) as (proxy, edge, ground):
        for number in range(rounds(2, 150)):
            scene = stream(number, name="upwards", side=128, chunk_bytes=900)
            made.append(scene)
            fates = iter([CutAfter(int(random.integers(1, 600)))])
            proxy.up = lambda _, fates=fates: next(fates, Fate())
            proxy.drop()
            connections = proxy.connections
            spent, cuts = deliver(tmp_path, scene, proxy, edge, ground)
            assert spent <= most(scene, cuts, proxy.connections - connections)
        check_archived(tmp_path, made)


def test_a_link_that_is_cut_again_and_again(tmp_path: Path) -> None:
    """Every connection dies after some random number of bytes: a scene still gets through, one window at a time."""
    random = chance("again")
    made = [stream(number, name="again", side=320, chunk_bytes=4000) for number in range(rounds(1, 10))]

    class Short(CutAfter):
        def __init__(self) -> None:
            super().__init__(int(random.integers(40_000, 200_000)))

    with both(tmp_path) as (proxy, edge, ground):
        proxy.down = lambda _: Short()
        cuts = connections = 0
        for scene in made:
            spent, here = deliver(tmp_path, scene, proxy, edge, ground)
            assert spent <= most(scene, here, proxy.connections - connections)
            cuts, connections = cuts + here, proxy.connections
        assert cuts >= 2 * len(made)
        check_archived(tmp_path, made)


@long_only
def test_a_link_that_stands_still_and_then_goes_on(tmp_path: Path) -> None:
    """A stall is not a cut: nothing is sent twice, and no node gives up."""
    random = chance("stall")
    made = []
    with both(tmp_path) as (proxy, edge, ground):
        for number in range(rounds(1, 20)):
            scene = stream(number, name="still", side=160, chunk_bytes=2000)
            made.append(scene)
            place, seconds = int(random.integers(0, len(scene.file))), float(random.uniform(0.5, rounds(1, 6)))
            fates = iter([Stall(place, seconds)])
            proxy.down = lambda _, fates=fates: next(fates, Fate())
            proxy.drop()
            connections = proxy.connections
            spent, cuts = deliver(tmp_path, scene, proxy, edge, ground)
            assert (cuts, proxy.connections - connections) == (0, 1)
            assert spent <= most(scene, 0, 1)
        check_archived(tmp_path, made)


@long_only
def test_a_slow_link_is_used_to_the_full(tmp_path: Path) -> None:
    """Throttled to 64 kbyte/s: 90 % of what it can carry is payload, and nothing is sent twice."""
    rate = 64_000.0
    made = stream(0, name="slow", side=320, chunk_bytes=rounds(1500, 6000))
    with both(tmp_path, window=64) as (proxy, edge, ground):
        moments = []

        class Noted(Throttle):
            async def piece(self, piece: bytes) -> bytes:
                moments.append(time.monotonic())
                return await super().piece(piece)

        proxy.down, proxy.up = lambda _: Noted(rate), lambda _: Throttle(rate)
        proxy.drop()
        spent, cuts = deliver(tmp_path, made, proxy, edge, ground)
        assert (cuts, spent <= most(made, 0, 1)) == (0, True)
        assert len(made.file) / (moments[-1] - moments[0]) > 0.9 * rate
        check_archived(tmp_path, [made])


def test_a_fate_cuts_where_it_says() -> None:
    """The rig itself: bytes let through by CutAt and CutAfter, however the stream falls into pieces."""
    import asyncio

    content = bytes(range(200))

    async def through(fate: Fate, size: int) -> int:
        passed = 0
        for start in range(0, len(content), size):
            try:
                passed += len(await fate.piece(content[start : start + size]))
            except Cut as cut:
                return passed + len(cut.last)
        return passed

    for size in (1, 3, 7, 50, 200):
        for beyond in (-1, 0, 1):
            # A piece of the mark's own size or less has let its beginning through before the mark is known.
            if size > 1 or beyond >= 0:
                assert asyncio.run(through(CutAt(content[90:100], beyond), size)) == 100 + beyond
        assert asyncio.run(through(CutAfter(57), size)) == 57
