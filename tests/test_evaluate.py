"""`downlink evaluate` as a user runs it, on files; its figures are taken again here from the codecs' own bytes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downlink import bundle
from downlink.errors import DownlinkError
from downlink.scene import Scene
from evaluation import worker
from evaluation.codecs import CodecSpec, Contestant
from evaluation.codecs.base import PSNR_SWEEP, Image
from evaluation.evaluate import evaluate, row
from evaluation.scenes import Entry, find
from evaluation.summary import summarise
from evaluation.worker import Apart, Here, Outcome, Task
from tests import scenes
from tests.measured import KEYS, measure, run, tiff

rasterio = pytest.importorskip("rasterio")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return tiff(tmp_path / "scene.tif", scenes.pixels(1, 6, 96, 80), nodata=0)


def test_rows_have_the_contracts_keys_and_true_figures(scene: Path, tmp_path: Path) -> None:
    found = measure(tmp_path, scene, "--model", "none", "--against", "j2k,j2k-klt")
    assert len(found["rows"]) == 2 * len(PSNR_SWEEP)
    with rasterio.open(scene) as file:
        original = file.read()
    described = scenes.scene(original, 0)
    valid = original != 0
    for one in found["rows"]:
        assert set(one) >= KEYS
        codec = CodecSpec(one["codec"], classical=one["codec"]).open()
        payload = codec.encode(Image(described, (original,), 10_000.0), one["setting"])
        [decoded] = codec.decode(payload)
        error = (original.astype(float) - decoded)[valid]
        assert one["bytes"] == len(payload)
        assert one["bits_per_sample"] == pytest.approx(8 * len(payload) / original.size)
        assert one["psnr_db"] == pytest.approx(10 * np.log10(1e8 / (error**2).mean()))
        assert one["max_error"] == np.abs(error).max()
        assert len(one["rmse_per_band"]) == 6
        assert one["ratio"] == pytest.approx(original.nbytes / len(payload))
        assert one["valid_samples"] == valid.sum()
        assert one["nodata_wrong"] == 0
        assert 0.5 < one["ssim"] <= 1
        assert 0 < one["sam_deg"] < 20
        assert one["encode_msamples_per_s"] == pytest.approx(original.size / 1e6 / one["encode_s"])
    for level in ("40", "45", "50"):
        bits = found["summary"]["bits_per_sample_at"][level]
        assert 0 < bits["j2k-klt"] < bits["j2k"]
        assert found["summary"]["scenes_at"][level] == 1
    assert found["summary"]["bd_rate_of"] == "j2k"
    assert found["summary"]["bd_rate_percent"]["j2k-klt"] > 10
    low, high = found["summary"]["bd_rate"]["j2k-klt"]["overlap_db"]
    assert high - low > 10
    assert found["failures"] == []
    assert found["environment"]["versions"]["imagecodecs"]


@pytest.mark.skipif("universal" not in bundle.released_names(), reason="needs the released bundle universal")
def test_our_own_codec_is_measured_by_its_files(scene: Path, tmp_path: Path) -> None:
    from decoder_node.compose import decode_rows
    from decoder_node.decoder import PlaneDecoder
    from downlink.stream import StreamReader
    from encoder_node.encoder import PlaneEncoder
    from encoder_node.pipeline import encode_scene
    from encoder_node.source import open_source
    from encoder_node.target import Target

    found = measure(tmp_path, scene, "--quality", "24,30,38,46,54", "--against", "j2k")
    ours = [one for one in found["rows"] if one["codec"] == "universal"]
    assert [one["setting"] for one in ours] == [24, 30, 38, 46, 54]
    model, source = bundle.find("universal"), open_source(scene)
    path = tmp_path / "scene.dl"
    with path.open("wb") as file, encode_scene(source, PlaneEncoder(model), Target(quality=46)) as encoded:
        encoded.write(file)
    assert ours[3]["bytes"] == path.stat().st_size
    with path.open("rb") as stream:
        reader = StreamReader(stream)
        reader.verify()
        decoded = np.concatenate(
            [part.pixels for part in decode_rows(reader.manifest, reader.chunk, PlaneDecoder(model))], axis=1
        )
    with rasterio.open(scene) as raster:
        original = raster.read()
    error = (original.astype(float) - decoded)[original != 0]
    assert ours[3]["psnr_db"] == pytest.approx(10 * np.log10(1e8 / (error**2).mean()), abs=0.01)
    assert ours[3]["nodata_wrong"] == 0
    assert found["summary"]["bd_rate_of"] == "universal"
    assert set(found["summary"]["bd_rate_percent"]) == {"j2k"}


def test_each_codec_works_apart_and_its_memory_is_its_own(scene: Path, tmp_path: Path) -> None:
    ballast = np.ones(300_000_000, np.uint8)  # in this process, so not in the codec's
    run(scene, "--model", "none", "--against", "htj2k", "--json", tmp_path / "deep" / "out.json")
    rows = json.loads((tmp_path / "deep" / "out.json").read_text())["rows"]
    assert ballast.all()
    for one in rows:
        assert 20 < one["peak_rss_mb"] < 250
        assert 20 < one["decode_peak_rss_mb"] < 250


def test_memory_grows_with_what_is_held() -> None:
    worker.memory.restart_peak()
    before = worker.memory.peak_mb()
    block = np.ones(80_000_000, np.uint8)
    assert worker.memory.peak_mb() >= before + 0.9 * block.nbytes / 1e6


@dataclass(frozen=True)
class Deadly(CodecSpec):
    def open(self) -> Any:
        os._exit(1)


class Refusing:
    name = unit = "refusing"

    def load(self, half: str) -> None:
        pass

    def encode(self, image: Image, setting: float) -> bytes:
        raise RuntimeError("no memory for a lookup table")


@dataclass(frozen=True)
class Refused(CodecSpec):
    def open(self) -> Any:
        return Refusing()


def test_a_codec_that_dies_costs_only_its_own_figures(scene: Path) -> None:
    contestants = [
        Contestant(Deadly("deadly"), "", (1.0, 2.0)),
        Contestant(Refused("refused"), "", (3.0,)),
        Contestant(CodecSpec("lerc", classical="lerc"), ""),
    ]
    runner = Apart()
    try:
        report = evaluate([Entry(scene, "scene")], contestants, None, runner, lambda *_: None)
    finally:
        runner.close()
    assert [failure["codec"] for failure in report.failures] == ["deadly", "refused"]
    assert "took its process down" in report.failures[0]["error"]
    assert report.failures[1]["error"] == "RuntimeError at setting 3: no memory for a lookup table"
    assert {one["codec"] for one in report.rows} == {"lerc"}
    assert report.document("deadly", 1)["summary"]["bits_per_sample_at"]["45"]["lerc"]


def test_grids_are_pooled_by_samples() -> None:
    fine, coarse = scenes.pixels(1, 4, 60, 60, nodata=None), scenes.pixels(2, 6, 30, 30, nodata=None)
    both = Scene("two", scenes.scene(fine, None).grids + scenes.scene(coarse, None).grids)
    one = row(both, "two", "x", 1.0, (fine, coarse), (fine + 3, coarse), Outcome(1000, 1, 1, 1, 1), 10_000)
    mse = 9 * fine.size / (fine.size + coarse.size)
    assert one["psnr_db"] == pytest.approx(10 * np.log10(1e8 / mse))
    assert one["rmse_per_band"] == [3.0] * 4 + [0.0] * 6
    assert one["bits_per_sample"] == 8 * 1000 / (fine.size + coarse.size)


def test_what_does_not_exist_is_null_in_the_json(tmp_path: Path) -> None:
    flat = tiff(tmp_path / "flat.tif", np.full((1, 5, 5), 700, np.uint16))
    found = measure(tmp_path, flat, "--model", "none", "--against", "j2k-klt")
    assert all(one["psnr_db"] is None and one["max_error"] == 0 for one in found["rows"])
    assert all(one["sam_deg"] is None and one["ssim"] is None for one in found["rows"])
    assert found["summary"]["bits_per_sample_at"]["45"]["j2k-klt"] is None
    holes = tiff(tmp_path / "holes.tif", np.zeros((2, 20, 20), np.uint16), nodata=0)
    found = measure(tmp_path, holes, "--model", "none", "--against", "j2k")
    assert all(one["psnr_db"] is None and one["valid_samples"] == 0 for one in found["rows"])
    assert found["rows"][0]["rmse_per_band"] == [None, None]


def test_peak_moves_psnr_and_nothing_else(tmp_path: Path) -> None:
    image = tiff(tmp_path / "rgb.tif", scenes.pixels(2, 3, 64, 64, "uint8", nodata=None))
    by_default = measure(tmp_path, image, "--model", "none", "--against", "lerc")["rows"]
    assert {one["peak"] for one in by_default} == {255}
    told = measure(tmp_path, image, "--model", "none", "--against", "lerc", "--peak", 510)["rows"]
    same = {one["setting"]: one for one in by_default}
    shared = [one for one in told if one["setting"] in same and one["psnr_db"] is not None]
    assert shared
    for one in shared:
        assert one["psnr_db"] == pytest.approx(same[one["setting"]]["psnr_db"] + 20 * np.log10(2))
        assert one["bytes"] == same[one["setting"]]["bytes"]


def points(codec: str, scene: str, bits: list[float], psnr: list[float]) -> list[dict[str, Any]]:
    speed = {"samples": 2_000_000, "encode_s": 0.5, "decode_s": 0.25, "peak_rss_mb": 100.0}
    return [
        {"codec": codec, "scene": scene, "bits_per_sample": b, "psnr_db": p, **speed}
        for b, p in zip(bits, psnr, strict=True)
    ]


def test_summary_compares_codecs_on_the_same_scenes_only() -> None:
    bits, psnr = [0.1, 0.2, 0.4, 0.8], [39.0, 43.0, 47.0, 51.0]
    rows = (
        points("ours", "a", [b / 2 for b in bits], psnr)
        + points("ours", "b", [b / 2 for b in bits], [p + 7 for p in psnr])  # does not go down to 45
        + points("j2k", "a", bits, psnr)
        + points("j2k", "b", [9 * b for b in bits], psnr)
        + points("lerc", "a", bits, [20.0, 22.0, 25.0, 30.0])  # never near: must not empty the common set
    )
    found = summarise(rows, "ours")
    assert found["scenes"] == 2
    assert found["scenes_at"]["45"] == 1
    at = found["bits_per_sample_at"]["45"]
    assert at["ours"] == pytest.approx(at["j2k"] / 2)
    assert at["lerc"] is None
    assert found["bits_per_sample_at_per_scene"]["45"]["b"]["ours"] is None
    assert found["bd_rate"]["j2k"]["scenes"] == 1
    assert found["bd_rate_percent"]["j2k"] == pytest.approx(-50)
    assert "share 5.0 dB" in found["bd_rate"]["j2k"]["refused"]["b"]
    assert found["bd_rate_percent"]["lerc"] is None
    assert "share 0.0 dB" in found["bd_rate"]["lerc"]["refused"]["a"]
    assert found["codecs"]["ours"]["encode_msamples_per_s"] == pytest.approx(4.0)
    assert found["codecs"]["ours"]["decode_msamples_per_s"] == pytest.approx(8.0)


def test_tables_are_markdown_when_piped(scene: Path, tmp_path: Path) -> None:
    other = tiff(tmp_path / "other [1].tif", scenes.pixels(4, 4, 64, 64, nodata=None))
    result = run(scene, other, "--model", "none", "--against", "j2k,lerc", "--no-isolate")
    lines = result.stdout.splitlines()
    assert "Bits per sample at 45 dB" in lines
    assert any(line.startswith("|other [1]") for line in lines)
    assert any(line.startswith("|j2k") and "(itself)" in line for line in lines)
    assert any(line.startswith("|lerc") and "% (n=2)" in line for line in lines)
    assert "\x1b" not in result.output
    single = run(scene, "--model", "none", "--against", "lerc", "--no-isolate").stdout
    assert "lerc: largest error allowed in DN" in single


def test_a_corpus_is_measured_by_split_and_type(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.tif", "sub/a.tif", "c.tif"):
        tiff(tmp_path / name, scenes.pixels(1, 2, 20, 20, nodata=None))
    listed = [
        {"file": "a.tif", "dtype": "uint16", "suggested_split": "test", "other": 1},
        {"file": "sub/a.tif", "dtype": "uint16", "suggested_split": "test"},
        {"file": "f.tif", "dtype": "float32", "suggested_split": "test"},
        {"file": "c.tif", "dtype": "uint16", "suggested_split": "train"},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(listed))
    entries, left_out = find([tmp_path], "test")
    assert [entry.path for entry in entries] == [tmp_path / "a.tif", tmp_path / "sub/a.tif"]
    assert len({entry.label for entry in entries}) == 2
    assert left_out == 1
    assert len(find([tmp_path], None)[0]) == 3
    result = run(tmp_path, "--split", "test", "--model", "none", "--against", "lerc", "--no-isolate")
    assert "1 files of the corpus" in result.stderr
    assert "no files in split 'best'" in run(tmp_path, "--split", "best", code=1).output
    assert "leave --split out" in run(tmp_path / "a.tif", "--split", "test", code=1).output


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nowhere.tif"], 1, "nowhere.tif: no such file"),
        (["{float}"], 1, "float32"),
        (["{scene}", "--against", "jpeg"], 2, "choose from j2k, j2k-klt"),
        (["{scene}", "--quality", "good"], 2, "write for example"),
        (["{scene}", "--peak", "0"], 2, "must be above 0"),
        (["{scene}", "--model", "none", "--against", "none"], 1, "nothing to measure"),
        (["{scene}", "--model", "no-such-model"], 1, "--model none measures the classical codecs alone"),
        (["{scene}", "--model", "none", "--json", "{scene}/out.json"], 1, "cannot be written"),
        (["{scene}", "--max-error", "0.5"], 2, "whole numbers from 0 (lossless)"),
        (["{scene}", "--max-error", "70000"], 2, "to 65535"),
        (["{scene}", "--max-error", "few"], 2, "is no list of numbers"),
        (["{scene}", "--max-error", "1", "--against", "j2k"], 2, "j2k cannot bound the error of a sample"),
        (["{scene}", "--max-error", "1", "--model", "universal"], 2, "leave --model and --quality out"),
        (["{scene}", "--max-error", "1", "--quality", "50"], 2, "leave --model and --quality out"),
        ([], 2, "Missing argument"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    args: list[str], code: int, words: str, scene: Path, tmp_path: Path
) -> None:
    floats = tiff(tmp_path / "float.tif", np.zeros((1, 8, 8), np.float32))
    result = run(*(arg.format(scene=scene, float=floats) for arg in args), code=code)
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_json_is_left_alone_when_measuring_fails(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("before")
    run(scene, "nowhere.tif", "--json", out, code=1)
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_worker_runs_a_task_in_this_process_too(tmp_path: Path) -> None:
    pixels = scenes.pixels(1, 2, 32, 32, nodata=None)
    np.save(tmp_path / "in.npy", pixels)
    task = Task(
        CodecSpec("lerc", classical="lerc"),
        scenes.scene(pixels, None),
        10_000.0,
        5.0,
        (tmp_path / "in.npy",),
        (tmp_path / "out.npy",),
    )
    outcome = Here().run(task)
    assert outcome.bytes > 100
    assert np.abs(np.load(tmp_path / "out.npy").astype(int) - pixels).max() <= 5
    with pytest.raises(DownlinkError, match="took its process down"):
        Apart().run(Task(Deadly("deadly"), task.scene, 1.0, 1.0, task.pixels, task.decoded))
