"""The exact solver against brute force, feasible plans of all kinds, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditbench.faults import Fault
from ditbench.solve import core, exact
from ditbench.solve.core import price
from ditbench.solve.exact import Table
from ditbench.solve.knapsack import Solution, solve_tokens, solve_weights
from ditbench.solve.plans import Space
from ditbench.solve.units import near_unit, units_of

LEVELS = ([0, 1], [0, 0.5, 1], [0, 0.25, 0.5, 0.75, 1], [0, 0.1, 0.4, 1], [0, 1 / 3, 1])


def brute(costs: np.ndarray, loads: np.ndarray) -> dict[float, float]:
    """The least cost of every total."""
    found: dict[float, float] = {}
    for choice in itertools.product(range(costs.shape[1]), repeat=len(costs)):
        picked = list(choice)
        sites = np.arange(len(costs))
        total = round(float(loads[sites, picked].sum()), 6)
        found[total] = min(found.get(total, np.inf), float(costs[sites, picked].sum()))
    return found


def instances(whole: bool) -> st.SearchStrategy[tuple[np.ndarray, list[float], int]]:
    """Costs with ties (whole) or without, levels, and a seed for the total."""

    def make(sites: int, levels: list[float], seed: int, kind: int) -> tuple[np.ndarray, list[float], int]:
        rng = np.random.default_rng(seed)
        size = (sites, len(levels))
        costs = rng.integers(-2, 3, size).astype(float) if whole else rng.normal(size=size) * 10.0**kind
        return costs, levels, seed

    return st.builds(make, st.integers(1, 6), st.sampled_from(LEVELS), st.integers(0, 10_000), st.integers(-3, 6))


@pytest.mark.parametrize("first", [1, 64])
@pytest.mark.parametrize("memory", [1, exact.MEMORY])
@pytest.mark.parametrize("whole", [False, True])
def test_it_is_as_good_as_trying_everything(
    monkeypatch: pytest.MonkeyPatch, first: int, memory: int, whole: bool
) -> None:
    # Few sites at first, so that bounds must decide; little memory, so that rows are made twice.
    monkeypatch.setattr(core, "FIRST", first)
    monkeypatch.setattr(exact, "MEMORY", memory)

    @settings(max_examples=120)
    @given(instances(whole))
    def check(instance: tuple[np.ndarray, list[float], int]) -> None:
        costs, levels, seed = instance
        best = brute(costs, np.broadcast_to(levels, costs.shape))
        total = list(best)[seed % len(best)]
        found = solve_tokens(costs, levels, total)
        assert found.cost == pytest.approx(best[total], rel=1e-9, abs=1e-9)
        assert found.total == pytest.approx(total, abs=1e-5)
        assert found.cost == pytest.approx(costs[np.arange(len(costs)), found.choices].sum())

    check()


@pytest.mark.parametrize("first", [1, 64])
def test_weights_are_met_as_well_as_by_trying_everything(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    monkeypatch.setattr(core, "FIRST", first)

    @settings(max_examples=150)
    @given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.5]))
    def check(sites: int, count: int, seed: int, slack: float) -> None:
        rng = np.random.default_rng(seed)
        costs = rng.normal(size=(sites, count))
        # Sites weigh differently, begin anywhere, and rise unevenly.
        loads = np.sort(rng.integers(0, 30, (sites, count)), axis=1).astype(float)
        best = brute(costs, loads)
        budget = list(best)[seed % len(best)]
        if budget == 0:
            return
        least = min(cost for total, cost in best.items() if budget * (1 - slack) - 1e-9 <= total <= budget)
        found = solve_weights(costs, loads, budget, slack)
        assert found.cost == pytest.approx(least)
        assert budget * (1 - slack) - 1e-6 <= found.total <= budget

    check()


def test_no_feasible_plan_is_better_on_large_instances() -> None:
    rng = np.random.default_rng(0)
    levels = [0, 0.25, 0.5, 0.75, 1]
    for costs in (rng.normal(size=(840, 5)), rng.integers(0, 3, (840, 5)).astype(float), np.zeros((840, 5))):
        found = solve_tokens(costs, levels, 480)
        assert found.total == 480
        space = Space(840, levels, 480)
        for _ in range(20):
            other = space.draw(rng)
            assert costs[np.arange(840), other].sum() >= found.cost - 1e-9
        # Nor is any exchange of two sites' levels.
        units, choice = units_of(np.array(levels)), found.choices
        for _ in range(2000):
            a, b = rng.choice(840, 2, replace=False)
            moved = choice.copy()
            moved[a], moved[b] = choice[b], choice[a]
            assert units[moved].sum() == units[choice].sum()
            assert costs[np.arange(840), moved].sum() >= found.cost - 1e-9


def test_the_bound_is_a_bound_and_of_convex_costs_nearly_met() -> None:
    rng = np.random.default_rng(1)
    levels = np.linspace(0, 1, 5)
    costs = rng.uniform(0.5, 1.5, (500, 1)) * (1 - levels) ** 2
    units = np.broadcast_to(np.arange(5), costs.shape)
    bound = price(costs, units, 1000, 1000).bound
    found = solve_tokens(costs, levels, 250)
    assert bound <= found.cost + 1e-9
    assert found.cost - bound < 0.01


def test_a_table_of_few_rows_in_memory_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    costs, units = rng.normal(size=(50, 4)), np.broadcast_to([0, 1, 3, 4], (50, 4))
    whole = Table(costs, units, 90, 100)
    assert whole.block == 50
    monkeypatch.setattr(exact, "MEMORY", 1)
    parts = Table(costs, units, 90, 100)
    assert parts.block == 8
    assert parts.best(90) == whole.best(90)


def test_equal_costs_are_settled_the_same_way_each_time() -> None:
    costs = np.zeros((200, 5))
    first = solve_tokens(costs, LEVELS[2], 77.25)
    assert first.total == 77.25
    assert (first.choices == solve_tokens(costs, LEVELS[2], 77.25).choices).all()


def test_a_total_between_two_that_levels_come_to_is_the_lower_one() -> None:
    assert solve_tokens(np.zeros((10, 3)), [0, 0.5, 1], 4.7).total == 4.5


def test_rounded_weights_never_come_to_more_than_the_budget() -> None:
    rng = np.random.default_rng(3)
    loads = np.sort(rng.uniform(0, 1, (300, 5)), axis=1)
    for budget in (100.0, 150.0, 200.0):
        found = solve_weights(rng.normal(size=(300, 5)), loads, budget, resolution=3000)
        assert budget * 0.99 <= found.total <= budget
        assert isinstance(found, Solution)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([20, 200]))
def test_weights_that_are_no_multiples_are_met_as_well_as_by_trying_everything(seed: int, resolution: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = np.sort(rng.uniform(0, 1, (2, 3)), axis=1)
    loads, costs = kinds[rng.integers(0, 2, 6)], rng.normal(size=(6, 3))
    least, most = loads[:, 0].sum(), loads[:, -1].sum()
    budget = least + rng.uniform(0.3, 0.9) * (most - least)
    best = [cost for total, cost in brute(costs, loads).items() if budget * 0.8 <= total <= budget]
    found = solve_weights(costs, loads, budget, slack=0.2, resolution=resolution)
    assert budget * 0.8 - 1e-9 <= found.total <= budget + 1e-9
    assert found.cost == pytest.approx(costs[np.arange(6), found.choices].sum())
    assert found.cost >= min(best) - 1e-9
    if resolution == 200:
        assert found.cost <= np.quantile(best, 0.05)


def test_a_unit_is_found_that_suits_all_kinds_of_sites() -> None:
    # Sevenths and ninths of a weight: in 63rds all are whole, in thousandths none.
    loads = np.array([[0.0, 1 / 7, 3 / 7], [0.0, 2 / 9, 1.0]] * 50)
    unit = near_unit(loads, 30.0, 1000)
    assert unit <= 30 / 1000
    off = np.abs(loads / unit - np.rint(loads / unit)).max()
    assert off < 0.1 < np.abs(loads / 0.03 - np.rint(loads / 0.03)).max()
    # Of sites that are all different none suits all.
    assert near_unit(np.random.default_rng(0).uniform(size=(200, 3)), 30.0, 1000) == pytest.approx(0.03)


COSTS = np.ones((4, 3))
NAN = np.array([[1.0, np.nan, 1.0]])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((COSTS, [0, 0.5, 1], 5), "can compute from 0 to 4 times their tokens, not 5"),
        ((COSTS, [0, 0.5, 1], -1), "not -1"),
        ((COSTS, [0, 0.5, 1], float("nan")), "not nan"),
        ((NAN, [0, 0.5, 1], 1), "the cost of site 0 at level 1 is nan"),
        ((COSTS, [0.1, 0.5, 1], 1), r"must begin with 0 \(no token\) and end with 1"),
        ((COSTS, [0, 0.5, 0.9], 1), r"must begin with 0 \(no token\) and end with 1"),
        ((COSTS, [0, 1, 0.5], 1), "ascending"),
        ((COSTS, [0, 1], 1), r"of shape \[sites, 2 levels\], not \[4, 3\]"),
        ((COSTS[:1], [0, 1 / 1009, 1], 1), "no fraction"),
        # Levels that jump over a total with the sites that there are.
        ((np.ones((1, 3)), [0, 0.7, 1], 0.5), "no choice of the levels"),
    ],
)
def test_what_cannot_be_solved_is_one_sentence(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(Fault, match=says):
        solve_tokens(*arguments)


@pytest.mark.parametrize(
    ("weights", "budget", "says"),
    [
        (np.ones((4, 2)), 2, "of the costs' shape"),
        (np.full((4, 3), np.nan), 2, "finite"),
        (np.array([[3.0, 2.0, 1.0]] * 4), 2, "may not fall"),
        (np.array([[1.0, 2.0, 3.0]] * 4), 13, "come to 4 at least and to 12 at most: 13 cannot be met"),
        (np.array([[1.0, 2.0, 3.0]] * 4), 3, "3 cannot be met"),
        (np.array([[0.0, 10.0, 20.0]] * 4), 35, "a larger slack may have one"),
    ],
)
def test_weights_that_cannot_be_met_are_one_sentence(weights: np.ndarray, budget: float, says: str) -> None:
    with pytest.raises(Fault, match=says):
        solve_weights(COSTS if weights.shape[1] == 3 else np.ones((4, 3)), weights, budget)
