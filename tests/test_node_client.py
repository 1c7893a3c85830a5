"""Two implementations meet: an edge in JavaScript, written from the documents and proto/ alone, and our ground."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downlink.bundle import released_names
from tests import nodes, scenes
from tests.streams import Stream, stream

HERE = Path(__file__).parent / "node_client"
PACKAGES = nodes.ROOT / ".scratch" / "node_client"
INSTALL_S = 120


@pytest.fixture(scope="module")
def client() -> Any:
    """Runs the client, once its packages are there; skips where they cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    wanted = (HERE / "package.json").read_text()
    stamp = PACKAGES / "installed.json"
    if not stamp.exists() or stamp.read_text() != wanted:
        PACKAGES.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "package.json", PACKAGES)
        command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(command, cwd=PACKAGES, capture_output=True, text=True, check=False, timeout=INSTALL_S)
        except subprocess.TimeoutExpired:
            pytest.skip("the packages of the client cannot be fetched here: npm takes too long")
        if done.returncode:
            pytest.skip(f"the packages of the client cannot be fetched here: {done.stderr.strip()[-300:]}")
        stamp.write_text(wanted)
    environment = os.environ | {"NODE_PATH": str(PACKAGES)}

    def run(address: str, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command = [node, str(HERE / "client.js"), str(nodes.ROOT / "proto"), address, str(path), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    return run


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def uploaded(client: Any, folder: Path, made: Stream) -> dict[str, Any]:
    ground, address = nodes.serve(folder)
    try:
        facts = said(client(address, made.write(folder / "scene.dl")))
        assert (folder / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file
        return facts
    finally:
        ground.kill()


def test_a_stream_uploaded_from_javascript_is_archived_byte_for_byte(client: Any, tmp_path: Path) -> None:
    made = stream(11, side=320, chunk_bytes=4000)
    facts = uploaded(client, tmp_path, made)
    assert facts["sceneId"] == made.id
    assert facts["state"] == "DURABLE"
    assert facts["chunks"] == len(made.chunks)
    assert facts["sent"] == facts["missing"] >= len(made.sent)


def test_several_pages_and_the_largest_chunks(client: Any, tmp_path: Path) -> None:
    """More than 16384 chunks, so that the chunk list has two pages; and chunks of up to 256 KiB."""
    assert uploaded(client, tmp_path / "pages", _in(tmp_path / "pages", stream(12, side=2400, chunk_bytes=6)))["state"]
    large = _in(tmp_path / "large", stream(13, side=96, chunk_bytes=262_144))
    assert uploaded(client, tmp_path / "large", large)["state"] == "DURABLE"


def _in(folder: Path, made: Stream) -> Stream:
    folder.mkdir()
    return made


def test_an_upload_that_was_cut_is_resumed_where_the_ground_says(client: Any, tmp_path: Path) -> None:
    made = stream(14, side=320, chunk_bytes=4000)
    ground, address = nodes.serve(tmp_path)
    try:
        path = made.write(tmp_path / "scene.dl")
        cut = said(client(address, path, "--once", "100"))
        assert cut["state"] == "CUT"
        again = said(client(address, path))
        assert again["state"] == "DURABLE"
        assert 0 < again["missing"] < cut["missing"]
        once_more = said(client(address, path))  # its tombstone answers
        assert (once_more["state"], once_more["sent"]) == ("DURABLE", 0)
        assert (tmp_path / "archive" / "streams" / f"{made.id}.dl").read_bytes() == made.file
    finally:
        ground.kill()


@pytest.mark.skipif(not released_names(), reason="no released bundle is here")
def test_the_ground_decodes_what_javascript_has_sent_to_the_same_pixels(client: Any, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="pip install 'latent-downlink[ground]'")
    np.save(tmp_path / "scene.npy", scenes.pixels(5, 4, 150, 130))
    done = nodes.run("encoder_node", "encode", tmp_path / "scene.npy", tmp_path / "scene.dl")
    assert done.returncode == 0, done.stderr
    done = nodes.run("decoder_node", "decode", tmp_path / "scene.dl", tmp_path / "here.tif")
    assert done.returncode == 0, done.stderr
    ground, address = nodes.serve(tmp_path, workers=1)
    try:
        facts = said(client(address, tmp_path / "scene.dl"))
        ground.wait_for("decoded")
        [row] = nodes.listed(tmp_path)
        assert (row["scene_id"], row["state"]) == (facts["sceneId"], "decoded")
        with rasterio.open(row["path"]) as there, rasterio.open(tmp_path / "here.tif") as here:
            np.testing.assert_array_equal(there.read(), here.read())
    finally:
        ground.kill()


def test_a_damaged_file_is_noticed_before_anything_is_sent(client: Any, tmp_path: Path) -> None:
    made = stream(11, side=96)
    path = tmp_path / "scene.dl"
    for place in (3, 20, len(made.file) - 1):
        spoilt = bytearray(made.file)
        spoilt[place] ^= 1
        path.write_bytes(spoilt)
        done = client("127.0.0.1:1", path)
        assert done.returncode == 1
        assert done.stdout == ""
