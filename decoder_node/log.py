"""One JSON object per line on stderr: time, level, event, and what it is about (`scene`, `chunks`, `bytes`,
`reason`...).

>>> log.info("durable", extra={"scene": "3fa9..."})
{"time": "2026-11-20T09:30:31.042Z", "level": "info", "event": "durable", "scene": "3fa9..."}
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

log: Final = logging.getLogger("decoder_node")

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Everything given as `extra` becomes a field; an exception becomes `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        # gRPC stumbles over a peer's bytes with a traceback; its sentence says enough.
        if record.exc_info and not record.name.startswith("grpc."):
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def log_to_stderr(level: str) -> None:
    """Send all logs of this process there, from `level` ("debug", "info", "warning", "error") up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.setLevel(level.upper())  # of what is shown; what is counted (`metrics`) may be more
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        for chatty in ("asyncio", "numexpr", "uvicorn", "distributed"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
