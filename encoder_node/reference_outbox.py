"""Delivered scenes whose streams an outbox retains, because the next scene of their place may be coded against them.

A scene becomes a reference when a ground that knows references has all of it durably. Retained is, for each place
(`downlink.reference.place_of`), the newest such scene and the references behind it, all places together up to a bound
(the oldest place goes first); and whatever a scene depends on that is not delivered yet, which is never dropped. A
reference that the ground has lost is queued once more, before what depends on it.

Functions are on the outbox's tables, within transactions of the caller's; `References` has its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from downlink.manifest import Manifest
from downlink.reference import Reference, Stream, opened, place_of
from encoder_node import outbox_chunks
from encoder_node.outbox_entry import BEHIND
from encoder_node.outbox_file import OutboxError, guarded, transaction

if TYPE_CHECKING:
    from encoder_node.encoder import PlaneEncoder
    from encoder_node.source import Source

BYTES: Final = 256_000_000
"""Retained at most, unless the operator says otherwise."""
DEPTH_MAX: Final = 4
"""Streams that decoding a reference may take: then a scene is sent alone."""
REASKS_MAX: Final = 3
"""As often a ground may lack the same scene's references before the scene is given up."""
WAITING: Final = ("queued", "kept", "refused", "damaged")
_BOUND: Final = "references_bytes"
_BOUND_QUERY: Final = f"SELECT value FROM settings WHERE name = '{_BOUND}'"
_HERE: Final = "(state = 'queued' OR (state = 'delivered' AND retained))"


class ReferenceGone(OutboxError):
    """A scene was coded against one that the outbox has dropped meanwhile."""

    code = "reference_gone"


class References:
    """What an outbox retains, for those who encode scenes and those who send them."""

    def __init__(self, db: sqlite3.Connection, folder: Path) -> None:
        self._db, self._folder = db, folder

    def bind(self, bytes_max: int | None = None) -> None:
        """Retain so many bytes; without a number, as many as before, or `BYTES` if nothing was said before."""
        with guarded(self._folder), transaction(self._db):
            if bytes_max is not None or self._db.execute(_BOUND_QUERY).fetchone() is None:
                bind(self._db, BYTES if bytes_max is None else bytes_max)

    @contextmanager
    def of(self, source: Source, encoder: PlaneEncoder) -> Iterator[Reference | None]:
        """What a scene may be coded against: the newest of its place, or None."""
        with guarded(self._folder):
            from encoder_node.pipeline import resolutions_of

            name = newest(self._db, place_of(source.scene, resolutions_of(source)), encoder.bundle.id)
            yield None if name is None else opened(name, partial(stream, self._db), encoder.codec, f"reference {name}")

    def lost(self, name: str, reference: str) -> str:
        """The ground lacks a reference of the queued scene `name`: send it first, or say why the scene is given up."""
        with guarded(self._folder), transaction(self._db):
            return lost(self._db, name, reference)

    def stranded(self) -> list[tuple[str, str]]:
        """(scene, why) of what must be given up, because its reference will not be delivered."""
        with guarded(self._folder):
            return stranded(self._db)

    def dependants(self) -> list[str]:
        """Queued scenes that have a reference."""
        with guarded(self._folder):
            return dependants(self._db)


def bound(db: sqlite3.Connection) -> int:
    """Bytes that may be retained; 0: nothing is."""
    row = db.execute(_BOUND_QUERY).fetchone()
    return 0 if row is None else int(row[0])


def bind(db: sqlite3.Connection, bytes_max: int) -> None:
    """From now on, so many bytes may be retained."""
    db.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (_BOUND, str(bytes_max)))
    prune(db)


def remember(db: sqlite3.Connection, number: int, manifest: Manifest) -> None:
    """Note which place a new scene is of, and what it is coded against."""
    place = None if manifest.exact else place_of(manifest.scene, manifest.resolutions)
    row = place, manifest.reference.hex() or None, number
    db.execute("UPDATE scenes SET place = ?, reference = ? WHERE number = ?", row)


def newest(db: sqlite3.Connection, place: bytes, bundle: bytes) -> str | None:
    """The scene that another one of this place may be coded against, by the same bundle; None: send it alone."""
    query = (
        "SELECT scene_id, manifest FROM scenes WHERE place = ? AND state = 'delivered' AND retained"
        " ORDER BY number DESC LIMIT 1"
    )
    row = db.execute(query, (place,)).fetchone()
    if row is None or Manifest.unpack(row[1]).bundle != bundle or len(_behind(db, row[0])) > DEPTH_MAX:
        return None
    return str(row[0])


def stream(db: sqlite3.Connection, name: str) -> Stream | None:
    """A retained stream, or None; its chunks are read as they are asked for, and checked."""
    query = "SELECT number, manifest, lengths FROM scenes WHERE scene_id = ?"
    row = db.execute(f"{query} AND {_HERE}", (name,)).fetchone()
    if row is None:
        return None
    number, lengths = int(row[0]), np.frombuffer(row[2], "<u4")

    def chunk(index: int) -> bytes:
        return outbox_chunks.load(db, number, [index], f"scene {name[:12]}…")[0].content if lengths[index] else b""

    return Manifest.unpack(row[1]), chunk


def retain(db: sqlite3.Connection, name: str) -> bool:
    """A scene is delivered: whether its chunks stay."""
    query = "UPDATE scenes SET retained = 1 WHERE scene_id = ? AND place IS NOT NULL AND chunks > 0"
    kept = bound(db) > 0 and db.execute(query, (name,)).rowcount > 0
    prune(db)
    return kept and bool(db.execute("SELECT retained FROM scenes WHERE scene_id = ?", (name,)).fetchone()[0])


def prune(db: sqlite3.Connection, bytes_max: int | None = None) -> None:
    """Drop the chunks of references that are not retained any more: those that something newer has replaced, then the
    oldest places beyond the bound, or beyond `bytes_max`."""
    most = bound(db) if bytes_max is None else bytes_max
    query = "SELECT scene_id, place, bytes FROM scenes WHERE state = 'delivered' AND retained ORDER BY number DESC"
    rows = db.execute(query).fetchall()
    if not rows:
        return
    needed = _needed(db)
    sizes = {name: size for name, _, size in rows}
    keep, held, places = set(needed), sum(sizes.get(name, 0) for name in needed), set[bytes]()
    for name, place, _ in rows:  # the newest first
        if place in places:
            continue
        places.add(place)
        more = {one for one in _behind(db, name) if one not in keep}
        size = sum(sizes.get(one, 0) for one in more)
        if held + size <= most:
            keep |= more
            held += size
        else:
            most = 0  # what is older goes before this
    for name in sizes.keys() - keep:
        [number] = db.execute("SELECT number FROM scenes WHERE scene_id = ?", (name,)).fetchone()
        outbox_chunks.delete(db, number)
        db.execute("UPDATE scenes SET retained = 0 WHERE number = ?", (number,))


def lost(db: sqlite3.Connection, name: str, reference: str) -> str:
    """The ground lacks a reference of the queued scene `name`: queue it before that, or say why the scene must be
    given up."""
    row = db.execute(f"SELECT number, state FROM scenes WHERE scene_id = ? AND {_HERE}", (reference,)).fetchone()
    [(priority, reasked)] = db.execute("SELECT priority, reasked FROM scenes WHERE scene_id = ?", (name,))
    needs = f"the ground lacks scene {reference}, the reference of scene {name}"
    if row is None:
        return f"{needs}, and this node has it no longer; submit the scene itself again"
    if reasked >= REASKS_MAX:
        return f"{needs}, again after it was sent {reasked} times; submit the scene itself again"
    query = "UPDATE scenes SET reasked = reasked + ?, reason = ? WHERE scene_id = ?"
    again = int(row[1] == "delivered")
    db.execute(query, (again, f"waits for scene {reference}, which the ground has lost", name))
    db.execute(
        "UPDATE scenes SET state = 'queued', settled_at = NULL, not_before = 0, offered = 1, layers = NULL,"
        " priority = max(priority, ?), reason = ? WHERE scene_id = ? AND state = 'delivered'",
        (priority, f"sent again: scene {name} needs it", reference),
    )
    db.execute("DELETE FROM temp.progress WHERE number = ?", row[:1])
    return ""


def stranded(db: sqlite3.Connection) -> list[tuple[str, str]]:
    """(scene, why it must be given up) for queued scenes whose reference will not be delivered."""
    query = (
        f"SELECT scene_id, ({BEHIND} SELECT scene_id || ' is ' || state FROM behind"
        " WHERE state IN ('refused', 'damaged', 'dropped') LIMIT 1) AS why FROM scenes"
        " WHERE state = 'queued' AND reference IS NOT NULL AND why IS NOT NULL"
    )
    return [
        (name, f"its reference, scene {why}; submit the scene itself again")
        for name, why in db.execute(query).fetchall()
    ]


def dependants(db: sqlite3.Connection) -> list[str]:
    """Queued scenes that have a reference."""
    query = "SELECT scene_id FROM scenes WHERE state = 'queued' AND reference IS NOT NULL"
    return [row[0] for row in db.execute(query)]


def _behind(db: sqlite3.Connection, name: str) -> list[str]:
    """A scene and the references behind it, as far as they are known here."""
    found = [name]
    while True:
        row = db.execute("SELECT reference FROM scenes WHERE scene_id = ?", (found[-1],)).fetchone()
        if row is None or row[0] is None or row[0] in found:
            return found
        found.append(row[0])


def _needed(db: sqlite3.Connection) -> set[str]:
    """Everything behind scenes that are not delivered."""
    marks = ",".join("?" * len(WAITING))
    query = f"SELECT scene_id FROM scenes WHERE reference IS NOT NULL AND state IN ({marks})"
    waiting: Iterable[tuple[str]] = db.execute(query, WAITING).fetchall()
    return {one for (name,) in waiting for one in _behind(db, name)[1:]}
