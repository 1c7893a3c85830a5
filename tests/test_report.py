"""`downlink evaluate --report`: one page that needs no network, figures that are the JSON's, runs that go on, and odd
scenes that are measured or refused in a sentence; and the README's results, which are made from committed figures."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from downlink import bundle
from downlink.cli import main
from evaluation import report, results, worker
from evaluation.equal_bits import at_equal_bits, values_at
from evaluation.tile_bits import CELL, tile_bits
from tests import scenes

rasterio = pytest.importorskip("rasterio")
released = pytest.mark.skipif("universal" not in bundle.released_names(), reason="needs the released bundle universal")
ROOT = Path(__file__).parents[1]
NAMES = ("B02", "B03", "B04", "B08", "B11")


def tiff(path: Path, pixels: np.ndarray, nodata: float | None = None, names: tuple[str, ...] = ()) -> Path:
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
    place = rasterio.Affine(10, 0, 453620, 0, -10, 5800020)
    with rasterio.open(path, "w", nodata=nodata, crs="EPSG:32633", transform=place, **profile) as file:
        file.write(pixels)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["evaluate", *map(str, args)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


class Page(HTMLParser):
    """What a page fetches, its ids, and the links within it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        target = found.get("src") or found.get("href") or found.get("xlink:href") or ""
        if tag == "a":
            self.links.append(target)
        elif target and not target.startswith(("data:", "#")):
            self.fetched.append(target)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """The folder of a report on two scenes, one of which has two tiles, and the command's arguments."""
    folder = tmp_path_factory.mktemp("report")
    large = tiff(folder / "large.tif", scenes.pixels(1, 5, 40, 272, nodata=None), 0, NAMES)
    small = tiff(folder / "small <b>.tif", scenes.pixels(2, 5, 48, 40), 0, NAMES)
    arguments = [large, small, "--against", "j2k,jpegls", "--quality", "8,20,32,44,56,64", "--max-error", "5"]
    arguments += ["--report", folder / "out", "--no-isolate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "SPEED_SIDE", 64)
        run(*arguments)
    return folder / "out", arguments


@released
def test_a_report_is_one_file_that_needs_no_network(made: tuple[Path, list[object]]) -> None:
    text = (made[0] / "report.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert "script" not in page.tags
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(set(page.ids)) == len(page.ids), "ids of two figures meet"
    assert all(link[1:] in page.ids for link in page.links)
    for references in re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text):
        assert references in page.ids
    for heading in ("In short", "At equal bits", "Lossless and bounded error", "Speed", "Pictures at equal bits"):
        assert heading in text
    assert "small &lt;b&gt;" in text
    assert "small <b>" not in text
    assert text.count('src="data:image/png') == 2 * (1 + 2 * 2) or "Cannot be had at these bits" in text
    assert text.count("<svg") >= 6


@released
def test_the_pages_figures_are_the_jsons(made: tuple[Path, list[object]]) -> None:
    folder = made[0]
    found = json.loads((folder / "report.json").read_text())
    text = (folder / "report.html").read_text()
    assert found["failures"] == found["bounds"]["failures"] == []
    for level, codecs in found["summary"]["bits_per_sample_at"].items():
        for bits in codecs.values():
            assert bits is None or f"<td>{bits:,.4f}\n" in text, level
            assert bits is None or f">{16 / bits:,.1f} : 1<" in text, "the ratio is against 16 bits a sample"
    for delta in found["summary"]["bd_rate"].values():
        assert f"<td>{delta['percent']:+.1f}</td>" in text
    for one in found["bounds"]["summary"]["bounds"].values():
        for figures in one["codecs"].values():
            assert f"<td>{figures['bits_per_sample']:,.3f}</td>" in text
    with (folder / "rows.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    rows = found["rows"] + found["bounds"]["rows"]
    assert [(one["scene"], one["codec"], int(one["bytes"])) for one in listed] == [
        (one["scene"], one["codec"], one["bytes"]) for one in rows
    ]
    reference = [one for one in found["rows"] if one["codec"] == "universal"]
    assert all(0 < one["land_cover_agreement"] <= 1 and one["ndvi_error"] >= 0 for one in reference)
    assert {one["seam_ratio"] is None for one in reference if one["scene"] == "small <b>"} == {True}
    assert any(one["seam_ratio"] for one in reference if one["scene"] == "large")


@released
def test_pictures_are_at_equal_bits(made: tuple[Path, list[object]]) -> None:
    found = json.loads((made[0] / "report.json").read_text())
    assert [one["scene"] for one in found["pictures"]] == ["large", "small <b>"]
    for one in found["pictures"]:
        assert one["codecs"][0]["codec"] == "universal"
        for codec in one["codecs"]:
            close = 0.2 if codec["codec"] == "jpegls" else 0.05  # whole numbers; small scenes
            assert codec["bits_per_sample"] == pytest.approx(one["bits_per_sample"], rel=close)
    tiles = found["pictures"][0]["tiles"]["bits_per_pixel"]
    assert np.shape(tiles) == (1, 2)


@released
def test_speeds_are_of_one_run_and_have_a_spread(made: tuple[Path, list[object]]) -> None:
    found = json.loads((made[0] / "report.json").read_text())["speed"]
    assert found["shapes"] == {"lossy": [5, 64, 64], "lossless": [5, 40, 40]}, "mirrored for lossy codecs alone"
    codecs = found["1"]["codecs"]
    assert set(codecs) == {"universal", "j2k", "jpegls (lossy)", "exact", "jpegls (lossless)"}
    for one in codecs.values():
        for half in ("encode", "decode"):
            assert 0 < one[half]["low"] <= one[half]["median"] <= one[half]["high"]
    assert codecs["universal"]["encode_ratio"] == {"median": 1, "low": 1, "high": 1}
    ratio = codecs["j2k"]["encode_ratio"]
    assert ratio["low"] <= codecs["universal"]["encode"]["high"] / codecs["j2k"]["encode"]["low"] * 1.001
    assert codecs["j2k"]["psnr_db"] == pytest.approx(codecs["universal"]["psnr_db"], abs=2)


@released
def test_an_interrupted_run_goes_on(
    made: tuple[Path, list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but one measurement is kept: only that one is made, and the report is the same."""
    folder, arguments = made
    before = json.loads((folder / "report.json").read_text())
    row = next(
        path
        for path in sorted((folder / "cache").rglob("*.json"))
        if path.read_text().find('"codec":"j2k","setting"') > 0 and "picture" not in path.read_text()
    )
    row.unlink()
    asked, real = [], worker.Here.run

    def counted(self: worker.Here, task: worker.Task) -> worker.Outcome:
        asked.append(task.codec.label)
        return real(self, task)

    monkeypatch.setattr(worker.Here, "run", counted)
    monkeypatch.setattr(report, "SPEED_SIDE", 64)
    run(*arguments)
    assert asked == ["j2k"]
    after = json.loads((folder / "report.json").read_text())
    assert after["speed"] == before["speed"]
    assert after["summary"]["bd_rate"] == before["summary"]["bd_rate"]
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "report.html", "report.json", "rows.csv"]


def test_odd_scenes_are_measured(tmp_path: Path) -> None:
    """One band, one pixel, nothing but nodata, 8-bit colours, odd sides, negative numbers: in one report."""
    odd = [
        tiff(tmp_path / "one-band.tif", scenes.pixels(1, 1, 37, 53, nodata=None)),
        tiff(tmp_path / "one-pixel.tif", np.full((3, 1, 1), 700, np.uint16)),
        tiff(tmp_path / "nothing.tif", np.zeros((2, 20, 20), np.uint16), 0),
        tiff(tmp_path / "rgb.tif", scenes.pixels(2, 3, 33, 31, "uint8", nodata=None)),
        tiff(tmp_path / "many.tif", scenes.pixels(3, 20, 9, 14, nodata=None)),
        tiff(tmp_path / "signed.tif", (scenes.pixels(4, 2, 25, 18, nodata=None) - 1500).astype(np.int16), -999),
    ]
    model = "universal" if "universal" in bundle.released_names() else "none"
    options = [
        "--model",
        model,
        "--quality",
        "20,50",
        "--against",
        "j2k,zstd",
        "--max-error",
        "2",
        "--no-isolate",
        "--no-speed",
    ]
    run(*odd, *options, "--report", tmp_path / "out", "--cache", tmp_path / "elsewhere" / "kept")
    blocked = run(*odd, *options, "--report", tmp_path / "rgb.tif" / "out", code=1).output
    assert "give --report another place" in blocked
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["failures"] == found["bounds"]["failures"] == []
    assert {one["scene"] for one in found["rows"]} == {path.stem for path in odd}
    assert {one["peak"] for one in found["rows"]} == {255, 10_000}
    assert all(one["psnr_db"] is None for one in found["rows"] if one["scene"] == "nothing")
    assert found["bounds"]["summary"]["broken"] == []
    assert Page((tmp_path / "out" / "report.html").read_text()).fetched == []


def test_hundreds_of_bands_are_measured(tmp_path: Path) -> None:
    many = tiff(tmp_path / "many.tif", scenes.pixels(3, 220, 9, 14, nodata=None))
    model = "universal" if "universal" in bundle.released_names() else "none"
    options = ["--model", model, "--quality", "20,50", "--against", "j2k-klt", "--no-isolate"]
    run(many, *options, "--json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert all(len(one["rmse_per_band"]) == 220 for one in rows)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((1, 8, 8), np.float32), "float32"),
        (np.full((2, 8, 8), np.nan, np.float64), "float64"),
        (np.zeros((1, 8, 8), np.uint32), "uint32"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_to_do(pixels: np.ndarray, words: str, tmp_path: Path) -> None:
    said = run(tiff(tmp_path / "odd.tif", pixels), "--report", tmp_path / "out", code=1).output
    assert words in said
    assert "gdal_translate" in said
    assert not (tmp_path / "out" / "report.html").exists()


def rows_of(codec: str, scene: str, points: list[tuple[float, float, float | None]]) -> list[dict[str, Any]]:
    return [
        {"codec": codec, "scene": scene, "bits_per_sample": bits, "psnr_db": psnr, "sam_deg": angle}
        for bits, psnr, angle in points
    ]


def test_codecs_are_compared_at_the_bits_of_the_reference() -> None:
    ours = [(0.1 * 2**step, 36.0 + 4 * step, 4.0 - step / 2) for step in range(6)]
    rows = rows_of("ours", "a", ours) + rows_of("ours", "b", ours)
    other = [(0.1 * 2**step, 33.0 + 4 * step, 5.0 - step / 2) for step in range(6)]
    rows += rows_of("other", "a", other) + rows_of("other", "b", other[2:])
    found = at_equal_bits(rows, "ours", (40, 44, 48))
    assert found["scenes"] == ["a", "b"]
    assert found["bits_per_sample"] == pytest.approx([0.2, 0.4, 0.8])
    assert found["codecs"]["ours"]["psnr_db"] == pytest.approx([40, 44, 48])
    assert found["codecs"]["other"]["psnr_db"][1:] == pytest.approx([41, 45])
    assert found["codecs"]["other"]["psnr_db"][0] is None  # cannot be had on scene b: no mean over others
    assert found["codecs"]["other"]["sam_deg"][2] == pytest.approx(3.5)
    assert at_equal_bits(rows, "ours")["levels"][-1] == 56
    assert values_at(rows[:6], "psnr_db", [0.05, 0.1, 99]) == [None, pytest.approx(36), None]


@released
def test_the_map_of_bits_is_all_of_the_file() -> None:
    from evaluation.codecs import CodecSpec
    from evaluation.codecs.base import Image

    pixels = scenes.pixels(3, 4, 288, 700, nodata=None)
    pixels[:, :, :256] = pixels[:, :1, :1]  # all that costs bits is to the right
    codec = CodecSpec("universal", model="universal").open()
    codec.load("encode")
    payload = codec.encode(Image(scenes.scene(pixels, None), (pixels,), 10_000.0), 50.0)
    found = tile_bits(payload)
    areas = np.full(found.cells.shape, CELL * CELL, float)
    areas[:, -1] = CELL * (700 % CELL)
    assert (found.cells * areas).sum() + found.common_bits == pytest.approx(8 * len(payload), rel=1e-6)
    assert found.per_tile.shape == (2, 3)
    assert found.per_tile[0, 1] > 5 * found.per_tile[0, 0]


@pytest.mark.skipif(not (results.RECORD / "report.json").exists(), reason="an sdist holds no record")
def test_the_readmes_results_are_those_of_the_record() -> None:
    """`make report` after every change of either."""
    report, profile = (json.loads((results.RECORD / name).read_text()) for name in ("report.json", "profile.json"))
    readme = (ROOT / "README.md").read_text()
    assert results.spliced(readme, results.text(report, profile)) == readme, "run `make report`"
    for name in results.pictures(report, profile):
        assert (results.PICTURES / name).exists(), "run `make report`"
    changed = json.loads(json.dumps(report))
    at = changed["summary"]["bits_per_sample_at"]["45"]
    at[changed["summary"]["bd_rate_of"]] *= 1.1
    assert results.spliced(readme, results.text(changed, profile)) != readme


def test_a_readme_without_markers_is_said_so() -> None:
    with pytest.raises(ValueError, match="lost its markers"):
        results.spliced("# Title\n", "text")
