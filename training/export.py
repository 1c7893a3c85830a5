"""A trained run -> a released bundle: three single-file ONNX graphs, integer tables, self-test, card; and the checks
that it is sound.

Nothing is written unless every check of training/check.py passes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from torch import Tensor, nn

from downlink.context import LEVEL_LIMIT
from downlink.prior import FEATURES, GRAPHS
from downlink.selftest import SelfTest, answer
from downlink.spec import PlaneSpec
from downlink.synthesis import SEEN_CHANNELS
from downlink.table import Tables, logistic
from training.card import card
from training.check import check_exact, check_scene, compare, session_prior
from training.config import ConfigError, Run
from training.corpus import Batch, Picture
from training.hyper import IntegerHyper, loudnesses
from training.integer import freeze
from training.model import HYPER, HYPER_LIMIT, Expect, PlaneCodec, Prior
from training.objective import measure
from training.rate import SCALE_UNIT
from training.synthesis import IntegerSynthesis, shown
from training.train import validation_batches

Checks = dict[str, Any]

SELF_TEST = (20261121, 3, 16)
"""Seed, planes and latents per side of the self-test."""
SCALES = 96


def load_run(best: Path) -> tuple[PlaneCodec, Run]:
    """The averaged weights and the settings of a run's best.pt."""
    if not best.exists():
        raise ConfigError(f"{best}: no such file; give the best.pt of a run folder (downlink train writes it)")
    saved = torch.load(best, weights_only=True, map_location="cpu")
    run = msgspec.convert(saved["config"], Run)
    codec = PlaneCodec(run.model)
    codec.load_state_dict(saved["average"])
    return codec.eval(), run


def _onnx(
    module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], dynamic: dict[str, dict[int, Any]]
) -> bytes:
    """One ONNX file, weights inside, by the dynamo exporter."""
    names = list(inputs)
    program = torch.onnx.export(
        module.eval(),
        tuple(inputs.values()),
        dynamo=True,
        input_names=names,
        output_names=outputs,
        dynamic_shapes=tuple(dynamic[name] for name in names),
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    return _bare(program.model_proto)


def _bare(model: onnx.ModelProto) -> bytes:
    """The file's bytes, weights inside, without what the exporter notes of where each node came from: stack traces with
    this machine's paths."""
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.ClearField("doc_string")
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ConfigError("the exporter left weights outside the graph; the bundle needs one file")
    return model.SerializeToString()


def graphs(codec: PlaneCodec, hyper_analysis: IntegerHyper, synthesis: IntegerSynthesis) -> dict[str, bytes]:
    """encoder.onnx, decoder.onnx, prior_features.onnx and the subbands' prior_0.onnx to prior_3.onnx."""
    free = torch.export.Dim.DYNAMIC
    config = codec.config
    image = {0: free, 2: free, 3: free}

    def blank(channels: int, side: int = 16) -> Tensor:  # one each: the exporter merges inputs that are one tensor
        return torch.zeros(2, channels, side, side)

    files = {
        "encoder.onnx": _onnx(
            hyper_analysis,
            {"loudness": blank(config.latents + 8)},
            ["hyper"],
            {"loudness": image},
        ),
        "decoder.onnx": _onnx(synthesis, {"seen": blank(SEEN_CHANNELS)}, ["correction"], {"seen": image}),
    }
    prior = freeze(deepcopy(codec.prior))
    assert isinstance(prior, Prior)
    hyper = {"hyper": blank(config.hyper_latents, 4)}
    files[FEATURES] = _onnx(prior.features, hyper, ["coarse", "fine"], {"hyper": image})
    for name, one in zip(GRAPHS, prior.subbands, strict=True):
        assert isinstance(one, Expect)
        files[name] = _onnx(one, {"known": blank(one.inputs)}, ["expected"], {"known": image})
    return files


def distortion_table(codec: PlaneCodec, batches: list[Batch], trade: float) -> tuple[tuple[float, float], ...]:
    """(bits per sample, decoded error / latent rounding error), averaged over crops in bins of rate: what PSNR targets
    are steered by."""
    rows = []
    with torch.no_grad():
        for batch in batches:
            outcome = measure(codec, batch, False, trade)
            if float(outcome.rounding) > 1e-9:
                rows.append((float(outcome.rate.mean()), float(outcome.error.mean() / outcome.rounding.mean())))
    rows.sort()
    bins = np.array_split(np.array(rows), min(8, len(rows)))
    means = [(round(float(b[:, 0].mean()), 4), round(float(np.median(b[:, 1])), 4)) for b in bins if len(b)]
    return tuple(sorted(dict(means).items()))


def spec_of(codec: PlaneCodec, trade: float, distortion: tuple[tuple[float, float], ...]) -> PlaneSpec:
    """The bundle's parameters."""
    config = codec.config
    levels = torch.arange(LEVEL_LIMIT + 1, dtype=torch.float32)
    with torch.no_grad():
        table = codec.hyper_index(levels).int().tolist()
    return PlaneSpec(
        hyper=HYPER,
        hyper_latents=config.hyper_latents,
        decoder_halo=config.decoder_blocks + 1,  # a 3 x 3 convolution per block, and the neighbouring block means
        hyper_limit=HYPER_LIMIT,
        hyper_index=tuple(tuple(row) for row in table),
        bit_price=round(config.refinement / trade, 6),
        distortion=distortion,
    )


def tables_of() -> Tables:
    """Frequency tables of the logistic density that training assumes."""
    return Tables.parametric(logistic, [SCALE_UNIT * 2 ** ((i - 1) / 4) for i in range(1, SCALES)])


def export(
    best: Path, out: Path, name: str, version: str, held: list[Picture], figures: dict[str, Any], note: str = ""
) -> Checks:
    """Write a bundle folder (complete or not at all) and return what the checks found. Raises ConfigError where one
    fails.

    `held` are the run's validation pictures, `figures` what the card shall state beside the checks.
    """
    codec, run = load_run(best)
    batches = [batch for _, _, batch in validation_batches(held, run)]
    checks: Checks = {"largest_partial_sum_share": check_exact(codec)}
    hyper_analysis = IntegerHyper(codec.hyper, [loud for loud, _ in loudnesses(codec, batches)])
    with torch.no_grad():
        synthesis = IntegerSynthesis(codec.synthesis, [one.seen for one in shown(batches)])
    files = graphs(codec, hyper_analysis, synthesis)
    spec = spec_of(codec, run.trade, distortion_table(codec, batches, run.trade))
    files["tables.bin"] = tables_of().pack()
    checks |= compare(codec, hyper_analysis, synthesis, files, spec, batches)
    prior = session_prior(files)
    seed, planes, size = SELF_TEST
    hashed = answer(spec, Tables.unpack(files["tables.bin"]), prior, seed, planes, size)
    files["selftest.json"] = msgspec.json.encode(SelfTest(seed, planes, size, hashed))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        staging = Path(folder) / "bundle"
        _write(staging, name, version, spec, files)
        largest = max(held, key=lambda picture: picture.pixels.size)
        checks |= {f"scene_{key}": value for key, value in check_scene(staging, largest).items()}
        files["card.md"] = card(name, version, run, checks, figures, note).encode()
        _write(staging, name, version, spec, files)
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    return checks


def _write(folder: Path, name: str, version: str, spec: PlaneSpec, files: dict[str, bytes]) -> None:
    description = {
        "format": 1,
        "name": name,
        "version": version,
        "kind": "planes",
        "files": {key: hashlib.sha256(value).hexdigest() for key, value in sorted(files.items())},
        "parameters": msgspec.to_builtins(spec),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in files.items():
        (folder / key).write_bytes(value)
    (folder / "bundle.json").write_text(json.dumps(description, separators=(",", ":"), sort_keys=True))
