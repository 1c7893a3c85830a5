"""What each tile shows: seen in the latents while they are coded, stated in the manifest, written on the ground."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from decoder_node.cover import facts_of, write_cover
from decoder_node.item import make_item
from downlink.cover import UNKNOWN, Cover
from downlink.errors import Malformed, StreamError
from downlink.lattice import lattices
from downlink.manifest import Manifest
from downlink.scene import Band, Grid, Scene
from downlink.stream import read_head
from encoder_node.cli import main
from encoder_node.exact import encode_exact
from encoder_node.source_array import ArraySource
from encoder_node.survey import Survey, features, released_head
from encoder_node.tiles import LatticeReader
from tests.scenes import fake_stream

NAMES = ("B02", "B03", "B04", "B08")
SPECTRA = {"water": (300, 250, 150, 80), "forest": (250, 400, 250, 2600), "cloud or snow": (5200, 5300, 5400, 5600)}


def mosaic(kinds: list[list[str]], core: int = 256) -> Any:
    """Four bands of tiles that show this."""
    random = np.random.default_rng(2)
    side = (len(kinds) * core, len(kinds[0]) * core)
    spectra = np.array([[SPECTRA.get(kind, (0,) * 4) for kind in row] for row in kinds], float)
    out = spectra.transpose(2, 0, 1).repeat(core, 1).repeat(core, 2)
    return (out + (out > 0) * random.normal(scale=15, size=(4, *side))).clip(0).round().astype(np.uint16)


LAID_OUT = [["water", "forest", "forest"], ["cloud or snow", "forest", "nothing"], ["water", "water", "forest"]]


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mosaic")
    array = mosaic(LAID_OUT)
    array[:, 0:256, 256:320] = np.array(SPECTRA["cloud or snow"])[:, None, None]  # a quarter of a forest's tile
    array.tofile(folder / "mosaic.raw")
    place = {"crs": "EPSG:32633", "transform": [10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0]}
    card = {"bands": list(NAMES), "height": 768, "width": 768, "dtype": "uint16", "nodata": 0, **place}
    (folder / "mosaic.raw.json").write_text(json.dumps(card))
    return folder / "mosaic.raw"


def encoded(scene: Path, out: Path, *options: str) -> Manifest:
    how = () if "--max-error" in options else ("--quality", "30", "--effort", "fast")
    ran = CliRunner().invoke(main, ["encode", str(scene), str(out), *how, *options])
    assert ran.exit_code == 0, ran.output
    with out.open("rb") as file:
        return Manifest.unpack(read_head(file))


@pytest.mark.parametrize("options", [(), ("--skip-clouds", "50")], ids=["", "skip"])
def test_the_manifest_says_what_each_tile_shows(laid_out: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    manifest = encoded(laid_out, tmp_path / "out.dl", "--land-cover", *options)
    cover = manifest.cover
    assert cover is not None
    names = [
        ["nothing" if kind == UNKNOWN else cover.classes[kind] for kind in row] for row in cover.kinds.reshape(3, 3)
    ]
    assert names == LAID_OUT  # of a tile that was left on board as well
    assert cover.clouds.reshape(3, 3)[1].tolist() == [100, 0, UNKNOWN]
    assert cover.clouds[1] == pytest.approx(25, abs=4)
    assert manifest.settings["cloud_percent"] == pytest.approx(100 * 1.25 / 8, abs=1)
    assert ("clouds_skipped" in manifest.settings) == bool("--skip-clouds" in options)


def test_exact_streams_say_it_as_well(tmp_path: Path) -> None:
    pixels = mosaic([["water", "cloud or snow"]])
    grid = Grid(256, 512, "uint16", tuple(map(Band, NAMES)), 0)
    with encode_exact(ArraySource(Scene("exact", (grid,)), pixels), 60, {}, survey=Survey(released_head())) as found:
        cover = found.manifest.cover
    assert cover is not None
    assert [cover.classes[kind] for kind in cover.kinds] == ["water", "cloud or snow"]
    assert cover.clouds.tolist() == [0, 100]


def test_without_the_option_nothing_is_said(laid_out: Path, tmp_path: Path) -> None:
    manifest = encoded(laid_out, tmp_path / "out.dl")
    assert manifest.cover is None
    assert "cloud_percent" not in manifest.settings


def test_the_ground_writes_it_as_a_raster_and_into_the_catalogue(laid_out: Path, tmp_path: Path) -> None:
    manifest = encoded(laid_out, tmp_path / "out.dl", "--land-cover")
    path = write_cover(tmp_path / "a.cover.tif", manifest)
    assert path is not None
    with rasterio.open(path) as dataset:
        assert dataset.shape == (3, 3)
        assert dataset.transform.a == 2560
        assert dataset.nodata == UNKNOWN
        assert (dataset.read(1).ravel() == manifest.cover.kinds).all()  # type: ignore[union-attr]
        assert (dataset.read(2).ravel() == manifest.cover.clouds).all()  # type: ignore[union-attr]
    facts = facts_of(manifest)
    assert facts["land_cover"] == {"forest": 50.0, "water": 37.5, "cloud or snow": 12.5}
    item = make_item("ab" * 32, manifest, [tmp_path / "a.tif", path], facts, tmp_path, "2026-11-21T00:00:00Z")
    assert item["properties"]["eo:cloud_cover"] == manifest.settings["cloud_percent"]
    asset = item["assets"]["land-cover"]
    assert [one["title"] for one in asset["bands"][0]["classification:classes"]] == list(released_head().classes)
    assert any("classification" in one for one in item["stac_extensions"])


def test_a_scene_that_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 64, 64), np.uint16))
    ran = CliRunner().invoke(main, ["encode", str(tmp_path / "a.npy"), str(tmp_path / "a.dl"), "--land-cover"])
    assert ran.exit_code == 1
    assert "bands B02, B03, B04, B08 are needed at one resolution" in ran.output
    assert not (tmp_path / "a.dl").exists()


def test_features_are_means_and_deviations_of_blocks() -> None:
    """By Parseval's theorem; mixing across borders moves a little between blocks."""
    random = np.random.default_rng(1)
    smooth = random.normal(size=(4, 96, 96)).cumsum(axis=1).cumsum(axis=2)
    array = (2000 + 300 * smooth / smooth.std()).clip(1).round().astype(np.uint16)
    scene = Scene("noise", (Grid(96, 96, "uint16", tuple(map(Band, NAMES))),))
    reader = LatticeReader(ArraySource(scene, array), lattices(scene, ())[0], 0, 96)
    found = features(reader.one(0).latents(np.arange(4))[0])
    blocks = array.reshape(4, 12, 8, 12, 8).astype(float) / 10000
    means, deviations = blocks.mean(axis=(2, 4)), blocks.std(axis=(2, 4))
    assert np.abs(found[:4] - means).mean() < 0.01 * means.mean()
    assert np.corrcoef(found[4:].ravel(), deviations.ravel())[0, 1] > 0.85


def test_the_head_says_how_well_it_does() -> None:
    assert "balanced accuracy" in released_head().made


@pytest.mark.parametrize(
    ("cover", "message"),
    [
        (Cover(0, ("a",), bytes(3)), "bytes for 1 tiles"),
        (Cover(3, ("a",), bytes(2)), "lattice 3"),
        (Cover(0, (), bytes(2)), "classes"),
        (Cover(0, ("a", "a"), bytes(2)), "must differ"),
        (Cover(0, ("a",), bytes([1, 0])), "class 1"),
        (Cover(0, ("a",), bytes([0, 101])), "share 101"),
        (Cover(0, ("a\n",), bytes(2)), "class of a cover"),
        (Cover(0, ("a" * 65,), bytes(2)), "65 characters"),
    ],
)
def test_a_cover_that_cannot_be_is_refused(cover: Cover, message: str) -> None:
    manifest = fake_stream()[0]
    good = msgspec.structs.replace(manifest, cover=Cover(0, ("a",), bytes([UNKNOWN, UNKNOWN])))
    assert Manifest.unpack(good.pack()).cover == good.cover
    with pytest.raises(StreamError, match=message):
        msgspec.structs.replace(manifest, cover=cover).pack()


def test_a_manifest_without_a_cover_is_packed_as_before() -> None:
    manifest = fake_stream()[0]
    longer = msgspec.structs.replace(manifest, cover=Cover(0, ("a",), bytes(2)))
    assert len(longer.pack()) > len(manifest.pack())
    with pytest.raises(Malformed):
        Manifest.unpack(longer.pack()[:-1])


def test_a_large_scene_takes_two_bytes_a_tile_at_most() -> None:
    cover = Cover.of(0, released_head().classes, np.zeros(1849, np.uint8), np.arange(1849, dtype=np.uint8) % 101)
    cover.validate(1849)
    assert len(cover.tiles) == 2 * 1849
