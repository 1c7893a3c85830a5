"""Figures for Prometheus (`serve --metrics`): what the ledger holds, and what has happened since the start.

The ledger's figures are read at each scrape, with a connection of its own in the scrape's thread; what happens is
counted from the log: every line there is an event, so every event is a counter. Commits and decodings are timed.
Refused, with `LinkError`: addresses that cannot be bound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from decoder_node.ledger import Ledger
from decoder_node.log import log
from downlink import __version__
from downlink.errors import DownlinkError, LinkError

PREFIX: Final = "downlink_ground"
STATES: Final = ("receiving", "partial", "durable", "decoded", "quarantined")
COMMIT_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
DECODE_S: Final = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class _Ledger(Collector):
    """What the ledger says, at each scrape."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive

    def collect(self) -> Iterator[Any]:
        yield InfoMetricFamily(PREFIX, "The program.", value={"version": __version__})
        up = GaugeMetricFamily(f"{PREFIX}_ledger_up", "Whether the ledger can be read.")
        try:
            found = list(self._found())
            up.add_metric([], 1)
        except DownlinkError:
            found = []
            up.add_metric([], 0)
        yield up
        yield from found

    def _found(self) -> Iterator[Any]:
        ledger = Ledger(self._archive, read_only=True)
        try:
            with ledger.reading() as db:
                states = dict(db.execute("SELECT state, count(*) FROM scenes GROUP BY state").fetchall())
                coming = (
                    "SELECT coalesce(sum(bytes), 0) FROM scenes WHERE durable_at IS NULL AND state != 'quarantined'"
                )
                [to_come] = db.execute(coming).fetchone()
                oldest = "SELECT min(durable_at), strftime('%s', 'now') FROM scenes WHERE state = 'durable'"
                [since, now] = db.execute(oldest).fetchone()
                query = "SELECT node, sum(bytes), sum(chunks) FROM traffic GROUP BY node"
                traffic = db.execute(query).fetchall()
                query = "SELECT node, streams, seen_at, waiting_scenes, waiting_bytes FROM nodes"
                nodes = db.execute(query).fetchall()
                [asks] = db.execute("SELECT count(*) FROM asks WHERE state = 'waiting'").fetchone()
        finally:
            ledger.close()
        scenes = GaugeMetricFamily(f"{PREFIX}_scenes", "Scenes of the archive, by state.", labels=["state"])
        for state in STATES:
            scenes.add_metric([state], states.get(state, 0))
        yield scenes
        yield GaugeMetricFamily(f"{PREFIX}_coming_bytes", "Bytes of the streams that are not complete.", value=to_come)
        waited = max(0.0, float(now) - since) if since is not None else 0.0
        yield GaugeMetricFamily(f"{PREFIX}_oldest_undecoded_seconds", "How long a scene waits already.", value=waited)
        yield GaugeMetricFamily(f"{PREFIX}_asks_waiting", "Requests that no node has answered.", value=asks)
        size = CounterMetricFamily(f"{PREFIX}_received_bytes", "Bytes of chunks, synced.", labels=["node"])
        chunks = CounterMetricFamily(f"{PREFIX}_received_chunks", "Chunks, synced.", labels=["node"])
        for node, total, count in traffic:
            size.add_metric([node], total)
            chunks.add_metric([node], count)
        yield from (size, chunks)
        streams = GaugeMetricFamily(f"{PREFIX}_node_streams", "Streams that a node has open.", labels=["node"])
        seen = GaugeMetricFamily(f"{PREFIX}_node_seen_seconds", "When a node was seen last.", labels=["node"])
        left = GaugeMetricFamily(f"{PREFIX}_node_backlog_bytes", "What waits on board, by its word.", labels=["node"])
        behind = GaugeMetricFamily(f"{PREFIX}_node_backlog_scenes", "Scenes that wait on board.", labels=["node"])
        for node, count, moment, waiting, total in nodes:
            streams.add_metric([node], count)
            seen.add_metric([node], float(now) if count else moment)
            if waiting is not None:
                left.add_metric([node], total)
                behind.add_metric([node], waiting)
        yield from (streams, seen, left, behind)


class Metrics(logging.Handler):
    """The figures of one ground. Hangs in the log until `close`."""

    def __init__(self, archive: Path) -> None:
        super().__init__()
        self.registry = CollectorRegistry()
        self.registry.register(_Ledger(archive))
        about = "Lines of the log, by event; of streams that were closed, by status."
        labels = ["level", "event", "code"]
        self._events = Counter(f"{PREFIX}_events", about, labels, registry=self.registry)
        self._decode = Histogram(
            f"{PREFIX}_decode_seconds", "Decoding of a whole scene.", buckets=DECODE_S, registry=self.registry
        )
        about = "From a group of chunks to its acknowledgement: write, fsync, ledger."
        self._commit = Histogram(f"{PREFIX}_ack_seconds", about, buckets=COMMIT_S, registry=self.registry)
        log.addHandler(self)
        log.setLevel(min(log.getEffectiveLevel(), logging.INFO))  # whatever is shown of them, events are counted

    def emit(self, record: logging.LogRecord) -> None:
        event, code = record.getMessage(), getattr(record, "code", getattr(record, "status", ""))
        self._events.labels(record.levelname.lower(), event, str(code)).inc()
        seconds = getattr(record, "seconds", None)
        if event == "decoded" and isinstance(seconds, int | float):
            self._decode.observe(seconds)

    def committed(self, seconds: float) -> None:
        """A commit took so long."""
        self._commit.observe(seconds)

    def serve(self, listen: str) -> str:
        """Answer scrapes on HOST:PORT, in a thread; returns the address as bound."""
        host, _, port = listen.rpartition(":")
        try:
            server, _ = start_http_server(int(port), host.strip("[]"), self.registry)
        except OSError as error:
            raise LinkError(f"--metrics cannot listen on {listen}: {error.strerror}") from error
        return f"{host}:{server.server_address[1]}"

    def close(self) -> None:
        log.removeHandler(self)
        super().close()
