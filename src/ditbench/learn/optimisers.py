"""What moves costs along their gradient: AdamW, or its form with one scale for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SharedScale(torch.optim.Optimizer):
    """Adam whose second moment is the mean over a parameter, not each entry's own.

    Adam moves every entry by about its rate, however small its gradient is: after a few steps costs tell how often
    their gradient had one sign, not how much they matter. Here an entry moves as much as its gradient is of them all.
    """

    def __init__(self, parameters: list[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], first, second)

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, first: float, second: float) -> None:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros((), device=parameter.device)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].lerp_(gradient.square().mean(), 1 - second)
        count = float(state["step"])
        size = (state["exp_avg_sq"] / (1 - second**count)).sqrt() + 1e-12
        parameter -= rate / (1 - first**count) * state["exp_avg"] / size


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"each": torch.optim.AdamW, "all": SharedScale}
