"""Searches over choices of one total, and the estimator that lets a solved plan be learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditbench.faults import Fault
from ditbench.solve.genetic import genetic_search
from ditbench.solve.knapsack import solve_tokens
from ditbench.solve.plans import Space
from ditbench.solve.random_search import random_search
from ditbench.solve.straight_through import straight_through

LEVELS = [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("levels", [LEVELS, [0, 1], [0, 0.3, 0.7, 1]])
def test_what_is_drawn_meets_the_total(levels: list[float]) -> None:
    rng = np.random.default_rng(0)
    space = Space(30, levels, 12)
    drawn = [space.draw(rng) for _ in range(50)]
    assert all(np.array(levels)[choice].sum() == pytest.approx(12) for choice in drawn)
    assert len({tuple(choice.tolist()) for choice in drawn}) == 50


def test_what_is_drawn_of_weights_lies_between_the_ends() -> None:
    rng = np.random.default_rng(0)
    # Branches of two kinds; the second weighs something as soon as any token is computed.
    loads = np.tile([[0.0, 1.1, 2.2, 3.3], [0.0, 2.5, 3.1, 4.0]], (20, 1))
    space = Space.of_weights(loads, 77.6, 78.0)
    drawn = [space.draw(rng) for _ in range(50)]
    assert all(77.6 <= loads[np.arange(40), choice].sum() <= 78.0 + 1e-9 for choice in drawn)
    assert len({tuple(choice.tolist()) for choice in drawn}) == 50
    with pytest.raises(Fault, match="come to 0 at least and to 146 at most, not to 150"):
        Space.of_weights(loads, 149.0, 150.0)
    with pytest.raises(Fault, match=r"no choice of these weights was found that comes to 1 to 1\.05"):
        Space.of_weights(loads[:4], 1.0, 1.05).draw(rng)


def test_what_meets_the_total_is_not_mended() -> None:
    space, rng = Space(4, LEVELS, 2), np.random.default_rng(0)
    choice = np.array([4, 4, 0, 0])
    assert (space.mend(choice, rng) == choice).all()


def test_searches_keep_to_the_total_and_find_the_best_of_a_small_space() -> None:
    costs = np.random.default_rng(4).normal(size=(5, 5))
    asked: list[np.ndarray] = []

    def fitness(choice: np.ndarray) -> float:
        asked.append(choice)
        return float(costs[np.arange(5), choice].sum())

    best = solve_tokens(costs, LEVELS, 2.5).cost
    genetic = genetic_search(fitness, Space(5, LEVELS, 2.5), generations=30, mutation=0.1)
    assert genetic.fitness == pytest.approx(best)
    assert len(asked) == len(genetic.history) == 50 + 30 * 25
    by_chance = random_search(fitness, Space(5, LEVELS, 2.5), measurements=3000)
    assert by_chance.fitness == pytest.approx(best)
    assert all(np.array(LEVELS)[choice].sum() == 2.5 for choice in asked)
    for found in (genetic, by_chance):
        assert found.history == sorted(found.history, reverse=True)
        assert found.fitness == found.history[-1] == fitness(found.choices)


def test_a_seed_searches_the_same_way_again() -> None:
    costs = np.random.default_rng(5).normal(size=(40, 5))

    def fitness(choice: np.ndarray) -> float:
        return float(costs[np.arange(40), choice].sum())

    again = [genetic_search(fitness, Space(40, LEVELS, 20), generations=3, seed=7).history for _ in range(2)]
    assert again[0] == again[1] != genetic_search(fitness, Space(40, LEVELS, 20), generations=3, seed=8).history
    # Breeding helps: better than as many choices by chance.
    bred = genetic_search(fitness, Space(40, LEVELS, 20), generations=20)
    assert bred.fitness < random_search(fitness, Space(40, LEVELS, 20), measurements=len(bred.history)).fitness


def test_searches_refuse_what_makes_no_sense() -> None:
    with pytest.raises(Fault, match="the fitness of a choice is nan"):
        random_search(lambda choice: float("nan"), Space(4, LEVELS, 2), 1)
    with pytest.raises(Fault, match="a population of 1"):
        genetic_search(lambda choice: 0.0, Space(4, LEVELS, 2), 1, population=1)
    with pytest.raises(Fault, match="mutation: 2"):
        genetic_search(lambda choice: 0.0, Space(4, LEVELS, 2), 1, mutation=2)
    with pytest.raises(Fault, match="measurements: 0"):
        random_search(lambda choice: 0.0, Space(4, LEVELS, 2), 0)
    with pytest.raises(Fault, match="not 5"):
        random_search(lambda choice: 0.0, Space(4, LEVELS, 5), 1)


# --- the estimator ---


def test_forward_is_the_plan_and_backward_is_softmaxs() -> None:
    costs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    choices = torch.from_numpy(solve_tokens(costs.detach().numpy(), LEVELS, 3).choices)
    upstream = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = straight_through(costs, choices, temperature=0.5)
    assert set(mask.detach().unique().tolist()) == {0.0, 1.0}
    assert (mask.argmax(1) == choices).all()
    (mask * upstream).sum().backward()
    # By hand: of p = softmax(-c / t), dp_j / dc_i = -(p_j [i = j] - p_i p_j) / t.
    p = torch.softmax(-costs.detach() / 0.5, 1)
    by_hand = -p * (upstream - (p * upstream).sum(1, keepdim=True)) / 0.5
    assert costs.grad is not None
    assert torch.allclose(costs.grad, by_hand)


def test_learning_through_the_estimator_finds_what_sites_need() -> None:
    """Costs that are learned only through solved plans come to prefer the plan that hurts least."""
    need = np.random.default_rng(6).uniform(0.1, 3, 12)
    harm = torch.from_numpy(need[:, None] * (1 - np.array(LEVELS)) ** 2)  # what leaving out tokens costs at each site
    costs = torch.zeros(12, 5, dtype=torch.float64, requires_grad=True)
    # Not Adam, which evens out the gradients' sizes, in which the sites differ; and few steps: soft plans know of no
    # budget, and in the end all of them compute everything.
    optimiser = torch.optim.SGD([costs], lr=0.1)
    for _ in range(20):
        choices = torch.from_numpy(solve_tokens(costs.detach().numpy(), LEVELS, 6).choices)
        optimiser.zero_grad()
        (straight_through(costs, choices) * harm).sum().backward()
        optimiser.step()
    learned = solve_tokens(costs.detach().numpy(), LEVELS, 6).choices
    best = solve_tokens(harm.numpy(), LEVELS, 6)
    even = float(harm[:, 2].sum())
    reached = float(harm[torch.arange(12), torch.from_numpy(learned)].sum())
    assert best.cost - 1e-9 <= reached < best.cost + 0.2 * (even - best.cost)


@pytest.mark.parametrize(("choices", "temperature", "says"), [(3, 1.0, "one level for each"), (6, 0.0, "above 0")])
def test_the_estimator_refuses_what_does_not_fit(choices: int, temperature: float, says: str) -> None:
    with pytest.raises(Fault, match=says):
        straight_through(torch.zeros(6, 5), torch.zeros(choices, dtype=torch.long), temperature)
