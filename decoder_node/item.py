"""What the catalogue says about one scene: `make_item`, a STAC 1.1 item.

Nothing is invented. A scene without CRS has no geometry. Where the source states no time of acquisition, the item's
interval ends when it was received and starts with the epoch, and `downlink:acquired` is null. A time without a zone is
read as UTC, which the standard needs, and is kept as it was stated in `downlink:acquired`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from decoder_node import cover
from decoder_node.enhance import ENHANCED, described
from decoder_node.footprint import footprint
from decoder_node.raster import band_numbers
from decoder_node.statistics import Statistics
from downlink import __version__
from downlink.manifest import Manifest
from downlink.scene import Grid, Scene

Json = dict[str, Any]

STAC_VERSION: Final = "1.1.0"
EXTENSIONS: Final = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("eo/v2.0.0", "file/v2.1.0", "processing/v1.2.0", "projection/v2.0.0", "raster/v2.0.0")
]
CLASSIFICATION: Final = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
BITS: Final = ".bits.tif"
_EPOCH: Final = "1970-01-01T00:00:00.000Z"
_DAY: Final = timedelta(days=1, milliseconds=-1)
_MEDIA: Final = {
    ".tif": ("image/tiff; application=geotiff; profile=cloud-optimized", ["data"]),
    ".png": ("image/png", ["overview", "thumbnail"]),
    ".dl": ("application/octet-stream", ["source"]),
    ".zarr": ("application/vnd+zarr; version=3", ["zarr"]),
}


def _compression(manifest: Manifest) -> str:
    """What was done to the pixels on board."""
    if not manifest.exact:
        bundle = f"bundle {manifest.bundle_name} ({manifest.bundle.hex()[:12]})"
        return f"Lossy learned compression on board with {bundle}"
    most = max(coding.max_error for coding in manifest.codings)
    return f"Compressed on board with errors of at most {most}" if most else "Losslessly compressed on board"


def make_item(
    scene_id: str,
    manifest: Manifest,
    assets: Sequence[Path],
    facts: Mapping[str, object],
    folder: Path,
    created: str,
    statistics: Sequence[Statistics] = (),
) -> Json:
    """The STAC item, for a file in `folder`; with what its bands hold, if that is known (one per grid)."""
    scene = manifest.scene
    received = str(facts.get("received", created))
    geometry, bbox = footprint(scene)
    stream_bytes = facts.get("stream_bytes", manifest.payload_bytes)
    properties: Json = {
        "title": scene.name,
        "created": created,
        **interval(scene.acquired, received),
        "processing:software": {"latent-downlink": __version__},
        "processing:datetime": received,
        "processing:lineage": f"{_compression(manifest)}, decoded on the ground",
        "downlink:acquired": scene.acquired,
        "downlink:bundle": manifest.bundle_name,
        "downlink:bundle_id": manifest.bundle.hex(),
        "downlink:settings": dict(manifest.settings),
        "downlink:tags": dict(scene.tags),
        "downlink:raw_bytes": scene.raw_bytes,
    }
    if isinstance(stream_bytes, int):
        properties["downlink:stream_bytes"] = stream_bytes
        properties["downlink:bits_per_sample"] = round(8 * stream_bytes / scene.samples, 6)
    properties |= {f"downlink:{key}": value for key, value in facts.items()}
    if "cloud_percent" in facts:
        properties["eo:cloud_cover"] = facts["cloud_percent"]
    covered = any(path.name.endswith(cover.COVER) for path in assets)
    codes = {_proj(grid).get("proj:code") for grid in scene.grids}
    if len(codes) == 1 and None not in codes:
        properties["proj:code"] = codes.pop()
    item: Json = {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [*EXTENSIONS, *([CLASSIFICATION] if covered else [])],
        "id": scene_id,
        "geometry": geometry,
        **({"bbox": bbox} if bbox else {}),
        "properties": properties,
        "links": [
            {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../collection.json", "type": "application/json"},
            {"rel": "collection", "href": "../collection.json", "type": "application/json"},
            *_behind(manifest),
        ],
        "assets": _assets(manifest, assets, folder, statistics),
        "collection": "scenes",
    }
    return item


def _behind(manifest: Manifest) -> list[Json]:
    """A link to the item of the scene that this one was coded against."""
    reference = manifest.reference.hex()
    href = f"../{reference}/{reference}.json"
    return [{"rel": "derived_from", "href": href, "type": "application/geo+json"}] if reference else []


def interval(acquired: str | None, received: str) -> Json:
    """`datetime`, with `start_datetime` and `end_datetime` where the moment itself is not known."""
    if acquired is None:
        return {"datetime": None, "start_datetime": _EPOCH, "end_datetime": utc(datetime.fromisoformat(received))}
    with contextlib.suppress(ValueError):
        day = date.fromisoformat(acquired)  # a date alone: some time within that day
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        return {"datetime": None, "start_datetime": utc(start), "end_datetime": utc(start + _DAY)}
    return {"datetime": utc(datetime.fromisoformat(acquired))}


def _assets(manifest: Manifest, paths: Sequence[Path], folder: Path, statistics: Sequence[Statistics]) -> Json:
    scene, small = manifest.scene, (BITS, cover.COVER)
    rasters = [p for p in paths if p.suffix == ".tif" and not p.name.endswith(small) and ENHANCED not in p.name]
    if len(rasters) != len(scene.grids):
        raise ValueError(f"{len(rasters)} GeoTIFFs for a scene of {len(scene.grids)} grids")
    assets: Json = {}
    for path in paths:
        media, roles = _MEDIA.get(path.suffix, ("application/octet-stream", ["metadata"]))
        if path.name.endswith(small):
            role = "bits" if path.name.endswith(BITS) else "land-cover"
            media, roles = "image/tiff; application=geotiff", [role, "metadata"]
        asset: Json = {"href": Path(os.path.relpath(path, folder)).as_posix(), "type": media, "roles": roles}
        if path.is_file():
            asset["file:size"] = path.stat().st_size
            asset["file:checksum"] = "1220" + _sha256(path)  # a multihash: SHA-256, 32 bytes
        key = roles[0]
        if path.name.endswith(BITS):
            asset |= {"title": "Bits per sample that each tile took: where the scene was hard to foretell"}
            asset |= {"bands": [{"name": "bits per sample"}], "data_type": "float32"}
        if path.name.endswith(cover.COVER):
            asset |= cover.described(manifest)
        if ENHANCED in path.name:
            asset |= described(path)
            key = path.name.partition(".")[2].removesuffix(".tif").replace(".", "_")  # NAME_enhanced
        if path in rasters:
            number = rasters.index(path)
            asset |= _raster_fields(scene, scene.grids[number], statistics[number] if statistics else None)
            # OUT_10m.tif -> data_10m, see raster.output_paths
            key = f"data_{path.stem.rpartition('_')[2]}" if len(rasters) > 1 else "data"
        while key in assets:
            key += "_"
        assets[key] = asset
    return assets


def _raster_fields(scene: Scene, grid: Grid, statistics: Statistics | None) -> Json:
    bands = []
    stated = {key: band_numbers(scene.tags.get(f"{key}s", ""), len(grid.bands)) for key in ("scale", "offset")}
    for number, band in enumerate(grid.bands):
        described: Json = {"name": band.name} if band.name else {}
        if band.wavelength_nm is not None:
            described["eo:center_wavelength"] = round(band.wavelength_nm / 1000, 9)
        described |= {f"raster:{key}": values[number] for key, values in stated.items() if values}
        if statistics is not None:
            described["statistics"] = statistics.of_band(number)
        bands.append(described)
    fields: Json = {"bands": bands, "data_type": grid.dtype, **_proj(grid)}
    if grid.nodata is not None:
        fields["nodata"] = grid.nodata
    return fields


def _proj(grid: Grid) -> Json:
    fields: Json = {"proj:shape": [grid.height, grid.width]}
    if grid.transform is not None:
        fields["proj:transform"] = list(grid.transform)
    if grid.crs is not None and grid.crs.startswith("EPSG:"):
        fields["proj:code"] = grid.crs
    elif grid.crs is not None:
        fields["proj:code"], fields["proj:wkt2"] = None, grid.crs
    return fields


def utc(moment: datetime) -> str:
    """The moment in UTC, to the millisecond; always of this one form, so that the order of texts is that of times."""
    try:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:  # the first or last day of the calendar, moved out of it by its zone
        moment = moment.replace(tzinfo=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
