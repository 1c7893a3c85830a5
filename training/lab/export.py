"""A network of the laboratory as a bundle: ONNX graphs compared with what was trained, and a model card.

    autoencoders   kind "patches": encoder.onnx, decoder.onnx (scaled patches <-> codes), for whoever wants to run them
    enhancers      kind "enhance": enhance.onnx (DN -> DN, scaling inside), which `decoder-node enhance` runs

Nothing is written unless onnxruntime gives what torch gives.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from downlink.bundle import Bundle
from downlink.enhance import GRAPH, KIND, EnhanceSpec
from training.card import commit
from training.config import ConfigError
from training.export import _onnx
from training.lab.config import Row
from training.lab.figures import LABELS
from training.lab.places import BANDS, TEN_METRES, TWENTY_METRES, Places
from training.lab.rows import Result, trained
from training.lab.tasks.superresolve import known_of

FAR = 1e-3
"""Largest difference between torch and onnxruntime, of the largest value."""
LABEL = {
    "restore": "Lost pixels were made by a network from what is around them; the mask layer says which.",
    "superresolve": "Bands of 20 m were brought to 10 m by a network; finer detail than 20 m is an estimate.",
    "perceptual": "PERCEPTUAL: detail was invented to look real. Do not measure on it.",
}


class Part(nn.Module):
    """One way through an autoencoder."""

    def __init__(self, network: nn.Module, way: str) -> None:
        super().__init__()
        self.network, self.way = network, way

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self.network, self.way)(x)
        return out


class InDN(nn.Module):
    """An enhancer with its scaling: pixels (n, bands, h, w) in DN (and, to restore, which are lost) -> DN."""

    def __init__(self, network: nn.Module, task: str, scale: Tensor) -> None:
        super().__init__()
        self.network, self.task = network, task
        self.register_buffer("scale", scale)

    def forward(self, pixels: Tensor, lost: Tensor) -> Tensor:
        if self.task == "superresolve":  # bands in the order of `bands_of`: six coarse ones, stored repeated, four fine
            coarse, fine = pixels[:, :6, ::2, ::2] / self.scale[:6], pixels[:, 6:] / self.scale[6:]
            out: Tensor = self.network(known_of(fine, coarse)) * self.scale[:6]
            return out + 0 * lost[:, :6]
        x = pixels / self.scale
        if self.task == "restore":
            kept = 1 - lost
            made = self.network(torch.cat([x * kept, lost], dim=1))
        else:
            made = self.network(x) + 0 * lost
        out = made * self.scale
        return out


def bands_of(task: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(bands that go in, bands that come out)."""
    if task != "superresolve":
        return BANDS, BANDS
    coarse = tuple(BANDS[i] for i in TWENTY_METRES)
    return (*coarse, *(BANDS[i] for i in TEN_METRES)), coarse


def compared(content: bytes, inputs: dict[str, Tensor], expected: Tensor) -> float:
    """Largest difference of onnxruntime from torch, relative; ConfigError if that is too much."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    far = float(np.abs(found - expected.numpy()).max() / (1e-6 + float(expected.abs().max())))
    if not far < FAR:
        raise ConfigError(f"onnxruntime differs from torch by {far:.1e} ({FAR:g} is allowed); nothing was written")
    return far


def export(row: Row, result: Result, places: Places, out: Path) -> dict[str, Any]:
    """Write a bundle (complete or not at all); returns what was checked. ConfigError where the network has none."""
    if out.exists() and not (out / "bundle.json").is_file() and any(out.iterdir()):
        raise ConfigError(f"{out} holds other things than a bundle; name an empty or a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    task = trained(row, result, places)
    name = out.name.lower()
    kind = row.variants[result.variant].task
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        if kind in LABEL:
            files, checks, parameters = _enhancer(task, kind, places, free)
        elif hasattr(task.module, "decode"):
            files, checks, parameters = _patches(task, free)
        else:
            raise ConfigError(f"row {row.base.name}, variant {result.variant}: there is nothing to export")
    files["card.md"] = card(name, row, result, checks, LABEL.get(kind, "")).encode()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        staging = Path(folder) / "bundle"
        staging.mkdir()
        described = {
            "format": 1, "name": name, "version": "0.1.0", "kind": KIND if kind in LABEL else "patches",
            "files": {key: hashlib.sha256(value).hexdigest() for key, value in sorted(files.items())},
            "parameters": parameters,
        }  # fmt: skip
        for key, value in files.items():
            (staging / key).write_bytes(value)
        (staging / "bundle.json").write_text(json.dumps(described, separators=(",", ":"), sort_keys=True))
        Bundle.read(staging).verify()
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    return checks


def _patches(task: Any, free: Any) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Any]]:
    files, checks = {}, {}
    x = task.patches[:5]
    for way, name, source in (("encode", "encoder.onnx", "patches"), ("decode", "decoder.onnx", "code")):
        given, part = (x if way == "encode" else task.module.encode(x)), Part(task.module, way)
        files[name] = _onnx(part, {source: given}, ["code" if way == "encode" else "patches"], {source: {0: free}})
        checks[f"{name}_relative_difference"] = compared(files[name], {source: given}, part(given))
    scale = [float(v) for v in task.places.scale.ravel()]
    return files, checks, {"bands": list(BANDS)[: x.shape[1]], "side": x.shape[2], "scale": scale}


def _enhancer(
    task: Any, kind: str, places: Places, free: Any
) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Any]]:
    inputs, outputs = bands_of(kind)
    scale = torch.from_numpy(places.scale[[BANDS.index(b) for b in inputs]])
    network = task.module.made if kind == "perceptual" else task.module
    whole = InDN(network, kind, scale).eval()
    place = places.test[0].pixels[[BANDS.index(b) for b in inputs], :48, :64]
    pixels = torch.from_numpy(np.ascontiguousarray(place))[None]
    lost = torch.zeros_like(pixels)
    lost[:, :, :, 5::9] = 1.0
    given = {"pixels": pixels, "lost": lost}
    shape = {0: free, 2: free, 3: free}
    twice = {name: torch.cat([value, value]) for name, value in given.items()}  # a batch of one would be taken as fixed
    content = _onnx(whole, twice, ["enhanced"], dict.fromkeys(given, shape))
    corrector = network.corrector
    halo = int(corrector.halo) + getattr(network, "reach", 4)
    spec = EnhanceSpec(kind, inputs, outputs, halo + halo % 2, LABEL[kind])  # type: ignore[arg-type]
    checks = {f"{GRAPH}_relative_difference": compared(content, given, whole(pixels, lost))}
    return {GRAPH: content}, checks, msgspec.to_builtins(spec)


def card(name: str, row: Row, result: Result, checks: dict[str, Any], label: str) -> str:
    """What it is, what it measured, what it is not for."""
    figures = [f"| {LABELS.get(key, (key, ''))[0]} | {value:.4g} |" for key, value in result.figures.items()]
    tested = [f"| {key} | {value:.2g} |" for key, value in checks.items()]
    settings = msgspec.json.format(msgspec.json.encode(row.variants[result.variant])).decode()
    return f"""# {name}

{row.base.title}: variant "{result.variant}" of the laboratory's row `{row.base.name}`, seed {result.seed}.
{label}

Licence of the weights: Apache-2.0. Code at commit {commit()}. Trained on Sentinel-2 imagery (Copernicus Sentinel data,
modified; free, full and open), which is not distributed with it.

    downlink lab {row.base.name} --variant "{result.variant}" --export {name}

## Measured on places that it was not trained on

| figure | value |
|---|---|
{chr(10).join(figures)}

Export, onnxruntime against torch:

| check | value |
|---|---|
{chr(10).join(tested)}

## Not for

Other sensors, other band orders, or imagery whose values are not reflectance times 10000. Briefly trained: a member of
the laboratory, not a released product.

## Settings

```json
{settings}
```
"""
