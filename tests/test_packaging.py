"""What is installed is what is promised: small on the edge, complete in the wheel, pinned where it is tested."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from click.testing import CliRunner

from downlink import __version__, bundle
from downlink.cli import LAZY, main
from tests.test_bundle import make

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EVERYTHING = [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
NAME = re.compile(r"[A-Za-z0-9._-]+")


def names(requirements: list[str]) -> set[str]:
    found = (NAME.match(requirement) for requirement in requirements)
    return {match[0].lower() for match in found if match and match[0] != "latent-downlink"}


def test_the_edge_installs_seven_packages_and_the_edge_extra_adds_none() -> None:
    assert names(PROJECT["dependencies"]) == {
        "click", "grpcio", "msgspec", "numpy", "onnxruntime", "protobuf", "zstandard",
    }  # fmt: skip
    assert PROJECT["optional-dependencies"]["edge"] == []


def test_the_promised_extras_are_there_and_nothing_is_capped() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"edge", "ground", "training", "evaluation", "dev"} <= extras.keys()
    assert PROJECT["requires-python"] == ">=3.11"
    for requirement in EVERYTHING:
        versions = requirement.partition(";")[0]  # what comes after it says where, not which
        assert not re.search(r"<|==|~=", versions), f"{requirement}: a cap stops users; constraints.txt pins for us"


def test_torch_is_in_training_only() -> None:
    extras = PROJECT["optional-dependencies"]
    assert [extra for extra, needed in extras.items() if "torch" in names(needed)] == ["training"]


def test_every_dependency_is_pinned_for_ci() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    needed = names(EVERYTHING)
    assert needed - pinned.keys() == set()
    assert pinned["torch"] == "2.13.0"


def test_scripts_lead_to_commands() -> None:
    assert set(PROJECT["scripts"]) == {"downlink", "encoder-node", "decoder-node"}
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        ran = CliRunner().invoke(getattr(importlib.import_module(module), function), ["--version"])
        assert ran.exit_code == 0
        assert __version__ in ran.output


def test_the_makefile_has_a_handful_of_targets_and_each_is_said() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    targets = phony[1].split()
    assert {"demo", "test", "check", "bench", "proto"} <= set(targets)
    assert len(targets) <= 15
    for target in targets:
        assert re.search(rf"^{target}:.*## \S", text, re.MULTILINE), f"{target} has no line in `make help`"


def test_ci_calls_check_and_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.findall(r"^make (\w+)$", script.read_text(), re.MULTILINE) == ["check", "test"]


def test_no_file_names_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile("|".join(("pypi" + r"\.org", "pythonhosted" + r"\.org", "npmjs" + r"\.org")))
    named = [
        name
        for name in filter(None, listed.stdout.split("\0"))
        if (path := ROOT / name).is_file()
        and path.suffix not in (".onnx", ".bin")
        and hosts.search(path.read_text("latin-1"))
    ]
    assert named == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_no_test(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.endswith(".py")}
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    here = {path.relative_to(ROOT).as_posix() for package in packages for path in (ROOT / package).rglob("*.py")}
    assert inside == here


def test_released_bundles_are_found_in_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "from downlink import bundle as b; n = b.released_names(); [b.find(name).verify() for name in n]; print(n)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(bundle.released_names())
    assert (tmp_path / "downlink" / "models").is_dir()


# ---- the `downlink` command


@pytest.mark.parametrize("command", LAZY)
def test_a_missing_extra_is_one_sentence_with_its_pip_install(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, extra, _ = LAZY[command]
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module.partition(".")[0]]:
        monkeypatch.delitem(sys.modules, loaded)
    for blocked in ("torch", "rich", "rasterio", "imagecodecs", "onnx"):
        monkeypatch.setitem(sys.modules, blocked, None)
    arguments = {
        "evaluate": [str(ROOT / "pyproject.toml")],
        "train": [str(next((ROOT / "training" / "configs").glob("*.toml"))), "--data", str(ROOT), "--out", "/nowhere"],
        "export": [str(ROOT), "--data", str(ROOT), "--out", "/nowhere"],
        "profile": [str(ROOT / "pyproject.toml")],
        "reprocess": ["--archive", str(ROOT)],
        "lab": ["--all", "--data", str(ROOT)],
    }[command]
    ran = CliRunner().invoke(main, [command, *arguments])
    assert ran.exit_code == 1
    assert f"pip install 'latent-downlink[{extra}]'" in ran.output
    assert "Traceback" not in ran.output


def test_help_names_every_command_without_loading_any() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from downlink.cli import main; "
        "print(CliRunner().invoke(main, ['--help']).output); "
        "assert not {'torch', 'rasterio', 'evaluation', 'training', 'onnxruntime'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in (*LAZY, "models"):
        assert re.search(rf"^  {command} ", ran.stdout, re.MULTILINE)


def test_models_are_listed_shown_verified_and_split(tmp_path: Path) -> None:
    if "universal" not in bundle.released_names():
        pytest.skip("models/universal is not here")
    run = CliRunner()
    assert "universal" in run.invoke(main, ["models", "list"]).output
    whole = bundle.find("universal")
    assert whole.id.hex() in run.invoke(main, ["models", "show", "universal"]).output
    assert "files as stated (both)" in run.invoke(main, ["models", "verify", "universal"]).output
    split = run.invoke(main, ["models", "split", "universal", "encoder", str(tmp_path / "half")])
    assert split.exit_code == 0, split.output
    half = bundle.find(tmp_path / "half")
    assert half.id == whole.id
    assert half.has("encoder.onnx")
    assert not half.has("decoder.onnx")
    assert "(encoder)" in run.invoke(main, ["models", "verify", str(tmp_path / "half")]).output
    (tmp_path / "half" / "prior_2.onnx").write_bytes(b"damaged")
    damaged = run.invoke(main, ["models", "verify", str(tmp_path / "half")])
    assert damaged.exit_code == 1
    assert damaged.output.startswith("Error: ")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused = run.invoke(main, ["models", "split", "universal", "decoder", str(tmp_path / "full")])
    assert refused.exit_code == 1
    assert "name an empty folder" in refused.output


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path: Path) -> None:
    make(tmp_path / "m")
    (tmp_path / "file").write_text("no folder")
    ran = CliRunner().invoke(main, ["models", "split", str(tmp_path / "m"), "encoder", str(tmp_path / "file" / "x")])
    assert ran.exit_code == 1
    assert ran.output == f"Error: {tmp_path / 'file' / 'x'}: Not a directory\n"


def test_an_unknown_bundle_is_an_error_in_one_line() -> None:
    ran = CliRunner().invoke(main, ["models", "show", "no-such-bundle"])
    assert ran.exit_code == 1
    assert ran.output.startswith("Error: no bundle 'no-such-bundle'")
