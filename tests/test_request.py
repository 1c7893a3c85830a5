"""Requests of the ground: what may be asked, and when which is said on a stream."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from downlink import limits
from downlink.action import Answered, Close, GroundAction, Look, ReadPart, Send, Waiting
from downlink.asking import AGAIN_S, LOOK_S, Asking
from downlink.errors import LinkError
from downlink.frame import PART_BYTES_MAX, PARTS_AHEAD_BYTES, Answer, Ask, BundlePart, Progress, Verdict
from downlink.framing import edge_frame, edge_message, ground_frame, ground_message
from downlink.ranges import Range, runs_of
from downlink.request import (
    PRIORITY_MAX,
    TARGETS,
    Cancel,
    Install,
    Refine,
    Request,
    Rollback,
    SetPriority,
    SetTarget,
    pack,
    scene_of,
    unpack,
)
from downlink.wire import link_pb2 as pb

ID = "3f" * 32
NAMES = st.text("abcxyz019._-", min_size=1, max_size=64).filter(
    lambda name: name[0].isalnum() and name != "bundle.json"
)
IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
RANGES = st.sets(st.integers(0, limits.CHUNKS_MAX - 1), max_size=20).map(runs_of)


def targets() -> st.SearchStrategy[SetTarget]:
    def whole(name: str, value: float) -> float:
        return float(int(value)) if name in ("stream_bytes", "max_error") else value

    layers = st.integers(0, limits.GROUPS_MAX)
    stated = [
        st.builds(SetTarget, st.just(name), st.floats(*bounds).map(lambda value, name=name: whole(name, value)), layers)
        for name, bounds in TARGETS.items()
    ]
    return st.one_of(st.builds(SetTarget, layers=layers), *stated)


def installs() -> st.SearchStrategy[Install]:
    def made(bundle_id: str, names: list[str], sizes: list[int], signed: bool) -> Install:
        files = [("bundle.json", 100), *zip(names, sizes, strict=False)]
        return Install(bundle_id, tuple(files), bytes(64) if signed else b"")

    names = st.lists(NAMES, min_size=1, max_size=9, unique=True)
    sizes = st.lists(st.integers(1, 10**6), min_size=9, max_size=9)
    return st.builds(made, IDS, names, sizes, st.booleans())


REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(Refine, IDS, st.integers(0, limits.GROUPS_MAX), RANGES),
    st.builds(SetPriority, IDS, st.integers(-PRIORITY_MAX, PRIORITY_MAX)),
    st.builds(Cancel, IDS),
    targets(),
    installs(),
    st.just(Rollback()),
)


@given(REQUESTS)
def test_what_is_asked_arrives(request_: Request) -> None:
    assert unpack(pack(request_)) == request_
    assert (scene_of(request_) is None) is isinstance(request_, SetTarget | Install | Rollback)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(raw: bytes) -> None:
    try:
        found = unpack(raw)
    except LinkError:
        return
    assert unpack(pack(found)) == found


FILE = {"name": "a.onnx", "bytes": 1}
JSON = {"name": "bundle.json", "bytes": 1}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.Request(), "a kind of request that this node does not know"),
        (pb.Request(cancel=pb.Cancel(scene_id=b"x")), "an id of 1 bytes"),
        (pb.Request(refine=pb.Refine(scene_id=bytes(32), first=[pb.Range(first=3)])), "is empty"),
        (pb.Request(set_priority=pb.SetPriority(scene_id=bytes(32), priority=1001)), "priority of 1001"),
        (pb.Request(set_target=pb.SetTarget(quality=float("nan"))), "quality of nan"),
        (pb.Request(set_target=pb.SetTarget(psnr_db=200)), "psnr_db of 200"),
        (pb.Request(set_target=pb.SetTarget(layers=limits.GROUPS_MAX + 1)), "65 layers"),
        (pb.Request(install=pb.Install(bundle_id=bytes(32), files=[JSON])), "bundle of 1 files"),
        (pb.Request(install=pb.Install(bundle_id=bytes(32), files=[FILE, JSON])), "bundle.json first"),
        (pb.Request(install=pb.Install(bundle_id=bytes(32), files=[JSON, FILE, FILE])), "different names"),
        (pb.Request(install=pb.Install(bundle_id=bytes(32), files=[JSON, {"name": "../x", "bytes": 1}])), "plain name"),
        (pb.Request(install=pb.Install(bundle_id=bytes(32), files=[JSON, {"name": "x", "bytes": 0}])), "empty"),
        (pb.Request(install=pb.Install(bundle_id=bytes(32), files=[JSON, FILE], signature=b"x")), "signature of 1"),
    ],
)  # fmt: skip
def test_what_may_not_be_asked_is_refused(message: pb.Request, reason: str) -> None:
    with pytest.raises(LinkError, match=reason):
        unpack(message.SerializeToString())


def test_bundles_and_requests_are_bounded() -> None:
    """limits.BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX and REQUEST_BYTES_MAX: at the limit and one above."""

    def of_bytes(count: int) -> Install:
        return Install(ID, (("bundle.json", 1), ("a", count - 1)))

    def of_files(count: int) -> Install:
        return Install(ID, (("bundle.json", 1), *((f"f{number}", 1) for number in range(count - 1))))

    for make, bound in ((of_bytes, limits.BUNDLE_BYTES_MAX), (of_files, limits.BUNDLE_FILES_MAX)):
        assert unpack(pack(make(bound))) == make(bound)
        with pytest.raises(LinkError, match="a bundle of"):
            unpack(pack(make(bound + 1)))
    message = ground_message(Ask("ab" * 16, bytes(limits.REQUEST_BYTES_MAX)))
    assert isinstance(ground_frame(message), Ask)
    with pytest.raises(LinkError, match=r"Ask\.request has 65537 bytes"):
        ground_frame(ground_message(Ask("ab" * 16, bytes(limits.REQUEST_BYTES_MAX + 1))))
    every_other = tuple(Range(2 * number, 1) for number in range(4096))
    assert len(pack(Refine(ID, 1, every_other))) <= limits.REQUEST_BYTES_MAX
    with pytest.raises(LinkError, match="ask for less"):
        pack(Refine(ID, 1, tuple(Range(2 * number + 500_000, 1) for number in range(9000))))


def test_every_flipped_bit_of_a_request_or_a_part_is_found() -> None:
    for frame in (Ask("ab" * 16, pack(Cancel(ID))), BundlePart("ab" * 16, 77, b"some weights")):
        message = ground_message(frame).SerializeToString()
        for place in range(8 * len(message)):
            flipped = bytearray(message)
            flipped[place // 8] ^= 1 << place % 8
            try:
                found = ground_frame(pb.GroundFrame.FromString(bytes(flipped)))
            except (LinkError, DecodeError):
                continue
            if isinstance(found, Ask | BundlePart):  # what is not under the checksum: where a part belongs
                assert isinstance(found, BundlePart)
                assert found.content == b"some weights"
                assert (found.ask_id, found.offset) != ("ab" * 16, 77)


@pytest.mark.parametrize("verdict", Verdict)
def test_no_flipped_bit_makes_another_answer_of_one(verdict: Verdict) -> None:
    others = {int(other) for other in Verdict} - {int(verdict)}
    assert not others & {int(verdict) ^ (1 << bit) for bit in range(8)}
    message = edge_message(Answer("ab" * 16, verdict, "so it is"))
    assert edge_frame(message) == Answer("ab" * 16, verdict, "so it is")
    message.answer.code = 3  # type: ignore[assignment]
    with pytest.raises(LinkError, match=r"Answer.code 3"):
        edge_frame(message)


def test_progress_past_any_bundle_is_no_frame() -> None:
    assert edge_frame(edge_message(Progress("ab" * 16, limits.BUNDLE_BYTES_MAX)))
    with pytest.raises(LinkError, match=r"Progress\.offset"):
        edge_frame(edge_message(Progress("ab" * 16, limits.BUNDLE_BYTES_MAX + 1)))


# --- when which is said ---


def ask(number: int, bundle_bytes: int = 0) -> Waiting:
    return Waiting(Ask(f"{number:032x}", b"x"), bundle_bytes)


def said(actions: list[GroundAction]) -> list[str]:
    return [action.frame.ask_id[-1] for action in actions if isinstance(action, Send) and isinstance(action.frame, Ask)]


def test_one_request_at_a_time_and_one_installation_beside() -> None:
    asking = Asking()
    assert asking.deadline is None
    assert asking.look(0.0) == [Look(frozenset())]
    assert asking.deadline == LOOK_S
    assert said(asking.found([ask(1), ask(2), ask(3, 100), ask(4, 100)], 0.0)) == ["1", "3"]
    assert asking.look(1.0) == []  # no room
    done = Answer(ask(1).ask.ask_id, Verdict.DONE, "")
    assert asking.answered(done, 1.0) == [Answered(done), Look(frozenset({ask(3).ask.ask_id}))]
    assert asking.answered(done, 1.0) == []  # twice
    assert said(asking.found([ask(2), ask(4, 100)], 1.0)) == ["2"]


def test_a_request_is_said_again_until_it_is_answered() -> None:
    asking = Asking()
    asking.look(0.0)
    asking.found([ask(1)], 0.0)
    assert said(asking.tick(AGAIN_S - 0.1)) == []
    assert said(asking.tick(AGAIN_S)) == ["1"]
    assert said(asking.tick(AGAIN_S + 1)) == []
    assert said(asking.tick(2 * AGAIN_S)) == ["1"]


def test_an_edge_that_does_not_know_a_scene_is_not_asked_again() -> None:
    asking = Asking()
    asking.look(0.0)
    asking.found([ask(1)], 0.0)
    unknown = Answer(ask(1).ask.ask_id, Verdict.UNKNOWN_SCENE, "")
    assert asking.answered(unknown, 0.0) == [Answered(unknown), Look(frozenset({ask(1).ask.ask_id}))]


def parts(actions: list[GroundAction]) -> list[tuple[int, int]]:
    return [(action.offset, action.length) for action in actions if isinstance(action, ReadPart)]


def test_a_bundle_is_sent_from_where_the_edge_has_got_to_and_not_far_ahead() -> None:
    asking, total = Asking(), 3 * PARTS_AHEAD_BYTES + 5
    asking.look(0.0)
    assert parts(asking.found([ask(1, total)], 0.0)) == []  # first the edge says how much it has
    ask_id = ask(1).ask.ask_id
    offset, sent = 7, []
    actions = asking.progress(Progress(ask_id, offset), 0.0)
    while offset < total:
        new = parts(actions)
        sent += new
        assert all(length <= PART_BYTES_MAX for _, length in new)
        assert sent[-1][0] + sent[-1][1] <= offset + PARTS_AHEAD_BYTES
        offset = min(total, offset + PART_BYTES_MAX)
        actions = asking.progress(Progress(ask_id, offset), 1.0)
    assert [first for first, _ in sent] == list(range(7, total, PART_BYTES_MAX))
    assert sum(length for _, length in sent) == total - 7
    assert asking.progress(Progress(ask_id, 9), 1.0) == []  # a late word changes nothing
    [end] = asking.progress(Progress(ask_id, total + 1), 1.0)
    assert isinstance(end, Close)
    assert asking.progress(Progress("0" * 31 + "9", 5), 1.0) == []


def test_a_lost_part_is_sent_again_after_a_while() -> None:
    asking = Asking()
    asking.look(0.0)
    asking.found([ask(1, 10**6)], 0.0)
    ask_id = ask(1).ask.ask_id
    asking.progress(Progress(ask_id, 0), 5.0)
    assert said(asking.tick(5.0 + AGAIN_S)) == ["1"]
    assert parts(asking.progress(Progress(ask_id, PART_BYTES_MAX), 40.0))[0] == (PART_BYTES_MAX, PART_BYTES_MAX)


def test_a_part_for_nobody_is_not_sent() -> None:
    asking = Asking()
    asking.look(0.0)
    asking.found([ask(1, 100)], 0.0)
    part = BundlePart(ask(1).ask.ask_id, 0, b"x")
    assert asking.part(part.ask_id, 0, b"x") == [Send(part)]
    assert asking.part(part.ask_id, 9, None) == []  # withdrawn
    assert asking.part(part.ask_id, 0, b"x") == []
    assert parts(asking.progress(Progress(part.ask_id, 0), 0.0)) == []
