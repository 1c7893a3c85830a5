"""Kullback-Leibler divergence of each unit's mean activity from 5 % (Ng, Sparse autoencoder, CS294A notes): units of a
sigmoid code are to be quiet most of the time."""

import torch
from torch import Tensor

from training.lab.architectures import Pass

TARGET = 0.05


def penalty(one: Pass) -> Tensor:
    mean = one.code.flatten(2).mean(dim=(0, 2)) if one.code.dim() > 2 else one.code.mean(dim=0)
    mean = mean.clamp(1e-4, 1 - 1e-4)
    divergence = TARGET * torch.log(TARGET / mean) + (1 - TARGET) * torch.log((1 - TARGET) / (1 - mean))
    return divergence.sum()
