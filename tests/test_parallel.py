"""Two CPU processes train one model: torchrun and gloo, as docs/training.md says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="pip install 'latent-downlink[training]'")
rasterio = pytest.importorskip("rasterio")

from tests import scenes  # noqa: E402
from training import parallel  # noqa: E402

ROOT = Path(__file__).parents[1]

SMALL = """
name = "small"
threads = 1
[corpus]
crop = 64
planes_per_step = 4
validation_share = 0.5
[model]
hyper_width = 16
prior_widths = [8, 8, 8, 16]
prior_features = 8
decoder_width = 16
decoder_blocks = 1
[schedule]
steps = 4
validate_every = 4
warmup_steps = 2
"""


def test_two_processes_train_one_codec_and_end_with_the_same_weights(tmp_path: Path) -> None:
    """The run itself fails if their weights differ (training/parallel.py, check_same)."""
    (tmp_path / "in").mkdir()
    for seed in range(2):
        profile = {"driver": "GTiff", "count": 2, "height": 96, "width": 96, "dtype": "uint16"}
        with rasterio.open(tmp_path / "in" / f"{seed}.tif", "w", **profile) as dataset:
            dataset.write(scenes.pixels(seed, 2, 96, 96, nodata=None))
    (tmp_path / "small.toml").write_text(SMALL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "downlink.cli", "train", str(tmp_path / "small.toml"), "--data", str(tmp_path / "in")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[0]["processes"] == 2
    assert [row["step"] for row in rows[1:]] == [1, 4]  # written by one process, once
    assert (tmp_path / "run" / "best.pt").exists()


def test_one_process_alone_is_its_own_group() -> None:
    assert (parallel.rank(), parallel.world()) == (0, 1)
    assert parallel.agreed(1.5, 2.0) == (1.5, 2.0)
    parallel.check_same(torch.nn.Linear(2, 2))
