"""Several processes that learn one thing together: each works on its share of a batch, and their gradients are summed.

torch's launcher starts them (`torchrun --nproc-per-node 2 -m ditbench learn ...`); alone, a process is a team of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")


class Team:
    """The processes that torch's launcher has started with this one; the first in a process says what they work on."""

    def __init__(self, device: str = "cuda") -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1 and not distributed.is_initialized():
            on_gpus = device.startswith("cuda") and torch.cuda.is_available()
            # Gradients lie on the GPUs, losses and mean ratios on the host: each is summed where it is.
            distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")

    @property
    def device(self) -> str:
        """This process's accelerator, where each has one."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if self.size > 1 else "cuda"

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of what all of them go through."""
        return list(items[self.rank :: self.size])

    def portion(self, count: int) -> tuple[list[int], float]:
        """This process's places among so many, and their weight in a mean over all of them.

        Where there are fewer than processes each takes all, so that none waits for another's gradient in vain.
        """
        if count < self.size:
            return list(range(count)), 1 / self.size
        mine = self.share(range(count))
        return mine, len(mine) / count

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Gives every process the sum of all their gradients."""
        if self.size > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self.sum(parameter.grad)

    def total(self, number: float) -> float:
        """The sum of all processes' numbers."""
        return float(self.sum(torch.tensor(number, dtype=torch.float64))) if self.size > 1 else number

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.size > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor
