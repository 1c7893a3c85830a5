"""How quick the page is over a large archive: `python -m evaluation.page --scenes 10000`.

Makes an archive whose ledger holds so many decoded scenes (the rows of one real, small scene, spread over the Earth and
over a year; its files are shared by all), asks the page's application for every kind of page a number of times, in this
process and without a network between, and prints what each took. Also opens the catalogue with pystac, if it is
installed. Ends with an error if a request takes `--limit-ms` or more, at the 95th percentile.
"""

from __future__ import annotations

import io
import json
import random
import sqlite3
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import numpy as np

from decoder_node.catalogue import add_item_to
from decoder_node.decoding import archive_scene
from decoder_node.ledger import FILE, Ledger
from downlink.stream import StreamReader
from encoder_node.exact import encode_exact
from encoder_node.source_array import open_npy
from encoder_node.target import Target


def fill(archive: Path, count: int) -> str:
    """An archive of so many scenes; returns the id of the real one."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1000, 3000, (3, 96, 96), dtype=np.uint16)
    np.save(archive / "scene.npy", pixels)
    source = open_npy(archive / "scene.npy")
    file = io.BytesIO()
    with encode_exact(source, 0, Target(max_error=0).settings) as encoded:
        encoded.write(file)
    file.seek(0)
    reader = StreamReader(file)
    scene_id = reader.scene_id
    ledger = Ledger(archive, create=True)
    (archive / "streams").mkdir()
    (archive / "streams" / f"{scene_id}.dl").write_bytes(file.getvalue())
    ledger.begin(scene_id, reader.manifest, reader.manifest_bytes, 0, len(file.getvalue()), "sat-0")
    ledger.durable(scene_id)
    result = archive_scene(archive, scene_id, [], time.time())
    ledger.decoded(scene_id, result)
    ledger.close()
    place = result.pop("place")
    chance = random.Random(0)
    now = time.time()
    scenes, places, traffic = [], [], []
    for number in range(count - 1):
        name = f"{number:064x}"
        moment = now - chance.random() * 365 * 86400
        node = f"sat-{number % 8}"
        kept = json.dumps(result)
        scenes.append(
            (name, f"S2A_T{number % 60:02d}XYZ_{number}", "decoded", 0, reader.manifest_bytes, 40, 50_000 + number,
             moment, moment + 60, moment + 90, kept, node, moment)
        )  # fmt: skip
        west, south = chance.uniform(-179, 178), chance.uniform(-60, 75)
        ring = [[west, south], [west + 1, south], [west + 1, south + 1], [west, south + 1], [west, south]]
        outline = json.dumps({"type": "Polygon", "coordinates": [ring]}, separators=(",", ":"))
        acquired = (datetime.fromtimestamp(moment, UTC) - timedelta(hours=2)).isoformat(timespec="milliseconds")
        places.append((name, acquired.replace("+00:00", "Z"), outline, west, south, west + 1, south + 1))
        traffic.append((node, int(moment // 60), 50_000, 40))
    db = sqlite3.connect(archive / FILE)
    with db:
        db.executemany(
            "INSERT INTO scenes (scene_id, name, state, priority, manifest, chunks, bytes, offered_at, durable_at,"
            " decoded_at, result, node, progress_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            scenes,
        )
        db.executemany("INSERT INTO places VALUES (?, ?, ?, ?, ?, ?, ?)", places)
        db.executemany("INSERT OR IGNORE INTO traffic (node, minute, bytes, chunks) VALUES (?, ?, ?, ?)", traffic)
        nodes = [(f"sat-{number}", "127.0.0.1", "encoder-node", 1, now, 3, 12345) for number in range(8)]
        query = "INSERT INTO nodes (node, address, software, streams, seen_at, waiting_scenes, waiting_bytes)"
        db.executemany(f"{query} VALUES (?, ?, ?, ?, ?, ?, ?)", nodes)
    db.close()
    del place
    _catalogue(archive, scene_id, [row[0] for row in scenes])
    return scene_id


def _catalogue(archive: Path, scene_id: str, names: list[str]) -> None:
    """An item per scene, as they would lie, and the collection of them all."""
    item = json.loads((archive / "scenes" / scene_id / f"{scene_id}.json").read_text())
    path = archive / "scenes" / "collection.json"
    collection = json.loads(path.read_text())
    for name in names:
        folder = archive / "scenes" / name
        folder.mkdir()
        item["id"] = name
        (folder / f"{name}.json").write_text(json.dumps(item))
        collection["links"].append({"rel": "item", "href": f"./{name}/{name}.json", "type": "application/geo+json"})
    path.write_text(json.dumps(add_item_to(collection, item)[1]))


@click.command()
@click.option("--scenes", default=10_000, show_default=True, type=click.IntRange(2))
@click.option("--times", default=20, show_default=True, type=click.IntRange(1))
@click.option("--limit-ms", default=200.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(scenes: int, times: int, limit_ms: float, as_json: bool) -> None:
    """Time the page over an archive of so many scenes."""
    from fastapi.testclient import TestClient

    from decoder_node.page.app import make_app
    from decoder_node.page.station import Settings

    with tempfile.TemporaryDirectory(prefix="page-") as name:
        archive = Path(name)
        real = fill(archive, scenes)
        paths = [
            "/", "/parts/flight", "/parts/nodes", "/parts/counts", "/parts/latest", "/scenes",
            f"/scenes?from={scenes // 2}", "/scenes?q=XYZ_99", "/scenes?place=40,10,60,30&since=2020-01-01",
            "/parts/found?state=decoded&node=sat-3", "/footprints.geojson", "/footprints.geojson?place=-10,40,20,60",
            f"/scenes/{real}", f"/scenes/{real}/preview.png", f"/scenes/{real}/bits.png", "/history?days=30", "/asks",
            "/stac/catalog.json", "/stac/scenes/collection.json",
        ]  # fmt: skip
        rows = []
        with TestClient(make_app(Settings(archive, frozenset())), base_url="http://localhost") as client:
            for path in paths:
                took = []
                for _ in range(times):
                    began = time.perf_counter()
                    answer = client.get(path)
                    took.append(1000 * (time.perf_counter() - began))
                    if answer.status_code != 200:
                        raise click.ClickException(f"{path}: {answer.status_code} {answer.text[:200]}")
                shown = path.replace(real, real[:6] + "…")
                first, *rest = took
                rows.append(
                    {"path": shown, "first_ms": round(first, 1), "median_ms": round(float(np.median(took)), 1),
                     "p95_ms": round(float(np.percentile(rest or took, 95)), 1), "bytes": len(answer.content)}
                )  # fmt: skip
        opened = _opened(archive)
    if as_json:
        print(json.dumps({"scenes": scenes, "rows": rows, **opened}))
    else:
        print(f"{'p95 ms':>8} {'median':>8} {'first':>8} {'bytes':>9}  {scenes} scenes")
        for row in rows:
            print(f"{row['p95_ms']:>8} {row['median_ms']:>8} {row['first_ms']:>8} {row['bytes']:>9}  {row['path']}")
        for key, value in opened.items():
            print(f"{key}: {value}")
    slow = [row["path"] for row in rows if row["p95_ms"] >= limit_ms]
    if slow:
        raise click.ClickException(f"{limit_ms:g} ms or more: {', '.join(map(str, slow))}")


def _opened(archive: Path) -> dict[str, float | int]:
    """The catalogue as a stranger opens it."""
    try:
        import pystac  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return {}
    began = time.perf_counter()
    catalogue = pystac.Catalog.from_file(str(archive / "catalog.json"))
    items = sum(1 for _ in catalogue.get_items(recursive=True))
    return {"catalogue_items": items, "catalogue_s": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    main()
