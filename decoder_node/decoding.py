"""Decoding one scene: stream -> GeoTIFF files and a catalogue item.

`archive_scene` is idempotent: outputs are written whole and renamed, the item is replaced whole, so it may be run
again after any crash; the files of a complete scene take the places of those of a partial one. `task` is what a worker
process runs: the same, with its errors as values.
"""

from __future__ import annotations

import itertools
import math
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
from downlink.errors import BundleError, DownlinkError, ReferenceMissing
from downlink.manifest import Manifest
from downlink.part import PartReader
from downlink.ranges import Range
from downlink.scene import Scene
from downlink.stream import StreamReader, read_head

if TYPE_CHECKING:
    from decoder_node.compose import Row
    from decoder_node.statistics import Statistics

ERROR_OF_STEP, RATE_POWER, RATE_MIN = 0.74, 0.36, 0.06  # see `estimated_quality`
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
    lengths: NDArray[np.int64]  # bytes of every chunk of the stream, by index
    statistics: list[Statistics]  # one per grid


def decode_stream(
    source: Path,
    target: Path,
    model_folders: Sequence[Path],
    threads: int = 1,
    there: Sequence[Range] | None = None,
    references: Sequence[Path] = (),
) -> Decoded:
    """Decode the stream file `source` to `target` (or one file per grid beside it, `decoder_node.raster.output_paths`).

    With `there`, the file is a part of a stream, which has these chunks only: what they give is decoded, and the files
    say that they are partial and by how much. What it was coded against is looked for among `references`: files, and
    folders of them. Raises `StreamError` for a damaged stream, `BundleError` when its model
    is not here, `MissingExtra` when a package is not, `OutputError` when an output would replace the stream itself or
    is a folder, `ReferenceMissing` when what it was coded against is not there.
    """
    try:
        from decoder_node.compose import decode_rows
        from decoder_node.cover import facts_of
        from decoder_node.decoder import PlaneDecoder
        from decoder_node.raster import output_paths, write_cog
        from decoder_node.reference import among, reference_of
        from decoder_node.statistics import Statistics
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
        if manifest.reference:
            tags["reference"] = manifest.reference.hex()
        missing: list[float] = []
        statistics = [Statistics(grid) for grid in manifest.scene.grids]
        with reference_of(manifest, among(references), decoder, f"scene {reader.scene_id[:12]}…") as reference:
            rows = decode_rows(manifest, reader.chunk, decoder, reference)
            for grid, strips in itertools.groupby(rows, key=lambda row: row.grid):
                write_cog(paths[grid], manifest.scene, grid, _pixels(strips, missing, statistics[grid]), tags)
        lengths = reader.lengths
        part: dict[str, Any] = {}
        if isinstance(reader, PartReader):  # by now it has found the chunks that the disk has changed
            part = {"partial": True, "layers": [round(share, 6) for share in reader.layers]}
            part |= {"missing": round(reader.missing, 6), "stream_bytes": reader.bytes_there}
    facts = {
        "stream_bytes": source.stat().st_size,
        "missing": round(sum(missing) / max(1, len(missing)), 6),
        "raw_bytes": manifest.scene.raw_bytes,
        "model": manifest.bundle_name,
        **({"reference": manifest.reference.hex()} if manifest.reference else {}),
        **estimated_quality(manifest),
        **facts_of(manifest),
        "decode_s": round(time.monotonic() - began, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **part,
    }
    return Decoded(manifest, paths, facts, lengths, statistics)


def estimated_quality(manifest: Manifest) -> dict[str, float]:
    """What may be said about errors without the original: `estimated_psnr_db` (peak 10000, 255 for 8 bits) of the whole
    scene, all of it there, from the quantiser's steps; `max_error` where every grid is exact.

    A uniform quantiser of step s errs by s / sqrt(12) where it does not round to zero, and by less where a subband is
    weaker than that, as most are: the fewer bits a scene takes, the more of it. `ERROR_OF_STEP` x rate ** `RATE_POWER`
    is the share that was left on Sentinel-2 scenes from 0.06 to 1.1 bits per sample; below `RATE_MIN` nothing is said,
    because what little there is says nothing of the error. `python -m evaluation.estimate` measures how far it is off.
    Importance and weights are not known here: then it is further off. The rate of a scene that has a reference says
    nothing of its error.
    """
    if manifest.reference:
        return {}
    if manifest.exact:
        return {"max_error": max(coding.max_error for coding in manifest.codings)}
    peak = 255.0 if manifest.scene.grids[0].dtype == "uint8" else 10_000.0
    steps = [coding.step for coding in manifest.codings if coding.method == "planes"]
    rate = 8 * manifest.payload_bytes / manifest.scene.samples
    if rate < RATE_MIN:
        return {}
    share = min(1.0, ERROR_OF_STEP * rate**RATE_POWER)
    error = max(share * max(steps) / math.sqrt(12), math.sqrt(1 / 12))  # pixels are whole numbers
    return {"estimated_psnr_db": round(20 * math.log10(peak / error), 1)}


def _check_outputs(source: Path, paths: Sequence[Path]) -> None:
    """Before any work: refuse to replace the stream, under whatever name it is reached, or a folder."""
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file, for example {path / source.stem}.tif")
        if path.exists() and os.path.samefile(path, source):
            raise OutputError(f"{path} is the stream itself; name another file for the GeoTIFF")


def _pixels(rows: Iterator[Row], missing: list[float], statistics: Statistics) -> Iterator[NDArray[np.generic]]:
    for row in rows:
        missing.append(row.missing)
        statistics.add(row.pixels)
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
    products: Sequence[str] = (),
) -> dict[str, Any]:
    """The task: decode a durable scene into the archive, or with `there` what has come of one, within the CPU time that
    its size allows. `products` beside the GeoTIFFs: "zarr". Returns what the ledger keeps, with paths relative to the
    archive."""
    try:
        from decoder_node.bits import write_bits
        from decoder_node.catalogue import add_item
        from decoder_node.cover import COVER, write_cover
        from decoder_node.enhance import archive_products, described
        from decoder_node.footprint import footprint
        from decoder_node.quicklook import write_quicklook
        from decoder_node.reference import among, lineage
    except ImportError as error:
        raise MissingExtra(f"the archive needs {error.name}; {NEEDS_GROUND}") from error
    stream = archive / "streams" / f"{checked(scene_id)}.dl"
    source = stream if there is None else part_path(archive, scene_id)
    with source.open("rb") as file:
        manifest = Manifest.unpack(read_head(file))
    behind = len(list(lineage(manifest, among([archive / "streams"]))))
    bounds.allow(bounds.cpu_s(manifest.scene.samples * (1 + behind)))
    folder = archive / "scenes" / scene_id
    folder.mkdir(parents=True, exist_ok=True)
    target, streams = folder / f"{scene_id[:12]}.tif", [archive / "streams"]
    decoded = decode_stream(source, target, model_folders, there=there, references=streams)
    picture = write_quicklook(folder / f"{scene_id[:12]}.png", decoded.manifest.scene, decoded.paths)
    bits = write_bits(folder / f"{scene_id[:12]}.bits.tif", decoded.manifest, decoded.lengths)
    cover = write_cover(folder / f"{scene_id[:12]}{COVER}", decoded.manifest)
    received = datetime.fromtimestamp(received_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    facts = {"received": received, **decoded.facts}
    assets = [*decoded.paths, picture, bits, *([] if cover is None else [cover]), *([stream] if there is None else [])]
    made = archive_products(decoded.paths, folder / scene_id[:12], model_folders) if there is None else []
    assets += made
    item = add_item(archive, scene_id, decoded.manifest, assets, facts, decoded.statistics)
    if "zarr" in products:
        assets.append(_zarr(folder / f"{scene_id[:12]}.zarr", item))
        item = add_item(archive, scene_id, decoded.manifest, assets, facts, decoded.statistics)
    return {
        "assets": [str(path.relative_to(archive)) for path in decoded.paths],
        "item": str(item.relative_to(archive)),
        "quicklook": str(picture.relative_to(archive)),
        "bits": str(bits.relative_to(archive)),
        **({} if cover is None else {"cover": str(cover.relative_to(archive))}),
        **({"products": {str(path.relative_to(archive)): described(path)["title"] for path in made}} if made else {}),
        "place": place_of(decoded.manifest.scene, footprint(decoded.manifest.scene)),
        **decoded.facts,
    }


def _zarr(path: Path, item: Path) -> Path:
    try:
        from decoder_node.cube import write_zarr
    except ImportError as error:
        needs = "pip install 'latent-downlink[cube]' brings it"
        raise MissingExtra(f"--product zarr needs {error.name}; {needs}") from error
    return write_zarr(path, item)


def place_of(scene: Scene, found: tuple[dict[str, Any] | None, list[float] | None]) -> dict[str, Any]:
    """Where and when, as the ledger keeps it for searching: the moment (of an interval its begin) in UTC, the outline
    as GeoJSON with a point per corner or so, and its box."""
    from decoder_node.item import interval

    geometry, box = found
    times = interval(scene.acquired, "1970-01-01T00:00:00+00:00") if scene.acquired else {}
    return {
        "acquired": times.get("datetime") or times.get("start_datetime"),
        "outline": geometry and {"type": geometry["type"], "coordinates": _thinned(geometry["coordinates"])},
        "bbox": box,
    }


def _thinned(coordinates: Any) -> Any:
    """Rings without the points between corners; some ten metres are enough to find a scene."""
    if isinstance(coordinates[0][0], float | int):
        ring = coordinates[::8] if len(coordinates) % 8 == 1 else coordinates
        return [[round(x, 5), round(y, 5)] for x, y in ring]
    return [_thinned(part) for part in coordinates]


@dataclass(frozen=True)
class Outcome:
    """What became of a task in its process. Exactly one is set."""

    result: dict[str, Any] | None = None
    waits: str | None = None  # nothing is wrong with the scene, but it cannot be decoded here and now
    failure: str | None = None
    lost: str | None = None  # what it takes did not answer: to be tried again


def task(
    archive: Path,
    scene_id: str,
    model_folders: Sequence[Path],
    received_at: float,
    there: Sequence[Range] | None = None,
    products: Sequence[str] = (),
) -> Outcome:
    """`archive_scene` with its errors as values: an exception may not survive the way back to the parent."""
    try:
        return Outcome(result=archive_scene(archive, scene_id, model_folders, received_at, there, products))
    except (BundleError, MissingExtra, ReferenceMissing) as error:
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
