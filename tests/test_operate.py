"""docs/operate.md against the programs: its certificates work, its units are valid, what it names exists."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from decoder_node import config as ground_config
from decoder_node.identity import Tls as GroundTls
from encoder_node import config as edge_config
from encoder_node.channel import Tls as EdgeTls
from encoder_node.room import RESERVE_BYTES
from tests import nodes
from tests.streams import stream
from tests.test_docs import FENCE, check_line, programs
from tests.test_docs import commands as commands_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "operate.md").read_text()
UNITS = sorted((ROOT / "docs" / "systemd").glob("*.service"))


def blocks(text: str) -> Iterator[str]:
    for block in FENCE.findall(text):
        yield from block.splitlines()


def test_the_three_commands_make_certificates_that_both_nodes_take(tmp_path: Path) -> None:
    """Run as they stand in the document, but for the ground's host name; then a scene goes over them."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    lines = [line for line in blocks(TEXT) if line.startswith("openssl req ")]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace("DNS:ground.example", "DNS:localhost"))
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        if done.returncode and "-CA" in words and "nknown option" in done.stderr:
            pytest.skip("openssl is older than 3")
        assert done.returncode == 0, done.stderr
    files = {name: tmp_path / name for name in ("ca.pem", "ground.pem", "ground.key", "sat-1.pem", "sat-1.key")}
    GroundTls(files["ground.pem"], files["ground.key"], files["ca.pem"]).credentials()
    EdgeTls(files["sat-1.pem"], files["sat-1.key"], files["ca.pem"]).check()
    made = stream()
    done = nodes.run("encoder_node", "submit", made.write(tmp_path / "scene.dl"), "--outbox", tmp_path / "outbox")
    assert done.returncode == 0, done.stderr
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    ground = nodes.Node(
        tmp_path / "ground.log", "decoder_node", "serve", "--archive", tmp_path / "archive", "--workers", "0",
        "--listen", f"127.0.0.1:{port}", "--tls-cert", files["ground.pem"], "--tls-key", files["ground.key"],
        "--tls-ca", files["ca.pem"],
    )  # fmt: skip
    try:
        ground.wait_for("listening")
        edge = nodes.send(
            tmp_path, f"localhost:{port}", "--once", "--tls-cert", str(files["sat-1.pem"]), "--tls-key",
            str(files["sat-1.key"]), "--tls-ca", str(files["ca.pem"]),
        )  # fmt: skip
        assert edge.wait() == 0, edge.log.read_text()
        assert ground.wait_for("stream opened")["node"] == "sat-1"
    finally:
        ground.kill()


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_what_systemd_understands_and_well_confined(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = re.sub("^ExecStart=.*$", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
    copy = tmp_path / unit.name
    copy.write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(copy)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "nrecognized option" in rated.stderr:
        pytest.skip("systemd is older than 250")
    assert rated.returncode == 0, rated.stdout[-200:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_begin_commands_that_exist(unit: Path) -> None:
    [start] = re.findall(r"^ExecStart=/opt/downlink/bin/(.*)$", unit.read_text(), re.MULTILINE)
    known = {words: command for name, group in programs().items() for words, command in commands_of(group, name)}
    program, option, _, command = start.split()
    assert option == "--config"
    check_line(f"{program} {command}", known, unit.name)
    assert unit.name == f"{program}.service"
    assert f"systemd/{unit.name}" in TEXT


def test_the_configurations_are_taken_by_the_programs(tmp_path: Path) -> None:
    shown: list[str] = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    for text, module in zip(shown, (ground_config, edge_config), strict=True):
        path = tmp_path / "node.toml"
        path.write_text(text)
        assert module.read_config(path) == tomllib.loads(text)
        path.write_text(re.sub(r"^# (?=\w+ =)", "", text, flags=re.MULTILINE))  # what is commented out as well
        assert len(module.read_config(path)) >= len(tomllib.loads(text))


def test_every_event_in_the_document_is_logged_somewhere() -> None:
    table = TEXT.split("| event |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len(rows) >= 10
    for event, where, *_ in rows:
        package = {"ground": "decoder_node", "edge": "encoder_node"}[where]
        sources = [path.read_text() for path in (ROOT / package).glob("*.py")]
        call = re.compile(r"log\.\w+\(\s*" + re.escape(event.replace("`", '"')))
        assert any(call.search(text) for text in sources), event


def test_the_figures_in_the_document_are_those_of_the_programs() -> None:
    from decoder_node.inbox import FREE_BYTES_MIN
    from encoder_node.cli import FULL

    assert f"less than {FREE_BYTES_MIN // 2**20} MiB" in TEXT
    assert f"{RESERVE_BYTES // 2**20} MiB are laid aside" in TEXT
    assert f"exit code {FULL} of `submit`" in TEXT
