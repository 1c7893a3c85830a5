"""Patch-PCA warm start: the basis in which 8 x 8 patches of planes are uncorrelated.

A linear autoencoder spans the PCA subspace (Baldi, Hornik 1989), so the codec starts from the closed form instead of
learning it for thousands of steps. The covariance is made symmetric under the picture's eight symmetries: there is no
preferred direction.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.corpus import Sampler
from training.model import PATCH


def patch_basis(sampler: Sampler, batches: int = 24) -> tuple[Tensor, Tensor]:
    """Basis (64, 8, 8), rows orthonormal by falling variance, and each row's deviation relative to its plane's.

    Patches are weighted by 1 / (variance + 1) of their plane (in steps), so that loud planes do not decide alone.
    """
    size = PATCH * PATCH
    total = np.zeros((size, size))
    for _ in range(batches):
        pixels = sampler.draw().pixels.numpy()
        side = pixels.shape[-1] // PATCH * PATCH
        planes = pixels[..., :side, :side].reshape(-1, side, side)
        planes = planes / np.sqrt(planes.var(axis=(1, 2), keepdims=True) + 1.0)
        for turn in range(4):
            turned = np.rot90(planes, turn, axes=(1, 2))
            for view in (turned, turned[:, ::-1]):
                patches = view.reshape(-1, side // PATCH, PATCH, side // PATCH, PATCH).transpose(0, 1, 3, 2, 4)
                patches = patches.reshape(-1, size)[::7]
                total += patches.T @ patches
    variances, vectors = np.linalg.eigh(total)
    order = np.argsort(variances)[::-1]
    basis = vectors[:, order].T
    signs = np.sign(basis.sum(axis=1))
    basis *= np.where(signs == 0, 1, signs)[:, None]
    relative = np.sqrt(np.maximum(variances[order], 0) / max(variances.mean(), 1e-12))
    return torch.from_numpy(basis.reshape(size, PATCH, PATCH).astype(np.float32)), torch.from_numpy(
        relative.astype(np.float32)
    )
