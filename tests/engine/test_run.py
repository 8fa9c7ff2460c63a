"""The engine on a PixArt network: equal to the unpatched model, whatever is cached, and exact in what it bills."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from ditbench.backbones.pixart import PixArtBackbone
from ditbench.backbones.pixart_costs import pixart_costs
from ditbench.engine.fills import Misplaced, Reuse
from ditbench.engine.ledger import bill
from ditbench.engine.plan import Plan, Shape, full_plan
from ditbench.engine.run import Run, attached
from ditbench.engine.selectors import RandomTokens
from ditbench.engine.trace import Trace
from ditbench.faults import Fault

BLOCKS, TOKENS, TEXT = 2, 16, 5
BRANCHES = ("self", "cross", "mlp")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def network(request: pytest.FixtureRequest) -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    made = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=BLOCKS,
        in_channels=3,
        out_channels=3,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    )
    # Gates far from zero, so that every unit matters to the output.
    for block in made.transformer_blocks:
        torch.nn.init.normal_(block.scale_shift_table)
    return made.eval().requires_grad_(False).to(request.param)


def inputs(network: PixArtTransformer2DModel, seed: int, batch: int = 2, masked: bool = True) -> dict:
    generator = torch.Generator().manual_seed(seed)
    dtype = network.dtype
    mask = torch.ones(batch, TEXT)
    if masked:
        mask[:, 3:] = 0
    return {
        "hidden_states": torch.randn(batch, 3, 8, 8, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(batch, TEXT, 12, generator=generator).to(dtype),
        "timestep": torch.full((batch,), 900.0 - 100 * seed),
        "encoder_attention_mask": mask.to(dtype) if masked else None,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def make_run(network: PixArtTransformer2DModel, shares: np.ndarray | None, steps: int = 3, fill=None) -> Run:
    shape = Shape(steps, BLOCKS, BRANCHES, TOKENS)
    plan = full_plan(shape) if shares is None else Plan(BRANCHES, shares)
    selector = RandomTokens(torch.Generator().manual_seed(0))
    return Run(PixArtBackbone(network), plan, TOKENS, fill or Reuse(), selector)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_full_plan_is_bit_identical(network: PixArtTransformer2DModel, batch: int, masked: bool) -> None:
    run = make_run(network, None)
    for step in range(3):
        given = inputs(network, step, batch, masked)
        expected = network(**given)[0]
        with attached(run):
            actual = network(**given)[0]
        assert torch.equal(actual, expected)


def test_reuse_of_everything_keeps_outputs_but_not_gates(network: PixArtTransformer2DModel) -> None:
    shares = np.ones((2, BLOCKS, 3))
    shares[1] = 0
    run = make_run(network, shares, steps=2)
    first, second = inputs(network, 0), inputs(network, 1)
    with attached(run):
        network(**first)
        reused = network(**second)[0]
    assert not torch.equal(reused, network(**second)[0])
    # By hand: the first step's outputs before their gates, the second step's gates.
    backbone = PixArtBackbone(network)
    caching, hand = backbone.enter(**first), backbone.enter(**second)
    for block in range(BLOCKS):
        for branch in BRANCHES:
            output = backbone.compute(caching, block, branch)
            backbone.add(caching, block, branch, output)
            backbone.add(hand, block, branch, output)
    assert torch.equal(reused, backbone.leave(hand)[0])


def test_all_tokens_through_the_gather_path_equal_full_over_a_stale_cache() -> None:
    """An index of all tokens must overwrite the whole cache: a scatter that does nothing would fail here."""
    torch.manual_seed(0)
    cache = Reuse()
    stale, fresh = torch.randn(2, TOKENS, 4), torch.randn(2, TOKENS, 4)
    cache.keep((0, "mlp"), 0, stale.clone())
    index = torch.arange(TOKENS).expand(2, -1)
    assert torch.equal(cache.complete((0, "mlp"), 1, index, fresh), fresh)
    assert torch.equal(cache.supply((0, "mlp"), 2), fresh)


def test_some_tokens_are_fresh_and_the_others_reused(network: PixArtTransformer2DModel) -> None:
    class First:
        def choose(self, unit, step, hidden, count):
            return torch.arange(count).expand(hidden.shape[0], -1)

    shares = np.ones((2, BLOCKS, 3))
    shares[1, 0, 2] = 0.25
    run = make_run(network, shares, steps=2)
    run.selector = First()
    kept: dict = {}
    original = run.backbone.add
    run.backbone.add = lambda s, b, n, o: (kept.update({(run.step, b, n): o.clone()}), original(s, b, n, o))[1]
    with attached(run):
        network(**inputs(network, 0))
        network(**inputs(network, 1))
    before, after = kept[0, 0, "mlp"], kept[1, 0, "mlp"]
    assert torch.equal(after[:, 4:], before[:, 4:])
    assert not torch.equal(after[:, :4], before[:, :4])
    assert run.trace.computed[1, 0].tolist() == [32, 32, 8]


def test_misplaced_is_reuse_of_other_tokens() -> None:
    fill = Misplaced(shift=3)
    output = torch.arange(TOKENS * 2.0).view(1, TOKENS, 2)
    fill.keep((0, "self"), 0, output)
    assert torch.equal(fill.supply((0, "self"), 1)[0, 3], output[0, 0])


def test_nothing_is_left_behind(network: PixArtTransformer2DModel) -> None:
    """Another batch size, an aborted run and a second prompt find the network as it was."""
    shares = np.ones((2, BLOCKS, 3))
    shares[1] = 0
    given = inputs(network, 0)
    expected = network(**given)[0]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RuntimeError), attached(make_run(network, shares, steps=2)):
        network(**given)
        raise RuntimeError("stopped in the middle")
    with attached(make_run(network, shares, steps=2)):
        network(**inputs(network, 0, batch=4))
        network(**inputs(network, 1, batch=4))
    assert torch.equal(network(**given)[0], expected)
    assert "forward" not in vars(network)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_bad_plans_are_refused(network: PixArtTransformer2DModel) -> None:
    shares = np.ones((2, BLOCKS, 3))
    shares[0, 0, 0] = 0
    with pytest.raises(Fault, match="first step"):
        make_run(network, shares, steps=2)
    with pytest.raises(Fault, match="2 blocks"):
        make_run(network, np.ones((2, BLOCKS + 1, 3)), steps=2)
    run = make_run(network, None, steps=1)
    with attached(run):
        network(**inputs(network, 0))
        with pytest.raises(Fault, match="the plan has 1"):
            network(**inputs(network, 1))


def counted(network: PixArtTransformer2DModel, run: Run, steps: int, batch: int) -> float:
    with FlopCounterMode(display=False) as counter, attached(run):
        for step in range(steps):
            network(**inputs(network, step, batch))
    return counter.get_total_flops() / 2 / batch


@pytest.mark.parametrize("kind", ["full", "some", "reuse"])
def test_the_bill_equals_torchs_flop_counter(kind: str) -> None:
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=BLOCKS,
        in_channels=3,
        out_channels=3,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    ).eval()
    shares = np.ones((2, BLOCKS, 3))
    if kind == "some":
        shares[1] = [[0.5, 0.25, 0.75], [0.0, 1.0, 0.1]]
    if kind == "reuse":
        shares[1] = 0
    run = make_run(network, shares, steps=2)
    expected = counted(network, run, steps=2, batch=2)
    costs = pixart_costs(width=16, tokens=TOKENS, text_tokens=TEXT, text_width=12, patch_values=12, out_values=12)
    assert bill(run.trace, costs).total == expected


def test_traces_add_and_survive_json() -> None:
    shape = Shape(2, 1, ("a",), 10)
    one = Trace(shape, np.array([[[20]], [[10]]]), samples=2)
    two = Trace.from_summary(one.summary())
    two.add(one)
    assert two.samples == 4
    assert two.realised_ratio == one.realised_ratio == 0.25
    with pytest.raises(Fault):
        two.add(Trace.empty(Shape(3, 1, ("a",), 10)))
