"""Several receivers, one store: scenes come from two nodes at once, a receiver is killed, and all of them are there."""

from __future__ import annotations

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio")
pytest.importorskip("fsspec", reason="the cluster extra is not installed")

from click.testing import CliRunner

from decoder_node.catalogue import add_item_to
from decoder_node.ledger import Ledger
from decoder_node.store import Store
from encoder_node.cli import main as edge
from tests import nodes, scenes

SCENES = 2  # of each node
SIDE = 64


def item(number: int) -> dict[str, Any]:
    properties = {"title": f"scene {number}", "datetime": "2026-11-20T09:30:31.000Z"}
    return {"id": f"{number:064x}", "properties": properties, "bbox": [number, 0.0, number + 1.0, 1.0]}


def admit_many(url: str, numbers: range) -> None:
    store = Store(url)
    for number in numbers:
        store.admit(item(number))


def test_writers_take_turns_with_a_store_s_collection(tmp_path: Path) -> None:
    """Without a lock one overwrites what the other has added."""
    url, each = f"file://{tmp_path / 'store'}", 40
    (tmp_path / "store").mkdir()
    with ThreadPoolExecutor(2) as pool:  # the lock is of an open file: threads take turns as processes do
        for writer in [pool.submit(admit_many, url, range(k * each, (k + 1) * each)) for k in range(2)]:
            writer.result()
    collection = json.loads((tmp_path / "store" / "scenes" / "collection.json").read_text())
    assert sum(link["rel"] == "item" for link in collection["links"]) == 2 * each
    assert collection["extent"]["spatial"]["bbox"] == [[0.0, 0.0, 2.0 * each, 1.0]]


def test_a_large_collection_is_written_as_the_standard_library_would() -> None:
    from decoder_node.catalogue import text_of

    _, collection = add_item_to(None, item(1) | {"properties": item(1)["properties"] | {"title": 'Grüße "1" / 日本'}})
    assert text_of(collection) == json.dumps(collection, indent=1, ensure_ascii=False).encode()


def test_what_is_put_into_a_store_replaces_what_was_there(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path / 'store'}")
    folder, file = tmp_path / "cube.zarr", tmp_path / "a.tif"
    (folder / "band").mkdir(parents=True)
    for content in (b"first", b"second"):
        file.write_bytes(content)
        (folder / "band" / "0").write_bytes(content)
        store.put(file, "scenes/1/a.tif")
        store.put(folder, "scenes/1/cube.zarr")
        assert store.read("scenes/1/a.tif") == content
        assert store.read("scenes/1/cube.zarr/band/0") == content
    there = tmp_path / "store" / "scenes" / "1"
    assert sorted(path.name for path in there.iterdir()) == ["a.tif", "cube.zarr"]
    old, young = there / ".a.tif.1.part", there / ".a.tif.2.part"  # of killed processes
    for left in (old, young):
        left.mkdir()
    os.utime(old, (1e9, 1e9))
    store.put(file, "scenes/1/a.tif")
    assert (old.exists(), young.exists()) == (False, True)


def submitted(folder: Path, seed: int) -> list[str]:
    """Lossless scenes in `folder`/outbox: no model is needed. Returns their ids."""
    paths = []
    for number in range(SCENES):
        path = folder / f"scene-{seed}-{number}.npy"
        np.save(path, scenes.pixels(seed=seed + number, bands=1, height=SIDE, width=SIDE))
        paths.append(path)
    command = ["submit", *map(str, paths), "--outbox", str(folder / "outbox"), "--max-error", "0"]
    done = CliRunner().invoke(edge, command)
    assert done.exit_code == 0, done.output
    return done.stdout.split()


def test_a_receiver_that_is_killed_costs_no_scene_of_either(tmp_path: Path) -> None:
    """Two receivers with an archive each, one store, two nodes at once; one receiver is killed when its first scene is
    in the store, and started again."""
    url = f"file://{tmp_path / 'store'}"
    options = ("--store", url, "--partial-after", "60")
    folders = [tmp_path / "one", tmp_path / "two"]
    names = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        names.append(submitted(folder, 10 * number))
    grounds = [nodes.serve(folder, workers=1, options=options) for folder in folders]
    edges = []
    try:
        edges = [nodes.send(folder, ground[1], "--once") for folder, ground in zip(folders, grounds, strict=True)]
        grounds[0][0].wait_for("decoded")
        grounds[0][0].kill()
        grounds[0] = nodes.serve(folders[0], listen=grounds[0][1], workers=1, options=options)
        for edge in edges:
            assert edge.wait() == 0
        for folder, (ground, _) in zip(folders, grounds, strict=True):
            until_decoded(folder, ground)
    finally:
        for edge in edges:
            edge.process.kill()
        for ground, _ in grounds:
            ground.terminate()
    check_store(tmp_path / "store", sorted(names[0] + names[1]))


def until_decoded(folder: Path, ground: nodes.Node) -> None:
    until = time.monotonic() + nodes.WITHIN_S
    ledger = Ledger(folder / "archive", read_only=True)
    while [entry.state for entry in ledger.entries()] != ["decoded"] * SCENES:
        assert time.monotonic() < until, ground.log.read_text()
        time.sleep(0.1)
    ledger.close()


def check_store(store: Path, names: list[str]) -> None:
    """Every scene is there with its files, which are what the items say."""
    pystac = pytest.importorskip("pystac")
    catalogue = pystac.Catalog.from_file(str(store / "catalog.json"))
    items = list(catalogue.get_items(recursive=True))
    assert sorted(one.id for one in items) == names
    for one in items:
        assert pystac.Item.from_dict(one.to_dict()).id == one.id
        for asset in one.assets.values():
            content = Path(asset.get_absolute_href()).read_bytes()
            assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
    assert sorted(path.stem for path in (store / "streams").glob("*.dl")) == names
