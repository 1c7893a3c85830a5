"""The scenes that a stream was coded against, where the ground keeps streams: files, folders, an archive, a store.

A reference is needed whole: chunks that are damaged or not there are refused, with `StreamError`, `ReferenceMissing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from decoder_node.decoder import PlaneDecoder
from downlink import limits
from downlink.errors import StreamError
from downlink.manifest import Manifest, scene_id
from downlink.reference import Reference, Stream, opened
from downlink.stream import StreamReader, read_head

Find = Callable[[str], Path | None]
"""Where the stream of a scene lies, by its id."""


def among(paths: Sequence[Path]) -> Find:
    """Among files, and in folders of files: by their names if these are ids, else by their heads."""

    def find(wanted: str) -> Path | None:
        for path in paths:
            if path.is_dir():
                named = path / f"{wanted}.dl"
                candidates = [named] if named.exists() else sorted(path.glob("*.dl"))
            else:
                candidates = [path]
            for candidate in candidates:
                if _is(candidate, wanted):
                    return candidate
        return None

    return find


def _is(path: Path, wanted: str) -> bool:
    try:
        with path.open("rb") as file:
            return scene_id(read_head(file)) == wanted
    except StreamError:
        return False


@contextmanager
def reference_of(manifest: Manifest, find: Find, decoder: PlaneDecoder | None, name: str) -> Iterator[Reference | None]:
    """The reference that a manifest states, open as long as the context; None where it states none."""
    if not manifest.reference or decoder is None:
        yield None
        return
    with ExitStack() as files:

        def stream(wanted: str) -> Stream | None:
            path = find(wanted)
            if path is None:
                return None
            reader = StreamReader(files.enter_context(path.open("rb")))
            return reader.manifest, reader.chunk

        yield opened(manifest.reference.hex(), stream, decoder.codec, name)


def lineage(manifest: Manifest, find: Find) -> Iterator[tuple[str, Path | None]]:
    """Ids and places of the references behind a scene, the nearest first; None is the place of one that is not here,
    and the end."""
    for _ in range(limits.REFERENCES_MAX):
        if not manifest.reference:
            return
        wanted = manifest.reference.hex()
        path = find(wanted)
        yield wanted, path
        if path is None:
            return
        with path.open("rb") as file:
            manifest = Manifest.unpack(read_head(file))
