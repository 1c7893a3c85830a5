"""What the page shows, read from the ledger: nodes, scenes on their way, searches, history.

Read-only, a connection per request, so that a page never holds up what receives. Every query is bounded and served by
an index: ten thousand scenes are looked through within milliseconds (`python -m evaluation.page` measures it). Refused,
with `SearchError`: searches that make no sense, with what would.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from decoder_node.asks import Asks
from decoder_node.asks import Entry as AskEntry
from decoder_node.ledger import Entry, Ledger
from downlink.errors import DownlinkError
from downlink.manifest import Manifest

STATES: Final = ("receiving", "partial", "durable", "decoded", "quarantined")
PAGE_SCENES: Final = 48
OUTLINES_MAX: Final = 2000
PASS_GAP_MIN: Final = 5  # minutes without a byte end a pass
RATE_S: Final = 60

Box = tuple[float, float, float, float]  # west, south, east, north


class SearchError(DownlinkError):
    """This cannot be searched for."""

    code = "search"


@dataclass(frozen=True)
class Search:
    """What is looked for; what is empty matches all."""

    text: str = ""  # in the name, or the first digits of the id
    node: str | None = None
    state: str = ""
    since: str = ""  # ISO 8601, a date or a moment
    until: str = ""
    place: str = ""  # "lat, lon" or "west, south, east, north"

    def conditions(self) -> tuple[str, list[object]]:
        """The WHERE of it, over scenes `s` and places `p`."""
        terms, values = ["1"], list[object]()
        if self.text:
            terms.append("(s.name LIKE ? ESCAPE '\\' OR s.scene_id LIKE ? ESCAPE '\\')")
            plain = self.text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
            values += [f"%{plain}%", f"{plain.lower()}%"]
        if self.node is not None:
            terms.append("s.node = ?")
            values.append(self.node)
        if self.state:
            if self.state not in STATES:
                raise SearchError(f"{self.state!r} is no state; there are {', '.join(STATES)}")
            terms.append("s.state = ?")
            values.append(self.state)
        when = "coalesce(p.acquired, strftime('%Y-%m-%dT%H:%M:%fZ', s.offered_at, 'unixepoch'))"
        if self.since:
            terms.append(f"{when} >= ?")
            values.append(_moment(self.since, end=False))
        if self.until:
            terms.append(f"{when} <= ?")
            values.append(_moment(self.until, end=True))
        if self.place:
            west, south, east, north = box_of(self.place)
            terms.append("p.south <= ? AND p.north >= ?")
            values += [north, south]
            # a box with west > east crosses the antimeridian: it is two
            across = "(p.west <= ? AND p.east >= ? OR p.west > p.east AND (p.west <= ? OR p.east >= ?))"
            parts = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
            terms.append("(" + " OR ".join([across] * len(parts)) + ")")
            for left, right in parts:
                values += [right, left, right, left]
        return " AND ".join(terms), values


def box_of(text: str) -> Box:
    """A point or a box, as a person types it."""
    try:
        numbers = [float(word) for word in text.replace(";", ",").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        lat, lon = numbers
        numbers = [lon, lat, lon, lat]
    if len(numbers) != 4 or not all(-90 <= lat <= 90 for lat in numbers[1::2]) or numbers[1] > numbers[3]:
        raise SearchError(f"{text!r} is no place; type LAT, LON or WEST, SOUTH, EAST, NORTH in degrees")
    if not all(-540 <= lon <= 540 for lon in numbers[::2]):
        raise SearchError(f"{text!r}: longitudes are -180 to 180 degrees")
    west, south, east, north = numbers
    if east - west >= 360:
        return -180.0, south, 180.0, north
    west, east = ((lon + 180) % 360 - 180 if not -180 <= lon <= 180 else lon for lon in (west, east))
    return west, south, east, north


def _moment(text: str, *, end: bool) -> str:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise SearchError(f"{text!r} is no time; type 2026-11-21 or 2026-11-21T10:02Z") from error
    if end and len(text.strip()) == 10:  # a day ends at its end
        moment += timedelta(days=1, milliseconds=-1)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Row:
    """One scene of a list."""

    scene_id: str
    name: str
    state: str
    node: str
    bytes: int
    offered_at: float
    decoded_at: float | None
    reason: str | None
    acquired: str | None
    result: dict[str, Any]

    @property
    def version(self) -> int:
        """Another one whenever there are other pixels to be seen."""
        return int(1000 * (self.decoded_at or 0))

    @property
    def ratio(self) -> float | None:
        """Raw bytes per byte sent."""
        raw = self.result.get("raw_bytes")
        return None if raw is None or not self.bytes else raw / self.bytes


@dataclass(frozen=True)
class Node:
    """One node, and how its link is."""

    name: str
    address: str
    software: str
    connected: bool
    seen_at: float
    rate_bps: float
    waiting_scenes: int | None
    waiting_bytes: int | None
    kept_scenes: int | None
    next_contact_at: float | None
    scenes: int
    bytes: int


@dataclass(frozen=True)
class Pass:
    """A stretch of time in which a node sent without a longer break."""

    node: str
    start: float
    end: float
    bytes: int


class Shelf:
    """An archive's ledger, to be looked at."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, for one request."""
        ledger = Ledger(self.archive, read_only=True)
        try:
            yield ledger
        finally:
            ledger.close()

    @contextmanager
    def _db(self) -> Iterator[sqlite3.Connection]:
        with self.ledger() as ledger, ledger.reading() as db:
            yield db

    def counts(self) -> dict[str, int]:
        """How many scenes there are in each state."""
        with self._db() as db:
            found = dict(db.execute("SELECT state, count(*) FROM scenes GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def nodes(self, now: float | None = None) -> list[Node]:
        """All nodes, connected ones first, then those seen last."""
        now = time.time() if now is None else now
        since = int(now // 60) - 1
        query = (
            "SELECT n.node, n.address, n.software, n.streams, n.seen_at, n.waiting_scenes, n.waiting_bytes,"
            " n.kept_scenes, n.next_contact_at,"
            " (SELECT coalesce(sum(bytes), 0) FROM traffic t WHERE t.node = n.node AND t.minute >= ?),"
            " (SELECT count(*) FROM scenes s WHERE s.node = n.node),"
            " (SELECT coalesce(sum(bytes), 0) FROM traffic t WHERE t.node = n.node)"
            " FROM nodes n ORDER BY n.streams > 0 DESC, n.seen_at DESC LIMIT 200"
        )
        with self._db() as db:
            rows = db.execute(query, (since,)).fetchall()
        seconds = max(RATE_S, now - 60 * since)
        return [
            Node(
                name=row[0], address=row[1], software=row[2], connected=row[3] > 0,
                seen_at=now if row[3] else row[4], rate_bps=8 * row[9] / seconds, waiting_scenes=row[5],
                waiting_bytes=row[6], kept_scenes=row[7], next_contact_at=row[8], scenes=row[10], bytes=row[11],
            )
            for row in rows
        ]  # fmt: skip

    def names(self) -> list[str]:
        """Of all nodes that scenes are from."""
        with self._db() as db:
            return [row[0] for row in db.execute("SELECT DISTINCT node FROM scenes ORDER BY node LIMIT 200")]

    def coming(self, most: int = 24) -> list[tuple[Entry, Manifest]]:
        """Scenes on their way: those that something has come of lately first; then those that wait to be decoded."""
        query = (
            "SELECT scene_id FROM scenes WHERE durable_at IS NULL AND state IN ('receiving', 'partial')"
            " ORDER BY progress_at DESC LIMIT ?"
        )
        decode = "SELECT scene_id FROM scenes WHERE state = 'durable' ORDER BY offered_at DESC LIMIT ?"
        with self.ledger() as ledger:
            with ledger.reading() as db:
                names = [row[0] for query in (query, decode) for row in db.execute(query, (most,))]
            found = [(ledger.find(name), ledger.manifest(name)) for name in names[:most]]
        return [(entry, manifest) for entry, manifest in found if entry is not None]

    def search(self, wanted: Search, offset: int = 0, limit: int = PAGE_SCENES) -> tuple[list[Row], int]:
        """Scenes, newest first, from the `offset`-th; and how many there are in all."""
        where, values = wanted.conditions()
        # places are looked up for the rows that are shown, and for all only if something is asked of them
        source = "scenes s LEFT JOIN places p USING (scene_id)" if "p." in where else "scenes s"
        order = "ORDER BY s.offered_at DESC, s.scene_id"
        query = (
            "SELECT s.scene_id, s.name, s.state, s.node, s.bytes, s.offered_at, s.decoded_at, s.reason, p.acquired,"
            " s.result FROM scenes s LEFT JOIN places p USING (scene_id) WHERE s.scene_id IN"
            f" (SELECT s.scene_id FROM {source} WHERE {where} {order} LIMIT ? OFFSET ?) {order}"
        )
        with self._db() as db:
            rows = db.execute(query, (*values, limit, offset)).fetchall()
            [total] = db.execute(f"SELECT count(*) FROM {source} WHERE {where}", values).fetchone()
        found = [[*row[:-1], json.loads(row[-1] or "{}")] for row in rows]
        return [Row(*fields) for fields in found], total

    def outlines(self, wanted: Search, more: Sequence[dict[str, Any]] = ()) -> str:
        """The newest places of a search as a GeoJSON FeatureCollection, ready to be sent, after `more` features."""
        where, values = wanted.conditions()
        query = (
            "SELECT json_object('type', 'Feature', 'geometry', json(p.outline), 'properties', json_object('id',"
            " s.scene_id, 'name', s.name, 'state', s.state, 'v', cast(1000 * coalesce(s.decoded_at, 0) AS INTEGER),"
            " 'box', json_array(p.west, p.south, p.east, p.north)))"
            " FROM places p JOIN scenes s USING (scene_id)"
            f" WHERE p.outline IS NOT NULL AND {where} ORDER BY s.offered_at DESC LIMIT {OUTLINES_MAX}"
        )
        with self._db() as db:
            features = ",".join([*map(json.dumps, more), *(row[0] for row in db.execute(query, values))])
        return f'{{"type":"FeatureCollection","features":[{features}]}}'

    def scene(self, scene_id: str) -> tuple[Row, Entry, Manifest, str | None] | None:
        """One scene: as in a list, as the ledger has it, its manifest, and its outline as GeoJSON."""
        with self.ledger() as ledger:
            entry = ledger.find(scene_id)
            if entry is None:
                return None
            manifest = ledger.manifest(scene_id)
            with ledger.reading() as db:
                place = db.execute("SELECT acquired, outline FROM places WHERE scene_id = ?", (scene_id,)).fetchone()
        acquired, outline = place or (None, None)
        row = Row(
            entry.scene_id, entry.name, entry.state, entry.node, entry.bytes, entry.offered_at, entry.decoded_at,
            entry.reason, acquired, entry.result,
        )  # fmt: skip
        return row, entry, manifest, outline

    def asks(self, scene_id: str | None = None, most: int = 100) -> list[AskEntry]:
        """Requests, newest first, of one scene or all."""
        with self.ledger() as ledger:
            found = Asks(self.archive, ledger).entries()
        return [entry for entry in reversed(found) if scene_id in (None, entry.scene_id)][:most]

    def passes(self, since: float, node: str | None = None) -> list[Pass]:
        """Passes since then, in the order of their beginning."""
        query = "SELECT node, minute, bytes FROM traffic WHERE bytes > 0 AND minute >= ?"
        values: list[object] = [int(since // 60)]
        if node is not None:
            query, values = f"{query} AND node = ?", [*values, node]
        found: list[Pass] = []
        with self._db() as db:
            for name, minute, size in db.execute(f"{query} ORDER BY node, minute", values):
                start, end = 60.0 * minute, 60.0 * (minute + 1)
                last = found[-1] if found else None
                if last is not None and last.node == name and start - last.end < 60 * PASS_GAP_MIN:
                    found[-1] = Pass(name, last.start, end, last.bytes + size)
                else:
                    found.append(Pass(name, start, end, size))
        return sorted(found, key=lambda one: one.start)

    def backlog(self, since: float) -> dict[str, list[tuple[float, int]]]:
        """What waited on board of each node, by its own word: (when, bytes)."""
        query = (
            "SELECT node, minute, waiting_bytes FROM traffic WHERE waiting_bytes IS NOT NULL AND minute >= ?"
            " ORDER BY node, minute"
        )
        found: dict[str, list[tuple[float, int]]] = {}
        with self._db() as db:
            for node, minute, size in db.execute(query, (int(since // 60),)):
                found.setdefault(node, []).append((60.0 * minute, size))
        return found

    def ratios(self, since: float, most: int = 1000) -> list[tuple[float, float, str, str, str]]:
        """(when decoded, raw bytes per byte sent, name, id, node) of scenes that are whole, in that order."""
        query = (
            "SELECT decoded_at, json_extract(result, '$.raw_bytes') * 1.0 / bytes, name, scene_id, node FROM scenes"
            " WHERE state = 'decoded' AND offered_at >= ? ORDER BY offered_at DESC LIMIT ?"
        )
        with self._db() as db:
            rows = db.execute(query, (since, most)).fetchall()
        return sorted((row for row in rows if row[1]), key=lambda row: row[0])

    def pulse(self) -> dict[str, str]:
        """For each part of the page, a text that changes when there is something new to be seen of it."""
        with self._db() as db:
            states = db.execute("SELECT state, count(*) FROM scenes GROUP BY state ORDER BY state").fetchall()
            [coming] = db.execute("SELECT max(progress_at) FROM scenes WHERE durable_at IS NULL").fetchone()
            [decoded] = db.execute("SELECT max(decoded_at) FROM scenes").fetchone()
            nodes = db.execute("SELECT sum(streams), max(seen_at), max(reported_at) FROM nodes").fetchone()
            asks = db.execute("SELECT max(number), max(answered_at), count(*) FROM asks").fetchone()
            [traffic] = db.execute("SELECT max(minute) FROM traffic").fetchone()
        return {
            "flight": f"{states} {coming} {decoded}", "scenes": f"{states} {decoded}", "nodes": f"{nodes} {traffic}",
            "asks": f"{asks}",
        }  # fmt: skip
