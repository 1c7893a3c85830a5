"""When the ground is in sight: passes, each with a start and an end, and perhaps a rate.

    --contact 2026-11-21T10:02:30Z/2026-11-21T10:11:00Z      on the command line, any number of times
    --contacts passes.toml                                   a file, read again when it changes:

    [[contact]]
    start = 2026-11-21T10:02:30Z
    end = 2026-11-21T10:11:00Z
    rate_kbps = 2000        # may be left out

Times are ISO 8601; without an offset they are UTC. Where passes overlap, the one that ends last counts. Without any
schedule the ground is always in sight, as far as anybody knows. Times here are wall-clock seconds.

Refused, with `ConfigError`: passes that end before they start, times and keys that cannot be read.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from encoder_node.config import ConfigError


@dataclass(frozen=True, slots=True, order=True)
class Pass:
    """The ground is in sight from `start` until just before `end`."""

    start: float
    end: float
    rate_kbps: float | None = None


class Schedule:
    """Passes, of which the ones that are over are of no interest."""

    def __init__(self, passes: Iterable[Pass]) -> None:
        self._passes = sorted(passes)
        self._starts = [item.start for item in self._passes]

    def __len__(self) -> int:
        return len(self._passes)

    def current(self, now: float) -> Pass | None:
        """The pass that it is now; of several, the one that ends last."""
        begun = self._passes[: bisect.bisect_right(self._starts, now)]
        return max((item for item in begun if now < item.end), key=lambda item: item.end, default=None)

    def next_start(self, now: float) -> float | None:
        """When the next pass begins; None if there is none."""
        place = bisect.bisect_right(self._starts, now)
        return self._starts[place] if place < len(self._starts) else None


class Contacts:
    """The schedule that options give: passes, and a file that may change. Neither: none, the ground is always in
    sight."""

    def __init__(self, given: Sequence[str] = (), file: Path | None = None) -> None:
        self._given = [parse_pass(text) for text in given]
        self._file = file
        self._read: tuple[int, int] | None = None
        self._schedule = Schedule(self._given) if given else None
        if file is not None:
            self.schedule()

    def schedule(self) -> Schedule | None:
        """The schedule as it is now. Raises `ConfigError` when the file cannot be used."""
        if self._file is None:
            return self._schedule
        try:
            fact = self._file.stat()
            if self._read != (fact.st_mtime_ns, fact.st_size):
                self._schedule = Schedule([*self._given, *read_passes(self._file)])
                self._read = (fact.st_mtime_ns, fact.st_size)
        except OSError as error:
            raise ConfigError(f"{self._file}: {error.strerror}") from error
        return self._schedule


def parse_pass(text: str) -> Pass:
    """START/END."""
    start, slash, end = text.partition("/")
    if not slash:
        raise ConfigError(f"{text!r} is not START/END, e.g. 2026-11-21T10:02:30Z/2026-11-21T10:11:00Z")
    return _checked(Pass(_time(start), _time(end)), text)


class _Contact(msgspec.Struct, forbid_unknown_fields=True):
    start: Any  # a time of TOML, or a string
    end: Any
    rate_kbps: Annotated[float, Meta(gt=0)] | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    contact: list[_Contact] = []


def read_passes(path: Path) -> list[Pass]:
    """The passes of a file."""
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; it must have [[contact]] tables with start, end and rate_kbps") from error
    passes = []
    for item in found.contact:
        try:
            checked = _checked(Pass(_time(item.start), _time(item.end)), f"contact from {item.start} to {item.end}")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        passes.append(replace(checked, rate_kbps=item.rate_kbps))
    return passes


def _time(stated: object) -> float:
    if isinstance(stated, str):
        try:
            stated = datetime.fromisoformat(stated.strip())
        except ValueError as error:
            raise ConfigError(f"{stated!r} is not a time of ISO 8601, e.g. 2026-11-21T10:02:30Z") from error
    if not isinstance(stated, datetime):
        raise ConfigError(f"{stated!r} is not a time with a date, e.g. 2026-11-21T10:02:30Z")
    return (stated.replace(tzinfo=UTC) if stated.tzinfo is None else stated).timestamp()


def _checked(item: Pass, what: str) -> Pass:
    if item.end <= item.start:
        raise ConfigError(f"{what}: it ends {item.start - item.end:g} s before it starts; give START before END")
    return item
