"""`decoder-node` as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from decoder_node.cli import main
from downlink.bundle import released_names
from downlink.stream import StreamReader
from encoder_node.outbox import Outbox
from tests import scenes
from tests.nodes import ENVIRONMENT, ROOT, Node, listed, run, send, serve
from tests.streams import stream


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def wait_for_state(folder: Path, state: str) -> dict[str, Any]:
    for _ in range(120):
        rows = listed(folder)
        if rows and rows[0]["state"] == state:
            return rows[0]
        time.sleep(0.25)
    raise AssertionError(rows)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    np.save(folder / "patch.npy", scenes.pixels(bands=3, height=96, width=80))
    done = run("encoder_node", "encode", "patch.npy", "patch.dl", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "patch.dl"


def test_there_is_a_released_model() -> None:
    assert "universal" in released_names()


def test_decode_writes_a_geotiff(encoded: Path, tmp_path: Path) -> None:
    result = call("decode", encoded, tmp_path / "patch.tif")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'patch.tif'}\n"
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "patch.tif") as dataset:
        assert (dataset.count, dataset.height, dataset.width, dataset.dtypes[0]) == (3, 96, 80, "uint16")
    facts = json.loads(call("decode", encoded, tmp_path / "patch.tif", "--json").stdout)
    assert facts["paths"] == [str(tmp_path / "patch.tif")]
    assert facts["stream_bytes"] == encoded.stat().st_size


def test_a_scene_is_received_decoded_listed_and_catalogued(encoded: Path, tmp_path: Path) -> None:
    ground, address = serve(tmp_path, workers=1)
    try:
        assert run("encoder_node", "submit", encoded, "--outbox", tmp_path / "outbox").returncode == 0
        assert send(tmp_path, address, "--once").wait() == 0
        row = wait_for_state(tmp_path, "decoded")
    finally:
        code = ground.terminate()
    assert code == 0
    assert Path(row["path"]).suffix == ".tif"
    assert Path(row["path"]).is_relative_to(tmp_path / "archive" / "scenes" / row["scene_id"])
    assert Path(row["stream"]).read_bytes() == encoded.read_bytes()
    item = json.loads(Path(row["item"]).read_text())
    assert item["id"] == row["scene_id"]
    assert (tmp_path / "archive" / "catalog.json").exists()
    text = call("list", "--archive", tmp_path / "archive").stdout
    assert re.match(rf"{row['scene_id'][:12]}  decoded      100 %  +\d+  patch  /.*\.tif\n", text)


def test_a_scene_of_which_only_a_part_has_come_is_decoded_says_so_and_is_replaced(
    encoded: Path, tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio")

    def picture(row: dict[str, Any]) -> tuple[np.ndarray, dict[str, str], dict[str, Any]]:
        with rasterio.open(row["path"]) as dataset:
            return dataset.read(), dataset.tags(), json.loads(Path(row["item"]).read_text())["properties"]

    def submit(layers: int | None) -> None:
        with Outbox(tmp_path / "outbox", create=True) as box, encoded.open("rb") as file:
            reader = StreamReader(file)
            box.submit(reader.manifest_bytes, reader.chunks(), layers=layers)

    options = ("--partial-after", "0.5")
    submit(layers=1)
    ground, address = serve(tmp_path, workers=1, options=options)
    try:
        assert send(tmp_path, address, "--once").wait() == 0
        row = wait_for_state(tmp_path, "partial")
    finally:
        assert ground.terminate() == 0
    part, tags, properties = picture(row)
    layers = properties["downlink:layers"]
    assert (layers[0], layers[-1], sorted(layers, reverse=True)) == (1.0, 0.0, layers)
    missing = properties["downlink:missing"]
    assert properties["downlink:partial"] is True
    assert missing == pytest.approx(1 - row["chunks_committed"] / row["chunks"], abs=0.2)
    assert (tags["partial"], float(tags["missing_percent"])) == ("yes", pytest.approx(100 * missing, rel=1e-3))
    assert tags["layers_percent"].startswith("100 ")
    text = call("list", "--archive", tmp_path / "archive").stdout
    assert re.match(rf"{row['scene_id'][:12]}  partial      +\d\d %  +\d+  patch  /.*\.tif\n", text)

    submit(layers=None)  # and now the rest
    ground, address = serve(tmp_path, workers=1, options=options)
    try:
        ground.wait_for("listening")
        assert send(tmp_path, address, "--once").wait() == 0
        after = wait_for_state(tmp_path, "decoded")
    finally:
        assert ground.terminate() == 0
    whole, tags, properties = picture(after)
    assert (after["path"], after["item"]) == (row["path"], row["item"])  # the same files, anew
    assert "partial" not in tags
    assert "downlink:partial" not in properties
    assert properties["downlink:missing"] == 0
    call("decode", encoded, tmp_path / "patch.tif")
    with rasterio.open(tmp_path / "patch.tif") as dataset:
        original = np.load(encoded.with_suffix(".npy")).astype(float)
        assert (dataset.read() == whole).all()
    errors = [float(((found - original)[original > 0] ** 2).mean()) for found in (part, whole)]
    assert errors[1] < errors[0] < original[original > 0].var() / 2  # coarse, and a picture


def test_a_scene_without_its_model_stays_durable_and_says_why(tmp_path: Path) -> None:
    made = stream().write(tmp_path / "made.dl")
    ground, address = serve(tmp_path, workers=1)
    try:
        run("encoder_node", "submit", made, "--outbox", tmp_path / "outbox")
        assert send(tmp_path, address, "--once").wait() == 0
        assert bytes(range(32)).hex() in ground.wait_for("cannot decode yet")["reason"]
        [row] = listed(tmp_path)
        assert (row["state"], row["failures"]) == ("durable", 0)
        assert bytes(range(32)).hex() in row["reason"]
    finally:
        assert ground.terminate() == 0
    ground, _ = serve(tmp_path, workers=1)  # tried again
    ground.wait_for("cannot decode yet")
    assert ground.terminate() == 0


@pytest.mark.parametrize("link", [None, "hard", "soft"])
def test_the_stream_is_never_the_output(tmp_path: Path, link: str | None) -> None:
    source = out = stream().write(tmp_path / "made.dl")
    before = source.read_bytes()
    if link is not None:
        out = tmp_path / "other.tif"
        (out.hardlink_to if link == "hard" else out.symlink_to)(source)
    result = call("decode", source, out)
    assert result.exit_code == 1
    assert f"{out} is the stream itself; name another file" in result.stderr
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--archive", "nothing"], "nothing is no archive"),
        (["decode", "no.dl", "out.tif"], "no.dl: No such file"),
        (["decode", "{bad}", "out.tif"], "not a .dl file"),
        (["decode", "{unknown}", "out.tif"], bytes(range(32)).hex()),
        (["--config", "no.toml", "list", "--archive", "x"], "no.toml: No such file"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.dl").write_bytes(b"no stream")
    stream().write(tmp_path / "unknown.dl")
    names = {"bad": "bad.dl", "unknown": "unknown.dl"}
    result = call(*(argument.format(**names) for argument in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert re.fullmatch(r"Error: .*\n", result.stderr)


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    result = call("decode", stream().write(tmp_path / "made.dl"), tmp_path)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {tmp_path} is a folder; name a file, for example {tmp_path / 'made.tif'}\n"


@pytest.mark.parametrize("arguments", [["serve", "--archive", "archive"], ["decode", "made.dl", "made.tif"]])
def test_models_that_do_not_exist_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    result = call(*arguments, "--models", tmp_path / "nope")
    assert result.exit_code == 2
    assert "nope' does not exist" in result.stderr


def test_an_address_in_use_is_said(tmp_path: Path) -> None:
    ground, address = serve(tmp_path)
    try:
        other = run("decoder_node", "serve", "--archive", tmp_path / "other", "--listen", address)
        assert other.returncode == 1
        assert f"cannot listen on {address}" in other.stderr
        second = run("decoder_node", "serve", "--archive", tmp_path / "archive", "--listen", "127.0.0.1:0")
        assert second.returncode == 1
        assert "another `decoder-node serve`" in second.stderr
    finally:
        ground.kill()


def test_configuration_gives_defaults(tmp_path: Path) -> None:
    config = tmp_path / "ground.toml"
    config.write_text(
        f'archive = "{tmp_path / "archive"}"\nlisten = "127.0.0.1:0"\nworkers = 0\nmodels = ["{tmp_path}"]\n'
    )
    ground = Node(tmp_path / "ground.log", "decoder_node", "--config", config, "serve")
    assert ground.wait_for("listening")["workers"] == 0
    assert ground.terminate() == 0
    assert call("--config", config, "list").exit_code == 0
    config.write_text("archives = 1")
    assert "unknown field `archives`" in call("--config", config, "list").stderr


def test_a_missing_package_names_the_extra(encoded: Path, tmp_path: Path) -> None:
    blocked = (
        "import sys; sys.modules['rasterio'] = None; from decoder_node.cli import main;"
        f"main(['decode', {str(encoded)!r}, {str(tmp_path / 'out.tif')!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=ROOT
    )
    assert done.returncode == 1
    assert "rasterio; pip install 'latent-downlink[ground]' brings it" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_examples_and_every_option_says_what_it_does() -> None:
    for name, command in main.commands.items():
        text = call(name, "--help").stdout
        assert f"\n  decoder-node {name} " in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in ("help", "log_level"):
                assert getattr(parameter, "help", None), f"{name} {parameter.opts}"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = "{'numpy', 'onnxruntime', 'grpc', 'google.protobuf', 'rasterio'}"
    check = f"import sys, decoder_node.cli; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, env=ENVIRONMENT, cwd=ROOT)
