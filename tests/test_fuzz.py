"""Valid bytes with something done to them, to everything that reads bytes: refused by name, or read; nothing else.

`make fuzz` does the same for minutes, steered by coverage. What it ever finds is kept in tests/fuzz/fixtures and read
here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("rasterio", reason="pip install 'latent-downlink[ground]'")

import random

from downlink.errors import Corrupt, DownlinkError
from tests.fuzz import wire
from tests.fuzz.mutate import SIZE_MAX, mutated
from tests.fuzz.targets import TARGETS, real_streams, resigned, tolerated

FIXTURES = sorted((Path(__file__).parent / "fuzz" / "fixtures").glob("*"))
RAW = st.binary(max_size=24)
PLACE = st.floats(0, 1, exclude_max=True)
STEP = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("put"), PLACE, RAW),
    st.tuples(st.just("insert"), PLACE, RAW),
    st.tuples(st.just("cut"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("repeat"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("end"), PLACE, st.none()),
)


def done(seed: bytes, steps: list[tuple[str, float, object]]) -> bytes:
    """The seed with these steps done to it, each at a place that is a share of the length."""
    data = bytearray(seed)
    for what, place, how in steps:
        at = int(place * len(data))
        match what, how:
            case "flip", int(bit) if data:
                data[at] ^= 1 << bit
            case "put", bytes(raw):
                data[at : at + len(raw)] = raw
            case "insert", bytes(raw):
                data[at:at] = raw
            case "cut", int(count):
                del data[at : at + count]
            case "repeat", int(count):
                data[at:at] = data[at : at + count]
            case "end", _:
                del data[at:]
    return bytes(data[:SIZE_MAX])


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_what_is_valid_are_read_or_refused_by_name(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    if not seeds:
        pytest.skip("there is nothing here to start from")

    @settings(
        max_examples=30 if target.slow else 150, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(list(seeds)), st.lists(STEP, min_size=1, max_size=6))
    def check(seed: bytes, steps: list[tuple[str, float, object]]) -> None:
        assert tolerated(target, done(seed, steps))

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_valid_so_that_mutations_reach_deep(name: str) -> None:
    """At least one of each target's seeds is read to its end."""
    target = TARGETS[name]
    seeds = target.seeds()
    if not seeds:
        pytest.skip("there is nothing here to start from")
    good = 0
    for seed in seeds[:20]:
        try:
            target.read(seed)
            good += 1
        except DownlinkError:
            pass
    assert good


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_what_fuzzing_once_found_is_harmless_now(path: Path) -> None:
    target = TARGETS[path.name.rpartition("-")[0].replace("-", " ")]
    assert tolerated(target, path.read_bytes())


def test_a_resigned_stream_is_believed_up_to_its_payload() -> None:
    """The rig: with checksums made right, it is the entropy decoder that has to notice."""
    streams = real_streams()
    if not streams:
        pytest.skip("no released model")
    manifest, chunks = resigned(streams[0], 1, b"\x02not a payload")
    manifest.chunk_list(chunks[: len(manifest.pages)])
    with pytest.raises(DownlinkError) as refusal:
        TARGETS["chunk"].read(bytes([0, 1, 0]) + b"\x02not a payload")
    assert type(refusal.value) is not DownlinkError
    assert isinstance(refusal.value, Corrupt) or refusal.value.code in ("malformed", "unsupported")


def test_a_ground_stands_bytes_that_are_almost_a_conversation(tmp_path: Path) -> None:
    """A few seconds of what `make fuzz` does for longer: connections of mutated recordings, then an honest edge."""
    assert wire.attack(tmp_path, 3.0, seed=1) > 10


def test_the_blind_fuzzer_changes_what_it_is_given_and_keeps_its_bound() -> None:
    chance = random.Random(1)
    seeds = [bytes(range(200)), bytes(50)]
    made = [mutated(seeds, chance) for _ in range(500)]
    assert sum(data not in seeds for data in made) > 450
    assert max(map(len, made)) <= SIZE_MAX
    assert len({len(data) for data in made}) > 50
