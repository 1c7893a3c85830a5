"""Chunks of a scene being encoded, parked in a temporary file until the last one fixes the manifest.

Chunks come tile by tile but travel layer by layer, and the manifest states them all, so they wait on disk: memory
stays flat.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
import numpy as np

from downlink.chunk import ChunkKey, ChunkList, GridCoding, Layout
from downlink.cover import Cover
from downlink.lattice import Resolution, coded_scene
from downlink.manifest import Manifest, scene_id
from downlink.scene import Scene
from downlink.stream import head, write_stream


class Spool:
    """Append-only store of chunk payloads by key."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix="downlink-spool-")  # noqa: SIM115 (closed by close)
        self._places: dict[ChunkKey, tuple[int, int]] = {}
        self._end = 0

    def put(self, key: ChunkKey, payload: bytes) -> None:
        """Keep a payload; empty ones take no place."""
        if payload:
            self._file.seek(self._end)
            self._file.write(payload)
            self._places[key] = (self._end, len(payload))
            self._end += len(payload)

    def get(self, key: ChunkKey) -> bytes:
        """The payload of a key, empty if none was kept."""
        place = self._places.get(key)
        if place is None:
            return b""
        self._file.seek(place[0])
        return self._file.read(place[1])

    def forget(self, grid: int) -> None:
        """Drop what was kept of a grid (its bytes stay in the file until the spool is closed)."""
        self._places = {key: place for key, place in self._places.items() if key.grid != grid}

    def close(self) -> None:
        self._file.close()


class EncodedScene:
    """A finished stream: its manifest, and its chunks in index order from the spool. Close it (or use `with`)."""

    def __init__(
        self,
        spool: Spool,
        scene: Scene,
        codings: tuple[GridCoding, ...],
        bundle: bytes,
        bundle_name: str,
        settings: dict[str, str | float],
        resolutions: Sequence[Resolution] = (),
        reference: bytes = b"",
        cover: Cover | None = None,
    ) -> None:
        self._spool = spool
        self._layout = Layout(coded_scene(scene, resolutions), codings)
        listed = ChunkList.of(self._listed())
        self._pages = listed.pages()
        self.lengths = np.append([len(page) for page in self._pages], listed.lengths).astype(np.int64)
        """Bytes of every chunk, by index."""
        self.manifest = Manifest.of(
            scene=scene,
            bundle=bundle,
            bundle_name=bundle_name,
            codings=codings,
            settings=settings,
            listed=listed,
            chunks=self._listed(),
            resolutions=resolutions,
            reference=reference,
            cover=cover,
        )
        self.manifest_bytes = self.manifest.pack()

    def _listed(self) -> Iterator[bytes]:
        for index in range(self._layout.pages, len(self._layout)):
            yield self._spool.get(self._layout.key(index))

    def annotate(self, settings: dict[str, str | float]) -> None:
        """Add to the manifest's settings, before anybody has seen its id."""
        self.manifest = msgspec.structs.replace(self.manifest, settings={**self.manifest.settings, **settings})
        self.manifest_bytes = self.manifest.pack()

    @property
    def scene_id(self) -> str:
        return scene_id(self.manifest_bytes)

    @property
    def stream_bytes(self) -> int:
        """Size of the file form."""
        return len(head(self.manifest_bytes)) + self.manifest.payload_bytes

    def chunk(self, index: int) -> bytes:
        """Payload of chunk `index`, pages first."""
        if index < len(self._pages):
            return self._pages[index]
        return self._spool.get(self._layout.key(index))

    def chunks(self) -> Iterator[bytes]:
        """All payloads in index order."""
        yield from self._pages
        yield from self._listed()

    def write(self, file: BinaryIO) -> None:
        """Write the file form (`scene.dl`)."""
        write_stream(file, self.manifest_bytes, self.chunks())

    def close(self) -> None:
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
