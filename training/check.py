"""What an export must pass before it is written: exact prior, equal graphs, and one real scene through both real nodes.

Every check returns figures for the card, or raises ConfigError saying which one failed and by how much.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from downlink.bundle import Bundle
from downlink.latent import TileCode, TileSymbols, expect_tile
from downlink.prior import FEATURES, GRAPHS, Prior
from downlink.scene import Band, Grid, Scene
from downlink.spec import PlaneSpec
from downlink.table import Tables
from training.config import ConfigError
from training.corpus import Batch, Picture
from training.hyper import IntegerHyper, loudnesses
from training.integer import EXACT, IntegerConv
from training.known import Symbols, known, predict
from training.model import ACTIVATION_LIMIT, HYPER_LIMIT, PlaneCodec, alive
from training.objective import root_forward
from training.synthesis import IntegerSynthesis, shown

CPU = ["CPUExecutionProvider"]


def check_exact(codec: PlaneCodec) -> float:
    """Largest possible partial sum of the prior as a share of 2^24; ConfigError if it reaches 1."""
    worst = 0.0
    for name, layer in codec.prior.named_modules():
        if isinstance(layer, IntegerConv):
            bound = layer.largest_sum(HYPER_LIMIT * 8.0 if name.endswith("spread") else float(ACTIVATION_LIMIT))
            worst = max(worst, bound / EXACT)
            if bound >= EXACT:
                raise ConfigError(
                    f"prior layer {name}: sums may reach {bound:.0f}, exact float32 integers end at {EXACT:.0f}; "
                    "train with smaller prior_widths"
                )
    return worst


def session_prior(files: dict[str, bytes]) -> Prior:
    """The prior's graphs behind the function that downlink.prior calls."""
    sessions = {name: onnxruntime.InferenceSession(files[name], providers=CPU) for name in (FEATURES, *GRAPHS)}
    return Prior(lambda name, inputs: sessions[name].run(None, inputs))


def compare(
    codec: PlaneCodec,
    analysis: IntegerHyper,
    synthesis: IntegerSynthesis,
    files: dict[str, bytes],
    spec: PlaneSpec,
    batches: list[Batch],
) -> dict[str, float]:
    """Torch against onnxruntime on validation crops: how many outputs of integer networks differ (torch in float64:
    exact whatever the order of sums), of which none may; how many hyper-latents rounding to 8 bits has changed, and
    what the synthesis gains in dB with floats and with 8 bits."""
    encoder = onnxruntime.InferenceSession(files["encoder.onnx"], providers=CPU)
    decoder = onnxruntime.InferenceSession(files["decoder.onnx"], providers=CPU)
    exact, fast = deepcopy(codec).double().eval(), session_prior(files)
    tables = Tables.unpack(files["tables.bin"])
    differing = compared = hypers = changed = 0
    for loud, floats in loudnesses(codec, batches):
        with torch.no_grad():
            wanted_hyper = analysis.double()(loud.double()).numpy()
        differing += int((encoder.run(None, {"loudness": loud.numpy()})[0] != wanted_hyper).sum())
        compared += wanted_hyper.size
        hypers, changed = hypers + wanted_hyper.size, changed + int((floats.round().numpy() != wanted_hyper).sum())
    with torch.no_grad():
        for batch in batches:
            levels = batch.levels[0].numpy().astype(np.uint8)
            rows = np.flatnonzero(levels.max(axis=1) > 0)
            if not len(rows) or (np.diff((levels > 0).astype(int), axis=0) > 0).any():
                continue  # on board, the planes of a subband are the first ones
            levels, coefficients = levels[rows], batch.coefficients[0, rows]
            level = torch.from_numpy(levels.astype(np.float32))[:, :, None, None]
            hyper = codec.hyper(coefficients, level)
            root, latent = root_forward(coefficients[:, :1]).round(), coefficients.round()
            latent[:, 0] = 0
            turn = batch.turn[:, : len(rows), : len(rows)]
            counts = np.count_nonzero(levels, axis=0)
            live = [torch.arange(int(count)) for count in counts]
            have = known(exact, Symbols(root.double(), latent.double()), len(rows), turn.double(), live)
            want = predict(exact, hyper.round().double(), have, level.double(), live)
            code = TileCode(spec, tables, levels, turn[0].numpy().astype(np.int64)[: counts[1]], len(rows))
            integers = TileSymbols(*(t.numpy().astype(np.int32) for t in (root, latent, hyper.round())))
            for wanted, got in zip(want, expect_tile(code, integers, fast), strict=True):
                for a, b in zip(wanted, got, strict=True):
                    differing += int((a.numpy() != b).sum())
                    compared += b.size
    errors = np.zeros(3)
    for one in shown(batches):
        with torch.no_grad():
            wanted_correction = synthesis.double()(one.seen.double()).float()
            floats = codec.synthesis(one.values, one.before, one.level)
        corrected = torch.from_numpy(decoder.run(None, {"seen": one.seen.numpy()})[0])
        differing, compared = differing + int((corrected != wanted_correction).sum()), compared + corrected.numel()
        decoded = one.values, floats, one.values + corrected * alive(one.level)
        errors += [float(((values - one.coefficients) ** 2).sum()) for values in decoded]
    if differing:
        raise ConfigError(
            f"{differing} of {compared} outputs of integer networks differ between torch and onnxruntime; streams "
            "would not decode elsewhere, so nothing was written"
        )
    return {
        "hyper_latents_changed_by_8_bits": changed / max(1, hypers),
        "synthesis_gain_db": float(10 * np.log10(errors[0] / errors[1])),
        "synthesis_gain_db_in_8_bits": float(10 * np.log10(errors[0] / errors[2])),
        "integer_outputs_compared": compared,
        "integer_outputs_differing": differing,
    }


def check_scene(folder: Path, picture: Picture, quality: float = 48.0) -> dict[str, float | str]:
    """Encode and decode one whole validation picture with the real nodes; its rate and PSNR (peak 10000)."""
    from decoder_node.compose import decode_rows
    from decoder_node.decoder import PlaneDecoder
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
