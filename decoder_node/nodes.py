"""The nodes that have been in touch, in the ledger (table `nodes`): whether they are connected, what they have said.

For people who watch: nothing that is promised depends on it. A node without a name (no TLS) is the empty name, whoever
it is. Written by `decoder-node serve` only; `recover` must be called when it starts, since no stream outlives it.
"""

from __future__ import annotations

import time

from decoder_node.ledger import Ledger
from downlink.frame import Report


class Nodes:
    """The nodes of an archive, on an open ledger, and in its thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def recover(self) -> None:
        """After a start: nobody is connected."""
        with self._ledger.writing() as db:
            db.execute("UPDATE nodes SET streams = 0")

    def came(self, node: str, address: str) -> None:
        """A stream has begun."""
        with self._ledger.writing() as db:
            db.execute(
                "INSERT INTO nodes (node, address, streams, seen_at) VALUES (?, ?, 1, ?) ON CONFLICT DO UPDATE SET"
                " address = excluded.address, streams = streams + 1, seen_at = excluded.seen_at",
                (node, address, time.time()),
            )

    def went(self, node: str) -> None:
        """A stream has ended."""
        with self._ledger.writing() as db:
            query = "UPDATE nodes SET streams = max(0, streams - 1), seen_at = ? WHERE node = ?"
            db.execute(query, (time.time(), node))

    def introduced(self, node: str, software: str) -> None:
        """What the node runs."""
        with self._ledger.writing() as db:
            db.execute("UPDATE nodes SET software = ?, seen_at = ? WHERE node = ?", (software, time.time(), node))

    def reported(self, node: str, report: Report) -> None:
        """How it stands, by its own word."""
        now = time.time()
        values = (report.waiting_scenes, report.waiting_bytes, report.kept_scenes, report.next_contact or None)
        with self._ledger.writing() as db:
            query = (
                "UPDATE nodes SET waiting_scenes = ?, waiting_bytes = ?, kept_scenes = ?, next_contact_at = ?,"
                " reported_at = ?, seen_at = ? WHERE node = ?"
            )
            db.execute(query, (*values, now, now, node))
            db.execute(
                "INSERT INTO traffic (node, minute, bytes, chunks, waiting_bytes) VALUES (?, ?, 0, 0, ?)"
                " ON CONFLICT DO UPDATE SET waiting_bytes = excluded.waiting_bytes",
                (node, int(now // 60), report.waiting_bytes),
            )
