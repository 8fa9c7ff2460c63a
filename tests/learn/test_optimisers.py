"""One scale for all costs: their moves keep the proportions of their gradients, which AdamW's do not."""

from __future__ import annotations

import pytest
import torch

from ditbench.learn.optimisers import OPTIMISERS

GRADIENT = torch.tensor([3.0, -0.03, 0.0, 1.5])


def moved(scaling: str, steps: int, gradient: torch.Tensor = GRADIENT) -> torch.Tensor:
    """How far the costs went after some steps along one gradient."""
    costs = torch.zeros(4, requires_grad=True)
    optimiser = OPTIMISERS[scaling]([costs], lr=0.1)
    for _ in range(steps):
        costs.grad = gradient.clone()
        optimiser.step()
    return costs.detach()


@pytest.mark.parametrize("steps", [1, 5])
def test_costs_move_as_much_as_their_gradient_is_of_them_all(steps: int) -> None:
    went = moved("all", steps)
    assert torch.allclose(went / went[0], GRADIENT / GRADIENT[0], atol=1e-5)
    # The mean square of a step is the rate's, however large the gradients are.
    assert went.square().mean().sqrt() == pytest.approx(0.1 * steps, rel=1e-4)
    assert torch.allclose(went, moved("all", steps, 1000 * GRADIENT), rtol=1e-4)


def test_adamw_moves_small_and_large_alike() -> None:
    went = moved("each", 1)
    assert went[0] == pytest.approx(-0.1, rel=1e-4)
    assert went[1] == pytest.approx(0.1, rel=1e-4)


def test_no_gradient_moves_nothing() -> None:
    assert torch.equal(moved("all", 3, torch.zeros(4)), torch.zeros(4))
