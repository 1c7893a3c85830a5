"""The ledger: what the ground has of each scene. One SQLite file, `ARCHIVE/ledger.sqlite`, WAL with `synchronous=FULL`.

It is the truth: decoding is a task per row, a restart needs nothing else, and a row is never deleted, so that a late
duplicate of a finished scene is answered from it (its tombstone). Chunk bytes are not in it but in
`decoder_node.inbox`'s files, which are synced before a row here says so.

States: receiving -> durable -> decoded; partial when a scene was decoded before it is complete, from where it becomes
durable like any other; quarantined when a scene cannot be used (before it is durable: its bytes do not fit its
manifest; after: decoding it has failed `FAILURES_MAX` times, the stream is kept).

Refused, with `LedgerError`: ledgers written by a later program, and a missing one where one is expected. Instances
belong to one thread at a time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from decoder_node.ledger_file import FILE, LedgerError, guarded, open_ledger, open_to_read, transaction
from downlink.manifest import Manifest
from downlink.ranges import Range

FAILURES_MAX: Final = 3  # a scene that fails so often, crashes included, is left alone ...
# ... and so is one during which the node itself died so often. Far more, because it may well not be the cause.
INTERRUPTIONS_MAX: Final = 100
COMING: Final = ("receiving", "partial")  # states of scenes that are not complete
# Whose turn it is: the node of which the fewest scenes are being decoded, then the one that has waited longest for one.
_TURN: Final = (
    "(SELECT count(*) FROM scenes other WHERE other.node = scenes.node AND other.decoding = 1),"
    " (SELECT max(decoded_at) FROM scenes other WHERE other.node = scenes.node)"
)

__all__ = ["COMING", "FAILURES_MAX", "FILE", "INTERRUPTIONS_MAX", "Entry", "Ledger", "LedgerError"]


def located(archive: Path, name: str) -> str:
    """Where a file of a result is: in the archive's folder, or, by its URL, in a store. A file's URL is its path."""
    return name.removeprefix("file://") if "://" in name else str(archive / name)


@dataclass(frozen=True, slots=True)
class Entry:
    """One scene, as `list` shows it."""

    scene_id: str
    name: str
    state: str
    reason: str | None
    priority: int
    chunks: int  # with empty ones, which never travel
    chunks_committed: int
    bytes: int  # of the stream as a file
    offered_at: float
    durable_at: float | None
    decoded_at: float | None
    failures: int
    node: str  # who offered it first, by its certificate; empty without TLS
    result: dict[str, Any]  # of decoding: "assets", "item", "seconds", ... with paths relative to the archive

    def row(self, archive: Path) -> dict[str, Any]:
        """As JSON has it. `path` is the first thing to open: the GeoTIFF, else the stream, else nothing."""
        assets = [located(archive, asset) for asset in self.result.get("assets", ())]
        stream = str(archive / "streams" / f"{self.scene_id}.dl") if self.durable_at is not None else None
        return {
            "scene_id": self.scene_id,
            "name": self.name,
            "state": self.state,
            "path": assets[0] if assets else stream,
            "paths": assets,
            "stream": stream,
            "item": located(archive, self.result["item"]) if "item" in self.result else None,
            "reason": self.reason,
            "priority": self.priority,
            "chunks": self.chunks,
            "chunks_committed": self.chunks_committed,
            "bytes": self.bytes,
            "offered_at": self.offered_at,
            "durable_at": self.durable_at,
            "decoded_at": self.decoded_at,
            "failures": self.failures,
            "node": self.node,
            "products": {located(archive, name): note for name, note in self.result.get("products", {}).items()},
            "facts": {key: value for key, value in self.result.items() if key not in ("assets", "item", "products")},
        }


class Ledger:
    """An open ledger. `create` makes it when it is missing; `read_only` may look on while a node serves. `connect`
    opens the database, which a test may let fail."""

    def __init__(
        self,
        archive: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        self._path = archive / FILE
        if not create and not self._path.exists():
            raise LedgerError(f"{archive} is no archive ({FILE} is missing); `decoder-node serve --archive` makes one")
        self._db = open_to_read(self._path) if read_only else open_ledger(self._path, connect)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction on its tables: all or nothing, durable when it has ended."""
        with guarded(self._path), transaction(self._db):
            yield self._db

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A look at its tables."""
        with guarded(self._path):
            yield self._db

    # --- receiving ---

    def begin(self, scene_id: str, manifest: Manifest, packed: bytes, priority: int, size: int, node: str = "") -> None:
        """A scene is offered for the first time, or again after it was quarantined on its way in. It belongs to the
        node that has offered it first, for ever."""
        values = (scene_id, manifest.scene.name, priority, packed, manifest.chunk_count, size, time.time(), node)
        with guarded(self._path), transaction(self._db):
            self._db.execute(
                "INSERT INTO scenes (scene_id, name, state, priority, manifest, chunks, bytes, offered_at, node)"
                " VALUES (?, ?, 'receiving', ?, ?, ?, ?, ?, ?) ON CONFLICT (scene_id) DO UPDATE SET"
                " state = 'receiving', reason = NULL, priority = excluded.priority WHERE durable_at IS NULL",
                values,
            )

    def commit(self, ranges: Iterable[tuple[str, Range]], sizes: Mapping[str, int] | None = None) -> None:
        """These chunks are on disk, synced. Durable when this returns. `sizes`: their bytes, by scene, for the
        history."""
        rows = [(scene_id, item.first, item.count) for scene_id, item in ranges]
        now, counts = time.time(), Counter[str]()
        for scene_id, _, count in rows:
            counts[scene_id] += count
        with guarded(self._path), transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO committed VALUES (?, ?, ?)", rows)
            self._db.executemany(
                "UPDATE scenes SET progress_at = ? WHERE scene_id = ?", [(now, scene_id) for scene_id in counts]
            )
            came = [(int(now // 60), size, counts[scene_id], scene_id) for scene_id, size in (sizes or {}).items()]
            self._db.executemany(
                "INSERT INTO traffic (node, minute, bytes, chunks) SELECT node, ?, ?, ? FROM scenes WHERE scene_id = ?"
                " ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes, chunks = chunks + excluded.chunks",
                came,
            )

    def committed(self, scene_id: str) -> list[Range]:
        """What `commit` was told, in ascending order; ranges may overlap."""
        query = "SELECT first, count FROM committed WHERE scene_id = ? ORDER BY first"
        with guarded(self._path):
            return [Range(*row) for row in self._db.execute(query, (scene_id,))]

    def correct(self, scene_id: str, ranges: Iterable[Range]) -> None:
        """Only these chunks are good: the disk has lost others that were committed."""
        with guarded(self._path), transaction(self._db):
            self._db.execute("DELETE FROM committed WHERE scene_id = ?", (scene_id,))
            rows = [(scene_id, item.first, item.count) for item in ranges]
            self._db.executemany("INSERT INTO committed VALUES (?, ?, ?)", rows)
            self._db.execute("UPDATE scenes SET decoded_chunks = 0 WHERE scene_id = ?", (scene_id,))

    def durable(self, scene_id: str) -> None:
        """The stream is whole, verified, synced and at its final place."""
        with guarded(self._path), transaction(self._db):
            query = "UPDATE scenes SET state = 'durable', reason = NULL, durable_at = ? WHERE scene_id = ?"
            self._db.execute(f"{query} AND state IN ('receiving', 'partial')", (time.time(), scene_id))
            self._db.execute("DELETE FROM committed WHERE scene_id = ?", (scene_id,))

    def settled(self, scene_id: str) -> bool:
        """Is the scene durable, or was it ever?"""
        with guarded(self._path):
            query = "SELECT durable_at IS NOT NULL FROM scenes WHERE scene_id = ?"
            row = self._db.execute(query, (scene_id,)).fetchone()
        return row is not None and bool(row[0])

    def quarantine(self, scene_id: str, reason: str) -> None:
        """The scene cannot be used."""
        with guarded(self._path), transaction(self._db):
            self._db.execute(
                "UPDATE scenes SET state = 'quarantined', reason = ? WHERE scene_id = ?", (reason, scene_id)
            )
            self._db.execute("DELETE FROM committed WHERE scene_id = ?", (scene_id,))

    # --- decoding ---

    def recover(self) -> list[str]:
        """After a start: count the decodings that the last run did not live to finish. Returns scenes given up for
        it."""
        reason = f"the node died {INTERRUPTIONS_MAX} times while decoding it; try `decoder-node decode` on its stream"
        with guarded(self._path), transaction(self._db):
            self._db.execute("UPDATE scenes SET interruptions = interruptions + 1, decoding = 0 WHERE decoding = 1")
            given_up = "FROM scenes WHERE state = 'durable' AND interruptions >= ?"
            rows = self._db.execute(f"SELECT scene_id {given_up}", (INTERRUPTIONS_MAX,)).fetchall()
            query = (
                f"UPDATE scenes SET state = 'quarantined', reason = ? WHERE scene_id IN (SELECT scene_id {given_up})"
            )
            self._db.execute(query, (reason, INTERRUPTIONS_MAX))
        return [row[0] for row in rows]

    def undecoded(self, without: Iterable[str] = ()) -> str | None:
        """The scene to decode next: those that went wrong least often first; then nodes take turns, so that none has to
        wait for all scenes of another, whatever priority that gives them; then by priority, then by age."""
        left_out = list(without)
        marks = ",".join("?" * len(left_out))
        query = (
            f"SELECT scene_id FROM scenes WHERE state = 'durable' AND scene_id NOT IN ({marks})"
            f" ORDER BY interruptions + failures, {_TURN}, priority DESC, durable_at LIMIT 1"
        )
        with guarded(self._path):
            row = self._db.execute(query, left_out).fetchone()
        return None if row is None else str(row[0])

    def coarse(self, idle_s: float, without: Iterable[str] = (), now: float | None = None) -> str | None:
        """A scene that is not complete and worth decoding as far as it has come: a tenth of it or more has come since
        the last time, which (or its offer) is `idle_s` ago, so that it sharpens while it comes; or less has, and
        nothing more for six times as long. Nodes take turns; then by priority."""
        left_out, moment = list(without), time.time() if now is None else now
        marks = ",".join("?" * len(left_out))
        have = "(SELECT sum(count) FROM committed WHERE committed.scene_id = scenes.scene_id)"
        query = (
            f"SELECT scene_id, {have} AS have FROM scenes WHERE durable_at IS NULL"
            " AND min(progress_at, max(offered_at, coalesce(decoded_at, 0))) < ?"
            f" AND state IN ('receiving', 'partial') AND interruptions < ? AND scene_id NOT IN ({marks})"
            " AND have > decoded_chunks AND (have - decoded_chunks >= chunks / 10.0 OR progress_at < ?)"
            f" ORDER BY {_TURN}, priority DESC, decoded_at, progress_at LIMIT 1"
        )
        values = (moment - idle_s, FAILURES_MAX, *left_out, moment - 6 * idle_s)
        with guarded(self._path):
            row = self._db.execute(query, values).fetchone()
        return None if row is None else str(row[0])

    def partial(self, scene_id: str, chunks: int, result: dict[str, Any] | None) -> None:
        """The scene was decoded when so many chunks of it had come; None: it could not be yet."""
        with guarded(self._path), transaction(self._db):
            query = "UPDATE scenes SET decoding = 0, decoded_chunks = ? WHERE scene_id = ?"
            self._db.execute(query, (chunks, scene_id))
            if result is not None:
                query = "UPDATE scenes SET state = 'partial', decoded_at = ?, result = ? WHERE scene_id = ?"
                kept = json.dumps(self._placed(scene_id, result))
                self._db.execute(f"{query} AND durable_at IS NULL", (time.time(), kept, scene_id))

    def decoding(self, scene_id: str, begun: bool) -> None:
        """A worker begins, or was stopped without its fault."""
        with guarded(self._path), transaction(self._db):
            self._db.execute("UPDATE scenes SET decoding = ? WHERE scene_id = ?", (int(begun), scene_id))

    def decoded(self, scene_id: str, result: dict[str, Any]) -> None:
        """The GeoTIFFs and the catalogue's item are at their places."""
        with guarded(self._path), transaction(self._db):
            query = "UPDATE scenes SET state = 'decoded', reason = NULL, decoding = 0, decoded_at = ?, result = ?"
            kept = json.dumps(self._placed(scene_id, result))
            self._db.execute(f"{query} WHERE scene_id = ?", (time.time(), kept, scene_id))

    def unplaced(self) -> list[tuple[str, str]]:
        """(id, item) of scenes that were decoded before the ledger kept places."""
        query = (
            "SELECT scene_id, json_extract(result, '$.item') FROM scenes WHERE result IS NOT NULL"
            " AND scene_id NOT IN (SELECT scene_id FROM places)"
        )
        with guarded(self._path):
            return [(row[0], row[1]) for row in self._db.execute(query) if row[1]]

    def place(self, scene_id: str, place: dict[str, Any]) -> None:
        """Note where and when a scene is of."""
        with guarded(self._path), transaction(self._db):
            self._placed(scene_id, {"place": place})

    def _placed(self, scene_id: str, result: dict[str, Any]) -> dict[str, Any]:
        """Note where and when a decoded scene is of (`result["place"]`, of `decoder_node.footprint`), within a
        transaction; returns the rest."""
        place = result.get("place")
        if place is None:
            return result
        box = place.get("bbox") or (None,) * 4
        outline = json.dumps(place["outline"], separators=(",", ":")) if place.get("outline") else None
        values = (scene_id, place.get("acquired"), outline, *box)
        self._db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return {key: value for key, value in result.items() if key != "place"}

    def again(self, scene_ids: Sequence[str] | None = None) -> list[str]:
        """Decode these complete scenes anew (None: all of them), those that were given up after they were complete
        included. Returns their ids; what was decoded before stays until it is replaced."""
        with guarded(self._path), transaction(self._db):
            rows = self._db.execute("SELECT scene_id FROM scenes WHERE durable_at IS NOT NULL").fetchall()
            known = {row[0] for row in rows}
            chosen = sorted(known if scene_ids is None else known.intersection(scene_ids))
            query = "UPDATE scenes SET state = 'durable', reason = NULL, failures = 0, interruptions = 0"
            self._db.executemany(f"{query} WHERE scene_id = ?", [(scene_id,) for scene_id in chosen])
        return chosen

    def failed(self, scene_id: str, reason: str) -> str:
        """Decoding has failed once more; returns the state: durable (try again) or quarantined."""
        with guarded(self._path), transaction(self._db):
            self._db.execute(
                "UPDATE scenes SET failures = failures + 1, decoding = 0, reason = ?,"
                " state = CASE WHEN failures + 1 >= ? THEN 'quarantined' ELSE state END WHERE scene_id = ?",
                (reason, FAILURES_MAX, scene_id),
            )
            row = self._db.execute("SELECT state FROM scenes WHERE scene_id = ?", (scene_id,)).fetchone()
        return str(row[0])

    def waits(self, scene_id: str, reason: str) -> None:
        """The scene is all right but cannot be decoded here and now (its model is not installed)."""
        with guarded(self._path), transaction(self._db):
            self._db.execute("UPDATE scenes SET reason = ?, decoding = 0 WHERE scene_id = ?", (reason, scene_id))

    # --- looking ---

    def find(self, scene_id: str) -> Entry | None:
        """One scene, by its whole id."""
        found = self._entries("WHERE s.scene_id = ?", (scene_id,))
        return found[0] if found else None

    def manifest(self, scene_id: str) -> Manifest:
        """The manifest of a scene that is here."""
        with guarded(self._path):
            row = self._db.execute("SELECT manifest FROM scenes WHERE scene_id = ?", (scene_id,)).fetchone()
        if row is None:
            raise LedgerError(f"the ledger {self._path} holds no scene {scene_id}; see `decoder-node list`")
        return Manifest.unpack(row[0])

    def entries(self) -> list[Entry]:
        """All scenes, oldest first."""
        return self._entries("ORDER BY s.offered_at, s.scene_id", ())

    def _entries(self, where: str, values: Sequence[object]) -> list[Entry]:
        query = (
            "SELECT s.scene_id, s.name, s.state, s.reason, s.priority, s.chunks, CASE WHEN s.durable_at IS NULL THEN"
            " (SELECT coalesce(sum(count), 0) FROM committed c WHERE c.scene_id = s.scene_id) ELSE s.chunks END,"
            f" s.bytes, s.offered_at, s.durable_at, s.decoded_at, s.failures, s.node, s.result FROM scenes s {where}"
        )
        with guarded(self._path):
            rows = self._db.execute(query, values).fetchall()
        found = []
        for row in rows:
            fields = [*row[:-1], json.loads(row[-1] or "{}")]
            found.append(Entry(*fields))
        return found
