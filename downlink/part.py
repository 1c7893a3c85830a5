"""A stream that has not all come: which chunks are there, and what they are worth.

`PartReader` reads what the ground writes while a scene is on its way: header and manifest, then chunks at their final
offsets, with holes. Which chunks are there the ledger knows; a chunk that should be there and does not have its
checksum counts as missing. Works on a binary file object that the caller has opened. Refused, with a `StreamError`:
files whose header or manifest is damaged, and those of which the chunk list is not there, because nothing can be
decoded then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from downlink.chunk import check_chunk
from downlink.errors import Corrupt
from downlink.layer import layer_ends
from downlink.manifest import Manifest, scene_id
from downlink.ranges import Range, bitmap
from downlink.stream import read_head


class PartReader:
    """A part of a stream, in a seekable file. Not for several threads."""

    def __init__(self, file: BinaryIO, there: Iterable[Range]) -> None:
        self._file = file
        packed = read_head(file)
        start = file.tell()
        self.manifest_bytes: Final = packed
        self.manifest: Final = Manifest.unpack(packed)
        count, pages = self.manifest.chunk_count, len(self.manifest.pages)
        self._there = bitmap(count, there)
        if not self._there[:pages].all():
            have = int(self._there[:pages].sum())
            raise Corrupt(f"{have} of {pages} pages of the chunk list are there; nothing can be decoded yet")
        self._pages = [file.read(length) for length, _ in self.manifest.pages]
        self._listed = self.manifest.chunk_list(self._pages)
        lengths = np.concatenate([np.array([len(page) for page in self._pages], np.int64), self._listed.lengths])
        self._ends = start + np.cumsum(lengths, dtype=np.int64)
        self._there |= lengths == 0  # empty chunks never travel
        self._lengths = lengths

    @property
    def scene_id(self) -> str:
        """The scene's id: 64 hex digits."""
        return scene_id(self.manifest_bytes)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of every chunk, there or not, by index."""
        return self._lengths

    @property
    def bytes_there(self) -> int:
        """Of all chunks."""
        return int(self._lengths[self._there].sum())

    @property
    def missing(self) -> float:
        """The share of chunks that are missing, of those that are not empty."""
        full = self._lengths > 0
        return float(1 - self._there[full].mean()) if full.any() else 0.0

    @property
    def layers(self) -> tuple[float, ...]:
        """For each layer, the share of its chunks that is there."""
        ends = layer_ends(self.manifest)
        return tuple(float(part.mean()) for part in np.split(self._there, ends[:-1]))

    def chunk(self, index: int) -> bytes | None:
        """Chunk `index`, its checksum checked; None if it is not there."""
        if not 0 <= index < len(self._there):
            raise IndexError(f"chunk {index} of a stream that has {len(self._there)} chunks")
        if not self._there[index]:
            return None
        if index < len(self._pages):
            return self._pages[index]
        length = self._listed.length(index)
        self._file.seek(int(self._ends[index]) - length)
        content = self._file.read(length)
        try:
            check_chunk(index, content, length, int(self._listed.crcs[index - self._listed.first]))
        except Corrupt:
            self._there[index] = False
            return None
        return content
