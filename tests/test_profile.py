"""`downlink profile`: figures that add up, and figures that a machine does not give said so."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from downlink import bundle
from downlink.cli import main
from evaluation import edge_profile, graphs, stages
from tests import scenes

released = pytest.mark.skipif("universal" not in bundle.released_names(), reason="needs the released bundle universal")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """A quick profile: its JSON, its picture, what it printed."""
    folder = tmp_path_factory.mktemp("profile")
    np.save(folder / "scene.npy", scenes.pixels(1, 4, 96, 96, nodata=None))
    out, picture = folder / "profile.json", folder / "profile.svg"
    arguments = ["profile", str(folder / "scene.npy"), "--quick", "--json", str(out), "--picture", str(picture)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text()), picture, result.stdout


@released
def test_a_profile_says_what_the_encoder_costs(made: tuple[dict[str, Any], Path, str]) -> None:
    found, picture, printed = made
    assert sum(found["stages"].values()) == pytest.approx(1)
    assert set(found["stages"]) == set(stages.STAGES)
    assert found["stages"][stages.OTHER] < 0.25, "stages.py does not know the encoder's functions any more"
    assert min(found["stages"][name] for name in ("transform", "prior, refinement, entropy coding")) > 0.02
    assert [one["size_px"] for one in found["speed"]] == [64, 128, 256]
    for one in found["speed"]:
        rate = one["msamples_per_s"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
    cold = found["cold_start"]
    assert cold["total_s"] > cold["import_s"] + cold["load_s"] > 0
    assert all(one["rss_before_mb"] < one["peak_rss_mb"] < 600 for one in found["memory"])
    names = found["install"]["distributions_mb"]
    assert {"latent-downlink", "numpy", "onnxruntime", "grpcio", "protobuf", "zstandard", "click", "msgspec"} <= set(
        names
    )
    assert not {"torch", "rasterio", "imagecodecs", "matplotlib"} & set(names)
    assert sum(names.values()) == pytest.approx(found["install"]["total_mb"])
    assert "nj_per_sample" in found["energy"] or "missing" in found["energy"]
    assert found["int8"]["float32_msamples_per_s"] > 0
    for one in found["graphs"]:
        assert one["share_of_gemm_peak"] == pytest.approx(one["gmac_per_s"] / found["gemm_peak_gmac_per_s"])
    assert picture.read_text().startswith("<?xml")
    for words in ("Graphs, one thread", "Time per stage", "Peak memory", "Cold start to a coded patch", "GMAC/s"):
        assert words in printed


@released
def test_multiplications_are_those_of_the_layers() -> None:
    """The hyper-latents' network, counted from its weights: 3 x 3 over every second position, twice, then 1 x 1."""
    onnx = pytest.importorskip("onnx")
    content = bundle.find("universal").file("encoder.onnx")
    found = graphs.graph(content, "encoder.onnx")
    weights = {one.name: one for one in onnx.load_from_string(content).graph.initializer}
    layers = [list(one.dims) for one in weights.values() if len(one.dims) == 4]
    area, expected = graphs.SIDE**2, 0
    for shape, shrink in zip(sorted(layers, key=lambda dims: -int(np.prod(dims))), (4, 16, 16), strict=True):
        expected += graphs.PLANES * int(np.prod(shape)) * area // shrink
    assert found["macs"] == expected
    assert found["parameters"] == sum(int(np.prod(one.dims)) for one in weights.values())


@released
def test_work_is_counted_from_what_the_encoder_asks() -> None:
    """The hyper-latents' network sees every plane's 8 x 8 blocks at least once, and trials of front ends some again."""
    chosen = bundle.find("universal")
    pixels = scenes.pixels(1, 4, 256, 256, nodata=None)
    found = graphs.work(chosen, pixels, 40.0)
    assert set(found) == {name for name in chosen.files if name.endswith(".onnx")} - {"decoder.onnx"}
    one = graphs.graph(chosen.file("encoder.onnx"), "encoder.onnx")
    least = one["macs"] / 1e3 / (graphs.PLANES * graphs.SIDE**2 * 64)
    assert least <= found["encoder.onnx"] < 4 * least, "planes that are left out, or trials that cost most of it"
    assert sum(found.values()) > 2 * found["encoder.onnx"]


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_time_counts_for_the_stage_of_the_function_or_of_who_called_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        busy(0.3)

    def write() -> None:
        busy(0.1)

    own = (("*test_profile.py", "read", "read"), ("*test_profile.py", "write", "write"))
    monkeypatch.setattr(stages, "_OF", own)
    found = stages.shares(lambda: (read(), write()))
    assert found["read"] == pytest.approx(0.75, abs=0.1)
    assert found["write"] == pytest.approx(0.25, abs=0.1)


def test_energy_is_what_the_counters_say_beyond_idling(tmp_path: Path) -> None:
    nothing = edge_profile.energy(lambda: None, [0], tmp_path)
    assert "shows no RAPL counters" in nothing["missing"]
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("0")
    samples = [0]

    def work() -> None:
        time.sleep(0.01)
        samples[0] += 1000
        counter.write_text(str(int(counter.read_text()) + 2_000_000))

    found = edge_profile.energy(work, samples, tmp_path, seconds=0.1)
    assert found["nj_per_sample"] == pytest.approx(2e9 / 1000)
    assert found["idle_watts"] == 0


def test_pictures_are_mirrored_to_any_size() -> None:
    pixels = np.arange(6).reshape(1, 2, 3)
    assert edge_profile.mirrored(pixels, 5, 7)[0].tolist() == [
        [0, 1, 2, 2, 1, 0, 0], [3, 4, 5, 5, 4, 3, 3], [3, 4, 5, 5, 4, 3, 3], [0, 1, 2, 2, 1, 0, 0],
        [0, 1, 2, 2, 1, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.tif"], 1, "nowhere.tif: no such file"),
        (["--picture", "p.jpg"], 2, "must end with .svg, .png or .pdf"),
        (["--json", "no/such/folder.json"], 1, "no/such is no folder"),
        (["--model", "no-such-model"], 1, "no-such-model"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments: list[str], code: int, words: str) -> None:
    result = CliRunner().invoke(main, ["profile", *arguments])
    assert result.exit_code == code
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
