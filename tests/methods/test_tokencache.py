"""TokenCache's plan: full steps, how many tokens of which blocks are left out, and what is said where nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ditbench.engine.layout import Layout, Shape
from ditbench.faults import Fault
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.tokencache import TokenCache, apportioned, at_percentiles, two_phase

SHAPE = Shape(8, Layout.regular(4, ("self", "cross", "mlp")), 100)


def tokencache(**knobs: Any) -> TokenCache:
    method = get_method("tokencache", knobs)
    assert isinstance(method, TokenCache)
    return method


def full(steps: int, **knobs: Any) -> list[int]:
    return np.flatnonzero(tokencache(schedule="two-phase", **knobs).full(steps, None)).tolist()


def test_the_two_phase_round_robin_is_as_published() -> None:
    assert full(50) == [*range(0, 25, 4), *range(25, 50, 2)]  # 0, 4, …, 24 and then 25, 27, …, 49
    assert full(20) == [0, 4, 8, 10, 12, 14, 16, 18]
    assert full(8, phase=0.0, late=3) == [0, 3, 6]
    assert full(8, phase=1.0, early=3) == [0, 3, 6]
    assert full(6, early=1, late=1) == list(range(6))
    assert two_phase(1, 0, 4, 2).tolist() == [True]


def test_full_steps_lie_where_weights_added_up_reach_equal_parts() -> None:
    assert np.flatnonzero(at_percentiles(np.ones(12), 4)).tolist() == [0, 3, 6, 9]
    # 1, 1, 1, 1, 4, 4 in three parts of 4: before the steps it is 0, 1, 2, 3, 4, 8.
    assert np.flatnonzero(at_percentiles(np.array([1.0, 1, 1, 1, 4, 4]), 3)).tolist() == [0, 4, 5]
    # One step of nearly all the weight cannot be full three times.
    assert np.flatnonzero(at_percentiles(np.array([0.1, 9.0, 0.1, 0.1, 0.1]), 4)).tolist() == [0, 2, 3, 4]
    assert at_percentiles(np.ones(5), 5).all()


def test_as_many_steps_are_full_at_percentiles_as_in_two_phases() -> None:
    method = tokencache(variant="v2")
    assert method.full(50, np.linspace(2, 1, 50)).sum() == 20
    assert tokencache(variant="v2", full_steps=7).full(50, np.ones(50)).sum() == 7


@pytest.mark.parametrize("seed", range(5))
def test_whole_numbers_come_to_their_total(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted, total = rng.exponential(size=9), int(rng.integers(0, 9 * 20 + 1))
    counts = apportioned(wanted, total, 20)
    assert counts.sum() == total
    assert (counts >= 0).all() and (counts <= 20).all()
    free = (counts > 0) & (counts < 20)
    if free.any():  # in proportion, but for the rounding
        scale = counts[free].sum() / wanted[free].sum()
        assert np.abs(counts[free] - scale * wanted[free]).max() <= 1 + 1e-9


def test_whole_numbers_that_are_right_stay() -> None:
    assert apportioned(np.array([3.0, 5.0, 2.0]), 10, 6).tolist() == [3, 5, 2]
    assert apportioned(np.zeros(3), 5, 6).tolist() == [2, 2, 1]
    assert apportioned(np.array([100.0, 1.0, 1.0]), 10, 6).tolist() == [6, 2, 2]


def test_the_first_version_leaves_tokens_out_in_blocks_of_least_weight() -> None:
    method = tokencache(variant="v1", ratio=0.4, chosen=0.5)
    importance = np.tile(np.array([0.5, 0.2, 0.9, 0.3]), (8, 1))
    counts = method.counts(SHAPE, importance, importance)
    # 240 of 400 tokens are computed: all of the two blocks of greatest weight, and 40 from the two others.
    assert counts[1].tolist() == [100, 20, 100, 20]
    shares = method.shares(SHAPE, importance, importance)
    assert shares[3].tolist() == [1.0] * 3 + [0.2] * 3 + [1.0] * 3 + [0.2] * 3
    assert np.flatnonzero((shares == 1).all(axis=1)).tolist() == [0, 4, 6]


def test_the_journal_s_leaves_out_the_least_of_all_and_none_of_the_last_blocks() -> None:
    method = tokencache(variant="v2", ratio=0.5, last=1, schedule="two-phase")
    wanted = np.tile(np.array([90.0, 0.0, 60.0]), (8, 1))
    assert method.counts(SHAPE, wanted, wanted)[1].tolist() == [90, 0, 60]
    plan = method.knowing({"shares": method.shares(SHAPE, wanted, wanted).tolist()}).plan(SHAPE)
    assert len(plan.units) == 4
    assert plan.counts(100)[1].tolist() == [90, 0, 60, 100]
    assert plan.counts(100)[4].tolist() == [100] * 4


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_a_ratio_is_of_the_tokens_of_steps_between_full_ones(variant: str, ratio: float) -> None:
    method = tokencache(variant=variant, ratio=ratio, chosen=1.0, last=0)
    rng = np.random.default_rng(0)
    counts = method.counts(SHAPE, rng.random((8, 4)), 100 * rng.random((8, 4)))
    assert (counts.sum(1) == round((1 - ratio) * 400)).all()


def test_what_nothing_was_learned_for_says_what_its_cost_needs() -> None:
    with pytest.raises(Fault, match=r"tokencache must be fitted first.*`allocation: even` and `schedule: two-phase`"):
        count_macs("scenes", tokencache())
    costs = []
    for keys in ("stale", "drop"):
        method = tokencache(allocation="even", schedule="two-phase", last=0, keys=keys, ratio=0.5)
        costs.append(count_macs("scenes", method))
    whole = count_macs("scenes", get_method("full"))
    # Five of ten steps are full (0, 4, 5, 7, 9), the others compute half of the tokens.
    assert costs[0]["realised_ratio"] == pytest.approx(0.25)
    assert costs[0]["linear"] == costs[1]["linear"] < whole["linear"]
    assert costs[1]["attention"] < costs[0]["attention"] < whole["attention"]
    assert costs[0]["cache_bytes"] > costs[1]["cache_bytes"]
    # The predictor is a block of eight, in five steps of ten.
    assert costs[0]["selecting"] == pytest.approx(whole["total"] / 16, rel=0.1)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"variant": "v1", "ratio": 0.95}, "ratio: 0.95 of all tokens cannot be left out in 0.9 of the blocks"),
        ({"variant": "v1", "rank": 4}, "rank: additions are of the last blocks, and `last` keeps none"),
    ],
)
def test_settings_that_mean_nothing_are_faults(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said):
        tokencache(**knobs)


def test_plans_of_other_runs_are_refused() -> None:
    method = tokencache().knowing({"shares": np.ones((4, 12)).tolist()})
    with pytest.raises(Fault, match="the predictor's plan is of 4 steps and 12 branches, this run has 8 and 12"):
        method.plan(SHAPE)
    with pytest.raises(Fault, match="last: 4 of 4 blocks leave none"):
        tokencache(last=4).blocks(SHAPE)
