"""A row of the outbox, as `status` shows it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from downlink.action import Outgoing
from downlink.frame import RETRY_S_MAX
from downlink.ranges import Range

BEHIND: Final = (
    "WITH RECURSIVE behind (scene_id, state, reference) AS"
    " (SELECT r.scene_id, r.state, r.reference FROM scenes r WHERE r.scene_id = scenes.reference UNION"
    " SELECT r.scene_id, r.state, r.reference FROM behind JOIN scenes r ON r.scene_id = behind.reference)"
)
"""What is known of the references behind a row of `scenes`, in a subquery."""
_ANCHORED: Final = f"NOT EXISTS ({BEHIND} SELECT 1 FROM behind WHERE state != 'delivered')"
COLUMNS: Final = "scene_id, name, state, priority, chunks, bytes, submitted_at, settled_at, reason"


@dataclass(frozen=True, slots=True)
class Entry:
    """One scene, as `status` shows it."""

    scene_id: str
    name: str
    state: str
    priority: int
    chunks: int
    bytes: int
    submitted_at: float
    settled_at: float | None
    reason: str | None

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: getattr(self, name) for name in self.__slots__}


def entries(db: sqlite3.Connection, where: str, values: Sequence[object] = ()) -> list[Entry]:
    """The rows for which this holds, or in this order."""
    return [Entry(*row) for row in db.execute(f"SELECT {COLUMNS} FROM scenes {where}", values)]


def due(
    db: sqlite3.Connection, most: int, without: frozenset[str], fresh: set[str], now: float, references: bool = True
) -> list[Outgoing]:
    """At most `most` scenes to be sent now, leaving out those in `without`: the highest priority first, then the lowest
    layer, then the oldest. The ground has nothing of those in `fresh`. A time to come back that is further off than any
    ground would have named comes from a clock that was set back since: it is not waited for. A scene waits for its
    reference while that is to be sent again, and, without `references`, for a ground that knows them."""
    marks = ",".join("?" * len(without))
    query = (
        "SELECT scene_id, manifest, lengths, priority, number, offered, coalesce(layer, 0), layers, first,"
        " lacks_from, ahead FROM scenes LEFT JOIN temp.progress USING (number)"
        f" WHERE state = 'queued' AND (not_before <= ? OR not_before > ?) AND scene_id NOT IN ({marks})"
        f" AND (reference IS NULL OR {_ANCHORED if references else 'FALSE'})"
        " ORDER BY priority DESC, coalesce(layer, 0), number LIMIT ?"
    )
    return [
        Outgoing(
            row[0], row[1], np.frombuffer(row[2], "<u4"), row[3], row[4],
            lacks_from=0 if not row[5] or row[0] in fresh else row[9], layer=row[6], layers=row[7],
            first=unpack_ranges(row[8]), ahead=unpack_ranges(row[10]),
        )
        for row in db.execute(query, (now, now + RETRY_S_MAX, *without, most)).fetchall()
    ]  # fmt: skip


def pack_ranges(ranges: Sequence[Range]) -> bytes:
    """As the columns `first` and `ahead` hold them."""
    return np.array([(item.first, item.count) for item in ranges], "<u4").tobytes()


def unpack_ranges(packed: bytes) -> tuple[Range, ...]:
    """What `pack_ranges` has packed."""
    numbers = np.frombuffer(packed, "<u4").tolist()
    return tuple(Range(first, count) for first, count in zip(numbers[::2], numbers[1::2], strict=True))
