"""Several processes that train one model: `torchrun --nproc-per-node N -m downlink.cli train …` (docs/training.md).

Each process draws batches of its own; DistributedDataParallel averages the gradients, so all keep the same weights.
What ends a run (the clock, patience) is decided by process 0 and told to the others: they stop at the same step.
Without torchrun's environment variables there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed, nn

from training.config import ConfigError


def rank() -> int:
    """This process's number; 0 is the one that validates, writes and logs."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def join() -> None:
    """Take part in the group that torchrun has announced, if it has: gloo on CPUs, NCCL on GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """The end of the group."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def device() -> torch.device:
    """This process's GPU where torch finds one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def agreed(*values: float) -> tuple[float, ...]:
    """Process 0's values, in every process."""
    if world() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device())
    distributed.broadcast(shared, 0)
    return tuple(shared.tolist())


def check_same(module: nn.Module) -> None:
    """ConfigError unless all processes have the same weights, as they must after every step."""
    if world() == 1:
        return
    digest = torch.stack([p.detach().double().sum() for p in module.parameters()]).to(device())
    largest, smallest = digest.clone(), digest.clone()
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
    apart = float((largest - smallest).abs().max())
    if apart > 0:
        raise ConfigError(f"{world()} processes ended with different weights (sums up to {apart:.1e} apart)")


class _Loss(nn.Module):
    """A task's loss as a module's forward: what DistributedDataParallel watches."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.module, self.task = task.module, [task]  # in a list: a task is no submodule

    def forward(self, batch: Any, done: float) -> Tensor:
        loss: Tensor = self.task[0].loss(batch, done)
        return loss


def loss_of(task: Any) -> Any:
    """`task.loss`, behind DistributedDataParallel where several processes train together."""
    if world() == 1:
        return task.loss
    return nn.parallel.DistributedDataParallel(_Loss(task), find_unused_parameters=True)
