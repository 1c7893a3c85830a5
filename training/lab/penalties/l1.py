"""Sum of the code's magnitudes: most of them become zero, which costs next to nothing to send."""

from torch import Tensor

from training.lab.architectures import Pass


def penalty(one: Pass) -> Tensor:
    return one.code.abs().flatten(1).sum(dim=1).mean()
