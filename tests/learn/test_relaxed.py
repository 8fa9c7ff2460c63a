"""Runs that plans are learned through: equal to the plan's own run, with gradients that finite differences confirm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ditbench.backbones import Backbone
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.scored import ScoredTokens
from ditbench.learn.gates import LevelGates, StepGates
from ditbench.learn.relaxed import RelaxedRun
from ditbench.methods.diffsparse import DiffSparse
from tests.backbones.networks import inputs, make

NAMES = ("pixart", "dit", "sd3", "sd3.5-medium", "flux-dev", "wan")
STEPS, BATCH = 3, 2
# Families that compute parts in single precision whatever they are given, and the change of a gate that shows there: a
# smaller one drowns in rounding, a larger one changes which tokens are computed.
SINGLE = {"sd3.5-medium": 1e-3, "flux-dev": 1e-2, "wan": 1e-2}


def method_for(name: str) -> DiffSparse:
    return DiffSparse(score="attention" if name != "pixart" else "auto", cell=2)


def some_levels(backbone: Backbone, seed: int = 0) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 5, (STEPS, len(backbone.layout)))
    levels[0] = 4
    return levels


def answers(backbone: Backbone, name: str, run: Any) -> list[torch.Tensor]:
    found = []
    with attached(run):
        for step in range(STEPS):
            found.append(backbone.network(**inputs(backbone, name, step, BATCH))[0])
            run.advance()
    return found


def relaxed(
    backbone: Backbone, name: str, levels: np.ndarray, gates: Any, halves: int = 1, checkpointing: bool = True
) -> RelaxedRun:
    method = method_for(name)
    shape = backbone.shape(STEPS, **inputs(backbone, name, 0, BATCH))
    plan = method.plan_of(shape, np.array(method.candidates)[levels])

    def selector() -> ScoredTokens:
        return method.selecting(plan, shape, torch.Generator(), always=True)

    return RelaxedRun(backbone, plan, shape.tokens, gates, selector, halves, checkpointing=checkpointing)


def counts_of(backbone: Backbone, name: str) -> list[int]:
    tokens = backbone.tokens(**inputs(backbone, name, 0, BATCH))
    return [-(-tokens * level // 4) for level in range(5)]


def one_hot(levels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(levels), 5).double()


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_relaxed_run_gives_what_its_plan_gives(name: str, halves: int) -> None:
    backbone = make(name, torch.float64)
    levels = some_levels(backbone)
    method = method_for(name)
    shape = backbone.shape(STEPS, **inputs(backbone, name, 0, BATCH))
    plan = method.plan_of(shape, np.array(method.candidates)[levels])
    run = Run(
        backbone,
        plan,
        shape.tokens,
        lambda: Parts(method.fill(shape), method.selecting(plan, shape, torch.Generator())),
        by_itself=False,
        halves=halves,
    )
    with torch.no_grad():
        expected = answers(backbone, name, run)
    gates = LevelGates(one_hot(levels).requires_grad_(), counts_of(backbone, name), [True, False, False])
    found = answers(backbone, name, relaxed(backbone, name, levels, gates, halves))
    for own, theirs in zip(found, expected, strict=True):
        assert own.requires_grad or own is found[0]
        # Parts in single precision round to about 1e-7, a few dozen of them one after the other.
        near = 1e-5 if name in SINGLE else 1e-9
        torch.testing.assert_close(own.detach(), theirs, rtol=near, atol=near)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_what_finite_differences_say(name: str) -> None:
    backbone = make(name, torch.float64)
    levels = some_levels(backbone, 1)
    picked = one_hot(levels).requires_grad_()

    def loss(values: torch.Tensor) -> torch.Tensor:
        gates = LevelGates(values, counts_of(backbone, name), [True, False, False])
        return answers(backbone, name, relaxed(backbone, name, levels, gates))[-1].square().sum()

    (gradient,) = torch.autograd.grad(loss(picked), picked)
    assert (gradient[0] == 0).all(), "the first step has nothing to decide"
    generator = np.random.default_rng(2)
    for _ in range(6):
        step, branch = int(generator.integers(1, STEPS)), int(generator.integers(len(backbone.layout)))
        level = int(generator.integers(1, 5))
        apart = torch.zeros_like(picked)
        size = SINGLE.get(name, 1e-5)
        apart[step, branch, level] = size
        with torch.no_grad():
            rise = float(loss(picked + apart) - loss(picked - apart)) / (2 * size)
        near = {"rel": 2e-3, "abs": 1e-2} if name in SINGLE else {"rel": 1e-4, "abs": 1e-7}
        assert rise == pytest.approx(float(gradient[step, branch, level]), **near)


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_are_not_run_again_have_the_same_gradients(name: str) -> None:
    backbone = make(name, torch.float64)
    levels = some_levels(backbone, 2)
    found = []
    for checkpointing in (True, False):
        picked = one_hot(levels).requires_grad_()
        gates = LevelGates(picked, counts_of(backbone, name), [True, False, False])
        last = answers(backbone, name, relaxed(backbone, name, levels, gates, checkpointing=checkpointing))[-1]
        found += torch.autograd.grad(last.square().sum(), picked)
    assert (found[0][1:] != 0).any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_no_level_of_no_token_has_no_effect() -> None:
    backbone = make("pixart", torch.float64)
    levels = some_levels(backbone)
    picked = one_hot(levels).requires_grad_()
    gates = LevelGates(picked, counts_of(backbone, "pixart"), [True, False, False])
    answers(backbone, "pixart", relaxed(backbone, "pixart", levels, gates))[-1].sum().backward()
    assert picked.grad is not None
    assert (picked.grad[..., 0] == 0).all()
    assert (picked.grad[1:, :, 1:] != 0).any()


def test_steps_may_be_whole_or_as_the_plan_has_them() -> None:
    backbone = make("pixart", torch.float64)
    between = some_levels(backbone)
    counts = np.array(counts_of(backbone, "pixart"))[between].tolist()
    levels = between.copy()
    levels[2] = 4
    picked = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    found = answers(backbone, "pixart", relaxed(backbone, "pixart", levels, StepGates(picked, counts)))
    # A whole step is the network's own, whatever came before it.
    own = backbone.network(**inputs(backbone, "pixart", 2, BATCH))[0]
    torch.testing.assert_close(found[2].detach(), own, rtol=1e-9, atol=1e-10)
    (found[1].square().sum() + found[2].square().sum()).backward()
    assert picked.grad is not None
    assert (picked.grad[0] == 0).all() and (picked.grad[1:] != 0).all()
