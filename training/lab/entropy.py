"""Bits of a code after the real entropy coder: rounded, coded by downlink's rANS with integer tables, counted in bytes.

Tables are histograms of the training patches' codes, one per channel, as a bundle would ship them; what they have not
seen escapes. The step is the largest at which rounding costs no more than 0.2 dB of PSNR, so networks are compared by
what their codes cost, not by how coarsely they happen to be rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downlink.rans import ENTRIES
from downlink.symbol import SymbolEncoder
from downlink.table import FRACTIONS, Tables
from training.lab.architectures import AutoEncoder

COST_DB = 0.2
CHANNELS_MOST = 254
"""Scale indices are bytes; channels beyond share the last table."""


@dataclass(frozen=True)
class Coded:
    """Bits per sample of the patches, the step, and the mean squared error (scaled units) of what is decoded."""

    bits_per_sample: float
    step: float
    mse: float


def tables_of(symbols: NDArray[np.int32]) -> Tables:
    """Tables from symbols (n, channels): their histograms, smoothed so that any neighbour can be coded."""
    pmfs = []
    for channel in symbols.T[:CHANNELS_MOST]:
        low, high = (int(v) for v in np.quantile(channel, (0.0005, 0.9995)).round())
        low, high = low - 1, min(high + 1, low + ENTRIES - 4)
        inside = channel[(channel >= low) & (channel <= high)]
        weights = np.bincount(inside - low, minlength=high - low + 1) + 0.02
        pmfs.append((low, np.append(weights, 0.02 + len(channel) - len(inside))))
    route = np.full((len(pmfs) + 1, FRACTIONS), -1, np.int16)
    route[1:] = np.arange(len(pmfs))[:, None]
    return Tables.from_pmfs(pmfs, route, np.zeros(len(pmfs) + 1, np.uint8))


def payload(symbols: NDArray[np.int32], tables: Tables) -> bytes:
    """Symbols (n, channels) as the bytes that would be sent."""
    count, channels = symbols.shape
    index = np.minimum(np.arange(1, channels + 1), min(channels, CHANNELS_MOST)).astype(np.uint8)
    encoder = SymbolEncoder(tables)
    flat = symbols.ravel()
    encoder.add(flat, np.tile(index, count), np.zeros(len(flat), np.int32))
    return encoder.finish()


def per_channel(code: Tensor) -> Tensor:
    """Codes as (n, channels): places of a convolutional code one below the other."""
    return code.movedim(1, -1).reshape(-1, code.shape[1])


def coded(network: AutoEncoder, training: Tensor, patches: Tensor, seen: Tensor | None = None) -> Coded:
    """Code `patches` (n, bands, side, side), or what is `seen` of them, with tables made from `training`."""
    network.eval()
    with torch.no_grad():
        known = network.encode(training)
        code = network.encode(patches if seen is None else seen)
        spread = float(per_channel(known).std(dim=0).mean()) or 1.0
        exact = float(((network.decode(code) - patches) ** 2).mean())
        step, mse = 2.0 * spread, exact
        for _ in range(24):
            mse = float(((network.decode((code / step).round() * step) - patches) ** 2).mean())
            if mse <= exact * 10 ** (COST_DB / 10):
                break
            step /= 2**0.5
    whole, learned = ((per_channel(c) / step).round().int().numpy() for c in (code, known))
    size = len(payload(whole, tables_of(learned)))
    return Coded(8 * size / patches.numel(), step, mse)
