"""The archive's catalogue: static STAC 1.1 on disk, which any web server, stac-browser or QGIS reads as it is.

    archive/catalog.json -> archive/scenes/collection.json -> archive/scenes/<scene id>/<scene id>.json -> the files

Every link is relative, so the archive can be moved. `add_item` may be called for the same scene any number of times, by
several processes: it holds a lock on the archive while it changes the collection (`locked`), and each JSON file is
replaced whole (temporary file, fsync, rename). The item is written before the collection names it; what a power cut
leaves out between the two, the next call mends.

Nothing is invented. A scene without CRS has no geometry. Where the source states no time of acquisition, the item's
interval ends when it was received and starts with the epoch, and `downlink:acquired` is null. A time without a zone is
read as UTC, which the standard needs, and is kept as it was stated in `downlink:acquired`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from decoder_node.durable import write_whole
from decoder_node.item import STAC_VERSION, make_item, utc
from decoder_node.statistics import Statistics
from downlink.manifest import Manifest

Json = dict[str, Any]

LOCK: Final = ".catalogue.lock"


def add_item(
    archive: Path, scene_id: str, manifest: Manifest, assets: Sequence[Path], facts: Mapping[str, object],
    statistics: Sequence[Statistics] = (),
) -> Path:  # fmt: skip
    """Put a scene into the catalogue; return the path of its item.

    `assets`: its files, on disk already. The GeoTIFFs among them stand for the grids, in order. `facts` are written as
    `downlink:<key>`; of them `received` (ISO 8601, UTC) and `stream_bytes` are used here as well. `statistics`: one per
    grid, or none.
    """
    folder = archive / "scenes" / scene_id
    path = folder / f"{scene_id}.json"
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _read(path)
    created = earlier["properties"]["created"] if earlier else utc(datetime.now(UTC))
    item = make_item(scene_id, manifest, assets, facts, folder, created, statistics)  # hashes files: not under the lock
    write_whole(path, json.dumps(item, indent=1, ensure_ascii=False, allow_nan=False).encode())
    admit(archive, item)
    return path


def admit(archive: Path, item: Json) -> None:
    """Name an item, that lies in the archive already, in its collection."""
    with locked(archive):
        path = archive / "scenes" / "collection.json"
        catalog, collection = add_item_to(_read(path), item)
        write_whole(path, text_of(collection))
        if not (archive / "catalog.json").exists():
            write_whole(archive / "catalog.json", text_of(catalog))


def add_item_to(collection: Json | None, item: Json) -> tuple[Json, Json]:
    """(the catalogue, the collection) with the item in it, for whoever keeps them elsewhere."""
    changed = collection or _new_collection()
    _admit(changed, item)
    return _new_catalog(), changed


def _new_catalog() -> Json:
    return {
        "type": "Catalog",
        "stac_version": STAC_VERSION,
        "id": "latent-downlink",
        "title": "Latent Downlink archive",
        "description": "Scenes received from the encoder nodes and decoded on the ground.",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": "application/json"},
            {"rel": "child", "href": "./scenes/collection.json", "type": "application/json", "title": "Scenes"},
        ],
    }


def _new_collection() -> Json:
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "id": "scenes",
        "title": "Scenes",
        "description": "Scenes that came down as latent codes. Each item names its model bundle and its rate.",
        "license": "other",
        "extent": {"spatial": {"bbox": []}, "temporal": {"interval": [[None, None]]}},
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
        ],
    }


def _admit(collection: Json, item: Json) -> None:
    """Name the item in its collection, and widen the collection's extent to hold it."""
    href = f"./{item['id']}/{item['id']}.json"
    if not any(link["href"] == href for link in collection["links"]):
        title = item["properties"]["title"]
        link = {"rel": "item", "href": href, "type": "application/geo+json", **({"title": title} if title else {})}
        collection["links"].append(link)
    properties, extent = item["properties"], collection["extent"]
    start = properties["datetime"] or properties["start_datetime"]
    end = properties["datetime"] or properties["end_datetime"]
    first, last = extent["temporal"]["interval"][0]
    # written by `utc`, all of one form: the order of the texts is the order of the times
    extent["temporal"]["interval"] = [[min(filter(None, (first, start))), max(filter(None, (last, end)))]]
    boxes = extent["spatial"]["bbox"]
    whole_earth = [[-180.0, -90.0, 180.0, 90.0]]  # what the standard wants said when no place is known
    known = [] if collection.get("downlink:extent") == "unknown" else boxes
    if "bbox" in item:
        west, south, east, north = item["bbox"]
        west, east = (-180.0, 180.0) if west > east else (west, east)
        box = [west, south, east, north]
        for other in known:
            box = [*map(min, box[:2], other[:2]), *map(max, box[2:], other[2:])]
        extent["spatial"]["bbox"] = [box]
        collection.pop("downlink:extent", None)
    elif not known:
        extent["spatial"]["bbox"], collection["downlink:extent"] = whole_earth, "unknown"


@contextlib.contextmanager
def locked(archive: Path) -> Iterator[None]:
    """Alone with the collection, among all processes that see this folder."""
    with (archive / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Json | None:
    try:
        content: Json = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    return content


def text_of(content: Json) -> bytes:
    """As `json.dumps(content, indent=1, ensure_ascii=False)`, fifteen times as fast: the collection of ten thousand
    scenes is written anew for each one."""
    return msgspec.json.format(msgspec.json.encode(content), indent=1)
