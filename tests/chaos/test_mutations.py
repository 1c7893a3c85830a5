"""Each promise's test fails when the promise is broken on purpose (`tests/chaos/mutations.py`)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.mutations import MUTATIONS, Mutation
from tests.chaos.rig import long_only
from tests.nodes import ENVIRONMENT, ROOT

pytestmark = pytest.mark.chaos

PARTS = ("downlink", "encoder_node", "decoder_node", "tests", "models", "proto", "docs", "pyproject.toml")


def ran(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    environment = ENVIRONMENT | {"PYTHONPATH": str(folder), "CHAOS": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / part)
    return folder


@long_only
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_promise_that_is_broken_on_purpose_is_missed(copy: Path, mutation: Mutation) -> None:
    path = copy / mutation.file
    truth = path.read_text()
    assert truth.count(mutation.old) == 1
    whole = ran(copy, mutation.test)
    assert whole.returncode == 0, f"fails anyway:\n{whole.stdout[-2000:]}"
    try:
        path.write_text(truth.replace(mutation.old, mutation.new))
        broken = ran(copy, mutation.test)
    finally:
        path.write_text(truth)
    assert broken.returncode == 1, f"{mutation.test} has not noticed:\n{broken.stdout[-2000:]}"
    assert not any(wrong in broken.stdout for wrong in ("NameError", "SyntaxError", "IndentationError")), broken.stdout
