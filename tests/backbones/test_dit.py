"""What is peculiar to DiT: an embedder and a modulation in every block, class labels, square latents."""

from __future__ import annotations

import pytest
import torch

from ditbench.backbones.dit import DiTBackbone
from ditbench.engine.fills import Pass
from ditbench.engine.ledger import bill
from ditbench.faults import Fault
from tests.backbones.networks import inputs, make
from tests.backbones.test_contract import answers, plan, run_of


def test_gates_of_reused_branches_are_billed() -> None:
    """A reused output needs the step's own gate, so the block's embedder and modulation run; nothing else does."""
    backbone = make("dit")
    run = run_of(backbone, "dit", plan(backbone, [1.0, 0.0, 0.0]))
    answers(backbone, "dit", run, 2)
    assert run.trace.noted_in_all == {"embedder": 2 * 2 * 3, "modulation": 2 * 2 * 3}
    left_out = run_of(backbone, "dit", plan(backbone, [1.0, 0.0, 0.0]), Pass)
    answers(backbone, "dit", left_out, 2)
    assert left_out.trace.noted_in_all == {"embedder": 2 * 2, "modulation": 2 * 2}


def test_a_as_published_is_billed_once_a_step_whatever_is_reused() -> None:
    backbone = make("dit")
    assert isinstance(backbone, DiTBackbone)
    embedder = 256 * 16 + 16 * 16
    for shares in ([1.0, 1.0, 1.0], [1.0, 0.5, 0.0]):
        run = run_of(backbone, "dit", plan(backbone, shares))
        answers(backbone, "dit", run, 1)
        own, shared = run.costs, backbone.costs(run.tokens, 0, as_published=True)
        # Each of three steps: one for each of two blocks, and the head's, which stays.
        assert bill(run.trace, own).linear - bill(run.trace, shared).linear == 3 * 2 * embedder


def test_classes_matter_sample_by_sample() -> None:
    backbone = make("dit")
    given = inputs(backbone, "dit", 0, 2)
    given["hidden_states"][1] = given["hidden_states"][0]
    run = run_of(backbone, "dit", plan(backbone, [1.0]))
    answer = run.forward(**given)[0]
    assert not torch.allclose(answer[0], answer[1], atol=1e-2)
    assert torch.equal(answer, backbone.network(**given)[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_labels": None}, "both timestep and class_labels"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "leave out scale"),
        ({"hidden_states": torch.zeros(2, 3, 8, 6)}, "latent of 8 x 6"),
    ],
)
def test_what_it_cannot_do_is_said(change: dict[str, object], said: str) -> None:
    backbone = make("dit")
    with pytest.raises(Fault, match=said):
        backbone.enter(**{**inputs(backbone, "dit", 0, 2), **change})


def test_two_images_of_one_noise_hold_both_branches_only_where_the_second_half_is_of_no_class() -> None:
    backbone = make("dit")
    latent, times, none = torch.zeros(4, 3, 8, 8), torch.zeros(4), backbone.network.config.num_embeds_ada_norm
    assert backbone.may_guide(latent, timestep=times, class_labels=torch.tensor([3, 4, none, none]))
    assert not backbone.may_guide(latent, timestep=times, class_labels=torch.tensor([3, 4, 5, 6]))
