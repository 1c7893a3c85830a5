"""Decoding one scene: stream -> GeoTIFF files and a catalogue item.

`archive_scene` is idempotent: outputs are written whole and renamed, the item is replaced whole, so it may be run
again after any crash; the files of a complete scene take the places of those of a partial one. `task` is what a worker
process runs: the same, with its errors as values.
"""

from __future__ import annotations

import itertools
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decoder_node import bounds
from decoder_node.inbox import checked
from decoder_node.log import log
from downlink.bundle import find_id
from downlink.errors import BundleError, DownlinkError
from downlink.manifest import Manifest
from downlink.part import PartReader
from downlink.ranges import Range
from downlink.stream import StreamReader, read_head

if TYPE_CHECKING:
    from decoder_node.compose import Row

NEEDS_GROUND = "pip install 'latent-downlink[ground]' brings it"


class MissingExtra(DownlinkError):
    """A package of the ground's extra is not installed."""

    code = "missing_extra"


class OutputError(DownlinkError):
    """What was asked for cannot be written there."""

    code = "output"


@dataclass(frozen=True)
class Decoded:
    """What decoding has made, and what it took."""

    manifest: Manifest
    paths: list[Path]  # one GeoTIFF per grid
    facts: dict[str, Any]


def decode_stream(
    source: Path,
    target: Path,
    model_folders: Sequence[Path],
    threads: int = 1,
    there: Sequence[Range] | None = None,
) -> Decoded:
    """Decode the stream file `source` to `target` (or one file per grid beside it, `decoder_node.raster.output_paths`).

    With `there`, the file is a part of a stream, which has these chunks only: what they give is decoded, and the files
    say that they are partial and by how much. Raises `StreamError` for a damaged stream, `BundleError` when its model
    is not here, `MissingExtra` when a package is not, `OutputError` when an output would replace the stream itself or
    is a folder.
    """
    try:
        from decoder_node.compose import decode_rows
        from decoder_node.decoder import PlaneDecoder
        from decoder_node.raster import output_paths, write_cog
    except ImportError as error:
        raise MissingExtra(f"decoding needs {error.name}; {NEEDS_GROUND}") from error
    began = time.monotonic()
    with source.open("rb") as file:
        reader = StreamReader(file) if there is None else PartReader(file, there)
        if isinstance(reader, StreamReader):
            reader.verify()
        manifest = reader.manifest
        paths = output_paths(target, manifest.scene)
        _check_outputs(source, paths)
        decoder: PlaneDecoder | None = None
        tags = {"scene_id": reader.scene_id}
        if not manifest.exact:
            bundle = find_id(manifest.bundle, model_folders, needs="decoder.onnx")
            decoder = PlaneDecoder(bundle, threads=threads)
            tags["bundle"] = f"{bundle.name} {bundle.id.hex()[:12]}"
        if isinstance(reader, PartReader):
            layers = " ".join(f"{100 * share:.4g}" for share in reader.layers)
            tags |= {"partial": "yes", "missing_percent": f"{100 * reader.missing:.4g}", "layers_percent": layers}
        missing: list[float] = []
        rows = decode_rows(manifest, reader.chunk, decoder)
        for grid, strips in itertools.groupby(rows, key=lambda row: row.grid):
            write_cog(paths[grid], manifest.scene, grid, _pixels(strips, missing), tags)
        part: dict[str, Any] = {}
        if isinstance(reader, PartReader):  # by now it has found the chunks that the disk has changed
            part = {"partial": True, "layers": [round(share, 6) for share in reader.layers]}
            part |= {"missing": round(reader.missing, 6), "stream_bytes": reader.bytes_there}
    facts = {
        "stream_bytes": source.stat().st_size,
        "missing": round(sum(missing) / max(1, len(missing)), 6),
        "decode_s": round(time.monotonic() - began, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **part,
    }
    return Decoded(manifest, paths, facts)


def _check_outputs(source: Path, paths: Sequence[Path]) -> None:
    """Before any work: refuse to replace the stream, under whatever name it is reached, or a folder."""
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file, for example {path / source.stem}.tif")
        if path.exists() and os.path.samefile(path, source):
            raise OutputError(f"{path} is the stream itself; name another file for the GeoTIFF")


def _pixels(rows: Iterator[Row], missing: list[float]) -> Iterator[NDArray[np.generic]]:
    for row in rows:
        missing.append(row.missing)
        yield row.pixels


def part_path(archive: Path, scene_id: str) -> Path:
    """Where a scene lies that is still coming."""
    return archive / "inbox" / f"{checked(scene_id)}.part"


def archive_scene(
    archive: Path,
    scene_id: str,
    model_folders: Sequence[Path],
    received_at: float,
    there: Sequence[Range] | None = None,
) -> dict[str, Any]:
    """The task: decode a durable scene into the archive, or with `there` what has come of one, within the CPU time that
    its size allows. Returns what the ledger keeps, with paths relative to the archive."""
    try:
        from decoder_node.catalogue import add_item
        from decoder_node.quicklook import write_quicklook
    except ImportError as error:
        raise MissingExtra(f"the archive needs {error.name}; {NEEDS_GROUND}") from error
    stream = archive / "streams" / f"{checked(scene_id)}.dl"
    source = stream if there is None else part_path(archive, scene_id)
    with source.open("rb") as file:
        bounds.allow(bounds.cpu_s(Manifest.unpack(read_head(file)).scene.samples))
    folder = archive / "scenes" / scene_id
    folder.mkdir(parents=True, exist_ok=True)
    decoded = decode_stream(source, folder / f"{scene_id[:12]}.tif", model_folders, there=there)
    picture = write_quicklook(folder / f"{scene_id[:12]}.png", decoded.manifest.scene, decoded.paths)
    received = datetime.fromtimestamp(received_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    facts = {"received": received, **decoded.facts}
    assets = [*decoded.paths, picture, *([stream] if there is None else [])]
    item = add_item(archive, scene_id, decoded.manifest, assets, facts)
    return {
        "assets": [str(path.relative_to(archive)) for path in decoded.paths],
        "item": str(item.relative_to(archive)),
        "quicklook": str(picture.relative_to(archive)),
        **decoded.facts,
    }


@dataclass(frozen=True)
class Outcome:
    """What became of a task in its process. Exactly one is set."""

    result: dict[str, Any] | None = None
    waits: str | None = None  # nothing is wrong with the scene, but it cannot be decoded here and now
    failure: str | None = None


def task(
    archive: Path,
    scene_id: str,
    model_folders: Sequence[Path],
    received_at: float,
    there: Sequence[Range] | None = None,
) -> Outcome:
    """`archive_scene` with its errors as values: an exception may not survive the way back to the parent."""
    try:
        return Outcome(result=archive_scene(archive, scene_id, model_folders, received_at, there))
    except (BundleError, MissingExtra) as error:
        return Outcome(waits=str(error))
    except DownlinkError as error:
        return Outcome(failure=f"{error.code}: {error}")
    except Exception as error:
        if there is not None and not part_path(archive, scene_id).exists():
            return Outcome(waits="it is complete by now, or was given up")
        log.exception("decoding failed", extra={"scene": scene_id})
        return Outcome(failure=f"{type(error).__name__}: {error}")


class Task(Protocol):
    """What a worker process does with a scene: `archive_scene`."""

    def __call__(
        self,
        archive: Path,
        scene_id: str,
        model_folders: Sequence[Path],
        received_at: float,
        there: Sequence[Range] | None = None,
        /,
    ) -> Outcome: ...
