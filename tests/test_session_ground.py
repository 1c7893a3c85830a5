"""The ground's session believes nothing that it is told, and says what it has only when it has it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import pytest

from downlink import limits
from downlink.action import (
    Close,
    Commit,
    Finish,
    Open,
    Send,
    Status,
)  # fmt: skip
from downlink.frame import (
    GROUP_CHUNKS,
    GROUP_S,
    OPEN_SCENES_MAX,
    REVISION,
    Ack,
    Chunk,
    Chunks,
    EdgeFrame,
    Hello,
    Offer,
    Refusal,
    RefusalCode,
    Resend,
    SceneState,
    State,
)  # fmt: skip
from downlink.manifest import Manifest
from downlink.ranges import Range
from downlink.session import GroundSession
from tests.streams import stream
from tests.world import World, chunk, full, greeted, opened


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
