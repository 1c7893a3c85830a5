"""References over the link: what is retained, what goes first when the ground has lost it, what is given up and why.

Both ends are real (outbox and contact, session, inbox and ledger); what lies between is a function call.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger
from decoder_node.reference import among, lineage
from downlink.action import Commit, Finish, GroundAction, Open, Send
from downlink.errors import LinkError
from downlink.frame import EdgeFrame, Offer, Refusal, RefusalCode, SceneState, State, Welcome
from downlink.framing import edge_frame, edge_message, ground_frame, ground_message
from downlink.manifest import Manifest
from downlink.reference import place_of
from downlink.session import EdgeSession, GroundSession
from downlink.stream import write_stream
from encoder_node.contact import Contact
from encoder_node.outbox import Outbox
from encoder_node.reference_outbox import DEPTH_MAX, REASKS_MAX, ReferenceGone, newest, stream
from tests.streams import Stream
from tests.streams import stream as made_up

BUNDLE = bytes(range(32))


def day(number: int, reference: Stream | None = None, name: str = "place") -> Stream:
    """A stream of a place, of so many bytes as any other, coded against another one."""
    made = made_up(number, side=64, chunk_bytes=60, name=name)
    manifest = Manifest.unpack(made.packed)
    scene = replace(manifest.scene, grids=(replace(manifest.scene.grids[0], crs=f"LOCAL {name}"),))
    known = b"" if reference is None else bytes.fromhex(reference.id)
    manifest = replace(manifest, scene=scene, reference=known)
    packed, file = manifest.pack(), io.BytesIO()
    write_stream(file, packed, made.chunks)
    return Stream(packed, made.chunks, file.getvalue())


class Ground:
    """A ground with an archive; `knows` references, or is one of before."""

    def __init__(self, folder: Path, knows: bool = True, node: str = "") -> None:
        self.folder, self.knows, self.node = folder, knows, node
        folder.mkdir(exist_ok=True)
        self.ledger = Ledger(folder, create=True)
        self.inbox = Inbox(folder, self.ledger)
        self.offers: list[str] = []

    def path(self, made: Stream) -> Path:
        return self.folder / "streams" / f"{made.id}.dl"

    def talk(self, box: Outbox, frames_max: int = 10_000) -> None:
        """One stream, until the edge has nothing more to say; or is cut after so many frames of the edge."""
        session = GroundSession("ground")
        contact = Contact(box, EdgeSession("edge"), 1 << 18)
        contact.start(0.0)
        for _ in range(frames_max):
            frame = contact.next(0.0)
            if frame is None:
                if contact.idle or not self._do(session.end(0.0), session, contact):
                    return
                continue
            heard = edge_frame(edge_message(frame))
            assert heard is not None
            self._do(session.receive(self._noted(heard), 0.0), session, contact)

    def _noted(self, frame: EdgeFrame) -> EdgeFrame:
        if isinstance(frame, Offer):
            self.offers.append(frame.scene_id)
        return frame

    def _do(self, actions: list[GroundAction], session: GroundSession, contact: Contact) -> int:
        waiting, done = list(actions), 0
        while waiting:
            done += 1
            match action := waiting.pop(0):
                case Open(incoming, priority):
                    waiting += session.opened(incoming.scene_id, self.inbox.open(incoming, priority, self.node), 0.0)
                case Commit(arrivals):
                    self.inbox.commit(arrivals)
                    waiting += session.committed(action, 0.0)
                case Finish(incoming):
                    state = self.inbox.seal(incoming, self.inbox.verify(incoming))
                    waiting += session.finished(incoming, state, 0.0)
                case Send(frame):
                    if isinstance(frame, Welcome) and not self.knows:
                        frame = Welcome(frame.revision, "ground of before", frame.open_scenes_max, frame.reports)
                    said = ground_frame(ground_message(frame))
                    assert said is not None
                    contact.hear(said, 0.0)
        return done

    def restart(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.folder, create=True)
        self.inbox = Inbox(self.folder, self.ledger)
        self.inbox.recover()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "box", create=True) as found:
        found.references.bind()
        yield found


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path / "archive")


def submit(box: Outbox, *scenes: Stream) -> None:
    for made in scenes:
        box.submit(made.packed, made.chunks)


def states(box: Outbox, *scenes: Stream) -> list[str]:
    return [box.entry(made.id).state for made in scenes]


def retained(box: Outbox, *scenes: Stream) -> list[bool]:
    """Whether a stream could be read and sent again, to its last byte."""
    out = []
    for made in scenes:
        found = stream(box._db, made.id)
        out.append(found is not None)
        if found is not None:
            assert tuple(found[1](index) for index in range(len(made.chunks))) == made.chunks
    return out


def place(made: Stream) -> bytes:
    manifest = Manifest.unpack(made.packed)
    return place_of(manifest.scene, manifest.resolutions)


def test_only_what_a_ground_has_becomes_a_reference(box: Outbox, ground: Ground) -> None:
    monday = day(1)
    submit(box, monday)
    assert newest(box._db, place(monday), BUNDLE) is None
    ground.talk(box)
    assert states(box, monday) == ["delivered"]
    assert newest(box._db, place(monday), BUNDLE) == monday.id
    assert newest(box._db, place(monday), bytes(32)) is None  # of another bundle
    assert newest(box._db, place(day(1, name="elsewhere")), BUNDLE) is None
    assert retained(box, monday) == [True]


def test_nothing_is_retained_unless_it_was_asked_for(tmp_path: Path, ground: Ground) -> None:
    with Outbox(tmp_path / "plain", create=True) as box:
        submit(box, day(1))
        ground.talk(box)
        assert retained(box, day(1)) == [False]
        box.references.bind(0)
        submit(box, day(2))
        ground.talk(box)
        assert retained(box, day(2)) == [False]


def test_a_ground_of_before_gives_no_reference_and_is_offered_none(box: Outbox, tmp_path: Path) -> None:
    before = Ground(tmp_path / "before", knows=False)
    monday = day(1)
    submit(box, monday)
    before.talk(box)
    assert states(box, monday) == ["delivered"]
    assert retained(box, monday) == [False]
    tuesday = day(2, monday)
    submit(box, tuesday)
    before.talk(box)
    assert before.offers == [monday.id]
    assert states(box, tuesday) == ["refused"]
    assert "does not know scenes that are coded against others" in (box.entry(tuesday.id).reason or "")
    box.resend([])
    before.knows = True
    before.talk(box)
    assert states(box, tuesday) == ["delivered"]


def test_the_newest_of_a_place_takes_the_place_of_the_one_before(box: Outbox, ground: Ground) -> None:
    days = [day(1), day(2)]
    elsewhere = day(3, name="elsewhere")
    submit(box, days[0], elsewhere)
    ground.talk(box)
    submit(box, days[1])
    ground.talk(box)
    assert retained(box, *days, elsewhere) == [False, True, True]
    wednesday = day(4, days[1])
    submit(box, wednesday)
    ground.talk(box)
    assert retained(box, *days, wednesday) == [False, True, True]  # what is behind it is needed to decode it


def test_what_something_depends_on_is_never_dropped(box: Outbox, ground: Ground) -> None:
    monday = day(1)
    submit(box, monday)
    ground.talk(box)
    tuesday, other = day(2, monday), day(3)
    submit(box, tuesday)
    box.references.bind(0)
    assert retained(box, monday) == [True]
    box.references.bind(1_000_000)
    submit(box, other)
    box._db.execute("UPDATE scenes SET state = 'refused' WHERE scene_id = ?", (tuesday.id,))
    ground.talk(box)
    assert retained(box, monday, other) == [True, True]
    box.resend([tuesday.id])
    ground.talk(box)
    assert states(box, tuesday) == ["delivered"]
    assert retained(box, monday, other, tuesday) == [False, True, False]


def test_beyond_the_bound_the_oldest_place_goes_first(box: Outbox, ground: Ground) -> None:
    scenes = [day(number, name=f"place {number}") for number in range(4)]
    size = max(len(made.file) for made in scenes)
    box.references.bind(2 * size + 100)
    for made in scenes:
        submit(box, made)
        ground.talk(box)
    assert retained(box, *scenes) == [False, False, True, True]


def test_a_long_chain_ends_with_a_scene_alone(box: Outbox, ground: Ground) -> None:
    before, lengths = None, []
    for number in range(DEPTH_MAX + 2):
        made = day(number, before)
        submit(box, made)
        ground.talk(box)
        lengths.append(newest(box._db, place(made), BUNDLE) is not None)
        before = made
    assert lengths == [True] * DEPTH_MAX + [False] * 2


def test_a_reference_that_the_ground_has_lost_goes_first(box: Outbox, ground: Ground) -> None:
    monday = day(1)
    submit(box, monday)
    ground.talk(box)
    tuesday = day(2, monday)
    submit(box, tuesday)
    ground.path(monday).unlink()
    ground.offers.clear()
    ground.talk(box)
    assert ground.offers == [tuesday.id, monday.id, tuesday.id]
    assert states(box, monday, tuesday) == ["delivered", "delivered"]
    assert ground.path(monday).read_bytes() == monday.file
    assert ground.path(tuesday).read_bytes() == tuesday.file


def test_so_does_all_of_a_chain_whatever_is_left_of_it(box: Outbox, ground: Ground, tmp_path: Path) -> None:
    chain: list[Stream] = []
    for number in range(3):
        chain.append(day(number, chain[-1] if chain else None))
        submit(box, chain[-1])
        ground.talk(box)
    chain.append(day(3, chain[-1]))
    submit(box, chain[-1])
    other = Ground(tmp_path / "another")
    for frames in (2, 3, 5, 8, 10_000):  # the link is cut again and again, and the ground starts anew
        other.talk(box, frames)
        other.restart()
    assert states(box, *chain) == ["delivered"] * 4
    assert [other.path(made).read_bytes() for made in chain] == [made.file for made in chain]
    found = lineage(Manifest.unpack(chain[-1].packed), among([tmp_path / "another" / "streams"]))
    assert [name for name, _ in found] == [made.id for made in chain[-2::-1]]


def test_a_reference_that_is_nowhere_is_said_naming_both(box: Outbox, ground: Ground) -> None:
    monday = day(1)
    tuesday = day(2, monday)
    submit(box, tuesday)
    ground.talk(box)
    assert states(box, tuesday) == ["refused"]
    reason = box.entry(tuesday.id).reason or ""
    assert monday.id in reason
    assert tuesday.id in reason
    assert "no longer" in reason
    submit(box, monday)  # a stream file, perhaps
    box.resend([tuesday.id])
    ground.talk(box)
    assert states(box, monday, tuesday) == ["delivered", "delivered"]


def test_a_ground_that_never_keeps_it_is_not_sent_it_for_ever(box: Outbox, ground: Ground) -> None:
    monday = day(1)
    submit(box, monday)
    ground.talk(box)
    tuesday = day(2, monday)
    submit(box, tuesday)
    for _ in range(REASKS_MAX + 1):
        assert states(box, tuesday) == ["queued"]
        box.references.lost(tuesday.id, monday.id)
        box.delivered(monday.id, references=True)
    assert "again after it was sent" in box.references.lost(tuesday.id, monday.id)


def test_what_is_damaged_on_board_strands_what_needs_it(box: Outbox, ground: Ground) -> None:
    monday = day(1)
    submit(box, monday)
    ground.talk(box)
    tuesday = day(2, monday)
    wednesday = day(3, tuesday)
    submit(box, tuesday, wednesday)
    ground.path(monday).unlink()
    box._db.execute("UPDATE chunks SET content = zeroblob(length(content))")
    ground.talk(box)
    assert box.due(9) == []
    assert states(box, monday, tuesday, wednesday) == ["damaged", "refused", "refused"]
    assert f"scene {monday.id} is damaged" in (box.entry(tuesday.id).reason or "")


def test_a_scene_is_encoded_again_if_its_reference_went_meanwhile(box: Outbox, ground: Ground) -> None:
    monday = day(1)
    submit(box, monday)
    ground.talk(box)
    tuesday = day(2, monday)
    submit(box, day(3))
    ground.talk(box)
    with pytest.raises(ReferenceGone, match=monday.id):
        box.submit(tuesday.packed, tuesday.chunks, anchored=True)
    with pytest.raises(Exception, match="holds no scene"):
        box.entry(tuesday.id)


def test_a_full_outbox_gives_references_up_first(box: Outbox, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monday = day(1)
    submit(box, monday)
    ground.talk(box)
    assert retained(box, monday) == [True]
    asked: list[int] = []

    def lack(*_: object, **__: object) -> str:
        asked.append(1)
        return "full" if retained(box, monday) == [True] else ""

    monkeypatch.setattr("encoder_node.room.lack", lack)
    submit(box, day(2))
    assert len(asked) >= 2
    assert retained(box, monday) == [False]


def test_nobody_refers_to_another_nodes_scene(tmp_path: Path) -> None:
    ground = Ground(tmp_path / "archive", node="sat-1")
    with Outbox(tmp_path / "one", create=True) as box:
        submit(box, day(1))
        ground.talk(box)
    ground.node = "sat-2"
    with Outbox(tmp_path / "two", create=True) as box:
        tuesday = day(2, day(1))
        submit(box, tuesday)
        ground.talk(box)
        assert states(box, tuesday) == ["refused"]
        assert "belongs to another node" in (box.entry(tuesday.id).reason or "")


def test_a_refusal_without_its_reference_is_damage() -> None:
    said = SceneState(day(1).id, State.REFUSED, (), Refusal(RefusalCode.REFERENCE, "lacks", reference=day(2).id))
    assert ground_frame(ground_message(said)) == said
    for code, reference in ((RefusalCode.REFERENCE, ""), (RefusalCode.CORRUPT, day(2).id)):
        with pytest.raises(LinkError, match="bytes of one"):
            ground_frame(ground_message(SceneState(day(1).id, State.REFUSED, (), Refusal(code, "x", 1, reference))))
    welcome = Welcome(1, "new", references=True)
    assert ground_frame(ground_message(welcome)) == welcome
