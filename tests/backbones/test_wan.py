"""What is peculiar to Wan: float32 sums over bfloat16 weights, positions in three axes, guidance call by call."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

import ditbench
from ditbench.backbones import Backbone
from ditbench.backbones.families import backbone_of
from ditbench.engine.fills import Reuse
from ditbench.engine.plan import Plan
from ditbench.engine.rows import Rows
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.selectors import RandomTokens
from ditbench.faults import Fault
from tests.backbones.networks import inputs, make

TOKENS = 24


@pytest.fixture
def backbone() -> Backbone:
    return make("wan")


def run_of(backbone: Backbone, shares: list[float]) -> Run:
    layout = backbone.layout
    made = Plan(layout, layout.by_branch, [[share] * len(layout) for share in shares])  # type: ignore[arg-type]
    selector = RandomTokens(torch.Generator().manual_seed(0))
    return Run(backbone, made, TOKENS, lambda: Parts(Reuse(), selector))


def test_chosen_tokens_are_what_the_networks_own_blocks_make_of_them(backbone: Backbone) -> None:
    """Each sample has other tokens, not in a row: without their own positions this fails."""
    index = torch.tensor([[0, 3, 4, 9, 22], [1, 2, 13, 16, 20]])
    given = inputs(backbone, "wan", 0, 2)
    stream = backbone.enter(**given)
    tables = backbone.network.rope(given["hidden_states"])
    expected = stream.hidden.clone()
    for n in range(2):
        some = stream.hidden[n : n + 1, index[n]]
        conditions = [stream.condition(name)[n : n + 1] for name in ("text", "modulation")]
        for block in backbone.network.blocks:
            some = block(some, *conditions, tuple(table[:, index[n]] for table in tables))
        expected[n, index[n]] = some[0]
    rows = Rows(index, TOKENS)
    part = stream.at(rows)
    for branch in range(len(backbone.layout)):
        backbone.add(part, branch, backbone.compute(part, branch))
    actual = rows.put(stream.hidden.clone(), part.hidden)
    assert torch.allclose(actual, expected, atol=2e-5 * float(expected.abs().max()))


def test_weights_are_as_diffusers_loads_them() -> None:
    network = make("wan", torch.bfloat16).network
    assert network.dtype == torch.bfloat16
    kept = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.float32}
    assert "blocks.0.scale_shift_table" in kept and "condition_embedder.time_embedder.linear_1.weight" in kept
    assert "condition_embedder.time_proj.weight" not in kept and "blocks.0.attn1.norm_q.weight" not in kept
    assert network.rope.freqs_cos.dtype == torch.float32


def test_float32_gates_leave_a_bfloat16_stream_in_bfloat16() -> None:
    """With gradients too, where deferred additions are not made in place."""
    backbone = make("wan", torch.bfloat16)
    backbone.network.requires_grad_(True)
    run = run_of(backbone, [1.0, 0.5, 0.0])
    for step in range(3):
        with attached(run):
            answer = backbone.network(**inputs(backbone, "wan", step, 2))[0]
        assert answer.dtype == torch.bfloat16
    answer.float().pow(2).mean().backward()
    grads = [p.grad for p in backbone.network.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


def test_fused_projections_change_no_bit_and_no_bill(backbone: Backbone) -> None:
    given = inputs(backbone, "wan", 0, 2)
    before = backbone.costs(TOKENS, 5)
    backbone.network.fuse_qkv_projections()
    with attached(run_of(backbone, [1.0])):
        actual = backbone.network(**given)[0]
    assert torch.equal(actual, backbone.network(**given)[0])
    assert backbone.costs(TOKENS, 5) == before


def test_what_is_not_supported_is_a_fault(backbone: Backbone) -> None:
    given = inputs(backbone, "wan", 0, 1)
    with pytest.raises(Fault, match="every token"):
        backbone.enter(**given | {"timestep": torch.full((1, TOKENS), 500)})
    with pytest.raises(Fault, match="image to attend to"):
        backbone.enter(**given, encoder_hidden_states_image=torch.zeros(1, 2, 4))
    with pytest.raises(Fault, match=r"attention_kwargs \(scale\)"):
        backbone.enter(**given, attention_kwargs={"scale": 0.5})
    network = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, image_dim=8, added_kv_proj_dim=24
    )
    with pytest.raises(Fault, match="text only"):
        backbone_of(network)


def test_diffusers_pipeline(backbone: Backbone) -> None:
    """Its network is called twice in a step, for one branch of guidance after the other; all units change no bit."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    network = copy.deepcopy(backbone.network)
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=network)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        torch.manual_seed(0)
        texts = torch.randn(2, 5, 10)
        video: torch.Tensor = pipeline(
            prompt_embeds=texts[:1],
            negative_prompt_embeds=texts[1:],
            guidance_scale=3.0,
            height=32,
            width=48,
            num_frames=9,
            num_inference_steps=4,
            output_type="latent",
        ).frames
        return video

    expected = draw()
    with ditbench.accelerate(pipeline, "full"):
        assert torch.equal(draw(), expected)
    with ditbench.accelerate(pipeline, "fora", interval=2) as accelerated:
        assert not torch.equal(draw(), expected)
    assert accelerated.trace.realised_ratio == 0.5
    assert accelerated.trace.samples == 2
