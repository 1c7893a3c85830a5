"""A trained run -> a released bundle: three single-file ONNX graphs, integer tables, self-test, card; and the checks
that it is sound.

Checked before anything is written: every partial sum of the prior stays below 2^24; torch and onnxruntime agree on
latents and pixels; the prior's indices and means agree exactly (zero differing symbols) between torch in float64 and
onnxruntime.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from downlink.context import LEVEL_LIMIT
from downlink.latent import Prior as PriorFunction
from downlink.selftest import SelfTest, answer
from downlink.spec import PlaneSpec
from downlink.table import Tables, logistic
from training.config import ConfigError, Run
from training.corpus import Batch
from training.integer import EXACT, IntegerConv, freeze
from training.model import ACTIVATION_LIMIT, HALO, HYPER, HYPER_LIMIT, PATCH, Analysis, HyperAnalysis, PlaneCodec
from training.objective import measure
from training.rate import SCALE_UNIT

SELF_TEST = (20261121, 3, 16)
"""Seed, planes and latents per side of the self-test."""
SCALES = 96


class Encoder(nn.Module):
    """What flies: pixels with halo and the plane's level -> latents and hyper-latents, both unrounded."""

    def __init__(self, analysis: Analysis, hyper: HyperAnalysis) -> None:
        super().__init__()
        self.analysis, self.hyper = analysis, hyper

    def forward(self, pixels: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.analysis(pixels)
        return latent, self.hyper(latent, level)


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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        program.save(str(path))
        if list(Path(folder).iterdir()) != [path]:
            raise ConfigError("the exporter wrote weights beside the graph; the bundle needs one file")
        return path.read_bytes()


def graphs(codec: PlaneCodec) -> dict[str, bytes]:
    """encoder.onnx, prior.onnx, decoder.onnx."""
    free = torch.export.Dim.DYNAMIC
    config = codec.config
    level = torch.full((2, 1, 1, 1), 40.0)
    image = {0: free, 2: free, 3: free}
    own, before, energy = (
        torch.zeros(2, config.latents, 16, 16) for _ in range(3)
    )  # the exporter merges inputs that are one tensor
    hyper = torch.zeros(2, config.hyper_latents, 4, 4)
    encoder = _onnx(
        Encoder(codec.analysis, codec.hyper),
        {"pixels": torch.randn(2, 1, 128 + 2 * HALO, 128 + 2 * HALO), "level": level},
        ["latent", "hyper"],
        {"pixels": image, "level": {0: free}},
    )
    prior = _onnx(
        freeze(deepcopy(codec.prior)),
        {"hyper": hyper, "own": own, "before": before, "energy": energy, "level": level},
        ["index", "mean"],
        {"hyper": image, "own": image, "before": image, "energy": image, "level": {0: free}},
    )
    decoder = _onnx(
        codec.synthesis,
        {"symbols": own, "before": before, "level": level},
        ["pixels"],
        {"symbols": image, "before": image, "level": {0: free}},
    )
    return {"encoder.onnx": encoder, "prior.onnx": prior, "decoder.onnx": decoder}


def check_exact(codec: PlaneCodec) -> float:
    """Largest possible partial sum of the prior as a share of 2^24; ConfigError if it reaches 1."""
    worst = 0.0
    for name, layer in codec.prior.named_modules():
        if isinstance(layer, IntegerConv):
            bound = layer.largest_sum(HYPER_LIMIT * 8.0 if name == "spread" else float(ACTIVATION_LIMIT))
            worst = max(worst, bound / EXACT)
            if bound >= EXACT:
                raise ConfigError(
                    f"prior layer {name}: sums may reach {bound:.0f}, exact float32 integers end at {EXACT:.0f}"
                )
    return worst


def session_prior(graph: bytes) -> PriorFunction:
    """prior.onnx as the function that downlink.latent calls."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def prior(hyper: Any, own: Any, before: Any, energy: Any, levels: Any) -> tuple[Any, Any]:
        arrays = {"hyper": hyper, "own": own, "before": before, "energy": energy}
        inputs = {name: array.astype(np.float32) for name, array in arrays.items()}
        inputs["level"] = levels.astype(np.float32).reshape(-1, 1, 1, 1)
        index, mean = session.run(["index", "mean"], inputs)
        return index.astype(np.uint8), mean.astype(np.int32)

    return prior


def torch_prior(codec: PlaneCodec) -> PriorFunction:
    """The prior in float64: exact whatever the order of sums."""
    wide = PlaneCodec(codec.config)
    wide.load_state_dict(codec.state_dict())
    exact = wide.prior.double().eval()

    def prior(hyper: Any, own: Any, before: Any, energy: Any, levels: Any) -> tuple[Any, Any]:
        tensors = [torch.from_numpy(a.astype(np.float64)) for a in (hyper, own, before, energy)]
        with torch.no_grad():
            index, mean = exact(*tensors, torch.from_numpy(levels.astype(np.float64)).view(-1, 1, 1, 1))
        return index.numpy().astype(np.uint8), mean.numpy().astype(np.int32)

    return prior


def compare(codec: PlaneCodec, files: dict[str, bytes], batches: list[Batch]) -> dict[str, float]:
    """Torch against onnxruntime on validation crops: largest difference of latents and pixels, number of differing
    prior outputs."""
    options = ["CPUExecutionProvider"]
    encoder = onnxruntime.InferenceSession(files["encoder.onnx"], providers=options)
    decoder = onnxruntime.InferenceSession(files["decoder.onnx"], providers=options)
    exact, fast = torch_prior(codec), session_prior(files["prior.onnx"])
    worst_latent = worst_pixel = 0.0
    differing = compared = 0
    with torch.no_grad():
        for batch in batches:
            pixels = batch.pixels.reshape(-1, 1, *batch.pixels.shape[2:])
            level = batch.levels.reshape(-1, 1, 1, 1)
            latent = codec.analysis(pixels)
            hyper = codec.hyper(latent, level.view(-1))
            found = encoder.run(["latent", "hyper"], {"pixels": pixels.numpy(), "level": level.numpy()})
            worst_latent = max(worst_latent, float(np.abs(found[0] - latent.numpy()).max() / (1 + latent.abs().max())))
            symbols = latent.round()
            own, before, energy = codec.contexts(symbols, batch.pixels.shape[1])
            arguments = [t.numpy() for t in (hyper.round(), own, before, energy)] + [batch.levels.reshape(-1).numpy()]
            for a, b in zip(exact(*arguments), fast(*arguments), strict=True):
                differing += int((a != b).sum())
                compared += a.size
            rebuilt = codec.synthesis(symbols, torch.zeros_like(symbols), level)
            inputs = {"symbols": symbols.numpy(), "before": np.zeros(symbols.shape, np.float32), "level": level.numpy()}
            again = decoder.run(["pixels"], inputs)[0]
            worst_pixel = max(worst_pixel, float(np.abs(again - rebuilt.numpy()).max() / (1 + rebuilt.abs().max())))
    return {
        "latent_relative_difference": worst_latent,
        "pixel_relative_difference": worst_pixel,
        "prior_outputs_compared": compared,
        "prior_outputs_differing": differing,
    }


def distortion_table(codec: PlaneCodec, batches: list[Batch]) -> tuple[tuple[float, float], ...]:
    """(bits per sample, pixel error / latent rounding error), averaged over crops in bins of rate: what PSNR targets
    are steered by."""
    rows = []
    with torch.no_grad():
        for batch in batches:
            outcome = measure(codec, batch, amp=False)
            latent = codec.analysis(batch.pixels.reshape(-1, 1, *batch.pixels.shape[2:]))
            rounding = float(((latent - latent.round()) ** 2).mean())
            if rounding > 1e-9:
                rows.append((float(outcome.rate.mean()), float(outcome.error.mean()) / rounding))
    rows.sort()
    bins = np.array_split(np.array(rows), min(8, len(rows)))
    means = [(round(float(b[:, 0].mean()), 4), round(float(np.median(b[:, 1])), 4)) for b in bins if len(b)]
    return tuple(sorted(dict(means).items()))


def spec_of(codec: PlaneCodec, distortion: tuple[tuple[float, float], ...]) -> PlaneSpec:
    """The bundle's parameters."""
    config = codec.config
    levels = torch.arange(LEVEL_LIMIT + 1, dtype=torch.float32)
    with torch.no_grad():
        table = codec.hyper_index(levels).int().tolist()
    return PlaneSpec(
        patch=PATCH,
        hyper=HYPER,
        latents=config.latents,
        hyper_latents=config.hyper_latents,
        groups=tuple(config.groups),
        encoder_halo=HALO,
        decoder_halo=config.decoder_blocks,
        hyper_limit=HYPER_LIMIT,
        hyper_index=tuple(tuple(row) for row in table),
        distortion=distortion,
    )


def tables_of() -> Tables:
    """Frequency tables of the logistic density that training assumes."""
    return Tables.parametric(logistic, [SCALE_UNIT * 2 ** ((i - 1) / 4) for i in range(1, SCALES)])


def export(best: Path, out: Path, name: str, version: str, card: str, batches: list[Batch]) -> dict[str, float]:
    """Write a bundle folder (complete or not at all) and return what the checks found. Raises ConfigError where one
    fails."""
    codec, _run = load_run(best)
    share = check_exact(codec)
    files = graphs(codec)
    checks = compare(codec, files, batches) | {"largest_partial_sum_share": share}
    if checks["prior_outputs_differing"]:
        raise ConfigError(
            f"{checks['prior_outputs_differing']:.0f} of {checks['prior_outputs_compared']:.0f} prior outputs differ "
            "between torch and onnxruntime; streams would not decode elsewhere, so nothing was written"
        )
    spec = spec_of(codec, distortion_table(codec, batches))
    prior = session_prior(files["prior.onnx"])
    seed, planes, size = SELF_TEST
    files["selftest.json"] = msgspec.json.encode(SelfTest(seed, planes, size, answer(spec, prior, seed, planes, size)))
    files["tables.bin"] = tables_of().pack()
    files["card.md"] = card.encode()
    listing = {key: hashlib.sha256(value).hexdigest() for key, value in sorted(files.items())}
    description = {
        "format": 1,
        "name": name,
        "version": version,
        "kind": "planes",
        "files": listing,
        "parameters": msgspec.to_builtins(spec),
    }
    packed = io.BytesIO(json.dumps(description, separators=(",", ":"), sort_keys=True).encode()).getvalue()
    staging = out.with_name(out.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for key, value in files.items():
        (staging / key).write_bytes(value)
    (staging / "bundle.json").write_bytes(packed)
    if out.exists():
        shutil.rmtree(out)
    staging.rename(out)
    return checks
