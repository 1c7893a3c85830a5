"""The rules of the link, between real sessions and a network that loses, repeats, reorders, damages and cuts."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.frame import (
    Chunks,
    EdgeFrame,
    GroundFrame,
)  # fmt: skip
from tests.streams import stream
from tests.world import PATIENCE_S, World, standing_out


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
