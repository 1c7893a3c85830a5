"""What is measured of a trained network, on places that neither training nor validation saw.

A figure is a function (task, trained module) -> {name: number}; a config's `figures` names them, here or as methods of
the row's own task. Names end in their unit. `LABELS` says how the page shows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encoder_node.target import Target
from training.lab import entropy
from training.lab.architectures import AutoEncoder, principal_components
from training.lab.corruptions import corrupt
from training.lab.nodes import through
from training.lab.places import PEAK
from training.lab.trial import Reconstruct

TEST_PATCHES = 1500

LABELS = {
    "psnr_db": ("PSNR, dB", "{:.2f}"),
    "gap_db": ("training − unseen places, dB", "{:.2f}"),
    "bits_per_sample": ("bits/sample", "{:.3f}"),
    "coded_psnr_db": ("PSNR at that rate, dB", "{:.2f}"),
    "universal_bits_per_sample": ("`universal`, bits/sample", "{:.3f}"),
    "universal_psnr_db": ("… at a PSNR of, dB", "{:.2f}"),
    "explained_percent": ("variance explained, %", "{:.2f}"),
    "of_pca_percent": ("… of PCA's, %", "{:.2f}"),
    "angle_deg": ("mean principal angle to PCA, °", "{:.2f}"),
    "angle_worst_deg": ("largest, °", "{:.1f}"),
    "active_percent": ("active units, %", "{:.1f}"),
    "unused_percent": ("units never active, %", "{:.1f}"),
    "sensitivity": ("code moved by noise, %", "{:.2f}"),
    "noisy_bits_per_sample": ("bits/sample of noisy input", "{:.3f}"),
    "noise_bits_percent": ("bits added by noise, %", "{:.1f}"),
    "corrupted_psnr_db": ("PSNR of what came in, dB", "{:.2f}"),
    "lost_psnr_db": ("PSNR of lost pixels, dB", "{:.2f}"),
    "interpolated_psnr_db": ("the same, interpolated, dB", "{:.2f}"),
    "rate_nats": ("KL, nats/patch", "{:.2f}"),
    "sample_distance": ("Fréchet distance of samples", "{:.3f}"),
    **{f"labels_{count}_percent": (f"{count} labels, %", "{:.1f}") for count in (5, 20, 100)},
    **{
        f"auc_{kind}_{score}": (f"{kind}, {name}", "{:.3f}")
        for kind in ("fire", "ship", "haze", "cloud")
        for score, name in (("error", "error"), ("bits", "bits"))
    },
    "plain_psnr_db": ("PSNR without it, dB", "{:.2f}"),
    "sam_deg": ("spectral angle, °", "{:.2f}"),
    "plain_sam_deg": ("… without it, °", "{:.2f}"),
    "distance": ("Fréchet distance", "{:.3f}"),
    "plain_distance": ("… without it", "{:.3f}"),
    "next_psnr_db": ("PSNR of the next scene, dB", "{:.2f}"),
    "last_psnr_db": ("… if it were the last one, dB", "{:.2f}"),
    "conditioned_bits": ("bits/sample, conditioned", "{:.3f}"),
    "alone_bits": ("bits/sample, alone", "{:.3f}"),
    "saved_percent": ("bits saved, %", "{:.1f}"),
    "steps": ("steps", "{:.0f}"),
}


def psnr(mse_dn: float) -> float:
    return 10 * math.log10(PEAK**2 / max(mse_dn, 1e-9))


def in_dn(task: Reconstruct, difference: Tensor) -> float:
    """Mean squared error in DN of a difference (n, bands, side, side) in scaled units."""
    return float(((difference * torch.from_numpy(task.places.scale)) ** 2).mean())


def outputs(module: Any, patches: Tensor) -> Tensor:
    module.eval()
    with torch.no_grad():
        return torch.cat([module(part).output for part in patches.split(256)])


def test_patches(task: Reconstruct) -> Tensor:
    return task.cut("test", TEST_PATCHES)


def reconstruction(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """PSNR on unseen places, and how much better it is on patches that were trained on."""
    test, seen = test_patches(task), task.patches[:TEST_PATCHES]
    found = psnr(in_dn(task, outputs(module, test) - test))
    return {"psnr_db": found, "gap_db": psnr(in_dn(task, outputs(module, seen) - seen)) - found}


def bits(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """Real bytes of the code of unseen places, and the PSNR that is left after rounding."""
    test = test_patches(task)
    found = entropy.coded(module, task.patches, test)
    with torch.no_grad():
        rebuilt = module.decode((module.encode(test) / found.step).round() * found.step)
    return {"bits_per_sample": found.bits_per_sample, "coded_psnr_db": psnr(in_dn(task, rebuilt - test))}


def subspace(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """Whether the decoder spans what PCA spans: principal angles, and how much variance of the training patches is
    explained."""
    code = task.trial.network.code
    _, directions, variances = principal_components(task.patches, code)
    stage: Any = module.stages[0]
    basis, _ = torch.linalg.qr(stage.back.weight.detach().double())
    cosines = torch.linalg.svdvals(directions.double() @ basis).clamp(0, 1)
    angles = torch.rad2deg(torch.arccos(cosines))
    error = ((outputs(module, task.patches) - task.patches) ** 2).flatten(1).sum(dim=1).mean()
    explained = 1 - float(error / variances.sum())
    best = float(variances[:code].sum() / variances.sum())
    return {
        "explained_percent": 100 * explained, "of_pca_percent": 100 * explained / best,
        "angle_deg": float(angles.mean()), "angle_worst_deg": float(angles.max()),
    }  # fmt: skip


def activity(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """How many units of a code are above a tenth at a time, and how many never are."""
    with torch.no_grad():
        code = entropy.per_channel(module.encode(test_patches(task)))
    active = code > 0.1
    return {
        "active_percent": 100 * float(active.float().mean()),
        "unused_percent": 100 * float((~active.any(dim=0)).float().mean()),
    }


PRODUCTION_SCENES, PRODUCTION_SIDE = 6, 96


def production(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """Bits per sample that the released bundle needs for whole test scenes at the PSNR that the network's coded patches
    of the same scenes have."""
    side, cut = task.trial.patches.side, PRODUCTION_SIDE
    test = [place.pixels[:, :cut, :cut] for place in task.places.test if min(place.pixels.shape[1:]) >= cut]
    scenes = test[:: max(1, len(test) // PRODUCTION_SCENES)][:PRODUCTION_SCENES]
    step = entropy.coded(module, task.patches, test_patches(task)).step
    bits = error = 0.0
    for pixels in scenes:
        tiles = torch.from_numpy(pixels / task.places.scale).unfold(1, side, side).unfold(2, side, side)
        patches = tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)
        with torch.no_grad():
            rebuilt = module.decode((module.encode(patches) / step).round() * step)
        reached = psnr(in_dn(task, rebuilt - patches))
        size, decoded = through(pixels, Target(psnr_db=reached))
        bits += 8 * size
        error += float(((decoded - pixels) ** 2).mean()) / len(scenes)
    return {"universal_bits_per_sample": bits / sum(p.size for p in scenes), "universal_psnr_db": psnr(error)}


NOISE = 0.02
"""Standard deviation of the sensor noise that codes are tried with, of a band's scale."""


def noise(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """What sensor noise does to the code: how far it moves (relative to its spread), and the bits that cost.

    Noisy and clean patches are coded with the same tables and the same step.
    """
    test = test_patches(task)
    noisy, _ = corrupt(test, {"gaussian": NOISE}, torch.Generator().manual_seed(2))
    clean = entropy.coded(module, task.patches, test)
    with torch.no_grad():
        known, code, moved = (entropy.per_channel(module.encode(x)) for x in (task.patches, test, noisy))
    tables = entropy.tables_of((known / clean.step).round().int().numpy())
    size = len(entropy.payload((moved / clean.step).round().int().numpy(), tables))
    rate = 8 * size / test.numel()
    return {
        "sensitivity": 100 * float((moved - code).pow(2).mean().sqrt() / code.std(dim=0).pow(2).mean().sqrt()),
        "noisy_bits_per_sample": rate,
        "noise_bits_percent": 100 * (rate / clean.bits_per_sample - 1),
    }


def interpolated(x: Tensor, lost: Tensor) -> Tensor:
    """Lost pixels from the nearest columns left and right of them that are not lost: what operators do without us."""
    out = x.clone()
    side = x.shape[-1]
    for column in range(side):
        gone = lost[..., column]
        total, weight = torch.zeros_like(gone, dtype=x.dtype), torch.zeros_like(gone, dtype=x.dtype)
        for direction in (-1, 1):
            done = torch.zeros_like(gone)
            for away in range(1, side):
                other = column + direction * away
                if not 0 <= other < side:
                    break
                usable = ~lost[..., other] & ~done
                total += torch.where(usable, x[..., other] / away, 0)
                weight += torch.where(usable, torch.tensor(1 / away), 0)
                done |= usable
        out[..., column] = torch.where(gone, total / weight.clamp(min=1e-6), x[..., column])
    return out


def restoring(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """What the network makes of corrupted unseen places; pixels of which nothing was left apart."""
    test = test_patches(task)
    amounts = task.trial.options.get("try", task.trial.corruptions)
    seen, lost = corrupt(test, amounts, torch.Generator().manual_seed(3))
    restored = outputs(module, seen)
    out = {"psnr_db": psnr(in_dn(task, restored - test)), "corrupted_psnr_db": psnr(in_dn(task, seen - test))}
    if lost.any():
        share = float(lost.float().mean())
        plain = interpolated(seen, lost)
        out["lost_psnr_db"] = psnr(in_dn(task, (restored - test) * lost) / share)
        out["interpolated_psnr_db"] = psnr(in_dn(task, (plain - test) * lost) / share)
    return out


def divergence(task: Reconstruct, module: AutoEncoder) -> dict[str, float]:
    """Rate of a variational code, and how far decoded samples of N(0, 1) are from real patches."""
    test = test_patches(task)
    with torch.no_grad():
        mean, log_variance = module.moments(test)
        assert log_variance is not None
        rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1).mean()
        drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
        samples = module.decode(drawn)
    return {"rate_nats": float(rate), "sample_distance": frechet(task.patches, test, samples)}


def frechet(training: Tensor, real: Tensor, made: Tensor, count: int = 16) -> float:
    """Fréchet distance of two sets of patches on the first principal components of a third, in units of their variance:
    the FID's formula on features that know 12 bands."""
    mean, directions, variances = principal_components(training, count)
    whiten = directions / variances[:count, None].sqrt()
    a, b = ((x.flatten(1) - mean) @ whiten.T for x in (real, made))
    first, second = torch.cov(a.T).double(), torch.cov(b.T).double()
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    middle = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = ((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum() + first.trace() + second.trace() - 2 * middle
    return float(distance)


FIGURES: dict[str, Callable[[Any, Any], dict[str, float]]] = {
    one.__name__: one for one in (reconstruction, bits, production, subspace, activity, noise, restoring, divergence)
}
