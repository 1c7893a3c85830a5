"""`downlink evaluate` as a user runs it, and the scenes that it is run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from downlink.cli import main

rasterio = pytest.importorskip("rasterio")

KEYS = {
    *("scene", "codec", "setting", "bytes", "bits_per_sample", "psnr_db", "max_error", "rmse_per_band"),
    *("sam_deg", "ssim", "encode_s", "decode_s", "encode_msamples_per_s", "peak_rss_mb"),
}


def tiff(path: Path, pixels: np.ndarray, nodata: int | None = None) -> Path:
    bands, height, width = pixels.shape
    place = rasterio.Affine(10, 0, 453620, 0, -10, 5800020)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        height=height,
        width=width,
        dtype=pixels.dtype,
        nodata=nodata,
        crs="EPSG:32633",
        transform=place,
    ) as file:
        file.write(pixels)
    return path


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["evaluate", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def measure(folder: Path, *args: object, code: int = 0) -> dict[str, Any]:
    run(*args, "--no-isolate", "--json", folder / "out.json", code=code)
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found
