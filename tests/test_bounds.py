"""`downlink evaluate --max-error`: what is measured of codecs that bound the error, and of those that only say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.codecs import BOUNDED, CodecSpec, Contestant
from evaluation.codecs.base import Image
from evaluation.evaluate import evaluate
from evaluation.scenes import Entry
from evaluation.worker import Here
from tests import scenes
from tests.measured import KEYS, measure, run, tiff

rasterio = pytest.importorskip("rasterio")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return tiff(tmp_path / "scene.tif", scenes.pixels(1, 6, 96, 80), nodata=0)


def test_bounds_are_measured_beside_what_else_bounds_them(scene: Path, tmp_path: Path) -> None:
    found = measure(tmp_path, scene, "--max-error", "0,7")
    with rasterio.open(scene) as file:
        original = file.read()
    codecs = ["exact", *BOUNDED]
    assert list(found["summary"]["bounds"]["7"]["codecs"]) == codecs
    assert [(one["codec"], one["setting"]) for one in found["rows"]] == [(c, d) for c in codecs for d in (0, 7)]
    for one in found["rows"]:
        assert set(one) >= KEYS
        name = None if one["codec"] == "exact" else one["codec"]
        codec = CodecSpec(one["codec"], classical=name).open()
        payload = codec.encode(Image(scenes.scene(original, 0), (original,), 10_000.0), one["setting"])
        [decoded] = codec.decode(payload)
        assert one["max_error"] == np.abs(original.astype(int) - decoded)[original != 0].max()
        assert one["max_error"] <= one["setting"]
        assert ((decoded == 0) == (original == 0)).all()
        if name is not None:  # our files hold the scene's name and tags
            assert one["bytes"] == len(payload)
    for bound in ("0", "7"):
        figures = found["summary"]["bounds"][bound]["codecs"]
        assert all(figures["exact"]["bits_per_sample"] < figures[peer]["bits_per_sample"] for peer in codecs[1:])
        assert figures["exact"]["best_on"] == 1
        assert figures["exact"]["max_error"] == int(bound)
    assert found["summary"]["broken"] == []


def test_bounds_have_tables_of_their_own(scene: Path, tmp_path: Path) -> None:
    other = tiff(tmp_path / "other.tif", scenes.pixels(4, 4, 64, 64, nodata=None))
    lines = run(scene, other, "--max-error", "0,3", "--against", "jpegls", "--no-isolate").stdout.splitlines()
    assert lines[0] == "Lossless: bits per sample"
    assert "Lossless, 2 scenes" in lines
    assert "No sample off by more than 3, 2 scenes" in lines
    assert sum(line.startswith("|exact ") for line in lines) == 2
    assert sum(line.startswith("|other ") for line in lines) == 2
    assert run(scene, "--max-error", "3", "--against", "none", "--no-isolate").stdout.count("|jpegls") == 0


class Careless:
    """Says that it bounds the error, and does not."""

    name = unit = "careless"

    def __init__(self, off: int) -> None:
        self._off = off

    def load(self, half: str) -> None:
        pass

    def encode(self, image: Image, setting: float) -> bytes:
        self._pixels = image.grids[0].copy()
        self._pixels[0, 50, 50] += self._off
        return b"x"

    def decode(self, payload: bytes) -> list[Any]:
        return [self._pixels]


@dataclass(frozen=True)
class Promising(CodecSpec):
    off: int = 0

    def open(self) -> Any:
        return Careless(self.off)


@pytest.mark.parametrize(("off", "broken"), [(5, False), (6, True)])
def test_a_broken_bound_is_a_failure_and_stays_in_the_figures(off: int, broken: bool, scene: Path) -> None:
    promising = Contestant(Promising("careless", off=off), "", (5.0,), promises=True)
    peer = Contestant(Promising("peer", off=off), "", (5.0,))
    report = evaluate([Entry(scene, "scene")], [promising, peer], None, Here(), lambda *_: None)
    document = report.document(None, 1)
    assert [row["max_error"] for row in document["rows"]] == [off, off]
    assert [one["codec"] for one in document["summary"]["broken"]] == ["careless", "peer"] * broken
    assert [one["codec"] for one in document["failures"]] == ["careless"] * broken
    assert all("is off by 6" in one["error"] for one in document["failures"])
