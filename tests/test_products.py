"""What networks make of a scene, from stream to page: labelled everywhere, and never taken for what was measured."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rasterio")
pytest.importorskip("onnx", reason="pip install 'latent-downlink[training]'")
pytest.importorskip("fastapi", reason="the ground extra is not installed")
pytest.importorskip("httpx2", reason="the page is asked through it")

import rasterio
from fastapi.testclient import TestClient

from decoder_node.decoding import archive_scene
from decoder_node.ledger import Ledger
from decoder_node.page.app import make_app
from decoder_node.page.station import Settings
from downlink.scene import Band, Grid, Scene
from downlink.stream import StreamReader
from encoder_node.exact import encode_exact
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import scenes
from tests.test_enhance import NAMES, bundle_in

LABELS = {"restore": "Lost lines are made up", "perceptual": "Invented detail: do not measure on it"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any, dict[str, Any]]:
    """An archive with a scene that has a dead line, decoded where two bundles make more of it."""
    folder = tmp_path_factory.mktemp("archive")
    models = folder / "models"
    models.mkdir()
    for task, label in LABELS.items():
        bundle_in(models / task, task, label=label)
        stated = json.loads((models / task / "bundle.json").read_text()) | {"name": f"tiny-{task}"}
        (models / task / "bundle.json").write_text(json.dumps(stated))
    pixels = scenes.pixels(4, 3, 96, 80, nodata=None)
    pixels[1, 40] = 0
    grid = Grid(96, 80, "uint16", tuple(map(Band, NAMES)), 0, "EPSG:32633", (10.0, 0.0, 5e5, 0.0, -10.0, 5e6))
    file = io.BytesIO()
    with encode_exact(ArraySource(Scene("dead line", (grid,)), pixels), 0, Target(max_error=0).settings) as encoded:
        encoded.write(file)
    reader = StreamReader(file)
    (folder / "streams").mkdir()
    (folder / "streams" / f"{reader.scene_id}.dl").write_bytes(file.getvalue())
    ledger = Ledger(folder, create=True)
    ledger.begin(reader.scene_id, reader.manifest, reader.manifest_bytes, 0, len(file.getvalue()))
    ledger.durable(reader.scene_id)
    ledger.decoded(reader.scene_id, archive_scene(folder, reader.scene_id, [models], 1.8e9))
    [entry] = ledger.entries()
    ledger.close()
    return folder, reader.scene_id, pixels, entry.row(folder)


def test_the_measured_scene_stays_what_it_is_and_products_lie_beside_it(archive: Any) -> None:
    _, _, pixels, row = archive
    with rasterio.open(row["path"]) as dataset:
        assert (dataset.read() == pixels).all()
        assert "PRODUCT" not in dataset.tags()
    assert [Path(path).name.partition(".")[2] for path in row["paths"]] == ["tif"]
    named = {Path(path).name.partition(".")[2]: note for path, note in row["products"].items()}
    assert named == {
        "tiny-perceptual.enhanced.tif": LABELS["perceptual"],
        "tiny-restore.enhanced.tif": LABELS["restore"],
        "tiny-restore.enhanced_restored.tif": "1: this pixel was made by a network",
    }
    restored = next(path for path in row["products"] if path.endswith("_restored.tif"))
    with rasterio.open(restored) as dataset:
        assert (dataset.read().astype(bool) == (pixels == 0)).all()


def test_the_catalogue_labels_them(archive: Any) -> None:
    assets = json.loads(Path(archive[3]["item"]).read_text())["assets"]
    measured = [key for key, asset in assets.items() if "data" in asset["roles"]]
    assert measured == ["data"]
    perceptual = assets["tiny-perceptual_enhanced"]
    assert (perceptual["roles"], perceptual["title"]) == (["enhanced", "perceptual"], LABELS["perceptual"])
    assert assets["tiny-restore_enhanced_restored"]["roles"] == ["mask", "metadata"]


def test_the_page_shows_the_measured_scene_and_offers_the_others_as_what_they_are(archive: Any) -> None:
    folder, scene_id, _, row = archive
    with TestClient(
        make_app(Settings(folder, frozenset({"localhost"}), (), None)), base_url="http://localhost"
    ) as page:
        text = page.get(f"/scenes/{scene_id}").text
        downloads, made = text.split("Made by networks, not measured")
        assert "enhanced" not in downloads
        for path, note in row["products"].items():
            assert note in made
            file = page.get(f"/scenes/{scene_id}/files/{Path(path).name}")
            assert file.status_code == 200
            assert file.content == Path(path).read_bytes()
