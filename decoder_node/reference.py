"""The scenes that a stream was coded against, where the ground keeps streams: files, folders, an archive, a store.

A reference is needed whole: chunks that are damaged or not there are refused, with `StreamError`, `ReferenceMissing`.
A scene is taken in only when all the references behind it are durable here, and of the same node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from downlink import limits
from downlink.errors import StreamError
from downlink.frame import Refusal, RefusalCode
from downlink.manifest import Manifest, scene_id
from downlink.reference import Reference, Stream, opened
from downlink.stream import StreamReader, read_head

if TYPE_CHECKING:
    from decoder_node.decoder import PlaneDecoder
    from decoder_node.ledger import Ledger

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


def lacking(ledger: Ledger, there: Callable[[str], bool], manifest: Manifest, node: str) -> Refusal | None:
    """Why a scene of `node` cannot be taken in yet: a reference behind it is not durable here, or its stream is not
    `there`. If it was durable once, it may come again from now on."""
    for _ in range(limits.REFERENCES_MAX):
        if not manifest.reference:
            return None
        wanted = manifest.reference.hex()
        entry = ledger.find(wanted)
        if entry is not None and entry.node not in ("", node):
            reason = f"its reference {wanted[:12]}… belongs to another node"
            return Refusal(RefusalCode.FORBIDDEN, reason)
        if entry is None or entry.durable_at is None or not there(wanted):
            if entry is not None and entry.durable_at is not None:
                reopen(ledger, wanted)
            reason = f"the scene is coded against scene {wanted}, which is not here; send that one first"
            return Refusal(RefusalCode.REFERENCE, reason, reference=wanted)
        manifest = ledger.manifest(wanted)
    reason = f"more than {limits.REFERENCES_MAX - 1} references, one behind the other; submit the scene itself again"
    return Refusal(RefusalCode.MALFORMED, reason)


def reopen(ledger: Ledger, scene_id: str) -> None:
    """The stream of a scene that was durable is gone, and is wanted: it is taken in like a new one. What was decoded of
    it stays until it is replaced."""
    with ledger.writing() as db:
        db.execute("DELETE FROM committed WHERE scene_id = ?", (scene_id,))
        db.execute(
            "UPDATE scenes SET state = 'receiving', durable_at = NULL, decoding = 0, failures = 0, interruptions = 0,"
            " decoded_chunks = 0, reason = 'its stream was gone, and is sent again' WHERE scene_id = ?",
            (scene_id,),
        )
