"""The end of guidance: what the pipeline sees, what is computed, and T-GATE, which caches with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ditbench.engine.fills import Key, ReuseMean
from ditbench.engine.guidance import guided_steps
from ditbench.engine.layout import Layout, Shape
from ditbench.engine.run import Run, attached
from ditbench.faults import Fault
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.sampling import run_of
from tests.backbones.networks import NETWORKS, inputs, make

BATCHED = [name for name in NETWORKS if not name.startswith(("flux", "wan"))]
SHAPE = Shape(20, Layout.regular(28, ("self", "cross", "mlp")), 256)


def guided_inputs(name: str, step: int) -> dict[str, Any]:
    """A batch of two images, each under both branches of guidance: the same latent, other conditions."""
    given = inputs(make(name), name, step, 4)
    latent = given["hidden_states"]
    return {**given, "hidden_states": torch.cat([latent[:2], latent[:2]])}


def sample(name: str, method: str, knobs: dict[str, Any], steps: int, halves: int = 2) -> tuple[Run, list[Any]]:
    backbone = make(name)
    shape = backbone.shape(steps, **guided_inputs(name, 0))
    run = run_of(get_method(method, knobs), backbone, shape, halves=halves)
    found = []
    with attached(run):
        found = [backbone.network(**guided_inputs(name, step))[0] for step in range(steps)]
    return run, found


@pytest.mark.parametrize("name", BATCHED)
def test_after_the_gate_both_branches_are_the_conditional_answer(name: str) -> None:
    backbone = make(name)
    run, found = sample(name, "cfg-off", {"gate": 2}, 4)
    conditional = slice(2, 4) if backbone.conditional_second else slice(0, 2)
    assert backbone.conditional_second == (not name.startswith("dit"))
    for step, answer in enumerate(found):
        whole = backbone.network(**guided_inputs(name, step))[0]
        if step < 2:
            assert torch.equal(answer, whole)
        else:
            assert torch.allclose(
                answer[:2], whole[conditional], rtol=1e-4, atol=1e-4
            )  # another batch rounds otherwise
            assert torch.equal(answer[:2], answer[2:])
            assert not torch.allclose(whole[:2], whole[2:], atol=1e-3)
    assert run.trace.entered.tolist() == [4, 4, 2, 2]
    assert run.trace.realised_ratio == 0.25


def test_where_branches_are_called_one_after_the_other_the_second_call_costs_nothing() -> None:
    backbone = make("wan")
    first = inputs(backbone, "wan", 0, 2)
    run = run_of(get_method("cfg-off", {"gate": 1}), backbone, backbone.shape(3, **first), by_itself=False)
    with attached(run):
        for step in range(3):
            conditional = backbone.network(**inputs(backbone, "wan", step, 2))[0]
            other = backbone.network(**inputs(backbone, "wan", step + 10, 2))[0]
            assert torch.equal(conditional, other) == (step >= 1)
            run.advance()
    assert run.trace.entered.tolist() == [4, 2, 2]


def test_guidance_that_is_not_there_cannot_end() -> None:
    with pytest.raises(Fault, match="no guidance here to end"):
        sample("flux-dev", "cfg-off", {"gate": 1}, 2, halves=1)
    with pytest.raises(Fault, match="flux-schnell-256 samples without"):
        count_macs("flux-schnell-256", get_method("cfg-off", {"gate": 1}))


@pytest.mark.parametrize("wrong", [[False, False], [True, False, True], [True]])
def test_guidance_lasts_from_the_first_step_to_some_step(wrong: list[bool]) -> None:
    with pytest.raises(Fault, match="from the first step to some step"):
        guided_steps(wrong, 3 if len(wrong) == 3 else 2)


def test_a_fill_that_holds_two_branches_and_cannot_part_with_one_is_refused() -> None:
    from ditbench.engine.fills import Pass
    from ditbench.engine.plan import full_plan
    from ditbench.engine.run import Parts

    backbone = make("pixart")
    shape = backbone.shape(2, **guided_inputs("pixart", 0))
    with pytest.raises(Fault, match="a Pass cannot go on"):
        Run(backbone, full_plan(shape), shape.tokens, lambda: Parts(Pass()), halves=2, guided=[True, False])


# --- T-GATE ---


def test_t_gate_follows_the_published_schedule() -> None:
    plan = get_method("t-gate", {"gate": 10, "before": 5, "after": 3, "warmup": 2}).plan(SHAPE)
    whole = {
        name: np.flatnonzero(plan.shares[:, plan.layout.name_of == name].all(1)).tolist() for name in SHAPE.layout.names
    }
    assert whole["cross"] == list(range(10))
    # Warm-up 0 to 2, every fifth, the step before the gate, and every third after it.
    assert whole["self"] == [0, 1, 2, 5, 9, 12, 15, 18]
    assert whole["mlp"] == list(range(20))


def test_t_gate_costs_what_the_facts_say() -> None:
    counted = count_macs("pixart-alpha-256", get_method("t-gate", {}))
    # 3.625 T for both branches where text is projected in every step; we leave that out where nothing attends to it:
    # ten steps of 120 tokens through 4,096 x 1,152 and 1,152 x 1,152 weights.
    text = 10 * 120 * (4096 * 1152 + 1152 * 1152)
    assert 2 * counted["linear"] + text == pytest.approx(3.625e12, rel=2e-4)
    alone = count_macs("pixart-alpha-256", get_method("cfg-off", {"gate": 10}))
    full = count_macs("pixart-alpha-256", get_method("full", {}))
    share = (full["linear"] - alone["linear"]) / (full["linear"] - counted["linear"])
    assert share == pytest.approx(0.68, abs=0.01)


@pytest.mark.parametrize("name", ["pixart", "wan"])
def test_a_gate_that_never_comes_is_the_network_to_the_last_bit(name: str) -> None:
    backbone = make(name)
    _, found = sample(name, "t-gate", {"gate": 9, "before": 1}, 3)
    for step, answer in enumerate(found):
        assert torch.equal(answer, backbone.network(**guided_inputs(name, step))[0])


def test_at_the_gate_what_was_kept_becomes_the_mean_of_both_branches() -> None:
    fill = ReuseMean()
    kept = torch.tensor([[[1.0]], [[2.0]], [[5.0]], [[8.0]]])
    fill.keep(Key(1, "image"), 0, kept)
    fill.end_guidance(slice(2, 4), None)
    assert fill.supply(Key(1, "image"), 1).flatten().tolist() == [3.0, 5.0]  # type: ignore[union-attr]
    one, other = ReuseMean(), ReuseMean()
    one.keep(Key(1, "image"), 0, kept[:2])
    other.keep(Key(1, "image"), 0, kept[2:])
    one.end_guidance(slice(None), other)
    assert one.supply(Key(1, "image"), 1).flatten().tolist() == [3.0, 5.0]  # type: ignore[union-attr]


def test_t_gate_goes_on_with_one_branch() -> None:
    run, found = sample("pixart", "t-gate", {"gate": 2, "after": 2}, 5)
    assert run.trace.entered.tolist() == [4, 4, 2, 2, 2]
    cross = run.trace.ran[:, run.plan.layout.name_of == "cross"].max(1)
    assert cross.tolist() == [4, 4, 0, 0, 0]
    assert all(torch.isfinite(answer).all() for answer in found)
    assert torch.equal(found[3][:2], found[3][2:])


@pytest.mark.parametrize("name", [name for name in BATCHED if not name.startswith("pixart")])
def test_without_cross_attention_t_gate_spares_self_attention_and_guidance(name: str) -> None:
    run, found = sample(name, "t-gate", {"gate": 4, "before": 2, "after": 2, "warmup": 0}, 6)
    assert run.trace.entered.tolist() == [4, 4, 4, 4, 2, 2]
    attends = run.trace.ran[:, np.char.startswith(run.plan.layout.name_of.astype(str), ("attn", "self")[name == "dit"])]
    assert attends.max(1).tolist() == attends.min(1).tolist() == [4, 0, 4, 4, 2, 0]
    assert (run.trace.ran[:, run.plan.layout.name_of == "mlp"] == run.trace.entered[:, None]).all()
    assert all(torch.isfinite(answer).all() for answer in found)


def test_without_guidance_t_gate_ends_cross_attention_alone() -> None:
    run, _ = sample("pixart", "t-gate", {"gate": 2}, 4, halves=1)
    assert run.trace.entered.tolist() == [4, 4, 4, 4]
    assert run.trace.ran[:, run.plan.layout.name_of == "cross"].max(1).tolist() == [4, 4, 0, 0]
    with pytest.raises(Fault, match="no guidance here to end"):
        sample("dit", "t-gate", {"gate": 2}, 4, halves=1)  # nothing else would end at the gate


def test_where_attention_and_mlp_are_one_the_control_is_named() -> None:
    backbone = make("flux-dev")
    with pytest.raises(Fault, match=r"in one with the MLP.*cfg-off"):
        get_method("t-gate", {}).plan(backbone.shape(4, **inputs(backbone, "flux-dev", 0, 2)))
