"""What an export must pass before it is written: exact prior, equal graphs, and one real scene through both real nodes.

Every check returns figures for the card, or raises ConfigError saying which one failed and by how much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from downlink.bundle import Bundle
from downlink.latent import Prior as PriorFunction
from downlink.scene import Band, Grid, Scene
from training.config import ConfigError
from training.corpus import Batch, Picture
from training.integer import EXACT, IntegerConv
from training.model import ACTIVATION_LIMIT, HYPER_LIMIT, PlaneCodec

CPU = ["CPUExecutionProvider"]


def check_exact(codec: PlaneCodec) -> float:
    """Largest possible partial sum of the prior as a share of 2^24; ConfigError if it reaches 1."""
    worst = 0.0
    for name, layer in codec.prior.named_modules():
        if isinstance(layer, IntegerConv):
            bound = layer.largest_sum(HYPER_LIMIT * 8.0 if name == "spread" else float(ACTIVATION_LIMIT))
            worst = max(worst, bound / EXACT)
            if bound >= EXACT:
                raise ConfigError(
                    f"prior layer {name}: sums may reach {bound:.0f}, exact float32 integers end at {EXACT:.0f}; "
                    "train with smaller prior_widths"
                )
    return worst


def session_prior(graph: bytes) -> PriorFunction:
    """prior.onnx as the function that downlink.latent calls."""
    session = onnxruntime.InferenceSession(graph, providers=CPU)

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
    """Torch against onnxruntime on validation crops: largest relative difference of latents and pixels, and the
    number of prior outputs that differ, of which none may."""
    encoder = onnxruntime.InferenceSession(files["encoder.onnx"], providers=CPU)
    decoder = onnxruntime.InferenceSession(files["decoder.onnx"], providers=CPU)
    exact, fast = torch_prior(codec), session_prior(files["prior.onnx"])
    worst_latent = worst_pixel = 0.0
    differing = compared = 0
    with torch.no_grad():
        for batch in batches:
            pixels = batch.pixels.reshape(-1, 1, *batch.pixels.shape[2:])
            level = batch.levels.reshape(-1, 1, 1, 1)
            latent = codec.analysis(pixels)
            hyper = codec.hyper(latent, level.view(-1))
            found = encoder.run(["latent", "hyper"], {"pixels": pixels.numpy(), "level": level.numpy()})[0]
            worst_latent = max(worst_latent, float(np.abs(found - latent.numpy()).max() / (1 + latent.abs().max())))
            symbols = latent.round()
            own, before, energy = codec.contexts(symbols, batch.pixels.shape[1])
            arguments = [t.numpy() for t in (hyper.round(), own, before, energy)] + [level.view(-1).numpy()]
            for a, b in zip(exact(*arguments), fast(*arguments), strict=True):
                differing += int((a != b).sum())
                compared += a.size
            rebuilt = codec.synthesis(symbols, torch.zeros_like(symbols), level, codec.inverse_patch())
            inputs = {"symbols": symbols.numpy(), "before": np.zeros(symbols.shape, np.float32), "level": level.numpy()}
            again = decoder.run(["pixels"], inputs)[0]
            worst_pixel = max(worst_pixel, float(np.abs(again - rebuilt.numpy()).max() / (1 + rebuilt.abs().max())))
    if differing:
        raise ConfigError(
            f"{differing} of {compared} prior outputs differ between torch and onnxruntime; streams would not decode "
            "elsewhere, so nothing was written"
        )
    if worst_latent > 1e-4 or worst_pixel > 1e-4:
        raise ConfigError(
            f"onnxruntime differs from torch by {worst_latent:.1e} in latents and {worst_pixel:.1e} in pixels "
            "(1e-4 is allowed); nothing was written"
        )
    return {
        "latent_relative_difference": worst_latent,
        "pixel_relative_difference": worst_pixel,
        "prior_outputs_compared": compared,
        "prior_outputs_differing": differing,
    }


def check_scene(folder: Path, picture: Picture, quality: float = 48.0) -> dict[str, float | str]:
    """Encode and decode one whole validation picture with the real nodes; its rate and PSNR (peak 10000)."""
    from decoder_node.decoder import PlaneDecoder, decode_rows
    from encoder_node.encoder import PlaneEncoder
    from encoder_node.pipeline import encode_scene
    from encoder_node.source_array import ArraySource
    from encoder_node.target import Target

    bundle = Bundle.read(folder)
    bands, height, width = picture.pixels.shape
    dtype: Any = str(picture.pixels.dtype)
    scene = Scene(name=picture.name, grids=(Grid(height, width, dtype, (Band(),) * bands),))
    with encode_scene(ArraySource(scene, picture.pixels), PlaneEncoder(bundle), Target(quality=quality)) as encoded:
        rows = [row.pixels for row in decode_rows(encoded.manifest, encoded.chunk, PlaneDecoder(bundle))]
        stream_bytes = encoded.stream_bytes
    error = (np.concatenate(rows, axis=1).astype(np.float64) - picture.pixels) ** 2
    step = picture.peak * 2 ** (-quality / 8)
    if error.mean() > step**2:
        raise ConfigError(
            f"{picture.name} decodes with an error of {error.mean() ** 0.5:.1f} DN at a step of {step:.1f} DN; "
            "the bundle is broken, nothing was written"
        )
    return {
        "scene": picture.name,
        "quality": quality,
        "bits_per_sample": 8 * stream_bytes / picture.pixels.size,
        "psnr_db": float(10 * np.log10(1e8 / max(float(error.mean()), 1e-9))),
    }
