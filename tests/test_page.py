"""The page: what it shows of an archive, whom it lets do what, and what it never does."""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio")
pytest.importorskip("fastapi", reason="the ground extra is not installed")
pytest.importorskip("httpx2", reason="the page is asked through it")

from fastapi.testclient import TestClient

from decoder_node.asks import Asks
from decoder_node.decoding import archive_scene
from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger
from decoder_node.nodes import Nodes
from decoder_node.page import words
from decoder_node.page.app import POLICY, make_app
from decoder_node.page.operator import NotAllowed, Operators, read_token
from decoder_node.page.process import PageError, PageOptions, check
from decoder_node.page.shelf import Search, SearchError, Shelf, box_of
from decoder_node.page.station import Settings
from decoder_node.serving import place_all
from downlink.action import Arrival
from downlink.frame import Report
from downlink.incoming import Incoming
from downlink.layer import layer_ends
from downlink.ranges import Range
from downlink.stream import StreamReader
from encoder_node.exact import encode_exact
from encoder_node.target import Target
from tests import scenes

TOKEN = "a-token-for-tests-only"


@dataclass
class Archive:
    """Two whole scenes (one without a place), and one on its way."""

    folder: Path
    whole: str
    nowhere: str
    coming: str


def stream_of(array: np.ndarray, **facts: Any) -> tuple[bytes, StreamReader]:
    source = scenes.GridsSource([array], scenes.scene(array, **facts))
    if facts.get("name") == "nowhere":
        grid = source.scene.grids[0]
        source.scene = type(source.scene)("nowhere", (type(grid)(*[*grid_fields(grid)[:5], None, None]),))
    file = io.BytesIO()
    with encode_exact(source, 0, Target(max_error=0).settings) as encoded:
        encoded.write(file)
    file.seek(0)
    return file.getvalue(), StreamReader(file)


def grid_fields(grid: Any) -> list[Any]:
    return [getattr(grid, name) for name in grid.__struct_fields__]


def take_in(ledger: Ledger, folder: Path, content: bytes, reader: StreamReader, node: str) -> str:
    """A scene as the receiver leaves it when it is durable and decoded."""
    scene_id = reader.scene_id
    (folder / "streams").mkdir(parents=True, exist_ok=True)
    (folder / "streams" / f"{scene_id}.dl").write_bytes(content)
    ledger.begin(scene_id, reader.manifest, reader.manifest_bytes, 0, len(content), node)
    ledger.durable(scene_id)
    ledger.decoded(scene_id, archive_scene(folder, scene_id, [], 1.8e9))
    return scene_id


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    ledger = Ledger(folder, create=True)
    inbox = Inbox(folder, ledger)
    nodes = Nodes(ledger)
    nodes.came("sat-1", "127.0.0.1")
    nodes.introduced("sat-1", "encoder-node <script>")
    whole = take_in(ledger, folder, *stream_of(scenes.pixels(bands=3, height=200, width=180)), "sat-1")
    flat = scenes.pixels(seed=1, bands=2, height=40, width=50)
    nowhere = take_in(ledger, folder, *stream_of(flat, name="nowhere"), "")
    _, reader = stream_of(scenes.pixels(seed=2, bands=1, height=200, width=180), name="<b>coming</b>")
    incoming = Incoming(reader.scene_id, reader.manifest_bytes)
    opened = inbox.open(incoming, 5, "sat-1")
    assert opened is incoming
    end = layer_ends(reader.manifest)[0]
    for index in range(incoming.pages):
        inbox.commit([Arrival(incoming, index, reader.chunk(index))])
        incoming.learn(index, reader.chunk(index))
    inbox.commit(
        [Arrival(incoming, index, part) for index in range(incoming.pages, end) if (part := reader.chunk(index))]
    )
    nodes.reported("sat-1", Report(3, 1234, 1, 4_000_000_000))
    ledger.close()
    return Archive(folder, whole, nowhere, reader.scene_id)


@pytest.fixture(scope="module")
def page(archive: Archive) -> Iterator[TestClient]:
    app = make_app(Settings(archive.folder, frozenset({"localhost"}), (), TOKEN))
    with TestClient(app, base_url="http://localhost:8080") as client:
        yield client


def test_live_shows_nodes_scenes_on_their_way_and_what_came(page: TestClient, archive: Archive) -> None:
    text = page.get("/").text
    assert "sat-1" in text
    assert "1.23 kB" in text  # its backlog, by its own word
    assert f"/scenes/{archive.coming}" in text
    widths = re.findall(r'class="fill" width="([\d.]+)"', text)
    assert widths[0] == "100.0"
    assert set(widths[1:]) == {"0.0"}  # only the first layer has come
    assert f"/scenes/{archive.whole}/quicklook.png" in text


def test_words_of_peers_are_text(page: TestClient, archive: Archive) -> None:
    for path in ("/", "/scenes", f"/scenes/{archive.coming}", "/parts/flight", "/parts/nodes"):
        text = page.get(path).text
        assert "<script>" not in text.replace("<script src", "")
        assert "<b>coming" not in text
    assert "&lt;b&gt;coming&lt;/b&gt;" in page.get("/parts/flight").text


@pytest.mark.parametrize(
    "path", ["/", "/scenes", "/history", "/asks", "/operator", "/nothing-here", "/static/page.css"]
)
def test_every_answer_forbids_strange_scripts(page: TestClient, path: str) -> None:
    answer = page.get(path, headers={"accept": "text/html"})
    assert answer.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    if "html" in answer.headers["content-type"]:
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", answer.text)
        assert not re.search(r'(src|href)="(https?:)?//', answer.text), "nothing comes from elsewhere"


def test_strange_hosts_are_sent_away(page: TestClient) -> None:
    assert page.get("/", headers={"host": "evil.example"}).status_code == 421
    assert page.get("/", headers={"host": "localhost:1"}).status_code == 200


def test_tiles_are_where_the_scene_is_and_change_with_bands(page: TestClient, archive: Archive) -> None:
    outlines = page.get("/footprints.geojson").json()["features"]
    states = {feature["properties"]["id"]: feature["properties"]["state"] for feature in outlines}
    assert states == {archive.whole: "decoded", archive.coming: "receiving"}  # the third has no place
    [mine] = [feature for feature in outlines if feature["properties"]["id"] == archive.whole]
    west, south, east, north = mine["properties"]["box"]
    x, y = tile_of((west + east) / 2, (south + north) / 2, 13)
    path = f"/scenes/{archive.whole}/tiles/13/{x}/{y}.png"
    one, other = page.get(f"{path}?bands=0.0"), page.get(f"{path}?bands=0.1")
    assert one.headers["content-type"] == "image/png"
    assert one.content != other.content
    stretched = page.get(f"{path}?bands=0.0&stretch=20,80")
    assert stretched.content != one.content
    assert pixels_of(one.content)[3].max() == 255
    assert page.get(f"/scenes/{archive.whole}/tiles/13/0/0.png").status_code == 204
    assert page.get(f"/scenes/{archive.whole}/bits/13/{x}/{y}.png").status_code == 200
    assert "immutable" in page.get(f"{path}?v=1").headers["cache-control"]


def tile_of(lon: float, lat: float, zoom: int) -> tuple[int, int]:
    across = (lon + 180) / 360
    down = (1 - np.arcsinh(np.tan(np.radians(lat))) / np.pi) / 2
    return int(across * 2**zoom), int(down * 2**zoom)


def pixels_of(content: bytes) -> np.ndarray:
    from rasterio.io import MemoryFile

    with MemoryFile(content) as memory, memory.open() as dataset:
        found = dataset.read()
    return np.concatenate([np.repeat(found[:1], 3, 0), found[1:]]) if len(found) == 2 else found


@pytest.mark.parametrize(
    "query",
    ["bands=0.9", "bands=9.0", "bands=0.0,0.1", "bands=x", "bands=0.0&stretch=98,2", "bands=0.0&stretch=a"],
)
def test_bands_that_are_not_there_are_refused_in_a_sentence(page: TestClient, archive: Archive, query: str) -> None:
    answer = page.get(f"/scenes/{archive.whole}/preview.png?{query}")
    assert answer.status_code == 400
    assert len(answer.text.splitlines()) == 1


def test_a_scene_without_a_place_has_a_picture(page: TestClient, archive: Archive) -> None:
    text = page.get(f"/scenes/{archive.nowhere}").text
    assert 'id="flat"' in text
    assert pixels_of(page.get(f"/scenes/{archive.nowhere}/preview.png").content).shape[1:] == (40, 50)
    assert page.get(f"/scenes/{archive.nowhere}/bits.png").status_code == 200


def test_a_scene_says_what_is_known_of_it_and_gives_its_files(page: TestClient, archive: Archive) -> None:
    text = page.get(f"/scenes/{archive.whole}").text
    for known in ("lossless", "200", "EPSG:32633", "none: exact", "made_by", "2026-11-20 09:30:31 UTC", "sat-1"):
        assert known in text, known
    stem = archive.whole[:12]
    for name in (f"{stem}.tif", f"{stem}.dl", f"{stem}.bits.tif", f"{archive.whole}.json"):
        answer = page.get(f"/scenes/{archive.whole}/files/{name}")
        assert answer.status_code == 200
        assert "attachment" in answer.headers["content-disposition"]
    part = page.get(f"/scenes/{archive.whole}/files/{stem}.tif", headers={"range": "bytes=0-3"})
    assert (part.status_code, part.content[:2]) == (206, b"II")


@pytest.mark.parametrize(
    "path",
    [
        "/scenes/{}/files/ledger.sqlite", "/scenes/{}/files/..%2F..%2Fledger.sqlite", "/stac/ledger.sqlite",
        "/stac/scenes/../ledger.sqlite", "/stac/scenes/{}/..%2f..%2fledger.sqlite", "/scenes/..%2Fledger.sqlite",
        "/scenes/" + "a" * 64, "/scenes/{}/tiles/1/2/0.png", "/scenes/{}/tiles/99/0/0.png",
        "/scenes/{}/tiles/a/0/0.png",
        "/static/../app.py", "/parts/../ledger", "/stac/streams/../ledger.sqlite",
    ],
)  # fmt: skip
def test_nothing_but_what_is_listed_can_be_had(page: TestClient, archive: Archive, path: str) -> None:
    answer = page.get(path.format(archive.whole))
    assert answer.status_code in (404, 405)
    assert b"SQLite" not in answer.content


def test_the_catalogue_is_served_as_it_lies(page: TestClient, archive: Archive) -> None:
    root = page.get("/stac/catalog.json").json()
    [child] = [link["href"] for link in root["links"] if link["rel"] == "child"]
    collection = page.get(f"/stac/{child.removeprefix('./')}").json()
    items = [link["href"] for link in collection["links"] if link["rel"] == "item"]
    assert len(items) == 2
    item = page.get(f"/stac/scenes/{archive.whole}/{archive.whole}.json").json()
    for asset in item["assets"].values():
        path = (archive.folder / "scenes" / archive.whole / asset["href"]).resolve().relative_to(archive.folder)
        assert page.get(f"/stac/{path}").status_code == 200, asset


def test_bits_per_tile_add_up(archive: Archive) -> None:
    import rasterio

    stem = archive.folder / "scenes" / archive.whole / archive.whole[:12]
    with rasterio.open(f"{stem}.bits.tif") as dataset, rasterio.open(f"{stem}.tif") as scene:
        bits = dataset.read(1)
        assert dataset.crs == scene.crs
        tile = round(dataset.transform.a / scene.transform.a)
        assert (dataset.bounds.left, dataset.bounds.top) == (scene.bounds.left, scene.bounds.top)
    edges = [np.append(np.arange(0, length, tile), length) for length in (200, 180)]
    rows, cols = (np.diff(part) for part in edges)
    assert bits.shape == (len(rows), len(cols))
    total = float((bits * np.outer(rows, cols)).sum()) * 3 / 8  # bytes, over three bands
    size = (archive.folder / "streams" / f"{archive.whole}.dl").stat().st_size
    assert 0.9 * size < total < size
    item = json.loads((stem.parent / f"{archive.whole}.json").read_text())
    assert item["assets"]["bits"]["roles"] == ["bits", "metadata"]


def test_an_item_says_what_its_bands_hold(archive: Archive) -> None:
    item = json.loads((archive.folder / "scenes" / archive.whole / f"{archive.whole}.json").read_text())
    pixels = scenes.pixels(bands=3, height=200, width=180)
    for band, values in zip(item["assets"]["data"]["bands"], pixels, strict=True):
        valid = values[values != 0]
        found = band["statistics"]
        assert (found["minimum"], found["maximum"]) == (valid.min(), valid.max())
        assert found["mean"] == pytest.approx(valid.mean(), abs=1e-3)
        assert found["valid_percent"] == pytest.approx(100 * valid.size / values.size, abs=1e-3)


# --- searching


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({}, 3), ({"text": "NOWHERE"}, 1), ({"text": "100%"}, 0), ({"state": "decoded"}, 2), ({"node": "sat-1"}, 2),
        ({"node": ""}, 1), ({"since": "2026-11-20", "until": "2026-11-20", "state": "decoded"}, 1),
        ({"until": "2020-01-01"}, 0), ({"place": "52.3396, 14.3324"}, 1), ({"place": "0, 0"}, 0),
        ({"place": "-180, -90, 180, 90"}, 1), ({"place": "170, 0, -170, 60"}, 0), ({"place": "10, 50, 374.4, 55"}, 1),
    ],
)  # fmt: skip
def test_scenes_are_found(archive: Archive, wanted: dict[str, str], count: int) -> None:
    rows, total = Shelf(archive.folder).search(Search(**wanted))
    assert (len(rows), total) == (count, count)


@pytest.mark.parametrize(
    "wanted", [{"state": "lost"}, {"since": "yesterday"}, {"place": "here"}, {"place": "1,2,3,99"}]
)
def test_searches_that_make_no_sense_say_what_would(page: TestClient, archive: Archive, wanted: dict[str, str]) -> None:
    with pytest.raises(SearchError):
        Shelf(archive.folder).search(Search(**wanted))
    assert 'role="alert"' in page.get("/scenes", params=wanted).text


def test_a_box_over_the_antimeridian_is_one_box() -> None:
    assert box_of("170, -20, 190, -10") == (170.0, -20.0, -170.0, -10.0)
    assert box_of("-20, 178") == (178.0, -20.0, 178.0, -20.0)


def test_history_knows_passes_and_backlog(page: TestClient, archive: Archive) -> None:
    [one] = Shelf(archive.folder).passes(0)
    assert one.node == "sat-1"
    assert one.bytes > 1000
    text = page.get("/history").text
    assert text.count('<svg class="chart wide"') == 3
    assert text.count('<svg class="chart slim"') == 3
    assert words.size(one.bytes) in text
    assert page.get("/history?days=2").status_code == 400


# --- acting


def test_without_a_token_nobody_can_act(archive: Archive) -> None:
    with TestClient(make_app(Settings(archive.folder, frozenset())), base_url="http://localhost") as client:
        answer = client.post(f"/scenes/{archive.coming}/priority", data={"priority": "1"})
        assert answer.status_code == 403
        assert client.post("/operator", data={"token": ""}).status_code == 403
        assert "Operator" not in client.get("/").text


def signed_in(page: TestClient) -> str:
    page.cookies.clear()
    answer = page.post("/operator", data={"token": TOKEN}, follow_redirects=False)
    assert answer.status_code == 303
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    found = re.search(r'name="csrf" content="([^"]+)"', page.get("/").text)
    assert found is not None
    return found[1]


def asked(archive: Archive) -> list[str]:
    ledger = Ledger(archive.folder, read_only=True)
    entries = Asks(archive.folder, ledger).entries()
    ledger.close()
    return [entry.what for entry in entries]


def test_an_operator_asks_for_a_region_and_a_priority(page: TestClient, archive: Archive) -> None:
    csrf = signed_in(page)
    before = len(asked(archive))
    post = f"/scenes/{archive.coming}"
    # in longitudes and latitudes, as the map has them; of which only a corner is the scene's
    box = "14.2,52.2,14.34,52.36"
    assert page.post(f"{post}/refine", data={"csrf": csrf, "box": box}, follow_redirects=False).status_code == 303
    headers = {"x-csrf-token": csrf, "hx-request": "true"}
    answer = page.post(f"{post}/priority", data={"priority": "-7"}, headers=headers)
    assert "priority -7" in answer.text
    assert page.post(f"{post}/refine", data={"pixels": "0,0,10,10"}, headers=headers).status_code == 200
    found = asked(archive)[before:]
    assert [what.partition(":")[0] for what in found] == ["refine", "priority -7", "refine"]
    assert "chunks of a region" in found[0]
    for wrong in ({"box": "0,0,1,1"}, {"box": "1,2"}, {"pixels": "900,0,5,5"}, {"layers": "0"}, {"box": "5,5,4,6"}):
        answer = page.post(f"{post}/refine", data=wrong, headers=headers)
        assert (answer.status_code, len(answer.text.splitlines())) == (400, 1), wrong
    assert len(asked(archive)) == before + 3
    page.cookies.clear()


@pytest.mark.parametrize("wrong", ["no session", "no csrf", "another csrf", "another origin"])
def test_other_sites_cannot_act(page: TestClient, archive: Archive, wrong: str) -> None:
    csrf = signed_in(page)
    data, headers = {"priority": "3", "csrf": csrf}, {"origin": "http://localhost:8080"}
    path = f"/scenes/{archive.coming}/priority"
    before = asked(archive)
    match wrong:
        case "no session":
            page.cookies.clear()
        case "no csrf":
            del data["csrf"]
        case "another csrf":
            data["csrf"] = csrf[::-1]
        case "another origin":
            headers["origin"] = "http://evil.example"
    assert page.post(path, data=data, headers=headers).status_code == 403
    assert asked(archive) == before
    page.cookies.clear()


def test_wrong_tokens_are_counted(tmp_path: Path) -> None:
    now = 0.0
    operators = Operators(TOKEN, lambda: now)
    for _ in range(5):
        with pytest.raises(NotAllowed, match="not the token"):
            operators.enter("guess")
    with pytest.raises(NotAllowed, match="wait a minute"):
        operators.enter(TOKEN)
    now = 61.0
    session = operators.enter(TOKEN)
    assert operators.session({"downlink-operator": session.secret}) is session
    now += 13 * 3600
    assert operators.session({"downlink-operator": session.secret}) is None
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(NotAllowed, match="at least 16"):
        read_token(tmp_path / "token")


def test_a_page_that_strangers_reach_must_be_wanted(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="--page-open"):
        check(PageOptions(tmp_path, "0.0.0.0:8080"))
    check(PageOptions(tmp_path, "0.0.0.0:8080", open=True))
    check(PageOptions(tmp_path, "[::1]:8080"))


def test_the_page_only_reads_the_ledger(archive: Archive) -> None:
    with Shelf(archive.folder)._db() as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM scenes")


def test_places_of_before_are_taken_from_items(archive: Archive) -> None:
    """As after an upgrade: the ledger kept none."""
    ledger = Ledger(archive.folder)
    with ledger.writing() as db:
        before = db.execute("SELECT scene_id, acquired, west, south, east, north FROM places ORDER BY 1").fetchall()
        db.execute("DELETE FROM places")
    place_all(archive.folder, ledger)
    with ledger.reading() as db:
        after = db.execute("SELECT scene_id, acquired, west, south, east, north FROM places ORDER BY 1").fetchall()
    assert ledger.unplaced() == []
    ledger.close()
    assert after == before
    assert len(after) == 2


def test_a_pulse_changes_when_something_comes(archive: Archive) -> None:
    shelf = Shelf(archive.folder)
    before = shelf.pulse()
    ledger = Ledger(archive.folder)
    ledger.commit([(archive.coming, Range(0, 1))], {archive.coming: 10})
    ledger.close()
    after = shelf.pulse()
    assert before["flight"] != after["flight"]
    assert before["scenes"] == after["scenes"]
