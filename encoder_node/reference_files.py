"""References among stream files: `encode --reference REF.dl`, or a folder of them.

Refused, with `SceneError`: what holds no stream. The references behind a reference are looked for in the same places,
and beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from downlink.errors import SceneError, StreamError
from downlink.manifest import Manifest, scene_id
from downlink.reference import Reference, Stream, opened, place_of
from downlink.stream import StreamReader, read_head
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import resolutions_of
from encoder_node.source import Source


@contextmanager
def reference_of(path: Path, source: Source, encoder: PlaneEncoder) -> Iterator[Reference | None]:
    """The reference at `path`; of a folder, the newest file of the scene's place, or None."""
    with ExitStack() as files:
        if path.is_dir():
            chosen = _newest(path, place_of(source.scene, resolutions_of(source)))
            if chosen is None:
                yield None
                return
            path = chosen
        with path.open("rb") as file:
            name = scene_id(read_head(file))
        yield opened(name, _finder(path, files), encoder.codec, f"reference {path.name}")


def _finder(path: Path, files: ExitStack) -> Callable[[str], Stream | None]:
    """Streams by id: of `path`, and of the files beside it."""

    def find(wanted: str) -> Stream | None:
        for candidate in (path, *sorted(path.parent.glob("*.dl"))):
            file = files.enter_context(candidate.open("rb"))
            try:
                if scene_id(read_head(file)) == wanted:
                    reader = StreamReader(file)
                    return reader.manifest, reader.chunk
            except StreamError:
                if candidate == path:
                    raise
            file.close()
        return None

    return find


def _newest(folder: Path, place: bytes) -> Path | None:
    """The newest stream of a place."""
    found = []
    for path in folder.glob("*.dl"):
        with path.open("rb") as file:
            try:
                manifest = Manifest.unpack(read_head(file))
            except StreamError:
                continue
        if not manifest.exact and place_of(manifest.scene, manifest.resolutions) == place:
            found.append((path.stat().st_mtime, path))
    if not found and not any(folder.glob("*.dl")):
        raise SceneError(f"{folder} holds no stream (*.dl); name a file, or the folder of some")
    return max(found)[1] if found else None
