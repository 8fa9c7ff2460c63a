"""Contracts that every method keeps, and the schedules of each worked out by hand."""

import numpy as np
import pytest
import torch

from ditbench.engine.layout import Layout, Shape
from ditbench.engine.plan import ASK, Plan, full_plan
from ditbench.faults import Fault
from ditbench.methods import get_method, knob_fields, method_names

LAYOUT = Layout.regular(3, ("self", "cross", "mlp"))
SHAPE = Shape(steps=8, layout=LAYOUT, tokens=16)


def full_steps(name: str, steps: int = 8, **knobs: object) -> list[int]:
    plan = get_method(name, knobs).plan(Shape(steps, LAYOUT, 16))
    assert set(np.unique(plan.shares)) <= {0.0, 1.0}
    return np.flatnonzero(plan.shares.all(axis=1)).tolist()


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_what_it_is_and_starts_full(name: str) -> None:
    # A threshold that fits all networks there is none: it has to be given.
    given = {"threshold": 0.1, "tile": 4}
    method = get_method(name, {knob: value for knob, value in given.items() if knob in knob_fields(name)})
    assert method.summary
    assert isinstance(method.paper, str)
    if method.waits():  # what its learner would find: the routers or the shares of all sites
        shares = np.zeros(SHAPE.sites)
        shares[0] = 1
        found = {"keep": np.zeros(SHAPE.sites).tolist(), "shares": shares.tolist()}
        ratios = np.full((4, SHAPE.layout.blocks), 0.2)  # of DiffCR's regions of timesteps
        method = method.knowing({**found, "ratios": ratios.tolist(), "times": [900.0, 600.0, 100.0]})
    plan = method.plan(SHAPE)
    assert plan.shares.shape == (SHAPE.steps, len(plan.units))
    fill = method.parts(SHAPE, torch.Generator()).fill
    assert fill.stateless or np.isin(plan.shares[0], (1, ASK)).all()
    assert all(knob.doc for knob in knob_fields(name).values())


def test_fora_counts_up_or_down() -> None:
    assert full_steps("fora", interval=2) == [0, 2, 4, 6]
    assert full_steps("fora", interval=3) == [0, 3, 6]
    # As published: counted from the last step, the first always full.
    assert full_steps("fora", interval=3, direction="down") == [0, 1, 4, 7]
    assert len(full_steps("fora", steps=50, interval=3, direction="down")) == 18
    assert full_steps("fora", interval=1) == list(range(8))


def test_uniform_tokens_meets_its_ratio_with_a_whole_first_step() -> None:
    plan = get_method("uniform-tokens", {"ratio": 0.43}).plan(SHAPE)
    assert (plan.shares[0] == 1).all()
    assert np.ptp(plan.shares[1:]) == 0
    assert plan.shares.mean() == pytest.approx(0.57)
    assert np.array_equal(get_method("uniform-tokens", {"ratio": 0}).plan(SHAPE).shares, full_plan(SHAPE).shares)
    with pytest.raises(Fault, match=r"of 8 steps at most 0\.88 can be left out"):
        get_method("uniform-tokens", {"ratio": 0.9}).plan(SHAPE)
    with pytest.raises(Fault, match="has no budget: its plan follows from the ratio alone"):
        get_method("uniform-tokens", {"budget": "macs"})


def test_broken_is_full_every_fourth_step_and_shifts_tokens() -> None:
    assert full_steps("broken") == [0, 4]
    assert get_method("broken").fill(SHAPE).shift == 6


def test_fewer_steps_takes_a_share_of_the_steps() -> None:
    assert get_method("fewer-steps", {"share": 0.5}).steps(16) == 8
    assert get_method("fewer-steps", {"share": 0.01}).steps(16) == 1
    assert get_method("full").steps(16) == 16


@pytest.mark.parametrize(
    ("name", "knobs", "says"),
    [
        ("fora", {"interval": 0}, "interval: 0 must be >= 1"),
        ("fora", {"interval": 2.5}, "must be of type int"),
        ("fora", {"interval": True}, "must be of type int"),
        ("fora", {"direction": "left"}, "must be one of up, down"),
        ("fora", {"intervall": 2}, "fora has no knob 'intervall'; it has interval, direction"),
        ("full", {"interval": 2}, "it has none"),
        ("fewer-steps", {"share": 1.5}, "must be <= 1"),
        ("foar", {}, "did you mean 'fora'?"),
        ("teacache", {"threshold": float("inf")}, "threshold: inf must be a finite number"),
        ("teacache", {"threshold": 0.1, "most": 0.0}, "most: 0"),
        ("speca", {"threshold": 0.1, "longest": 2}, "no draft would be checked"),
        ("speca", {"threshold": 0.1, "unchecked": 9, "variant": "paper"}, "no draft would be checked"),
        ("toca", {"bonus": -0.5}, "bonus: -0.5 must be 0 or more"),
        ("duca", {"cell": 0}, "cell: 0 must be 1 or more"),
    ],
)
def test_wrong_knobs_are_one_sentence(name: str, knobs: dict, says: str) -> None:
    with pytest.raises(Fault) as fault:
        get_method(name, knobs)
    assert says in str(fault.value)


def test_all_wrong_knobs_are_named_at_once() -> None:
    with pytest.raises(Fault, match=r"interval.*direction"):
        get_method("fora", {"interval": 0, "direction": "left"})


def test_plans_round_up_and_survive_json() -> None:
    plan = Plan(LAYOUT, LAYOUT.by_branch, np.full(SHAPE.sites, 0.1))
    assert plan.counts(30)[0, 0] == 3
    assert plan.counts(16)[0, 0] == 2
    again = Plan.from_json(plan.to_json())
    assert np.array_equal(again.shares, plan.shares)
    assert (again.layout, again.units) == (plan.layout, plan.units)
    assert full_plan(SHAPE).nominal_ratio == 0
    with pytest.raises(Fault, match="between 0"):
        Plan(LAYOUT, LAYOUT.by_branch, np.full(SHAPE.sites, 1.1))
    with pytest.raises(Fault, match="shape"):
        Plan(LAYOUT, LAYOUT.by_branch, np.ones((2, 2)))
