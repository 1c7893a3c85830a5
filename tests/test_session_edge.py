"""The edge's session: what is sent, in which order, how much at once, and what is believed of the answers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downlink.action import (
    Close,
    Commit,
    Delivered,
    EdgeAction,
    Finish,
    Kept,
    Open,
    Outgoing,
    Paused,
    Refused,
    Send,
    Status,
)  # fmt: skip
from downlink.chunk import Kind
from downlink.frame import (
    REVISION,
    Ack,
    Chunks,
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
from downlink.layer import layer_ends
from downlink.manifest import Manifest
from downlink.ranges import Range, bitmap, cover, runs, runs_of
from downlink.session import EdgeSession, GroundSession
from downlink.window import Window
from tests.streams import Stream, stream
from tests.world import Store, chunk, full, greeted, opened, standing_out


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
