"""What the ground asks for, carried out on the outbox's tables, in a transaction of the caller's that makes it durable
together with the answer.

Each request is carried out once: the last `ANSWERS_KEPT` answers are remembered, so that a request that is said again
gets its answer again. A request about a scene that is not here is not remembered: it may be submitted yet.
"""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Final

import numpy as np

from downlink.errors import LinkError
from downlink.frame import FRAME_RANGES_MAX, Answer, Ask, Verdict
from downlink.layer import layer_ends
from downlink.manifest import Manifest
from downlink.ranges import bitmap, cover
from downlink.request import Cancel, Refine, Request, SetPriority, SetTarget, unpack
from encoder_node import outbox_chunks
from encoder_node.outbox_entry import pack_ranges, unpack_ranges

ANSWERS_KEPT: Final = 10_000
CALLED_OFF: Final = "called off by the ground"


def answer(db: sqlite3.Connection, ask: Ask) -> Answer:
    """Carry a request out, unless that was done before, and record the answer."""
    if (before := answered(db, ask.ask_id)) is not None:
        return before
    try:
        verdict, message = _carry_out(db, unpack(ask.request))
    except LinkError as error:
        verdict, message = Verdict.REFUSED, str(error)
    found = Answer(ask.ask_id, verdict, message)
    if verdict is not Verdict.UNKNOWN_SCENE:
        record(db, found)
    return found


def answered(db: sqlite3.Connection, ask_id: str) -> Answer | None:
    """What became of a request that was heard before."""
    row = db.execute("SELECT verdict, message FROM answered WHERE ask_id = ?", (ask_id,)).fetchone()
    return None if row is None else Answer(ask_id, Verdict(row[0]), row[1])


def record(db: sqlite3.Connection, found: Answer) -> None:
    """Remember an answer."""
    row = (found.ask_id, int(found.verdict), found.message)
    db.execute("INSERT OR IGNORE INTO answered (ask_id, verdict, message) VALUES (?, ?, ?)", row)
    db.execute("DELETE FROM answered WHERE number <= (SELECT max(number) FROM answered) - ?", (ANSWERS_KEPT,))


def target(db: sqlite3.Connection) -> SetTarget:
    """How scenes are to be encoded that are not encoded yet."""
    row = db.execute("SELECT value FROM settings WHERE name = 'target'").fetchone()
    return SetTarget() if row is None else SetTarget(*json.loads(row[0]))


def _carry_out(db: sqlite3.Connection, request: Request) -> tuple[Verdict, str]:
    match request:
        case SetTarget(name, value, layers):
            query = "INSERT INTO settings VALUES ('target', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            db.execute(query, (json.dumps([name, value, layers]),))
            what = f"{name} {value:g}" if name else "what the operator wants"
            return Verdict.DONE, f"scenes not encoded yet: {what}, {f'{layers} layers' if layers else 'all layers'}"
        case Refine(scene_id) | SetPriority(scene_id) | Cancel(scene_id):
            row = db.execute("SELECT state, reason FROM scenes WHERE scene_id = ?", (scene_id,)).fetchone()
            if row is None:
                return Verdict.UNKNOWN_SCENE, "there is no such scene in the outbox"
            return _about(db, request, *row)
        case _:
            return Verdict.REFUSED, "the outbox has nothing to do with that"


def _about(
    db: sqlite3.Connection, request: Refine | SetPriority | Cancel, state: str, reason: str | None
) -> tuple[Verdict, str]:
    """A request about a scene that is here."""
    if state == "delivered":
        if isinstance(request, Cancel):
            return Verdict.REFUSED, "all of the scene was delivered before; there is nothing to call off"
        return Verdict.DONE, "all of the scene was delivered before"
    if isinstance(request, Cancel):
        if state != "dropped":
            outbox_chunks.drop(db, request.scene_id, CALLED_OFF, time.time())
        return Verdict.DONE, CALLED_OFF
    if state not in ("queued", "kept"):
        return Verdict.REFUSED, f"the scene is {state}: {reason or 'no reason is known'}"
    if isinstance(request, SetPriority):
        db.execute("UPDATE scenes SET priority = ? WHERE scene_id = ?", (request.priority, request.scene_id))
        return Verdict.DONE, f"priority {request.priority}"
    return _refine(db, request)


def _refine(db: sqlite3.Connection, request: Refine) -> tuple[Verdict, str]:
    query = "SELECT number, manifest, layers, first FROM scenes WHERE scene_id = ?"
    number, packed, layers, first = db.execute(query, (request.scene_id,)).fetchone()
    ends = layer_ends(Manifest.unpack(packed))
    if request.first and request.first[-1].end > ends[-1]:
        return Verdict.REFUSED, f"chunk {request.first[-1].end - 1} of a scene that has {ends[-1]} chunks is asked for"
    if layers is not None:
        layers = max(layers, request.layers)
        layers = None if layers >= len(ends) else layers
    wanted = bitmap(ends[-1], (*unpack_ranges(first), *request.first))
    ranges = cover(wanted, FRAME_RANGES_MAX) if wanted.any() else ()
    query = (
        "UPDATE scenes SET layers = ?, first = ?, state = 'queued', reason = NULL, not_before = 0, settled_at = NULL"
        " WHERE number = ?"
    )
    db.execute(query, (layers, pack_ranges(ranges), number))
    db.execute("DELETE FROM temp.progress WHERE number = ?", (number,))
    what = "all layers" if layers is None else f"{layers} of {len(ends)} layers"
    return Verdict.DONE, f"{what} will be sent" + (f", {int(np.sum(wanted))} chunks first" if ranges else "")
