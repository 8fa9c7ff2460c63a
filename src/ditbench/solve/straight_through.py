"""The straight-through estimator: a hard plan forward, a soft gradient to the costs it was solved from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ditbench.faults import Fault

if TYPE_CHECKING:
    from torch import Tensor


def straight_through(costs: Tensor, choices: Tensor, temperature: float = 1.0) -> Tensor:
    """One-hot `choices` of `costs` [site, level], with the gradient that softmax(-costs / temperature) would have.

    Exactly one-hot: a mask that is computed from it is the solved plan's own.
    """
    if temperature <= 0:
        raise Fault(f"temperature: {temperature:g} must be above 0")
    if costs.ndim != 2 or choices.shape != costs.shape[:1]:
        raise Fault(f"choices must be one level for each of {costs.shape[0]} sites, not of shape {list(choices.shape)}")
    soft = torch.softmax(-costs / temperature, dim=1)
    hard = torch.zeros_like(soft).scatter_(1, choices.to(costs.device)[:, None], 1.0)
    # Not hard + soft - soft.detach(): in floating point that is near to one-hot only.
    return _HardSoft.apply(hard, soft)  # type: ignore[no-any-return, no-untyped-call]


class _HardSoft(torch.autograd.Function):
    @staticmethod
    def forward(context: object, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, gradient
