"""Requests carried out on the edge: once, durable together with their answers, and what they change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from downlink.frame import Answer, Ask, Verdict
from downlink.ranges import Range
from downlink.request import Cancel, Refine, SetPriority, SetTarget, pack
from encoder_node import outbox_asked
from encoder_node.cli import main as edge_cli
from encoder_node.outbox import Outbox
from tests import scenes
from tests.streams import stream


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "box", create=True)


def heard(box: Outbox, request: Refine | SetPriority | Cancel | SetTarget, number: int = 1) -> tuple[Verdict, str]:
    answer = box.answer(Ask(f"{number:032x}", pack(request)))
    return answer.verdict, answer.message


def test_a_request_is_carried_out_once_and_answered_as_often_as_it_comes(box: Outbox) -> None:
    made = stream()
    box.submit(made.packed, made.chunks)
    assert heard(box, SetPriority(made.id, 9)) == (Verdict.DONE, "priority 9")
    assert heard(box, SetPriority(made.id, 1), number=2) == (Verdict.DONE, "priority 1")
    assert heard(box, SetPriority(made.id, 9)) == (Verdict.DONE, "priority 9")  # late, and known
    assert box.entry(made.id).priority == 1
    again = Outbox(box.folder)  # after a restart as well
    heard(again, SetPriority(made.id, 9))
    assert again.entry(made.id).priority == 1


def test_what_was_answered_outlives_a_power_cut(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change and the answer are one transaction: both or neither."""
    made = stream()
    box.submit(made.packed, made.chunks)
    with monkeypatch.context() as patch:
        patch.setattr(outbox_asked, "record", lambda db, found: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            heard(box, Cancel(made.id))
    assert box.entry(made.id).state == "queued"
    assert box.answered(f"{1:032x}") is None
    assert heard(box, Cancel(made.id))[0] is Verdict.DONE
    again = Outbox(box.folder)
    assert again.entry(made.id).state == "dropped"
    assert again.answered(f"{1:032x}") == Answer(f"{1:032x}", Verdict.DONE, "called off by the ground")


def test_a_scene_that_is_not_here_yet_may_still_come(box: Outbox) -> None:
    made = stream()
    assert heard(box, Refine(made.id))[0] is Verdict.UNKNOWN_SCENE
    box.submit(made.packed, made.chunks, layers=1)
    assert heard(box, Refine(made.id)) == (Verdict.DONE, "all layers will be sent")


@pytest.mark.parametrize(
    ("settle", "request_", "verdict"),
    [
        ("delivered", Refine(stream().id), Verdict.DONE),
        ("delivered", Cancel(stream().id), Verdict.REFUSED),
        ("delivered", SetPriority(stream().id, 1), Verdict.DONE),
        ("damaged", Refine(stream().id), Verdict.REFUSED),
        ("damaged", Cancel(stream().id), Verdict.DONE),
    ],
)
def test_what_can_still_be_done_depends_on_where_a_scene_stands(
    box: Outbox, settle: str, request_: Refine | Cancel | SetPriority, verdict: Verdict
) -> None:
    made = stream()
    box.submit(made.packed, made.chunks)
    box.delivered(made.id) if settle == "delivered" else box.damaged(made.id, "the disk")
    assert heard(box, request_)[0] is verdict


def test_refinements_add_up(box: Outbox) -> None:
    made = stream()
    box.submit(made.packed, made.chunks, layers=1)
    box.kept(made.id)
    assert heard(box, Refine(made.id, 0, (Range(20, 2),)), 1) == (
        Verdict.DONE,
        "1 of 2 layers will be sent, 2 chunks first",
    )
    [scene] = box.due(9)
    assert (scene.layers, scene.first) == (1, (Range(20, 2),))
    heard(box, Refine(made.id, 0, (Range(5, 1), Range(22, 1))), 2)
    [scene] = box.due(9)
    assert scene.first == (Range(5, 1), Range(20, 3))
    heard(box, Refine(made.id, 2), 3)
    [scene] = box.due(9)
    assert scene.layers is None
    assert heard(box, Refine(made.id, 1), 4) == (Verdict.DONE, "all layers will be sent, 4 chunks first")  # never fewer
    verdict, message = heard(box, Refine(made.id, 0, (Range(len(made.chunks), 1),)), 5)
    assert verdict is Verdict.REFUSED
    assert f"a scene that has {len(made.chunks)} chunks" in message


def test_a_request_that_this_edge_does_not_know_is_refused(box: Outbox) -> None:
    answer = box.answer(Ask("ab" * 16, b"\xfa\x07\x00"))
    assert (answer.verdict, answer.message) == (
        Verdict.REFUSED,
        "a kind of request that this node does not know; update it",
    )


def test_answers_are_remembered_but_not_for_ever(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoder_node.outbox_asked.ANSWERS_KEPT", 3)
    for number in range(1, 9):
        heard(box, SetTarget("quality", float(number)), number)
    assert [number for number in range(1, 9) if box.answered(f"{number:032x}")] == [6, 7, 8]
    assert box.target() == SetTarget("quality", 8.0)


def test_scenes_are_encoded_as_the_ground_asks_unless_something_else_is_typed(tmp_path: Path, box: Outbox) -> None:
    np.save(tmp_path / "patch.npy", scenes.pixels(bands=2, height=64, width=64))
    heard(box, SetTarget("max_error", 3.0, layers=1))

    def submit(*options: str) -> dict[str, object]:
        command = ["submit", str(tmp_path / "patch.npy"), "--outbox", str(box.folder), "--json", *options]
        result = CliRunner().invoke(edge_cli, command)
        assert result.exit_code == 0, result.output
        found: dict[str, object] = json.loads(result.stdout)
        return found

    first = submit()
    assert first["settings"] == {"max_error": 3.0}
    [scene] = box.due(9)
    assert scene.layers == 1
    assert submit("--max-error", "5", "--layers", "2")["settings"] == {"max_error": 5.0}
    assert [scene.layers for scene in box.due(9)] == [1, 2]
    heard(box, SetTarget(), number=2)  # as the operator wants it
    assert submit("--max-error", "0")["settings"] == {"max_error": 0.0}
    assert box.due(9)[-1].layers is None


def test_a_configuration_file_stands_back_for_the_ground(tmp_path: Path, box: Outbox) -> None:
    np.save(tmp_path / "patch.npy", scenes.pixels(bands=2, height=64, width=64))
    (tmp_path / "edge.toml").write_text("max_error = 9\nlayers = 2\n")
    command = ["--config", str(tmp_path / "edge.toml"), "submit", str(tmp_path / "patch.npy"), "--outbox"]

    def settings() -> object:
        result = CliRunner().invoke(edge_cli, [*command, str(box.folder), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["settings"]

    assert settings() == {"max_error": 9.0}
    heard(box, SetTarget("max_error", 3.0))
    assert settings() == {"max_error": 3.0}
    assert [scene.layers for scene in box.due(9)] == [2, 2]


def test_an_outbox_of_the_second_version_is_brought_up_to_date(tmp_path: Path, box: Outbox) -> None:
    made = stream()
    box.submit(made.packed, made.chunks)
    for statement in (
        "DROP INDEX retained",
        *(f"ALTER TABLE scenes DROP COLUMN {name}" for name in ("ahead", "place", "reference", "retained", "reasked")),
        "DROP TABLE answered",
        "DROP TABLE settings",
        "CREATE TABLE answered (ask_id TEXT PRIMARY KEY, done INTEGER NOT NULL, message TEXT, at REAL)",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "PRAGMA user_version = 2",
    ):
        box._db.execute(statement)
    box.close()
    again = Outbox(box.folder)
    assert heard(again, SetPriority(made.id, 4)) == (Verdict.DONE, "priority 4")
    assert again.load(made.id, [0])[0].content == made.chunks[0]
