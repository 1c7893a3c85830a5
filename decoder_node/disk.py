"""The file operations that the inbox's promises rest on: what may fail, and what a power cut may undo.

A write is only in memory until `Writing.sync` or `sync` has returned; a name that was made, changed or taken away is
only so until `sync_folder` has. The inbox touches files through an instance of `Disk`, so that `tests/sim` can put one
in its place that forgets what was not synced, fills up, or fails at its n-th operation. OSError passes through.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from decoder_node.durable import make_folder, sync_folder


class Writing(Protocol):
    """A file that is open for writing."""

    def write_at(self, content: bytes, offset: int) -> None:
        """Put all of `content` at `offset`; the file grows as needed."""

    def sync(self) -> None:
        """Make what was written survive a power cut."""


class Disk:
    """The real one."""

    def make_folder(self, folder: Path) -> None:
        make_folder(folder)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder survive a power cut."""
        sync_folder(folder)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def files(self, folder: Path) -> list[Path]:
        return list(folder.iterdir())

    def read(self, path: Path) -> BinaryIO:
        """The file, to read and seek in; the caller closes it."""
        return path.open("rb")

    def write(self, path: Path, *, create: bool = False) -> AbstractContextManager[Writing]:
        """The file, to write to; with `create`, an empty one in the place of whatever was there."""
        return _writing(path, create)

    def sync(self, path: Path) -> None:
        """Make a whole file survive a power cut, but for its name."""
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def rename(self, path: Path, target: Path) -> None:
        path.rename(target)

    def unlink(self, path: Path) -> None:
        """Take a name away, if it is there."""
        path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        return shutil.disk_usage(folder).free


class _Writing:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write_at(self, content: bytes, offset: int) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._handle, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        os.fdatasync(self._handle)


@contextmanager
def _writing(path: Path, create: bool) -> Iterator[Writing]:
    with path.open("wb" if create else "r+b") as file:
        yield _Writing(file.fileno())
