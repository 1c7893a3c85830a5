"""Real rasters of every source, type and band count go through both nodes and come back as the files they were.

One file of each source by default; DOWNLINK_CORPUS=all takes every raster of the corpus (an hour on two cores).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="pip install 'latent-downlink[ground]'")

from decoder_node.compose import decode_rows  # noqa: E402
from decoder_node.decoder import PlaneDecoder  # noqa: E402
from decoder_node.decoding import decode_stream  # noqa: E402
from downlink.bundle import find  # noqa: E402
from downlink.errors import SceneError  # noqa: E402
from downlink.tile import Window  # noqa: E402
from encoder_node.encoder import PlaneEncoder  # noqa: E402
from encoder_node.pipeline import encode_scene  # noqa: E402
from encoder_node.source import open_source  # noqa: E402
from encoder_node.target import Target  # noqa: E402

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"
INTEGERS = ("uint8", "uint16", "int16")


def chosen() -> list[Path]:
    """Files to try: the smallest of each (source, type, bands), or all."""
    if not (CORPUS / "manifest.json").exists():
        return []
    rows = json.loads((CORPUS / "manifest.json").read_text())
    if os.environ.get("DOWNLINK_CORPUS") == "all":
        return [CORPUS / row["file"] for row in rows]
    rows.sort(key=lambda row: row["height"] * row["width"])
    first: dict[tuple[str, str, str], str] = {}
    for row in rows:
        first.setdefault((row["file"].split("__")[0], row["dtype"], str(row["bands"])[:80]), row["file"])
    return [CORPUS / file for file in first.values()]


FILES = chosen()


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(find("universal"))


@pytest.mark.skipif(not FILES, reason="the corpus is not beside this checkout")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:60])
def test_a_real_raster_comes_back_as_the_file_it_was(path: Path, encoder: PlaneEncoder, tmp_path: Path):
    with rasterio.open(path) as dataset:
        if dataset.dtypes[0] not in INTEGERS:
            with pytest.raises(SceneError, match="float32"):
                open_source(path)
            return
        original = dataset.read()
        facts = (dataset.crs, dataset.transform, dataset.nodata, dataset.dtypes, dataset.descriptions)
    with (
        encode_scene(open_source(path), encoder, Target(quality=52)) as encoded,
        (tmp_path / "s.dl").open("wb") as file,
    ):
        encoded.write(file)
    decoded = decode_stream(tmp_path / "s.dl", tmp_path / "s.tif", ())
    assert len(decoded.paths) == 1
    with rasterio.open(decoded.paths[0]) as dataset:
        back = dataset.read()
        assert facts[0] == dataset.crs
        assert facts[1] == dataset.transform
        assert facts[2] == dataset.nodata
        assert facts[3] == dataset.dtypes
    assert back.shape == original.shape
    if facts[2] is not None:
        assert ((back == facts[2]) == (original == facts[2])).all()
    step = (255 if original.dtype == np.uint8 else 10000) * 2 ** (-52 / 8)
    error = back.astype(np.float64) - original
    assert np.sqrt((error**2).mean()) < 0.6 * step


@pytest.mark.skipif(not FILES, reason="the corpus is not beside this checkout")
@pytest.mark.parametrize("psnr", [42.0, 50.0])
@pytest.mark.parametrize("file", ["sentinel2/sen1floods11__Spain_7370579.tif", "sentinel2/demmin__fields.tif"])
def test_a_psnr_asked_for_is_met_within_a_decibel(file: str, psnr: float, encoder: PlaneEncoder):
    source = open_source(CORPUS / file)
    grid = source.scene.grids[0]
    original = source.read(0, Window(0, 0, grid.height, grid.width)).astype(np.float64)
    with encode_scene(source, encoder, Target(psnr_db=psnr)) as encoded:
        rows = decode_rows(encoded.manifest, encoded.chunk, PlaneDecoder(encoder.bundle))
        back = np.concatenate([row.pixels for row in rows], axis=1)
    valid = original != grid.nodata
    reached = 10 * np.log10(1e8 / ((back - original)[valid] ** 2).mean())
    assert reached == pytest.approx(psnr, abs=1.0)
