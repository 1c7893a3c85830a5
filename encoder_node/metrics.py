"""Figures for Prometheus, by the standard library alone: `Metrics.serve` answers GET /metrics in the text format.

What the outbox holds is read from it at each scrape, with a connection of its own; what has happened since the start is
counted from the log: every line there is an event, so every event is a counter, those of errors by their code. A scrape
touches neither the sender nor its thread. Refused, with `LinkError`: addresses that cannot be bound.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from downlink import __version__
from downlink.errors import DownlinkError, LinkError
from encoder_node.log import log
from encoder_node.outbox import Outbox

STATES: Final = ("queued", "kept", "delivered", "refused", "damaged", "dropped")
PREFIX: Final = "downlink_edge"
MEDIA: Final = "text/plain; version=0.0.4; charset=utf-8"
PATIENCE_S: Final = 5.0

Sample = tuple[str, dict[str, str], float]


class _Counting(logging.Handler):
    """Counts events, and adds up the seconds that they say they took."""

    def __init__(self) -> None:
        super().__init__()
        self.events: Counter[tuple[str, str, str]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.timed: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        event = record.getMessage()
        self.events[record.levelname.lower(), event, str(getattr(record, "code", ""))] += 1
        seconds = getattr(record, "seconds", None)
        if isinstance(seconds, int | float):
            self.timed[event] += 1
            self.seconds[event] += seconds  # type: ignore[assignment]  # a Counter adds up floats as well


class Metrics:
    """The figures of one outbox and its sender. `link` gives (bytes sent, round trip in s, acknowledgement in s)."""

    def __init__(self, outbox: Path, link: Callable[[], tuple[int, float, float]]) -> None:
        self._outbox = outbox
        self._link = link
        self._counting = _Counting()
        self._began = time.time()
        self._server: ThreadingHTTPServer | None = None
        log.addHandler(self._counting)
        log.setLevel(min(log.getEffectiveLevel(), logging.INFO))  # whatever is shown of them, events are counted

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        lines: list[str] = []
        for name, kind, about, samples in self._families():
            lines += [f"# HELP {PREFIX}_{name} {about}", f"# TYPE {PREFIX}_{name} {kind}"]
            for suffix, labels, value in samples:
                shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
                lines.append(
                    f"{PREFIX}_{name}{suffix}{{{shown}}} {value:.17g}" if shown else f"{PREFIX}_{name} {value:.17g}"
                )
        return "\n".join(lines) + "\n"

    def _families(self) -> Iterable[tuple[str, str, str, list[Sample]]]:
        scenes, sizes, oldest, works = dict.fromkeys(STATES, 0), dict.fromkeys(STATES, 0), 0.0, 1.0
        try:
            with Outbox(self._outbox, read_only=True) as box:
                for state, count, size, since in box.totals():
                    scenes[state], sizes[state] = count, size
                    if state == "queued":
                        oldest = max(0.0, time.time() - since)
        except DownlinkError:
            works = 0.0
        sent, round_trip, acknowledged = self._link()
        yield "info", "gauge", "The program.", [("", {"version": __version__}, 1)]
        yield "start_time_seconds", "gauge", "When it was started, since 1970.", [("", {}, self._began)]
        yield "outbox_up", "gauge", "Whether the outbox can be read.", [("", {}, works)]
        by_state = [("", {"state": state}, float(scenes[state])) for state in STATES]
        yield "scenes", "gauge", "Scenes of the outbox, by state.", by_state
        waiting = [("", {"state": state}, float(sizes[state])) for state in ("queued", "kept", "refused", "damaged")]
        yield "backlog_bytes", "gauge", "Bytes of the streams that the outbox holds, by state.", waiting
        yield "oldest_queued_seconds", "gauge", "How long the oldest scene has waited to be sent.", [("", {}, oldest)]
        yield "sent_bytes_total", "counter", "Bytes said to the ground, without gRPC's own.", [("", {}, float(sent))]
        yield "round_trip_seconds", "gauge", "Shortest time to an acknowledgement seen lately.", [("", {}, round_trip)]
        yield "ack_seconds", "gauge", "How long the last acknowledgement took.", [("", {}, acknowledged)]
        events = [
            ("", {"level": level, "event": event, "code": code}, float(count))
            for (level, event, code), count in sorted(self._counting.events.copy().items())
        ]
        yield "events_total", "counter", "Lines of the log, by event; of errors, by code.", events
        timed: list[Sample] = []
        for event, count in sorted(self._counting.timed.copy().items()):
            timed += [("_sum", {"event": event}, self._counting.seconds[event]), ("_count", {"event": event}, count)]
        yield "work_seconds", "summary", "What work took: submitted (encoding a watched scene).", timed

    def serve(self, listen: str) -> str:
        """Answer scrapes on HOST:PORT, in a thread; returns the address as bound."""
        host, _, port = listen.rpartition(":")
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            timeout = PATIENCE_S
            server_version = "encoder-node"
            sys_version = ""

            def do_GET(self) -> None:
                known = self.path in ("/metrics", "/")
                content = metrics.text().encode() if known else b"see /metrics\n"
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", MEDIA)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                log.debug("scraped", extra={"peer": self.client_address[0]})

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                log.debug("scrape failed", extra={"peer": str(client_address)})

        try:
            self._server = Server((host.strip("[]"), int(port)), Handler)
        except OSError as error:
            raise LinkError(f"--metrics cannot listen on {listen}: {error.strerror}") from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return f"{host}:{self._server.server_address[1]}"

    def close(self) -> None:
        log.removeHandler(self._counting)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
