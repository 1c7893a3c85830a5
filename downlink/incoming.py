"""A scene that is coming in: what its manifest promises, what has come, what is missing.

`Incoming` is the ground's picture of one scene between its offer and its durability. It judges every chunk against
the manifest (pages) or the chunk list (all others) and knows where in the `.dl` file each one belongs, so that a
store can put it at its final place at once. It holds no payload but the pages until the chunk list is known; its size
follows from the validated chunk count. It never says that something is stored: the store does, by calling `commit`
after its fsync.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from downlink import manifest as manifests
from downlink.chunk import ChunkList, check_chunk
from downlink.errors import Corrupt
from downlink.frame import FRAME_RANGES_MAX, Chunk
from downlink.manifest import Manifest
from downlink.ranges import Range, bitmap, cover

STRIDE: Final = 256  # an offset for each chunk would be half of what a scene of 2^20 chunks costs in memory


class Incoming:
    """One scene on its way in. Raises `StreamError` when the manifest, or later the chunk list, is not valid."""

    def __init__(self, scene_id: str, packed: bytes) -> None:
        found = manifests.scene_id(packed)
        if found != scene_id:
            raise Corrupt(f"scene {scene_id[:12]}…: its manifest has the SHA-256 {found[:12]}…; send it again")
        self.scene_id = scene_id
        self.packed = packed
        self.manifest = Manifest.unpack(packed)
        self.pages = len(self.manifest.pages)  # also the index of the first chunk that is not a page
        self.missing = np.ones(self.manifest.chunk_count, bool)  # true: needed, and not known to be on disk
        self._page_ends = np.cumsum([0, *(length for length, _ in self.manifest.pages)])
        self._pages: dict[int, bytes] = {}
        self._listed: ChunkList | None = None
        self._marks = np.zeros(0, np.int64)  # payload offset of each STRIDE-th chunk after the pages

    @property
    def complete(self) -> bool:
        return self._listed is not None and not self.missing.any()

    def missing_ranges(self) -> tuple[Range, ...]:
        return cover(self.missing, FRAME_RANGES_MAX)

    def judge(self, chunk: Chunk) -> str | None:
        """Why this chunk cannot be kept, or None. Its index must be below the chunk count."""
        if chunk.index < self.pages:
            length, stated = self.manifest.pages[chunk.index]
        elif self._listed is None:
            return (
                f"chunk {chunk.index}: came before the chunk list ({len(self._pages)} of {self.pages} pages are here); "
                "send the pages first"
            )
        else:
            length, stated = self._listed.length(chunk.index), int(self._listed.crcs[chunk.index - self.pages])
        if chunk.crc32c != stated:
            return (
                f"chunk {chunk.index}: comes with crc32c {chunk.crc32c:#010x}, {stated:#010x} stated in the chunk list"
            )
        try:
            check_chunk(chunk.index, chunk.content, length, stated)
        except Corrupt as error:
            return str(error)
        return None

    def learn(self, index: int, page: bytes) -> None:
        """Take in a page that `judge` has passed. With the last one the chunk list is known.

        Raises `StreamError` when the list is not valid.
        """
        if self._listed is not None:
            return
        self._pages[index] = page
        if len(self._pages) < self.pages:
            return
        self._listed = self.manifest.chunk_list([self._pages[number] for number in range(self.pages)])
        self._pages.clear()
        lengths = self._listed.lengths
        sums = np.add.reduceat(lengths, np.arange(0, len(lengths), STRIDE), dtype=np.int64)
        self._marks = int(self._page_ends[-1]) + np.cumsum(sums) - sums
        self.missing[self.pages :][lengths == 0] = False  # empty chunks never travel

    def span(self, index: int) -> tuple[int, int]:
        """(offset, length) of a chunk in the payload. Known for pages from the start, for others once the list is."""
        if index < self.pages:
            return int(self._page_ends[index]), self.manifest.pages[index][0]
        assert self._listed is not None, f"chunk {index}: its place is not known before the chunk list is"
        mark, beyond = divmod(index - self.pages, STRIDE)
        first = mark * STRIDE
        between = int(self._listed.lengths[first : first + beyond].sum(dtype=np.int64))
        return int(self._marks[mark]) + between, self._listed.length(index)

    def checksum(self, index: int) -> int:
        """The CRC-32C that is stated for a chunk. Known when its span is."""
        if index < self.pages:
            return self.manifest.pages[index][1]
        assert self._listed is not None, f"chunk {index}: no checksum is known before the chunk list is"
        return int(self._listed.crcs[index - self.pages])

    def commit(self, indexes: Iterable[int]) -> None:
        """The store has these chunks on disk, synced."""
        self.missing[list(indexes)] = False

    def restore(self, ranges: Iterable[Range]) -> None:
        """The store had these chunks on disk all along."""
        self.missing &= ~bitmap(len(self.missing), ranges)

    def lose(self, indexes: Iterable[int]) -> None:
        """The store found these chunks damaged on its disk: they are wanted again."""
        self.missing[list(indexes)] = True
