"""Terms beside the reconstruction error. A penalty is a module with one function, named in a config by its file's name:

    penalty(one: Pass) -> Tensor    a scalar, averaged over the batch

`[penalties] l1 = 0.02` adds 0.02 times what l1.py says.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from training.config import ConfigError


def find(name: str) -> Callable[[Any], Tensor]:
    """The penalty called `name`."""
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"penalties: there is no training/lab/penalties/{name}.py") from error
    found: Callable[[Any], Tensor] = module.penalty
    return found
