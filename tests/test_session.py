"""The rules of the link, between real sessions and a network that loses, repeats, reorders, damages and cuts."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink import limits
from downlink.action import (
    Close,
    Commit,
    Delivered,
    EdgeAction,
    Finish,
    GroundAction,
    Kept,
    Open,
    Outgoing,
    Paused,
    Refused,
    Reject,
    Send,
    Status,
)  # fmt: skip
from downlink.checksum import crc32c
from downlink.chunk import Kind
from downlink.errors import Corrupt
from downlink.frame import (
    GROUP_CHUNKS,
    GROUP_S,
    OPEN_SCENES_MAX,
    REVISION,
    Ack,
    Chunk,
    Chunks,
    EdgeFrame,
    GroundFrame,
    Hello,
    Offer,
    Pause,
    Refusal,
    RefusalCode,
    Resend,
    SceneState,
    State,
    Welcome,
)  # fmt: skip
from downlink.incoming import Incoming
from downlink.layer import layer_ends
from downlink.manifest import Manifest
from downlink.ranges import Range, bitmap, cover, runs, runs_of
from downlink.region import tile_chunks
from downlink.session import EdgeSession, GroundSession, refused
from downlink.window import Window
from tests.streams import Stream, stream

PATIENCE_S = 5.0


class Store:
    """What the ground has on disk. A commit is all or nothing; everything else is forgotten in a crash."""

    def __init__(self) -> None:
        self.chunks: dict[str, dict[int, bytes]] = {}
        self.durable: dict[str, bytes] = {}
        self.quarantined: dict[str, str] = {}

    def open(self, offered: Incoming) -> Incoming | SceneState:
        scene_id = offered.scene_id
        if scene_id in self.durable:
            return SceneState(scene_id, State.DURABLE)
        stored = self.chunks.setdefault(scene_id, {})
        for index in sorted(stored):
            if index < offered.pages:
                offered.learn(index, stored[index])
        offered.commit(stored)
        return offered

    def commit(self, commit: Commit) -> None:
        for arrival in commit.arrivals:
            assert arrival.content, "an empty chunk travelled"
            self.chunks.setdefault(arrival.incoming.scene_id, {})[arrival.index] = arrival.content

    def finish(self, incoming: Incoming) -> SceneState:
        stored = self.chunks[incoming.scene_id]
        payload = b"".join(stored[index] for index in sorted(stored))
        if hashlib.sha256(payload).digest() != incoming.manifest.payload_sha256:
            self.reject(incoming, "hash")
            return refused(incoming.scene_id, Corrupt("hash"))
        self.durable[incoming.scene_id] = payload
        return SceneState(incoming.scene_id, State.DURABLE)

    def reject(self, incoming: Incoming, reason: str) -> None:
        self.quarantined[incoming.scene_id] = reason
        self.chunks.pop(incoming.scene_id, None)


class World:
    """An edge with an outbox, a ground with a store, and two queues between them. Checks the promises at every step."""

    def __init__(self, streams: list[Stream], window: int = 200) -> None:
        self.streams = streams
        self.outbox = {made.id: made for made in streams}
        self.window = window
        self.store = Store()
        self.now = 0.0
        self.refusals: dict[str, Refusal] = {}
        self.ahead: dict[str, tuple[Range, ...]] = {}
        self.sent_chunks = self.sent_bytes = 0
        self.connect()

    def connect(self) -> None:
        """A new stream; nothing of the old one is left but the outbox and the store."""
        self.edge = EdgeSession("edge", window=Window(self.window), patience_s=PATIENCE_S)
        self.ground = GroundSession("ground")
        self.down: list[EdgeFrame] = []
        self.up: list[GroundFrame] = []
        self.open = True
        self.do_edge(self.edge.start(self.now))

    def do_edge(self, actions: list[EdgeAction]) -> None:
        for action in actions:
            match action:
                case Send(frame):
                    self.down.append(frame)
                case Delivered(scene_id):
                    assert scene_id in self.store.durable, "the edge forgets what the ground has not"
                    self.outbox.pop(scene_id, None)
                case Refused(scene_id, refusal):
                    self.refusals[scene_id] = refusal
                    if not refusal.retry_after_s:
                        self.outbox.pop(scene_id, None)
                case Paused() | Kept():
                    pass
                case Close():
                    self.open = False

    def do_ground(self, actions: list[GroundAction]) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            match action:
                case Send(frame):
                    if isinstance(frame, Ack):
                        self.check_ack(frame)
                    self.up.append(frame)
                case Open(incoming, _):
                    waiting += self.ground.opened(incoming.scene_id, self.store.open(incoming), self.now)
                case Commit():
                    self.store.commit(action)
                    waiting += self.ground.committed(action, self.now)
                case Finish(incoming):
                    waiting += self.ground.finished(incoming, self.store.finish(incoming), self.now)
                case Reject(incoming, reason):
                    self.store.reject(incoming, reason)
                case Close():
                    self.open = False

    def check_ack(self, ack: Ack) -> None:
        """An acknowledged chunk is in the store, with the right bytes."""
        if ack.scene_id in self.store.durable:
            return
        for item in ack.committed:
            for index in range(item.first, item.end):
                assert self.store.chunks[ack.scene_id].get(index) == self.outbox[ack.scene_id].chunks[index]

    def talk(self) -> bool:
        """The edge offers a scene or sends a frame of chunks, if it may."""
        for number, (scene_id, made) in enumerate(self.outbox.items()):
            if scene_id not in self.edge.known and self.edge.wants((0, 0, number)):
                outgoing = replace(made.outgoing(order=number), ahead=self.ahead.get(scene_id, ()))
                self.do_edge(self.edge.offer(outgoing, self.now))
                return True
        transmit = self.edge.take(100, self.now)
        assert self.edge.unacked <= max(self.window, max(made.lengths.max() for made in self.streams))
        if transmit is None:
            return False
        contents = self.outbox[transmit.scene_id].chunks
        parts = tuple(Chunk(index, crc32c(contents[index]), contents[index]) for index in transmit.indexes)
        self.sent_chunks += len(parts)
        self.sent_bytes += sum(len(part.content) for part in parts)
        self.down.append(Chunks(transmit.scene_id, parts, transmit.flush))
        return True

    def hear(self) -> bool:
        """Each end takes one frame from its queue."""
        busy = bool(self.down or self.up)
        if self.down:
            self.do_ground(self.ground.receive(self.down.pop(0), self.now))
        if self.up:
            self.do_edge(self.edge.receive(self.up.pop(0), self.now))
        return busy

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.do_ground(self.ground.tick(self.now))
        self.do_edge(self.edge.tick(self.now))

    def heal(self) -> None:
        """No more faults: everything must arrive in bounded time."""
        for _ in range(5000):
            if not self.outbox:
                return
            if not self.open:
                self.connect()
            if not (self.talk() | self.hear()):
                self.tick(GROUP_S)
        raise AssertionError(f"{len(self.outbox)} scenes never arrived")

    def check_arrived(self, streams: list[Stream]) -> None:
        assert self.store.durable == {made.id: b"".join(made.chunks) for made in streams}


def test_a_scene_goes_down() -> None:
    made = stream()
    world = World([made])
    world.heal()
    world.check_arrived([made])
    assert world.sent_chunks == len(made.sent)  # nothing twice, nothing empty


def damaged(frame: EdgeFrame, source: random.Random) -> EdgeFrame:
    if not isinstance(frame, Chunks):
        return frame
    chunk = source.choice(frame.chunks)
    flipped = bytearray(chunk.content)
    flipped[source.randrange(len(flipped))] ^= 1 << source.randrange(8)
    bad = replace(chunk, content=bytes(flipped))
    return replace(frame, chunks=tuple(bad if part is chunk else part for part in frame.chunks))


def standing_out(made: Stream) -> tuple[Range, ...]:
    """Chunks of two of its nine tiles."""
    return tile_chunks(Manifest.unpack(made.packed), (7, 4))


FAULTS = ("talk", "hear", "hear", "tick", "lose", "repeat", "swap", "damage", "cut")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(FAULTS), max_size=120), st.randoms(use_true_random=False), st.integers(1, 300))
def test_whatever_the_network_does_everything_arrives(steps: list[str], source: random.Random, window: int) -> None:
    streams = [stream(seed) for seed in range(3)]
    world = World(streams, window)
    world.ahead[streams[1].id] = standing_out(streams[1])
    for step in steps:
        if not world.open:
            world.connect()
        queue: list[EdgeFrame] | list[GroundFrame] = source.choice([world.down, world.up])
        match step:
            case "talk":
                world.talk()
            case "hear":
                world.hear()
            case "tick":
                world.tick(source.uniform(0, PATIENCE_S))
            case "lose" if queue:
                queue.pop(source.randrange(len(queue)))
            case "repeat" if queue:
                queue.append(source.choice(queue))  # type: ignore[arg-type]
            case "swap" if queue:
                source.shuffle(queue)
            case "damage" if world.down:
                place = source.randrange(len(world.down))
                world.down[place] = damaged(world.down[place], source)
            case "cut":  # or a crash of either end: only the outbox and the store outlive a session
                world.connect()
    world.heal()
    world.check_arrived(streams)


@pytest.mark.parametrize("stands_out", [False, True])
@pytest.mark.parametrize("after", range(0, 30, 3))
def test_a_cut_costs_at_most_one_window(after: int, stands_out: bool) -> None:
    made = stream()
    world = World([made], window=200)
    world.ahead[made.id] = standing_out(made) if stands_out else ()
    sent = 0
    while sent < after and world.outbox:
        sent += world.talk()
        world.hear()
    world.connect()
    world.heal()
    world.check_arrived([made])
    assert world.sent_bytes <= made.lengths.sum() + 200


# --- the ground believes nothing ---


def greeted() -> tuple[GroundSession, Store]:
    ground = GroundSession("ground", look_s=math.inf)  # nobody asks for anything
    ground.receive(Hello(REVISION, "edge"), 0.0)
    return ground, Store()


def opened(made: Stream) -> tuple[GroundSession, Store, Incoming]:
    ground, store = greeted()
    [action] = ground.receive(Offer(made.id, made.packed), 0.0)
    assert isinstance(action, Open)
    ground.opened(made.id, store.open(action.incoming), 0.0)
    return ground, store, action.incoming


def chunk(made: Stream, index: int) -> Chunk:
    return Chunk(index, crc32c(made.chunks[index]), made.chunks[index])


def full(made: Stream, count: int) -> list[Chunk]:
    return [chunk(made, index) for index in sorted(made.sent)[:count]]


@pytest.mark.parametrize("frame", [Offer("ab" * 32, b"x"), Chunks("ab" * 32, (Chunk(0, 0, b"x"),))])
def test_a_stream_begins_with_hello(frame: EdgeFrame) -> None:
    [action] = GroundSession("ground").receive(frame, 0.0)
    assert isinstance(action, Close)
    assert action.status is Status.INVALID_ARGUMENT
    assert "before Hello" in action.reason


def test_hello_comes_once() -> None:
    ground, _ = greeted()
    [action] = ground.receive(Hello(REVISION, "edge"), 0.0)
    assert isinstance(action, Close)
    assert action.status is Status.INVALID_ARGUMENT


def test_another_revision_is_refused_naming_both() -> None:
    [action] = GroundSession("ground").receive(Hello(REVISION + 1, "edge"), 0.0)
    assert isinstance(action, Close)
    assert action.status is Status.FAILED_PRECONDITION
    assert str(REVISION) in action.reason
    assert str(REVISION + 1) in action.reason


def test_chunks_of_a_scene_that_was_not_offered_end_the_stream() -> None:
    ground, _ = greeted()
    [action] = ground.receive(Chunks("ab" * 32, (Chunk(0, 0, b"x"),)), 0.0)
    assert isinstance(action, Close)
    assert action.status is Status.INVALID_ARGUMENT


def test_a_chunk_number_past_the_end_ends_the_stream() -> None:
    made = stream()
    ground, _, _ = opened(made)
    *_, action = ground.receive(Chunks(made.id, (Chunk(len(made.chunks), 0, b"x"),)), 0.0)
    assert isinstance(action, Close)
    assert action.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (stream().packed[:-1], RefusalCode.MALFORMED),
        (b"\x63" + stream().packed[1:], RefusalCode.UNSUPPORTED),
        (b"\x01" + bytes(limits.MANIFEST_BYTES_MAX), RefusalCode.TOO_LARGE),
    ],
)
def test_bad_manifests_are_refused_and_the_stream_goes_on(packed: bytes, code: RefusalCode) -> None:
    ground, _ = greeted()
    scene_id = hashlib.sha256(packed).hexdigest()
    [action] = ground.receive(Offer(scene_id, packed), 0.0)
    assert isinstance(action, Send)
    assert isinstance(action.frame, SceneState)
    assert action.frame.refusal is not None
    assert action.frame.refusal.code is code
    assert action.frame.refusal.retry_after_s == 0
    assert isinstance(ground.receive(Offer(stream().id, stream().packed), 0.0)[0], Open)


def test_a_manifest_under_a_wrong_id_is_refused() -> None:
    ground, _ = greeted()
    [action] = ground.receive(Offer("ab" * 32, stream().packed), 0.0)
    assert isinstance(action, Send)
    assert action.frame.refusal.code is RefusalCode.CORRUPT


def test_an_offer_that_came_damaged_is_asked_for_again() -> None:
    made = stream()
    ground, store = greeted()
    [action] = ground.receive(Offer(made.id, made.packed[:-1] + b"?"), 0.0)
    assert isinstance(action, Send)
    assert action.frame.refusal.retry_after_s > 0
    [action] = ground.receive(Offer(made.id, made.packed), 1.0)
    assert isinstance(action, Open)
    ground.opened(made.id, store.open(action.incoming), 1.0)
    assert isinstance(ground.receive(Chunks(made.id, (chunk(made, 0),), True), 1.0)[0], Commit)


def test_a_scene_refused_for_want_of_space_is_taken_later_on_the_same_stream() -> None:
    made = stream()
    ground, store = greeted()
    [action] = ground.receive(Offer(made.id, made.packed), 0.0)
    assert isinstance(action, Open)
    full = SceneState(made.id, State.REFUSED, (), Refusal(RefusalCode.EXHAUSTED, "full", 60))
    assert ground.opened(made.id, full, 0.0) == [Send(full)]
    [action] = ground.receive(Offer(made.id, made.packed), 60.0)
    assert isinstance(action, Open)
    ground.opened(made.id, store.open(action.incoming), 60.0)
    assert isinstance(ground.receive(Chunks(made.id, (chunk(made, 0),), True), 60.0)[0], Commit)


def test_no_more_scenes_than_allowed_are_open() -> None:
    ground, store = greeted()
    for seed in range(OPEN_SCENES_MAX):
        [action] = ground.receive(Offer(stream(seed).id, stream(seed).packed), 0.0)
        assert isinstance(action, Open)
        ground.opened(action.incoming.scene_id, store.open(action.incoming), 0.0)
    [action] = ground.receive(Offer(stream(99).id, stream(99).packed), 0.0)
    assert isinstance(action, Send)
    assert action.frame.refusal.code is RefusalCode.BUSY
    assert action.frame.refusal.retry_after_s > 0


def test_a_damaged_chunk_is_neither_stored_nor_acknowledged() -> None:
    made = stream()
    ground, _, _ = opened(made)
    page = chunk(made, 0)
    for bad in (replace(page, content=page.content[:-1] + b"\x00\x01"[:1]), replace(page, crc32c=page.crc32c ^ 1)):
        actions = ground.receive(Chunks(made.id, (bad,), flush=True), 0.0)
        [action] = actions
        assert isinstance(action, Send)
        assert isinstance(action.frame, Resend)
        assert action.frame.ranges == (Range(0, 1),)


def test_a_chunk_of_another_scene_is_not_stored() -> None:
    made, other = stream(0), stream(1)
    ground, _, _ = opened(made)
    ground.receive(Chunks(made.id, (chunk(made, 0),)), 0.0)
    index = min((made.sent & other.sent) - {0})
    *_, action = ground.receive(Chunks(made.id, (chunk(other, index),)), 0.0)
    assert isinstance(action, Send)
    assert isinstance(action.frame, Resend)


def test_chunks_before_the_chunk_list_are_asked_for_again() -> None:
    made = stream()
    ground, _, _ = opened(made)
    index = min(made.sent - {0})
    [action] = ground.receive(Chunks(made.id, (chunk(made, index),)), 0.0)
    assert isinstance(action, Send)
    assert isinstance(action.frame, Resend)
    assert "pages first" in action.frame.reason


def test_too_many_damaged_chunks_end_the_stream() -> None:
    made = stream()
    ground, _, _ = opened(made)
    bad = replace(chunk(made, 0), crc32c=1)
    for _ in range(1000):
        actions = ground.receive(Chunks(made.id, (bad,)), 0.0)
        if isinstance(actions[-1], Close):
            assert actions[-1].status is Status.DATA_LOSS
            return
    raise AssertionError("a peer may send damaged chunks for ever")


def test_commits_come_in_groups_after_a_while_or_on_demand() -> None:
    made = stream(side=320)  # 100 tiles
    ground, _, _ = opened(made)
    parts = full(made, GROUP_CHUNKS)
    assert ground.receive(Chunks(made.id, tuple(parts[:1])), 10.0) == []
    assert ground.deadline == 10.0 + GROUP_S
    assert ground.receive(Chunks(made.id, tuple(parts[1:-1])), 10.1) == []
    assert ground.tick(10.0 + GROUP_S - 0.01) == []
    [commit] = ground.receive(Chunks(made.id, tuple(parts[-1:])), 10.2)
    assert isinstance(commit, Commit)
    assert len(commit.arrivals) == GROUP_CHUNKS
    assert ground.deadline == math.inf
    more = [chunk(made, index) for index in sorted(made.sent)[GROUP_CHUNKS : GROUP_CHUNKS + 3]]
    ground.receive(Chunks(made.id, tuple(more[:1])), 20.0)
    assert isinstance(ground.tick(20.0 + GROUP_S)[0], Commit)
    assert isinstance(ground.receive(Chunks(made.id, tuple(more[1:2]), flush=True), 20.0)[0], Commit)
    ground.receive(Chunks(made.id, tuple(more[2:])), 20.0)
    assert isinstance(ground.end(20.0)[0], Commit)


def test_nothing_is_acknowledged_before_it_is_committed() -> None:
    made = stream()
    ground, store, _ = opened(made)
    actions = ground.receive(Chunks(made.id, (chunk(made, 0),), flush=True), 0.0)
    [commit] = actions
    assert isinstance(commit, Commit)
    store.commit(commit)
    [ack] = ground.committed(commit, 0.0)
    assert ack == Send(Ack(made.id, (Range(0, 1),)))


def test_a_failed_commit_ends_the_stream_without_an_acknowledgement() -> None:
    made = stream()
    ground, _, _ = opened(made)
    ground.receive(Chunks(made.id, (chunk(made, 0),), flush=True), 0.0)
    assert ground.failed(Status.RESOURCE_EXHAUSTED, "full", 0.0) == [Close(Status.RESOURCE_EXHAUSTED, "full")]


def test_duplicates_are_acknowledged_and_not_stored_again() -> None:
    made = stream()
    ground, store, _ = opened(made)
    [commit] = ground.receive(Chunks(made.id, (chunk(made, 0),), flush=True), 0.0)
    assert isinstance(commit, Commit)
    again = Chunks(made.id, (chunk(made, 0),), flush=True)
    assert ground.receive(again, 0.0) == []  # being committed: the acknowledgement is on its way
    store.commit(commit)
    ground.committed(commit, 0.0)
    assert ground.receive(again, 0.0) == [Send(Ack(made.id, (Range(0, 1),)))]


def test_late_chunks_and_offers_of_a_finished_scene_are_answered_durable() -> None:
    made = stream()
    world = World([made])
    world.heal()
    durable = Send(made.durable)
    assert world.ground.receive(Chunks(made.id, (chunk(made, 0),)), 0.0) == [durable]
    world.outbox = {made.id: made}
    before = world.sent_chunks
    world.connect()
    world.heal()
    assert world.sent_chunks == before


def test_a_lying_chunk_list_is_refused() -> None:
    """Pages whose own checksums are right, in a manifest whose sums are not theirs."""
    made, other = stream(0), stream(1)
    ours, theirs = Manifest.unpack(made.packed), Manifest.unpack(other.packed)
    lying = Manifest(**{**{name: getattr(ours, name) for name in ours.__struct_fields__}, "pages": theirs.pages}).pack()
    liar = replace(made, packed=lying, chunks=(other.chunks[0], *made.chunks[1:]))
    world = World([liar])
    world.heal()
    assert world.store.durable == {}
    assert world.refusals[liar.id].code is RefusalCode.MALFORMED
    assert liar.id in world.store.quarantined


def test_a_payload_that_misses_its_hash_is_refused() -> None:
    made = stream()
    ours = Manifest.unpack(made.packed)
    fields = {name: getattr(ours, name) for name in ours.__struct_fields__}
    liar = replace(made, packed=Manifest(**{**fields, "payload_sha256": bytes(32)}).pack())
    world = World([liar])
    world.heal()
    assert world.store.durable == {}
    assert world.refusals[liar.id].code is RefusalCode.CORRUPT


def test_two_streams_may_carry_one_scene() -> None:
    """A node that comes back before the ground knows that its old stream is dead."""
    made = stream()
    one, store, incoming = opened(made)
    two = GroundSession("ground")
    two.receive(Hello(REVISION, "edge"), 0.0)
    two.receive(Offer(made.id, made.packed), 0.0)
    two.opened(made.id, incoming, 0.0)
    parts = full(made, 1000)
    [commit] = one.receive(Chunks(made.id, tuple(parts[:5]), flush=True), 0.0)
    assert isinstance(commit, Commit)
    store.commit(commit)
    one.committed(commit, 0.0)
    [ack, commit] = two.receive(Chunks(made.id, tuple(parts), flush=True), 0.0)
    assert isinstance(ack, Send)
    assert isinstance(commit, Commit)
    assert {arrival.index for arrival in commit.arrivals} == made.sent - {part.index for part in parts[:5]}
    store.commit(commit)
    assert isinstance(two.committed(commit, 0.0)[-1], Finish)
    # and the stream that brought none of the last chunks is not left waiting for its scene
    again = one.receive(Chunks(made.id, (chunk(made, 0),)), 0.0)
    assert again == [Send(Ack(made.id, (Range(0, 1),))), Finish(incoming)]


# --- the edge ---


def offered(edge: EdgeSession, outgoing: Outgoing) -> None:
    """Offer it, and hear that the ground lacks all of it."""
    edge.offer(outgoing, 0.0)
    edge.receive(SceneState(outgoing.scene_id, State.RECEIVING, (Range(0, len(outgoing.lengths)),)), 0.0)


def layered(made: Stream) -> tuple[list[int], list[int]]:
    """The chunks that travel, by layer."""
    [end, _] = layer_ends(Manifest.unpack(made.packed))
    sent = sorted(made.sent)
    return [index for index in sent if index < end], [index for index in sent if index >= end]


def test_scenes_go_by_priority_then_layer_by_layer_then_in_order() -> None:
    edge = EdgeSession("edge")
    edge.receive(Welcome(REVISION, "ground"), 0.0)
    for number, (seed, priority) in enumerate([(0, 0), (1, 5), (2, 0)]):
        offered(edge, stream(seed).outgoing(priority, number))
    order: list[tuple[str, int]] = []
    while transmit := edge.take(50, 0.0):
        order += [(transmit.scene_id, index) for index in transmit.indexes]
        edge.receive(Ack(transmit.scene_id, runs_of(transmit.indexes)), 0.0)
    turns = [(1, 0), (1, 1), (0, 0), (2, 0), (0, 1), (2, 1)]  # seed, layer
    assert order == [(stream(seed).id, index) for seed, layer in turns for index in layered(stream(seed))[layer]]


def test_a_scene_whose_turn_has_passed_gives_its_place_to_the_next() -> None:
    """One place, three scenes: each is sent to the end of its first layer before any is sent further."""
    edge = EdgeSession("edge")
    edge.receive(Welcome(REVISION, "ground", open_scenes_max=1), 0.0)
    scenes = [stream(seed) for seed in range(3)]
    waiting = [made.outgoing(0, number) for number, made in enumerate(scenes)]
    order: list[tuple[str, int]] = []
    for _ in range(1000):
        waiting.sort(key=lambda scene: (scene.layer, scene.order))
        while waiting and edge.wants((0, waiting[0].layer, waiting[0].order)):
            coming = waiting.pop(0)
            actions = edge.offer(coming, 0.0)
            for action in actions:
                if isinstance(action, Paused):
                    waiting.append(replace(action.outgoing, layer=action.layer))
            done = [index for scene_id, index in order if scene_id == coming.scene_id]
            state = np.ones(len(coming.lengths), bool)
            state[done] = False
            edge.receive(SceneState(coming.scene_id, State.RECEIVING, runs(state)), 0.0)
            waiting.sort(key=lambda scene: (scene.layer, scene.order))
        transmit = edge.take(30, 0.0)
        if transmit is None:
            break
        order += [(transmit.scene_id, index) for index in transmit.indexes]
        edge.receive(Ack(transmit.scene_id, runs_of(transmit.indexes)), 0.0)
    assert order == [(made.id, index) for layer in (0, 1) for made in scenes for index in layered(made)[layer]]


def test_a_paused_scene_becomes_durable_all_the_same() -> None:
    made = stream()
    ground, store, _ = opened(made)
    [commit] = ground.receive(Chunks(made.id, tuple(full(made, 1000))), 0.0)
    assert ground.receive(Pause(made.id), 0.0) == []
    assert isinstance(commit, Commit)
    store.commit(commit)
    ack, finish = ground.committed(commit, 0.0)
    assert isinstance(ack, Send)
    assert isinstance(finish, Finish)
    assert ground.finished(finish.incoming, store.finish(finish.incoming), 0.0) == [Send(made.durable)]


def test_a_pause_gives_the_place_to_another_scene() -> None:
    ground, store = GroundSession("ground", places=1), Store()
    ground.receive(Hello(REVISION, "edge"), 0.0)
    for seed in range(5):
        [action] = ground.receive(Offer(stream(seed).id, stream(seed).packed), 0.0)
        assert isinstance(action, Open), seed
        ground.opened(action.incoming.scene_id, store.open(action.incoming), 0.0)
        ground.receive(Pause(stream(seed).id), 0.0)
    *_, close = ground.receive(Chunks(stream(0).id, (chunk(stream(0), 0),)), 0.0)
    assert isinstance(close, Close)


def test_a_scene_that_was_never_offered_is_sent_without_asking() -> None:
    made = stream()
    edge, (ground, store) = EdgeSession("edge"), greeted()
    edge.start(-1.0)
    edge.receive(Welcome(REVISION, "far away"), 0.0)
    [offer] = edge.offer(replace(made.outgoing(), lacks_from=0), 0.0)
    assert isinstance(offer, Send)
    [action] = ground.receive(offer.frame, 0.0)
    assert isinstance(action, Open)
    ground.opened(made.id, store.open(action.incoming), 0.0)
    sent: list[int] = []
    while transmit := edge.take(100, 0.0):
        sent += transmit.indexes
        [*_, last] = ground.receive(Chunks(made.id, tuple(chunk(made, index) for index in transmit.indexes), True), 0.0)
        assert isinstance(last, Commit)
        store.commit(last)
        [*_, end] = ground.committed(last, 0.0)
    assert sent == sorted(made.sent)
    assert isinstance(end, Finish)


def test_a_ground_that_is_near_is_asked() -> None:
    edge = EdgeSession("edge")
    edge.start(0.0)
    edge.receive(Welcome(REVISION, "near"), 0.01)
    edge.offer(replace(stream().outgoing(), lacks_from=0), 0.02)
    assert edge.take(100, 0.03) is None


def test_chunks_sent_without_asking_for_a_scene_that_is_refused_do_no_harm() -> None:
    made = stream()
    ground, _ = greeted()
    [action] = ground.receive(Offer(made.id, made.packed), 0.0)
    assert isinstance(action, Open)
    full_disk = SceneState(made.id, State.REFUSED, (), Refusal(RefusalCode.EXHAUSTED, "full", 60))
    ground.opened(made.id, full_disk, 0.0)
    assert ground.receive(Chunks(made.id, (chunk(made, 0),)), 0.0) == [Send(full_disk)]


def test_only_the_layers_that_are_wanted_are_sent_and_what_is_asked_for_goes_first() -> None:
    made = stream()
    coarse, fine = layered(made)
    edge = EdgeSession("edge")
    asked = Range(fine[2], 1)
    offered(edge, replace(made.outgoing(), layers=1, first=(asked,)))
    sent: list[int] = []
    actions: list[EdgeAction] = []
    while transmit := edge.take(1, 0.0):
        sent += transmit.indexes
        actions += edge.receive(Ack(made.id, runs_of(transmit.indexes)), 0.0)
    assert sent == [0, fine[2], *coarse[1:]]  # the chunk list before all
    assert actions == [Send(Pause(made.id)), Kept(made.id)]
    assert edge.known == frozenset()


def test_tiles_that_stand_out_are_whole_before_anyones_second_layer() -> None:
    """In the first layer they go before the others; then comes everybody's first layer; then the rest of them."""
    edge = EdgeSession("edge")
    edge.receive(Welcome(REVISION, "ground"), 0.0)
    made, plain = stream(0), stream(1)
    offered(edge, replace(made.outgoing(), ahead=standing_out(made)))
    offered(edge, plain.outgoing(0, 1))
    order: list[tuple[str, int]] = []
    while transmit := edge.take(1, 0.0):
        order += [(transmit.scene_id, index) for index in transmit.indexes]
        edge.receive(Ack(transmit.scene_id, runs_of(transmit.indexes)), 0.0)
    layout = Manifest.unpack(made.packed).layout()
    tiles = [[index for index in layout.latents_of(0, tile) if index in made.sent] for tile in (7, 4)]
    coarse, fine = ([one for tile in tiles for one in tile if one in layer] for layer in layered(made))
    assert coarse
    assert fine
    base = [index for index in layered(made)[0] if layout.key(index).kind is not Kind.LATENT]
    rest = [[index for index in layer if index not in {*base, *coarse, *fine}] for layer in layered(made)]
    mine = [base + coarse + rest[0], fine + rest[1]]
    turns = [(made, mine[0]), (plain, layered(plain)[0]), (made, mine[1]), (plain, layered(plain)[1])]
    assert order == [(one.id, index) for one, indexes in turns for index in indexes]


@pytest.mark.parametrize("after", range(1, 20))
def test_a_pause_amid_tiles_that_stand_out_says_only_what_is_true_of_what_is_lacking(after: int) -> None:
    made = stream()
    edge = EdgeSession("edge")
    edge.receive(Welcome(REVISION, "ground", open_scenes_max=1), 0.0)
    offered(edge, replace(made.outgoing(), ahead=standing_out(made)))
    sent: set[int] = set()
    for _ in range(after):
        transmit = edge.take(1, 0.0)
        assert transmit is not None
        sent.update(transmit.indexes)
    [paused] = [one for one in edge.offer(stream(1).outgoing(5), 0.0) if isinstance(one, Paused)]
    lacking = made.sent - sent
    if paused.lacks_from is None:
        assert {index for index in made.sent if index >= min(lacking)} != lacking
    else:
        assert {index for index in made.sent if index >= paused.lacks_from} == lacking


def test_a_scene_of_which_the_ground_lacks_only_what_is_not_wanted_is_kept() -> None:
    made = stream()
    _, fine = layered(made)
    edge = EdgeSession("edge")
    edge.offer(replace(made.outgoing(), layers=1), 0.0)
    actions = edge.receive(SceneState(made.id, State.RECEIVING, (Range(fine[0], 50),)), 0.0)
    assert actions == [Send(Pause(made.id)), Kept(made.id)]


def test_a_chunk_whose_fate_is_hidden_by_a_damaged_word_is_sent_again() -> None:
    made = stream()
    edge = EdgeSession("edge", patience_s=10)
    offered(edge, made.outgoing())
    one = edge.take(1, 0.0)
    two = edge.take(1, 9.0)
    assert one is not None
    assert two is not None
    edge.receive(Ack(made.id, runs_of(two.indexes)), 9.5)  # the one for `one` has come with another scene's name
    assert edge.tick(9.6) == []
    again = edge.take(1, 9.6)
    assert again is not None
    assert again.indexes == one.indexes


def test_a_ground_that_has_fewer_places_than_thought_is_believed() -> None:
    edge = EdgeSession("edge")
    edge.receive(Welcome(REVISION, "ground", open_scenes_max=2), 0.0)
    busy = Refusal(RefusalCode.BUSY, "two are open", 10)
    for seed in range(2):
        edge.offer(stream(seed).outgoing(order=seed), 0.0)
    assert edge.receive(SceneState(stream(1).id, State.REFUSED, (), busy), 0.0) == [Refused(stream(1).id, busy)]
    assert not edge.wants((0, 0, 2))
    [close] = edge.receive(SceneState(stream(0).id, State.REFUSED, (), busy), 0.0)
    assert isinstance(close, Close)  # a new stream knows of no stale places


def test_nothing_is_sent_before_the_ground_says_what_is_missing() -> None:
    edge = EdgeSession("edge")
    edge.offer(stream().outgoing(), 0.0)
    assert edge.take(1000, 0.0) is None


def test_only_what_is_missing_is_sent() -> None:
    made = stream()
    edge = EdgeSession("edge")
    edge.offer(made.outgoing(), 0.0)
    edge.receive(SceneState(made.id, State.RECEIVING, (Range(3, 4), Range(10, 1000))), 0.0)
    sent: set[int] = set()
    while transmit := edge.take(1000, 0.0):
        sent.update(transmit.indexes)
    assert sent == made.sent & {*range(3, 7), *range(10, 1000)}


def test_the_window_bounds_what_is_in_flight_and_its_halves_are_flushed() -> None:
    made = stream(side=320)
    edge = EdgeSession("edge", window=Window(700))
    offered(edge, made.outgoing())
    assert int(made.lengths.max()) > 700  # the page: one chunk goes whatever its size
    page = edge.take(10, 0.0)
    assert page is not None
    assert edge.take(10, 0.0) is None
    edge.receive(Ack(made.id, runs_of(page.indexes)), 0.0)
    sent, flushes = [], 0
    while transmit := edge.take(20, 0.0):
        sent += transmit.indexes
        flushes += transmit.flush
    assert 700 - 30 <= edge.unacked == made.lengths[sent].sum() <= 700
    assert 2 <= flushes <= 4
    edge.receive(Ack(made.id, runs_of(sent[:3])), 0.0)
    assert edge.unacked == made.lengths[sent[3:]].sum()
    assert edge.take(1 << 20, 0.0) is not None


def test_a_chunk_to_be_sent_again_goes_first() -> None:
    made = stream()
    edge = EdgeSession("edge", window=Window(int(made.lengths[:2].sum())))
    assert made.lengths[1] > 0
    edge.offer(made.outgoing(), 0.0)
    edge.receive(SceneState(made.id, State.RECEIVING, (Range(0, len(made.chunks)),)), 0.0)
    first = edge.take(1, 0.0)
    second = edge.take(1, 0.0)
    assert first is not None
    assert second is not None
    assert edge.take(1, 0.0) is None
    edge.receive(Resend(made.id, runs_of(first.indexes), "damaged"), 0.0)
    assert edge.unacked == made.lengths[1]
    again = edge.take(1, 0.0)
    assert again is not None
    assert again.indexes == first.indexes


def test_silence_ends_a_stream_only_while_something_is_owed() -> None:
    edge = EdgeSession("edge", patience_s=10)
    assert edge.deadline is None
    edge.offer(stream().outgoing(), 5.0)
    assert edge.deadline == 15.0
    edge.receive(Welcome(REVISION, "ground"), 8.0)
    assert edge.deadline == 18.0
    assert edge.tick(17.9) == []
    [close] = edge.tick(18.0)
    assert isinstance(close, Close)
    edge.receive(stream().durable, 9.0)
    assert edge.deadline is None


def test_a_ground_that_wants_what_the_outbox_lacks_is_told_apart_from_silence() -> None:
    made = stream()
    holes = Outgoing(made.id, made.packed, np.zeros(len(made.chunks), np.uint32))
    edge = EdgeSession("edge")
    edge.offer(holes, 0.0)
    [action] = edge.receive(SceneState(made.id, State.RECEIVING, (Range(0, 5),)), 0.0)
    assert isinstance(action, Close)
    assert action.status is Status.DATA_LOSS


def test_frames_about_unknown_scenes_are_ignored() -> None:
    edge = EdgeSession("edge")
    other = "ab" * 32
    for frame in (
        Ack(other, (Range(0, 9),)),
        Resend(other, (Range(0, 9),), "?"),
        SceneState(other, State.DURABLE),
        SceneState(other, State.RECEIVING, (Range(0, 9),)),
    ):
        assert edge.receive(frame, 0.0) == []


def test_nothing_is_forgotten_for_a_durable_without_the_manifests_hash() -> None:
    """One flipped bit makes DURABLE of REFUSED, and no checksum of gRPC's sees it."""
    made = stream()
    for lie in (b"", bytes(32), stream(1).durable.payload_sha256):
        edge = EdgeSession("edge")
        edge.offer(made.outgoing(), 0.0)
        [action] = edge.receive(replace(made.durable, payload_sha256=lie), 0.0)
        assert isinstance(action, Close)
        assert edge.known == {made.id}
    assert edge.receive(made.durable, 0.0) == [Delivered(made.id)]


def test_a_withdrawn_scene_is_sent_no_more() -> None:
    made = stream()
    edge = EdgeSession("edge")
    edge.offer(made.outgoing(), 0.0)
    edge.receive(SceneState(made.id, State.RECEIVING, (Range(0, 9),)), 0.0)
    edge.withdraw(made.id, 0.0)
    assert edge.take(1000, 0.0) is None
    assert edge.deadline is None


# --- ranges ---


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 8))
def test_ranges_and_bitmaps_are_the_same_thing(bits: list[bool], most: int) -> None:
    mask = np.array(bits, bool)
    exact = runs(mask)
    assert (bitmap(len(mask), exact) == mask).all()
    assert runs_of(np.flatnonzero(mask).tolist()) == exact
    assert all(left.end < right.first for left, right in itertools.pairwise(exact))
    covering = cover(mask, most)
    assert len(covering) <= most
    assert (bitmap(len(mask), covering) | ~mask).all()
