"""What a bundle must do on board before it is used, and that new scenes are encoded with it then."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from downlink.bundle import JSON, released, split
from encoder_node.cli import main as edge_cli
from encoder_node.models import Models
from encoder_node.options import model_of
from encoder_node.trial import trial
from tests import scenes
from tests.installing import installed


@pytest.fixture(scope="module")
def universal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "universal"
    folder.mkdir()
    for name, content in split(released("universal"), "encoder").items():
        (folder / name).write_bytes(content)
    return folder


def test_a_released_bundle_passes(universal: Path) -> None:
    assert asyncio.run(trial(universal)) == ""


def test_one_that_does_not_work_is_told(universal: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(universal, broken)
    (broken / "encoder.onnx").write_bytes(b"no model")
    assert "sha256" in asyncio.run(trial(broken))
    stated = json.loads((broken / JSON).read_bytes())
    test = json.loads((broken / "selftest.json").read_bytes())
    (broken / "encoder.onnx").write_bytes((universal / "encoder.onnx").read_bytes())
    (broken / "selftest.json").write_text(json.dumps({**test, "sha256": "0" * 64}))
    stated["files"]["selftest.json"] = hashlib.sha256((broken / "selftest.json").read_bytes()).hexdigest()
    (broken / JSON).write_text(json.dumps(stated))
    assert "its prior gives" in asyncio.run(trial(broken))


def test_one_that_takes_for_ever_is_given_up(universal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoder_node.trial.CLOCK_S", 0.01)
    assert "did not end within" in asyncio.run(trial(universal))


def test_new_scenes_are_encoded_with_it(universal: Path, tmp_path: Path) -> None:
    """`submit` takes the installed bundle, unless --model is typed."""
    np.save(tmp_path / "patch.npy", scenes.pixels(bands=2, height=64, width=64))
    files = {path.name: path.read_bytes() for path in sorted(universal.iterdir())}
    stated = json.loads(files[JSON])
    files = {JSON: json.dumps({**stated, "name": "sent-up", "version": "9"}).encode()} | {
        name: content for name, content in files.items() if name != JSON
    }
    box = tmp_path / "box"
    box.mkdir()
    installed(Models(box), files)

    def model(*options: str) -> str:
        command = ["submit", str(tmp_path / "patch.npy"), "--outbox", str(box), "--json", *options]
        result = CliRunner().invoke(edge_cli, command)
        assert result.exit_code == 0, result.output
        return str(json.loads(result.stdout)["model"])

    assert model() == "sent-up"
    assert model("--model", "universal") == "universal"
    assert model_of(None, tmp_path / "elsewhere") == "universal"
    shown = json.loads(CliRunner().invoke(edge_cli, ["models", "--outbox", str(box), "--json"]).stdout)
    assert (shown["name"], shown["installed"], shown["previous"]) == ("sent-up", True, "")
    text = CliRunner().invoke(edge_cli, ["models", "--outbox", str(box)]).stdout
    assert "installed by the ground; before: the operator's own" in text
