"""Kullback-Leibler divergence of the code's distribution from N(0, 1) (Kingma, Welling 2014); its weight is beta
(Higgins et al. 2017). In nats per patch: the rate term of a codec, with a fixed prior in place of a learned one."""

from torch import Tensor

from training.config import ConfigError
from training.lab.architectures import Pass


def penalty(one: Pass) -> Tensor:
    if one.log_variance is None:
        raise ConfigError("penalties.normal: the code has no variance; set network.variational = true")
    divergence = 0.5 * (one.mean**2 + one.log_variance.exp() - 1 - one.log_variance)
    return divergence.flatten(1).sum(dim=1).mean()
