"""The chunks of the outbox's scenes, in its database.

`insert` refuses, with `StreamError`, chunks that do not match their manifest; `load` those that the disk has changed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from downlink import limits
from downlink.checksum import crc32c
from downlink.chunk import check_chunk
from downlink.errors import Corrupt
from downlink.frame import Chunk
from downlink.manifest import Manifest
from encoder_node.outbox_file import unreadable


def insert(db: sqlite3.Connection, number: int, manifest: Manifest, chunks: Iterable[bytes]) -> NDArray[np.uint32]:
    """Check and store all chunks; their lengths."""
    lengths = np.zeros(manifest.chunk_count, "<u4")
    digest = hashlib.sha256()
    pages: list[bytes] = []
    listed = None
    index = -1
    for index, content in enumerate(chunks):
        if index < len(manifest.pages):
            length, crc = manifest.pages[index]
            pages.append(content)
        else:
            listed = listed or manifest.chunk_list(pages)
            length, crc = listed.length(index), int(listed.crcs[index - len(pages)])
        check_chunk(index, content, length, crc)
        digest.update(content)
        lengths[index] = length
        if content:
            row = (number * limits.CHUNKS_MAX + index, crc, content)
            db.execute("INSERT INTO chunks (id, crc32c, content) VALUES (?, ?, ?)", row)
    if index + 1 != manifest.chunk_count or digest.digest() != manifest.payload_sha256:
        raise Corrupt(
            f"{index + 1} chunks with sha256 {digest.hexdigest()[:12]}… given, the manifest states "
            f"{manifest.chunk_count} with {manifest.payload_sha256.hex()[:12]}…; encode the scene again"
        )
    return lengths


def load(db: sqlite3.Connection, number: int, indexes: Sequence[int], what: str) -> list[Chunk]:
    """Chunks of scene `number`, read back and checked; `what` is the scene, for people. A chunk that cannot be read is
    the scene's damage and not the outbox's: the others must not wait for it."""
    chunks = []
    for index in indexes:
        try:
            query = "SELECT crc32c, content FROM chunks WHERE id = ?"
            row = db.execute(query, (number * limits.CHUNKS_MAX + index,)).fetchone()
            fault = "is gone" if row is None else "" if crc32c(row[1]) == row[0] else "has another checksum than it had"
        except sqlite3.DatabaseError as error:
            if not unreadable(error):
                raise
            fault = f"cannot be read ({error})"
        if fault:
            raise Corrupt(f"chunk {index} of {what} {fault}; submit the scene again")
        chunks.append(Chunk(index, row[0], row[1]))
    return chunks


def delete(db: sqlite3.Connection, number: int) -> None:
    """All chunks of scene `number`."""
    first = number * limits.CHUNKS_MAX
    db.execute("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (first, first + limits.CHUNKS_MAX - 1))


def drop(db: sqlite3.Connection, name: str, reason: str, at: float) -> None:
    """Forget a scene's chunks though the ground does not have them all."""
    query = "UPDATE scenes SET state = 'dropped', reason = ?, settled_at = ? WHERE scene_id = ? RETURNING number"
    for (number,) in db.execute(query, (reason, at, name)).fetchall():
        delete(db, number)
