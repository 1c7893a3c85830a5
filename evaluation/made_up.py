"""A picture that is nobody's, for machines that have no imagery: fields, roads, noise, in 12 bands that resemble one
another. Seeded, so that two machines profile the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BANDS = 12
SIDE = 512


def picture(bands: int = BANDS, side: int = SIDE) -> NDArray[np.uint16]:
    """(bands, side, side), like reflectances times 10000: about as many bits per sample as real land at equal error."""
    random = np.random.default_rng(20261121)
    y, x = np.mgrid[0:side, 0:side].astype(np.float64)
    smooth = sum(np.sin(y / a + x / b) for a, b in random.uniform(15, 90, (6, 2)) * random.choice([-1, 1], (6, 2)))
    fields = random.normal(size=(side // 24 + 1, side // 32 + 1)).repeat(24, 0).repeat(32, 1)[:side, :side]
    texture = random.normal(size=(2, side, side))
    parts = np.stack([np.asarray(smooth), fields, *texture])
    gains = random.uniform(0.5, 1.5, (bands, len(parts))) * np.array([160, 350, 45, 25])
    mixed = 1800 + np.tensordot(gains, parts, 1) + random.normal(scale=10, size=(bands, side, side))
    return np.clip(np.rint(mixed), 1, 10_000).astype(np.uint16)
