"""Decoding on a Dask cluster: nothing is lost when its parts are, and products go where they are wanted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rasterio")
pytest.importorskip("distributed", reason="the cluster extra is not installed")

pytest.importorskip("xarray", reason="the cube extra is not installed")
pytest.importorskip("fastapi", reason="the ground extra is not installed")
pytest.importorskip("httpx2", reason="the page is asked through it")

from click.testing import CliRunner
from fastapi.testclient import TestClient

from decoder_node.cli import main
from decoder_node.cube import open_scene
from decoder_node.decoding import archive_scene
from decoder_node.ledger import Ledger
from decoder_node.page.app import make_app
from decoder_node.page.station import Settings
from decoder_node.serving import alone
from decoder_node.store import Store, StoreError, store_task
from tests import nodes, scenes
from tests.test_page import stream_of

SCENES = 4
made = cache(lambda seed: stream_of(scenes.pixels(seed=seed, bands=1, height=64, width=64), name=f"scene {seed}"))


class Dask(nodes.Node):
    """`python -m distributed.cli.…`, which logs lines of text."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("ab") as output:
            command = [sys.executable, "-m", *arguments]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=nodes.ENVIRONMENT)

    def wait_for_text(self, text: str) -> str:
        until = time.monotonic() + nodes.WITHIN_S
        while time.monotonic() < until:
            lines = [line for line in self.log.read_text().splitlines() if text in line]
            if lines:
                return lines[-1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Dask]]]:
    """A scheduler and two workers of one thread each."""
    folder = tmp_path_factory.mktemp("dask")
    options = ("--host", "127.0.0.1", "--no-dashboard")
    scheduler = Dask(folder / "scheduler.log", "distributed.cli.dask_scheduler", *options, "--port", "0")
    started = [scheduler]
    try:
        address = "tcp://" + scheduler.wait_for_text("Scheduler at:").rpartition("tcp://")[2].strip()
        for number in range(2):
            more = ("--nthreads", "1", "--no-nanny", "--local-directory", str(folder))
            started.append(
                Dask(folder / f"worker{number}.log", "distributed.cli.dask_worker", address, *options, *more)
            )
        for worker in started[1:]:
            worker.wait_for_text("Registered to")
        yield address, started[1:]
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()


def archive_of(folder: Path, count: int = SCENES) -> tuple[Path, list[str]]:
    """An archive with complete scenes that nobody has decoded yet."""
    archive = folder / "archive"
    (archive / "streams").mkdir(parents=True)
    ledger = Ledger(archive, create=True)
    names = []
    for seed in range(count):
        content, reader = made(seed)
        (archive / "streams" / f"{reader.scene_id}.dl").write_bytes(content)
        ledger.begin(reader.scene_id, reader.manifest, reader.manifest_bytes, 0, len(content))
        ledger.durable(reader.scene_id)
        names.append(reader.scene_id)
    ledger.close()
    return archive, names


def reprocess(archive: Path, *options: str) -> dict[str, Any]:
    done = nodes.run("decoder_node", "reprocess", "--archive", archive, "--json", *options)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def states(archive: Path) -> set[str]:
    ledger = Ledger(archive, read_only=True)
    found = {entry.state for entry in ledger.entries()}
    ledger.close()
    return found


def test_a_killed_worker_loses_no_scene(tmp_path: Path, cluster: tuple[str, list[Dask]]) -> None:
    """`serve --workers tcp://…` decodes what waits; one of two workers is killed as soon as there is a first scene."""
    address, workers = cluster
    archive, names = archive_of(tmp_path)
    command = ("serve", "--archive", archive, "--listen", "127.0.0.1:0", "--workers", address)
    ground = nodes.Node(tmp_path / "ground.log", "decoder_node", *command)
    try:
        ground.wait_for("decoded")
        os.kill(workers[0].process.pid, signal.SIGKILL)
        until = time.monotonic() + nodes.WITHIN_S
        while states(archive) != {"decoded"}:
            assert time.monotonic() < until, ground.log.read_text()
            time.sleep(0.1)
    finally:
        ground.terminate()
    for name in names:
        assert (archive / "scenes" / name / f"{name[:12]}.tif").is_file()
    assert not any(event["event"] == "quarantined" for event in ground.events())


def test_an_archive_is_decoded_anew_into_a_store(tmp_path: Path, cluster: tuple[str, list[Dask]]) -> None:
    """By workers that see the store alone."""
    address, _ = cluster
    archive, names = archive_of(tmp_path, 2)
    url = f"file://{tmp_path / 'store'}"
    assert reprocess(archive, "--workers", address, "--store", url)["decoded"] == 2
    assert not (archive / "scenes").exists()
    collection = json.loads((tmp_path / "store" / "scenes" / "collection.json").read_text())
    assert sum(link["rel"] == "item" for link in collection["links"]) == 2
    item = json.loads((tmp_path / "store" / "scenes" / names[0] / f"{names[0]}.json").read_text())
    for asset in item["assets"].values():
        assert (tmp_path / "store" / "scenes" / names[0] / asset["href"]).exists(), asset
    rows = json.loads(nodes.run("decoder_node", "list", "--archive", archive, "--json").stdout)
    assert all(Path(row["path"]).is_file() for row in rows)
    with TestClient(make_app(Settings(archive, frozenset())), base_url="http://localhost") as page:
        assert page.get(f"/scenes/{names[0]}/preview.png").status_code == 200
        assert page.get(f"/scenes/{names[0]}/files/{names[0][:12]}.tif").content[:2] == b"II"


def test_a_scheduler_that_is_not_there_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoder_node.cluster.CONNECT_S", 0.5)
    archive, _ = archive_of(tmp_path, 0)
    ran = CliRunner().invoke(main, ["reprocess", "--archive", str(archive), "--workers", "tcp://127.0.0.1:1"])
    assert ran.exit_code == 1
    assert "127.0.0.1:1 does not answer" in ran.output


def test_scenes_are_left_to_the_server_that_runs(tmp_path: Path) -> None:
    archive, names = archive_of(tmp_path, 2)
    ledger = Ledger(archive)
    for name in names:
        ledger.decoded(name, {"assets": []})
    ledger.close()
    ran = CliRunner().invoke(main, ["reprocess", names[0][:8], "--archive", str(archive), "--queue"])
    assert ran.output == "1 scenes are to be decoded anew\n"
    assert states(archive) == {"durable", "decoded"}
    ran = CliRunner().invoke(main, ["reprocess", "ffff", "--archive", str(archive)])
    assert (ran.exit_code, "0 complete scenes" in ran.output) == (1, True)
    with alone(archive):
        ran = CliRunner().invoke(main, ["reprocess", "--archive", str(archive)])
    assert (ran.exit_code, "another `decoder-node serve`" in ran.output) == (1, True)


def test_zarr_lies_beside_the_geotiff_if_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    archive, names = archive_of(tmp_path, 1)
    result = archive_scene(archive, names[0], [], 1.8e9, None, ("zarr",))
    item = json.loads((archive / result["item"]).read_text())
    assert item["assets"]["zarr"]["href"] == f"{names[0][:12]}.zarr"
    scene = open_scene(archive / "scenes" / names[0] / f"{names[0][:12]}.zarr")
    assert (scene["B01"].values == scenes.pixels(seed=0, bands=1, height=64, width=64)[0]).all()


def test_an_object_store_holds_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3, as moto plays it: what a worker does that sees the store alone, whole scenes and parts of them."""
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        bucket = s3fs.S3FileSystem(skip_instance_cache=True)
        bucket.mkdir("downlink")
        archive, names = archive_of(tmp_path, 1)
        store = Store("s3://downlink/archive")
        store.put(archive / "streams" / f"{names[0]}.dl", f"streams/{names[0]}.dl")
        for _ in range(2):  # again: no harm
            outcome = store_task(store.url, None, names[0], [], 1.8e9, None, ())
            assert outcome.result is not None, outcome
            assert outcome.result["assets"] == [f"{store.url}/scenes/{names[0]}/{names[0][:12]}.tif"]
            store.admit(json.loads(store.read(f"scenes/{names[0]}/{names[0]}.json") or b""))
        found = {path.removeprefix("downlink/archive/") for path in bucket.find("downlink/archive")}
        stem = f"scenes/{names[0]}/{names[0]}"
        assert {"catalog.json", "scenes/collection.json", f"{stem}.json", f"{stem[:-52]}.tif"} <= found
        collection = json.loads(store.read("scenes/collection.json") or b"")
        assert sum(link["rel"] == "item" for link in collection["links"]) == 1
        gone = store_task(store.url, None, "0" * 64, [], 1.8e9, None, ())
        assert gone.lost is not None
        assert "does not answer" in gone.lost
    finally:
        moto.stop()


def test_a_store_that_cannot_be_is_refused() -> None:
    with pytest.raises(StoreError, match="nonsense"):
        Store("nonsense://somewhere")
