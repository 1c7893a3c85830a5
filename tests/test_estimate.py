"""What the ground says of a scene's quality, without the original."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("rasterio")

from click.testing import CliRunner

from decoder_node.decoding import RATE_MIN, estimated_quality
from tests import scenes


def test_finer_steps_promise_more_and_too_few_bits_nothing() -> None:
    manifest, _ = scenes.fake_stream()
    small = msgspec.structs.replace(manifest.scene.grids[0], height=32, width=32)
    manifest = msgspec.structs.replace(manifest, scene=msgspec.structs.replace(manifest.scene, grids=(small,)))
    [coding] = manifest.codings
    said = []
    for step in (20.0, 80.0, 320.0):
        finer = msgspec.structs.replace(coding, step=step)
        said.append(estimated_quality(msgspec.structs.replace(manifest, codings=(finer,)))["estimated_psnr_db"])
    assert np.diff(said) == pytest.approx([-20 * np.log10(4)] * 2, abs=0.11)
    rate = 8 * manifest.payload_bytes / manifest.scene.samples
    assert rate > RATE_MIN
    wider = msgspec.structs.replace(manifest.scene.grids[0], height=6000)
    empty = msgspec.structs.replace(manifest.scene, grids=(wider,))
    assert estimated_quality(msgspec.structs.replace(manifest, scene=empty)) == {}


def test_the_estimate_is_measured_against_the_truth(tmp_path: Path) -> None:
    """On a scene that is all noise the bits say how much of it was kept."""
    pytest.importorskip("onnxruntime")
    from evaluation.estimate import main

    path = tmp_path / "noise.npy"
    np.save(path, scenes.pixels(bands=3, height=128, width=128, nodata=None))
    result = CliRunner().invoke(main, [str(path), "--quality", "50", "--json"])
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["rows"]
    assert abs(row["error_db"]) < 3
    assert row["error_db"] == pytest.approx(row["estimated_psnr_db"] - row["psnr_db"], abs=0.02)
