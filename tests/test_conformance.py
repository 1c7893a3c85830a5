"""The prior answers alike in every setting of onnxruntime; and a setting in which it does not is found out."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from downlink import bundle
from downlink.bundle import Bundle, find
from downlink.cli import main
from downlink.dct import CHANNELS, ROOT_CHANNELS
from downlink.errors import BundleError
from downlink.latent import ReceivedTile, TileCode, decode_tiles, encode_tile
from downlink.prior import GRAPHS, Prior
from encoder_node.encoder import PlaneEncoder
from training import conformance
from training.conformance import (
    PLANES,
    SEED,
    SETTINGS,
    Setting,
    decoder_in,
    drawn_levels,
    drawn_tile,
    drawn_turn,
    prove,
)

SIDE = 16
"""Latents along a tile's side here: small tiles, so that the suite stays quick."""


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(find("universal"))


def test_all_settings_answer_alike(encoder: PlaneEncoder) -> None:
    seen = prove(encoder.bundle, 150_000, side=SIDE)
    assert seen["agree"], seen
    assert seen["symbols_returned"] == seen["symbols"] >= 150_000
    assert len(seen["settings"]) == 8
    assert all(row["answers"] >= seen["symbols"] / 2 for row in seen["settings"])
    assert all(row["differing"] == 0 for row in seen["settings"])


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: f"{setting.threads}-{setting.optimisation}")
def test_each_setting_alone_makes_the_same_bytes_and_finds_the_symbols(encoder: PlaneEncoder, setting: Setting) -> None:
    levels = drawn_levels(SEED, PLANES)
    tile = drawn_tile(encoder.spec, levels, SEED, SIDE)
    code = TileCode(encoder.spec, encoder.tables, levels, drawn_turn(SEED, PLANES), PLANES)
    payloads = encode_tile(code, tile, encoder.prior)
    assert len(payloads) == 4
    prior = decoder_in(encoder.bundle, setting).prior
    assert encode_tile(code, tile, prior) == payloads
    again = ReceivedTile(code, SIDE, SIDE, payloads)
    decode_tiles([again], prior)
    for found, drawn in zip(again.symbols, tile, strict=True):
        np.testing.assert_array_equal(found, drawn)


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_answer_that_differs_is_found(encoder: PlaneEncoder, monkeypatch: pytest.MonkeyPatch, graph: str) -> None:
    def decoder(_: Bundle, setting: Setting) -> Any:
        def run(name: str, inputs: dict[str, Any]) -> list[Any]:
            outputs = [output.copy() for output in encoder.prior.run(name, inputs)]
            outputs[0][-1, -1, -1, -1] += setting.threads == 2 and name == graph
            return outputs

        return SimpleNamespace(prior=Prior(run))

    monkeypatch.setattr(conformance, "decoder_in", decoder)
    seen = prove(encoder.bundle, 1, SETTINGS[3:5], side=8)
    right, wrong = seen["settings"]
    assert (right["threads"], right["differing"]) == (1, 0)
    assert (wrong["threads"], wrong["differing"] > 0) == (2, True)
    assert not seen["agree"]


def test_a_setting_that_took_no_effect_is_no_proof(encoder: PlaneEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "_optimised", lambda level: nullcontext())
    with pytest.raises(RuntimeError, match="were asked for ORT_DISABLE_ALL and run at"):
        decoder_in(encoder.bundle, Setting(1, "ORT_DISABLE_ALL"))


def test_onnxruntime_is_left_as_it_was(encoder: PlaneEncoder) -> None:
    before = onnxruntime.SessionOptions
    decoder_in(encoder.bundle, SETTINGS[0])
    assert onnxruntime.SessionOptions is before


def test_the_drawn_symbols_never_change() -> None:
    """Else hashes of different machines would be of different questions."""
    sizes: Any = SimpleNamespace(hyper=4, hyper_latents=2)
    levels = drawn_levels(SEED, PLANES)
    tile = drawn_tile(sizes, levels, SEED, 8, 31)
    assert (tile.latent.shape, tile.root.shape) == ((PLANES, CHANNELS, 8, 8), (PLANES, ROOT_CHANNELS, 2, 2))
    assert not tile.latent[:, 0].any()
    assert (levels > 0).all()
    drawn = hashlib.sha256(levels.tobytes() + drawn_turn(SEED, PLANES).astype("<i8").tobytes())
    for part in tile:
        drawn.update(part.astype("<i4").tobytes())
    assert (int(tile.hyper.min()), int(tile.hyper.max())) == (-30, 27)
    assert drawn.hexdigest() == "319ebc156eb7863c78b4734127453e025b118621a4b86446866cdad1e9af9d59"


def test_a_half_is_refused(tmp_path: Any) -> None:
    for name, content in bundle.split(find("universal").folder, "decoder").items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError, match="give the whole bundle"):
        prove(Bundle.read(tmp_path), 1)


def test_the_command_says_so_and_fails_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for agree, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(conformance, "prove", lambda found, symbols, agree=agree: {"agree": agree, "n": symbols})
        done = CliRunner().invoke(main, ["models", "verify", "universal", "--symbols", "1e3"])
        assert (done.exit_code, json.loads(done.stdout)) == (code, {"agree": agree, "n": 1000})
        assert ("Error: a prior answers" in done.stderr) is not agree
