"""The schema against what was released: field numbers and JSON names are for ever.

`proto/releases/VERSION.binpb` is the schema of a release, as `buf build proto --exclude-source-info -o FILE` writes it;
append-only, one per release that changed it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RELEASES = sorted((ROOT / "proto" / "releases").glob("*.binpb"))


@pytest.fixture(scope="module")
def buf() -> str:
    beside = Path(sys.executable).with_name("buf")
    command = str(beside) if beside.exists() else shutil.which("buf")
    if command is None:
        pytest.skip("buf is not installed (buf-bin, in the dev extra)")
    return command


def breaking(buf: str, proto: Path, release: Path) -> str:
    """What the schema in `proto` breaks for clients of a release, by buf.yaml's rule WIRE_JSON; empty: nothing."""
    command = [buf, "breaking", str(proto), "--against", str(release)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) is (ran.stdout == ""), ran.stderr
    return ran.stdout


def test_there_is_a_release_to_compare_with() -> None:
    assert RELEASES
    assert "WIRE_JSON" in (ROOT / "proto" / "buf.yaml").read_text()


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_clients_of_every_release_still_understand_us(buf: str, release: Path) -> None:
    assert breaking(buf, ROOT / "proto", release) == ""


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("bytes content = 3;", "bytes content = 4;", 'field "3" with name "content"'),
        ("fixed32 crc32c = 2;", "uint32 crc32c = 2;", 'Field "2"'),
        ("STATE_DURABLE = 2;", "STATE_DURABLE = 9;", 'enum value "2"'),
        ("bytes manifest = 2;", "bytes packed = 2;", 'Field "2"'),
        ("repeated Range missing = 3;", "Range missing = 3;", 'Field "3"'),
    ],
    ids=["number", "type", "enum value", "name", "cardinality"],
)
def test_a_break_would_be_found(buf: str, tmp_path: Path, old: str, new: str, match: str) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("releases", "*.py"))
    schema = tmp_path / "proto" / "downlink" / "v1" / "link.proto"
    text = schema.read_text()
    assert old in text
    schema.write_text(text.replace(old, new, 1))
    assert match in breaking(buf, tmp_path / "proto", RELEASES[-1])
