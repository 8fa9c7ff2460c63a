"""What is peculiar to FLUX: two kinds of blocks, positions that are inputs, attention processors that users set."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import nn

import ditbench
from ditbench.backbones import Backbone, Stream
from ditbench.engine.fills import Pass, Reuse
from ditbench.engine.layout import Layout, Unit
from ditbench.engine.ledger import bill
from ditbench.engine.plan import Plan
from ditbench.engine.rows import Rows
from ditbench.engine.run import Parts, Run, attached
from ditbench.faults import Fault
from tests.backbones.networks import inputs, make

TOKENS = 12


@pytest.fixture
def backbone() -> Backbone:
    return make("flux-schnell")


class Chosen:
    """The same tokens everywhere, others in each sample."""

    def __init__(self, index: torch.Tensor) -> None:
        self.rows = Rows(index, TOKENS)

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        return self.rows


def run_of(backbone: Backbone, shares: list[float], fill: type = Reuse, selector: Any = None) -> Run:
    layout = backbone.layout
    made = Plan(layout, layout.by_branch, [[share] * len(layout) for share in shares])  # type: ignore[arg-type]
    return Run(backbone, made, TOKENS, lambda: Parts(fill(), selector))


def call(backbone: Backbone, run: Run, **given: Any) -> torch.Tensor:
    with attached(run):
        answer: torch.Tensor = backbone.network(**given)[0]
        return answer


def _only(given: dict[str, Any], sample: int, index: torch.Tensor) -> dict[str, Any]:
    """The inputs of one sample, as if its image had these tokens and no others."""
    shared = ("txt_ids", "img_ids")
    alone = {
        key: value[sample : sample + 1] if torch.is_tensor(value) and key not in shared else value
        for key, value in given.items()
    }
    return alone | {"hidden_states": alone["hidden_states"][:, index], "img_ids": given["img_ids"][index]}


def test_blocks_are_numbered_through() -> None:
    layout = make("flux-dev").layout
    assert [layout.label(unit) for unit in layout.by_branch] == [
        *("0.attn", "0.mlp", "1.attn", "1.mlp"),
        *("2.single", "3.single"),
    ]
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize("name", ["flux-schnell", "flux-dev"])
@pytest.mark.parametrize("fused", [False, True])
def test_chosen_tokens_are_what_the_network_makes_of_them_alone(name: str, fused: bool) -> None:
    """Each sample has other tokens, not in a row: without their own positions this fails."""
    backbone = make(name)
    index = torch.tensor([[0, 3, 4, 9, 11], [1, 2, 5, 6, 10]])
    given = inputs(backbone, name, 0, 2)
    expected = torch.cat([backbone.network(**_only(given, n, index[n]))[0] for n in range(2)])
    if fused:
        backbone.network.fuse_qkv_projections()
    actual = call(backbone, run_of(backbone, [5 / TOKENS], Pass, Chosen(index)), **given)
    chosen = torch.stack([actual[n, index[n]] for n in range(2)])
    assert torch.allclose(chosen, expected, atol=2e-5 * float(expected.abs().max()))


def test_fused_projections_change_no_bit_and_no_bill(backbone: Backbone) -> None:
    given = inputs(backbone, "flux-schnell", 0, 2)
    before = backbone.costs(TOKENS, 5)
    backbone.network.fuse_qkv_projections()
    assert torch.equal(call(backbone, run_of(backbone, [1.0]), **given), backbone.network(**given)[0])
    assert backbone.costs(TOKENS, 5) == before


def test_a_users_attention_processor_is_used_and_cannot_be_asked_for_some_tokens(backbone: Backbone) -> None:
    class Halved:
        own = FluxAttnProcessor()

        def __call__(
            self, attn: Any, hidden_states: Any, encoder_hidden_states: Any, attention_mask: Any, image_rotary_emb: Any
        ) -> Any:
            answer = self.own(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
            return tuple(0.5 * part for part in answer) if isinstance(answer, tuple) else 0.5 * answer

    given = inputs(backbone, "flux-schnell", 0, 2)
    plain = backbone.network(**given)[0]
    backbone.network.set_attn_processor(Halved())
    expected = backbone.network(**given)[0]
    assert not torch.allclose(expected, plain, atol=1e-2)
    assert torch.equal(call(backbone, run_of(backbone, [1.0]), **given), expected)
    index = torch.arange(3).expand(2, -1)
    with pytest.raises(Fault, match="Halved cannot compute some tokens"):
        call(backbone, run_of(backbone, [0.25], Pass, Chosen(index)), **given)


def test_sums_are_clipped_in_float16_as_in_the_network() -> None:
    backbone = make("flux-schnell", torch.float16)
    network = backbone.network
    # Each of these alone takes a sum over the largest number of float16, in one place where the network clips.
    nn.init.constant_(network.transformer_blocks[1].ff_context.net[2].bias, 6e4)
    nn.init.constant_(network.single_transformer_blocks[0].proj_out.bias, 6e4)
    given = inputs(backbone, "flux-schnell", 0, 2)
    given["timestep"] = torch.full((2,), 0.5, dtype=torch.float16)
    expected = network(**given)[0]
    assert torch.isfinite(expected).all()
    assert torch.equal(call(backbone, run_of(backbone, [1.0]), **given), expected)
    stream, largest = backbone.enter(**given), []
    for branch in range(len(backbone.layout)):
        backbone.add(stream, branch, backbone.compute(stream, branch))
        assert stream.text is not None
        largest.append([float(tensor.abs().max()) for tensor in (stream.text, stream.hidden)])
    assert largest[3][0] == largest[4][1] == torch.finfo(torch.float16).max


def test_positions_for_every_sample_and_the_two_forms_of_an_answer(backbone: Backbone) -> None:
    given = inputs(backbone, "flux-schnell", 0, 2)
    expected = backbone.network(**given)[0]
    for key in ("img_ids", "txt_ids"):
        given[key] = given[key].expand(2, -1, -1)
    del given["return_dict"]
    with attached(run_of(backbone, [1.0])):
        assert torch.equal(backbone.network(**given).sample, expected)


def test_modulation_is_billed_once_a_block_and_without_it_a_reused_branch_has_no_gate(backbone: Backbone) -> None:
    run = run_of(backbone, [1.0, 0.0])
    for step in range(2):
        call(backbone, run, **inputs(backbone, "flux-schnell", step, 3))
    assert run.trace.noted_in_all == {"modulation.double": 12, "modulation.single": 12}
    width, costs = 24, run.costs
    assert costs.noted["modulation.double"].linear == 12 * width**2
    assert costs.noted["modulation.single"].linear == 3 * width**2
    cached = bill(run.trace, costs).outside - costs.step.linear * 2
    assert cached == 2 * 2 * (12 + 3) * width**2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"controlnet_block_samples": [0]}, "ControlNet"),
        ({"controlnet_single_block_samples": [0]}, "ControlNet"),
        ({"joint_attention_kwargs": {"scale": 0.5}}, r"joint_attention_kwargs \(scale"),
        ({"guidance": None}, "guidance scale"),
    ],
)
def test_what_is_not_supported_is_a_fault(change: dict[str, Any], said: str) -> None:
    backbone = make("flux-dev")
    given = inputs(backbone, "flux-dev", 0, 1)
    with pytest.raises(Fault, match=said):
        backbone.enter(**given | change)
    backbone.enter(**given | {"joint_attention_kwargs": {}})


def test_diffusers_pipeline(backbone: Backbone) -> None:
    """All units change no bit, with one call of the network in a step and with two."""
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, copy.deepcopy(backbone.network)
    )
    pipeline.set_progress_bar_config(disable=True)

    def draw(**more: Any) -> torch.Tensor:
        torch.manual_seed(0)
        texts = {"prompt_embeds": torch.randn(1, 5, 10), "pooled_prompt_embeds": torch.randn(1, 14)}
        if more:
            texts |= {f"negative_{key}": -value for key, value in texts.items()}
        picture: torch.Tensor = pipeline(
            **texts, **more, height=64, width=48, num_inference_steps=4, output_type="latent"
        ).images
        return picture

    for more in ({}, {"true_cfg_scale": 2.0}):
        expected = draw(**more)
        with ditbench.accelerate(pipeline, "full"):
            assert torch.equal(draw(**more), expected)
        with ditbench.accelerate(pipeline, "fora", interval=2) as accelerated:
            assert not torch.equal(draw(**more), expected)
        assert accelerated.trace.realised_ratio == 0.5
        assert accelerated.trace.samples == 1 + len(more)
