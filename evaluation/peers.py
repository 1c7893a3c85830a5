"""Learned codecs of others, as architectures: how many multiplications they take and how fast their networks run.

    .venv-peers/bin/python evaluation/peers.py --threads 1

Run by `evaluation.learned` with an interpreter of its own (`make peers`): CompressAI wants numpy below 2, which nothing
else here can live with, so this file imports nothing of ours. **Weights are random**: TerraCodec's lie behind a hub
that a measurement must not depend on, CompressAI's are for photographs of three bands. Speed and multiplications are
those of the trained models; rate and quality are none, and are not stated. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

# torchvision's compiled part wants a torch with CUDA; all that is needed of it here is that it can be imported.
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    try:
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # it is there: torchvision is whole
        pass

SIDE = 256
BANDS = 12
RUNS = 5


def peers() -> Iterator[tuple[str, str, int, Callable[[], torch.nn.Module]]]:
    """(name, what it is, bands, how to make it)."""
    from terracodec.models import build_terracodec

    def terra(kind: str, narrow: int, wide: int) -> Callable[[], torch.nn.Module]:
        return lambda: build_terracodec(
            model_type=kind, pretrained=False, in_channels=BANDS, N=narrow, M=wide, image_size=SIDE
        )

    yield "TerraCodec TEC-FP", "factorised prior, N 128, M 192", BANDS, terra("factorizedprior", 128, 192)
    yield "TerraCodec TEC-ELIC", "ELIC, N 192, M 320", BANDS, terra("elic", 192, 320)

    from compressai import models

    yield (
        "CompressAI bmshj2018-hyperprior",
        "Ballé et al. 2018, N 128, M 192",
        3,
        lambda: models.ScaleHyperprior(128, 192),
    )
    yield "CompressAI mbt2018-mean", "Minnen et al. 2018, N 128, M 192", 3, lambda: models.MeanScaleHyperprior(128, 192)


@contextmanager
def multiplications(model: torch.nn.Module) -> Iterator[list[int]]:
    """Those of convolutions, dense layers and GDNs, summed up while the model runs."""
    total = [0]

    def count(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(module, torch.nn.ConvTranspose2d):
            total[0] += inputs[0].numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Conv2d):
            total[0] += output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            total[0] += output.numel() * module.in_features
        elif type(module).__name__ == "GDN":
            total[0] += output.numel() * output.shape[1]

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def measure(name: str, what: str, bands: int, model: Any) -> dict[str, Any]:
    """Figures of one architecture."""
    model = model.eval()
    if hasattr(model, "update"):
        model.update(force=True)
    torch.manual_seed(0)
    picture = torch.rand(1, bands, SIDE, SIDE)
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    macs = {}
    for run in range(RUNS + 1):
        for half in seconds:
            with multiplications(model) as total:
                start = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
                if half == "encode":
                    packed = model.compress(picture)
                else:
                    model.decompress(packed["strings"], packed["shape"])
                end = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
            macs[half] = total[0]
            if run:  # the first one warms up
                seconds[half].append(end - start)
    samples = picture.numel()
    return {
        "name": name,
        "architecture": what,
        "bands": bands,
        "weights": "random",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{f"{half}_kmac_per_pixel": count / SIDE**2 / 1e3 for half, count in macs.items()},
        **{f"{half}_kmac_per_sample": count / samples / 1e3 for half, count in macs.items()},
        **{
            f"{half}_msamples_per_s": {
                "median": samples / 1e6 / statistics.median(times),
                "low": samples / 1e6 / max(times),
                "high": samples / 1e6 / min(times),
            }
            for half, times in seconds.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    found, failed = [], []
    with torch.no_grad():
        for name, what, bands, make in peers():
            try:
                found.append(measure(name, what, bands, make()))
            except Exception as error:  # a peer that does not run is a fact about it, not a failure of the rest
                failed.append({"name": name, "error": f"{type(error).__name__}: {error}"})
    versions = {name: metadata.version(name) for name in ("torch", "compressai", "terracodec")}
    print(json.dumps({"threads": threads, "tile_px": SIDE, "versions": versions, "peers": found, "failed": failed}))


if __name__ == "__main__":
    main()
