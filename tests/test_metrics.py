"""What Prometheus is told, by both nodes."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from downlink.errors import LinkError
from encoder_node.log import log as edge_log
from encoder_node.metrics import Metrics as EdgeMetrics
from encoder_node.outbox import Outbox
from tests import nodes
from tests.streams import stream


def scraped(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/plain")
        text = answer.read().decode()
    found = samples(text)
    if find_spec("prometheus_client") is not None:  # with the ground extra
        assert read_by_prometheus(text) == found
    return found


def read_by_prometheus(text: str) -> dict[str, float]:
    """The same, as Prometheus' own client library reads it: a type and a help for each, no sample without."""
    from prometheus_client import parser

    read = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.type != "unknown", family.name
        assert family.documentation, family.name
        for sample in family.samples:
            escaped = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
            labels = ",".join(f'{name}="{value.translate(escaped)}"' for name, value in sample.labels.items())
            read[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return read


def samples(text: str) -> dict[str, float]:
    """By name and labels; every line is one that Prometheus takes."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP \w+ .+|TYPE \w+ (gauge|counter|summary|histogram))", line), line
            continue
        match = re.fullmatch(r'(\w+(?:\{(?:\w+="(?:[^"\\]|\\.)*",?)*\})?) (\S+)', line)
        assert match, line
        found[match[1]] = float(match[2])
    return found


def test_the_edge_says_what_its_outbox_holds(tmp_path: Path) -> None:
    made = [stream(seed) for seed in range(3)]
    with Outbox(tmp_path, create=True) as box:
        for one in made:
            box.submit(one.packed, one.chunks)
        box.delivered(made[0].id)
    metrics = EdgeMetrics(tmp_path, lambda: (4321, 0.25, 0.5))
    try:
        edge_log.error('a "strange"\nevent', extra={"code": "corrupt"})
        edge_log.info("submitted", extra={"seconds": 1.5})
        address = metrics.serve("127.0.0.1:0")
        found = scraped(address)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{address}/etc/passwd", timeout=10)
        with pytest.raises(LinkError, match="cannot listen"):
            EdgeMetrics(tmp_path, lambda: (0, 0, 0)).serve(address)
    finally:
        metrics.close()
    assert found['downlink_edge_scenes{state="queued"}'] == 2
    assert found['downlink_edge_scenes{state="delivered"}'] == 1
    size = sum(len(one.packed) + sum(map(len, one.chunks)) for one in made[1:])
    assert found['downlink_edge_backlog_bytes{state="queued"}'] == size
    assert found["downlink_edge_sent_bytes_total"] == 4321
    assert found["downlink_edge_ack_seconds"] == 0.5
    assert found[r'downlink_edge_events_total{level="error",event="a \"strange\"\nevent",code="corrupt"}'] == 1
    assert found['downlink_edge_work_seconds_sum{event="submitted"}'] == 1.5
    assert found["downlink_edge_outbox_up"] == 1


def test_an_outbox_that_is_gone_is_said_so(tmp_path: Path) -> None:
    metrics = EdgeMetrics(tmp_path / "nowhere", lambda: (0, 0.0, 0.0))
    try:
        assert samples(metrics.text())["downlink_edge_outbox_up"] == 0
    finally:
        metrics.close()


def test_both_nodes_answer_while_they_work(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client", reason="the ground extra is not installed")
    made = stream()
    with Outbox(tmp_path / "outbox", create=True) as box:
        box.submit(made.packed, made.chunks)
    ground, address = nodes.serve(tmp_path, options=("--metrics", "127.0.0.1:0"))
    try:
        where = ground.wait_for("listening")["metrics"]
        edge = nodes.send(tmp_path, address, "--metrics", "127.0.0.1:0")
        try:
            edge.wait_for("delivered")
            on_board = scraped(edge.wait_for("started")["metrics"])
        finally:
            edge.terminate()
        found = scraped(where)
    finally:
        ground.terminate()
    sent = sum(map(len, made.chunks))
    assert found['downlink_ground_received_bytes_total{node=""}'] == sent
    assert found['downlink_ground_scenes{state="durable"}'] == 1
    assert found["downlink_ground_ack_seconds_count"] >= 1
    assert found['downlink_ground_events_total{code="",event="durable",level="info"}'] == 1
    assert found["downlink_ground_ledger_up"] == 1
    assert on_board["downlink_edge_sent_bytes_total"] > sent
    assert on_board['downlink_edge_scenes{state="delivered"}'] == 1
