"""`encoder-node` as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from encoder_node.cli import main
from encoder_node.outbox import Outbox
from tests import scenes
from tests.nodes import ENVIRONMENT, ROOT, Node, run, serve
from tests.streams import stream


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "patch.npy"
    np.save(path, scenes.pixels(bands=3, height=96, width=80))
    return path


@pytest.fixture(scope="module")
def encoded(scene: Path) -> Path:
    path = scene.with_suffix(".dl")
    result = call("encode", scene, path)
    assert result.exit_code == 0, result.output
    return path


def test_encode_writes_a_stream_and_says_what_it_cost(scene: Path, encoded: Path) -> None:
    result = call("encode", scene, encoded)  # again: replaced
    assert result.exit_code == 0
    assert re.fullmatch(r".*patch\.dl: \d+ bytes, [\d.]+:1, [\d.]+ bits/sample, [\d.]+ s\n", result.stdout)
    assert [path.name for path in sorted(encoded.parent.iterdir())] == ["patch.dl", "patch.npy"]  # and nothing else


def test_encode_gives_figures_as_json(scene: Path, encoded: Path) -> None:
    facts = json.loads(call("encode", scene, encoded, "--json", "--quality", "40").stdout)
    assert facts["bytes"] == encoded.stat().st_size
    assert facts["raw_bytes"] == 3 * 96 * 80 * 2
    assert facts["bits_per_sample"] == pytest.approx(8 * facts["bytes"] / (3 * 96 * 80))
    assert facts["settings"] == {"quality": 40.0}


def test_a_map_of_importance_and_an_effort_are_heard(scene: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.array([[1.0, 1.0], [1.0, 1.0]]))
    polygon = {"type": "Polygon", "coordinates": [[[0, 0], [8, 0], [8, 8], [0, 8]]]}
    (tmp_path / "place.geojson").write_text(json.dumps(polygon))
    sizes = {}
    for name, options in {
        "plain": [],
        "fast": ["--effort", "fast"],
        "map": ["--importance", tmp_path / "map.npy"],
        "drawn": ["--importance", tmp_path / "place.geojson", "--outside", "0.5"],
    }.items():
        facts = json.loads(call("encode", scene, tmp_path / f"{name}.dl", "--json", *options).stdout)
        sizes[name] = facts["bytes"]
        stated = options[1].name if options[:1] == ["--importance"] else None
        assert facts["settings"].get("importance") == stated
    assert sizes["fast"] > sizes["plain"]  # nothing was weighed against its bits
    assert abs(sizes["map"] - sizes["plain"]) < 32  # all of it matters alike; one tile holds it all
    assert abs(sizes["drawn"] - sizes["plain"]) < 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "{scene}", "out.dl", "--importance", "no.npy"], "no.npy: no such file"),
        (["encode", "{scene}", "out.dl", "--importance", "{scene}", "--max-error", "1"], "give one of them"),
        (["encode", "no.tif", "out.dl"], "no.tif: no such file"),
        (["encode", "{scene}", "no-folder/out.dl"], "no-folder is not a folder"),
        (["encode", "{scene}", "out.dl", "--quality", "5", "--psnr", "40"], "quality and psnr_db were both given"),
        (["encode", "{scene}", "out.dl", "--quality", "500"], "500 is outside 0 to 120"),
        (["encode", "{scene}", "out.dl", "--model", "nobody"], "no bundle 'nobody'"),
        (["status", "--outbox", "no-box"], "holds no outbox"),
        (["resend", "--outbox", "no-box"], "holds no outbox"),
        (["submit", "no.dl", "--outbox", "box"], "no.dl: No such file"),
        (["run", "--outbox", "box", "--ground", "127.0.0.1:1", "--watch", "no-folder", "--once"], "not a folder"),
        (["run", "--outbox", "{scene}/box", "--ground", "127.0.0.1:1"], "cannot be made"),
        (["--config", "no.toml", "status", "--outbox", "box"], "no.toml: No such file"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_1(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*(argument.format(scene=scene) for argument in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert re.fullmatch(r"Error: .*\n", [*result.stderr.splitlines(True)][-1])
    assert "Traceback" not in result.stderr


def test_submit_prints_the_id_of_a_scene_that_is_safe(scene: Path, tmp_path: Path) -> None:
    result = call("submit", scene, "--outbox", tmp_path / "box", "--priority", "3")
    assert result.exit_code == 0, result.output
    with Outbox(tmp_path / "box") as box:
        [entry] = box.entries()
        assert result.stdout == f"{entry.scene_id}\n"
        assert (entry.state, entry.priority, entry.name) == ("queued", 3, "patch")
    assert call("submit", scene, "--outbox", tmp_path / "box").stdout == result.stdout  # the same scene
    assert len(list((tmp_path / "box").glob("downlink-spool*"))) == 0


def test_submit_takes_streams_and_gives_json(encoded: Path, tmp_path: Path) -> None:
    made = stream().write(tmp_path / "made.dl")
    result = call("submit", encoded, made, "--outbox", tmp_path / "box", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["state"] for row in rows] == ["queued", "queued"]
    assert rows[1]["scene_id"] == stream().id
    assert rows[1]["path"] == str(made)


def test_submit_goes_on_after_a_bad_scene(encoded: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.dl"
    bad.write_bytes(encoded.read_bytes()[:-1])
    result = call("submit", bad, encoded, "--outbox", tmp_path / "box")
    assert result.exit_code == 1
    assert "bad.dl" in result.stderr
    assert "1 of 2 scenes were not submitted" in result.stderr
    assert len(result.stdout.split()) == 1


def test_status_and_resend(tmp_path: Path) -> None:
    made = stream().write(tmp_path / "made.dl")
    box = tmp_path / "box"
    call("submit", made, "--outbox", box)
    assert re.fullmatch(rf"{stream().id[:12]}  queued +\d+  made up 0\n", call("status", "--outbox", box).stdout)
    [row] = json.loads(call("status", "--outbox", box, "--json").stdout)
    assert (row["scene_id"], row["state"]) == (stream().id, "queued")
    [row] = json.loads(call("resend", stream().id[:8], "--outbox", box, "--json").stdout)
    assert row["scene_id"] == stream().id
    assert "0 scenes have an id" in call("resend", "ffff", "--outbox", box).stderr


def test_configuration_gives_defaults_and_options_win(encoded: Path, scene: Path, tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(f'outbox = "{tmp_path / "box"}"\nquality = 30\nrate_kbps = 100\n')
    assert call("--config", config, "submit", scene).exit_code == 0
    assert (tmp_path / "box").is_dir()
    for arguments, wanted in (
        ([], {"quality": 30.0}),
        (["--quality", "20"], {"quality": 20.0}),
        (["--bits-per-sample", "1"], {"bits_per_sample": 1.0}),
    ):
        out = tmp_path / "out.dl"
        facts = json.loads(call("--config", config, "encode", scene, out, *arguments, "--json").stdout)
        assert facts["settings"] == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate = 5", "unknown field `rate`"),
        ("rate_kbps = -1", "rate_kbps"),
        ("quality = 'x'", "$.quality"),
        ("=", "toml"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(text)
    result = call("--config", config, "status", "--outbox", tmp_path)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "keys are outbox, ground" in result.stderr


def test_help_shows_examples_and_every_option_says_what_it_does() -> None:
    for name, command in main.commands.items():
        text = call(name, "--help").stdout
        assert f"\n  encoder-node {name} " in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in ("help", "log_level"):
                assert getattr(parameter, "help", None), f"{name} {parameter.opts}"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    heavy = "{'numpy', 'onnxruntime', 'grpc', 'google.protobuf', 'rasterio'}"
    check = f"import sys, encoder_node.cli; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, env=ENVIRONMENT, cwd=ROOT)


@pytest.mark.parametrize("address", ["nowhere", ":1", "host:", "host:99999", "host:x"])
def test_an_address_is_a_host_and_a_port(tmp_path: Path, address: str) -> None:
    result = call("run", "--outbox", tmp_path / "box", "--ground", address, "--once")
    assert result.exit_code == 2
    assert "is not HOST:PORT, for example 127.0.0.1:50551" in result.stderr


def test_one_sender_per_outbox(tmp_path: Path) -> None:
    first = Node(tmp_path / "first.log", "encoder_node", "run", "--outbox", "box", "--ground", "127.0.0.1:1")
    first.wait_for("started")
    second = run("encoder_node", "run", "--outbox", "box", "--ground", "127.0.0.1:1", cwd=tmp_path)
    assert second.returncode == 1
    assert "another `encoder-node run`" in second.stderr
    assert first.terminate() == 0


def test_a_watched_folder_is_sent_and_failures_are_said_once(scene: Path, tmp_path: Path) -> None:
    ground, address = serve(tmp_path)
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    good, bad = incoming / "good.npy", incoming / "bad.npy"
    good.write_bytes(scene.read_bytes())
    bad.write_bytes(b"no array")
    arguments = ("run", "--outbox", tmp_path / "box", "--ground", address, "--watch", incoming, "--once")
    try:
        edge = Node(tmp_path / "edge.log", "encoder_node", *arguments)
        assert edge.wait() == 1  # because of the bad one
        assert "bad.npy" in edge.log.read_text().splitlines()[-1]
        with Outbox(tmp_path / "box") as box:
            assert [entry.state for entry in box.entries()] == ["delivered"]
        again = Node(tmp_path / "edge.log", "encoder_node", *arguments)
        assert again.wait() == 0  # neither is tried again
        assert not [event for event in again.events() if event["event"] == "encoding"]
        assert good.exists()  # nothing is taken away
        assert bad.exists()
    finally:
        ground.kill()


def test_encode_does_not_write_over_what_it_reads(scene: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.npy"
    own.write_bytes(scene.read_bytes())
    (tmp_path / "link.dl").symlink_to(own)
    product = tmp_path / "a.SAFE"
    product.mkdir()
    for arguments, words in (
        ((own, own), "is the same file as the scene"),
        ((own, tmp_path / "link.dl"), "is the same file as the scene"),
        ((product, product / "out.dl"), "lies inside the product"),
        ((own, product), "is a folder; name a file in it"),
    ):
        result = call("encode", *arguments)
        assert (result.exit_code, words in result.stderr) == (1, True), result.stderr
    assert own.read_bytes() == scene.read_bytes()
    assert list(product.iterdir()) == []


def test_a_name_may_be_as_long_as_the_file_system_takes(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / ("é" * 124 + ".dl")
    assert call("encode", scene, out).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_delivered_scene_is_queued_again_by_submit_but_not_by_watching(encoded: Path, tmp_path: Path) -> None:
    box = tmp_path / "box"
    name = call("submit", encoded, "--outbox", box).stdout.strip()
    with Outbox(box) as opened:
        opened.delivered(name)
    assert "submit the scene itself again" in call("resend", name, "--outbox", box).stderr
    for option, state in (("--unless-delivered", "delivered"), ("--priority=0", "queued")):
        assert call("submit", encoded, "--outbox", box, option).exit_code == 0
        assert call("status", "--outbox", box).stdout.split()[1] == state


def test_encode_never_writes_over_a_side_car_of_its_scene(tmp_path: Path) -> None:
    scene, side_car = tmp_path / "made.bsq", tmp_path / "made.bsq.json"
    scene.write_bytes(bytes(32))
    side_car.write_text('{"bands": 1, "height": 4, "width": 4, "dtype": "uint16"}')
    result = CliRunner().invoke(main, ["encode", str(scene), str(side_car)])
    assert result.exit_code == 1
    assert "would be lost" in result.output
    assert side_car.read_text().startswith("{")
