"""The file form of a stream, `scene.dl`: the manifest and all chunks, in one file that needs no service.

    offset  bytes
    0       4      magic "LDL" 01
    4       4      u32 LE  length of the manifest
    8       4      u32 LE  crc32c of the manifest
    12      n      the manifest, packed
    12 + n         all chunks back to back in index order; the file ends with the last one

Works on any binary file object that the caller has opened; opens and closes none. Any byte that differs, is missing or
is too many raises a `StreamError`: in the header, the manifest, the pages and the file's length when `StreamReader` is
made, in any other chunk when that chunk is read. OSError from the file itself passes through.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import BinaryIO, Final

import numpy as np

from downlink import limits
from downlink.checksum import crc32c
from downlink.chunk import ChunkList, Layout
from downlink.errors import Corrupt, Malformed, Unsupported
from downlink.manifest import Manifest, scene_id

MAGIC: Final = b"LDL\x01"

_HEADER: Final = struct.Struct("<4sII")


def head(manifest_bytes: bytes) -> bytes:
    """What a stream's file has before its chunks: magic, length and checksum of the manifest, the manifest."""
    return _HEADER.pack(MAGIC, len(manifest_bytes), crc32c(manifest_bytes)) + manifest_bytes


def read_head(file: BinaryIO) -> bytes:
    """The packed manifest at the beginning of a file; leaves the file at the first chunk."""
    file.seek(0)
    header = file.read(_HEADER.size)
    if not header.startswith(MAGIC[:3]):
        raise Malformed(
            f"file begins with {header[:4].hex(' ') or 'nothing'}, not with {MAGIC.hex(' ')}: not a .dl file"
        )
    if len(header) < _HEADER.size:
        raise Corrupt(
            f"file of {len(header)} bytes ends within its header of {_HEADER.size}; it was cut, copy it again"
        )
    magic, length, crc = _HEADER.unpack(header)
    if magic != MAGIC:
        raise Unsupported(f"file of version {magic[3]}, this program knows version {MAGIC[3]}; update this program")
    limits.at_most(length, limits.MANIFEST_BYTES_MAX, "bytes of the manifest", "the file is damaged, copy it again")
    packed = file.read(length)
    if len(packed) != length:
        raise Corrupt(f"manifest: {len(packed)} bytes, {length} stated in the header; the file was cut, copy it again")
    found = crc32c(packed)
    if found != crc:
        raise Corrupt(f"manifest: crc32c {found:#010x}, {crc:#010x} stated in the header; copy the file again")
    return packed


def write_stream(file: BinaryIO, manifest_bytes: bytes, chunks: Iterable[bytes]) -> int:
    """Write a stream to `file` at its position and return the number of bytes written.

    `chunks` are all chunks, pages first, in index order. Each is checked against the manifest before it is written, so
    that no file that a reader would refuse is ever finished; after an exception the file is to be thrown away.
    """
    manifest = Manifest.unpack(manifest_bytes)
    file.write(head(manifest_bytes))
    each = iter(chunks)
    pages = list(islice(each, len(manifest.pages)))
    listed = manifest.chunk_list(pages)
    digest = hashlib.sha256()
    count = 0
    for chunk in chain(pages, each):
        if count == manifest.chunk_count:
            raise Malformed(f"more chunks given than the {count} that the manifest states; throw the file away")
        if count >= listed.first:
            listed.check(count, chunk)
        digest.update(chunk)
        file.write(chunk)
        count += 1
    if count != manifest.chunk_count:
        raise Malformed(f"{count} chunks given, the manifest states {manifest.chunk_count}; throw the file away")
    _check_digest(digest.digest(), manifest)
    return _HEADER.size + len(manifest_bytes) + manifest.payload_bytes


class StreamReader:
    """A stream in a seekable file, which the caller keeps open and does not move meanwhile. Not for several threads.

    Holds the chunk list in memory (16 bytes per chunk), never the chunks.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, io.SEEK_END)
        packed = read_head(file)
        self.manifest_bytes: Final = packed
        self.manifest: Final = Manifest.unpack(packed)
        expected = _HEADER.size + len(packed) + self.manifest.payload_bytes
        if size != expected:
            raise Corrupt(
                f"file of {size} bytes, its manifest states {expected}; it was cut or added to, copy it again"
            )
        pages = [self._read(page_length) for page_length, _ in self.manifest.pages]
        self.chunk_list: Final[ChunkList] = self.manifest.chunk_list(pages)
        lengths = np.concatenate([np.array([len(page) for page in pages], np.int64), self.chunk_list.lengths])
        self.lengths: Final = lengths  # bytes of every chunk, by index
        self._ends = np.cumsum(lengths, dtype=np.int64) + (_HEADER.size + len(packed))
        self._pages = pages

    @property
    def scene_id(self) -> str:
        """The scene's id: 64 hex digits."""
        return scene_id(self.manifest_bytes)

    def __len__(self) -> int:
        """How many chunks there are, with the pages."""
        return self.manifest.chunk_count

    def layout(self) -> Layout:
        """The numbering of the chunks."""
        return self.manifest.layout()

    def chunk(self, index: int) -> bytes:
        """Chunk `index`, its checksum checked."""
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of a stream that has {len(self)} chunks")
        if index < len(self._pages):
            return self._pages[index]
        length = self.chunk_list.length(index)
        self._file.seek(int(self._ends[index]) - length)
        payload = self._read(length)
        self.chunk_list.check(index, payload)
        return payload

    def chunks(self) -> Iterator[bytes]:
        """All chunks, pages first, in index order, each checked."""
        return (self.chunk(index) for index in range(len(self)))

    def verify(self) -> None:
        """Read every chunk and check the hash over all; `Corrupt` names the chunk that is to blame, if one is."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        _check_digest(digest.digest(), self.manifest)

    def _read(self, length: int) -> bytes:
        payload = self._file.read(length)
        if len(payload) != length:
            raise Corrupt(f"file: {len(payload)} bytes read, {length} expected; it was cut while it was open")
        return payload


def _check_digest(found: bytes, manifest: Manifest) -> None:
    if found != manifest.payload_sha256:
        stated = manifest.payload_sha256.hex()
        raise Corrupt(f"chunks: sha256 {found.hex()} over all, {stated} stated in the manifest; copy the file again")
