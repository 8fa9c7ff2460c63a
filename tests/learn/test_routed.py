"""The training forward of routed networks: it is what is sampled, and its gradients are those of small changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ditbench.backbones import Backbone, Stream
from ditbench.engine.fills import Pass
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.engine.routing import RoutedTokens
from ditbench.engine.run import Parts, Run, attached
from ditbench.learn.routed import Mix, RoutedForward, kept_tokens, mix_of
from ditbench.methods import get_method
from ditbench.methods.diffcr import BINS
from ditbench.methods.mod import MixtureOfDepths
from tests.backbones.networks import inputs, make

NAMES = ("pixart", "dit", "sd3", "sd3.5-medium", "flux-dev", "wan")
SHARES = BINS["paper"]


def routers_of(backbone: Backbone) -> nn.Parameter:
    torch.manual_seed(7)
    width = backbone.costs(4, 4).branches[0].width
    return nn.Parameter(0.5 * torch.randn(backbone.layout.blocks, width, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_without_routers_it_is_the_network(name: str) -> None:
    backbone = make(name)
    given = inputs(backbone, name, 0, 2)
    assert torch.equal(RoutedForward(backbone, None, "")(given, None)[0], backbone.network(**given)[0])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_is_sampled(name: str) -> None:
    backbone = make(name, torch.float64)
    given, routers = inputs(backbone, name, 0, 2), routers_of(backbone)
    tokens, blocks = backbone.tokens(**given), backbone.layout.blocks
    ratios = torch.tensor([0.0, 0.3, 0.5, 0.2][:blocks], dtype=torch.float64)
    mixes = [mix_of(ratio, SHARES, tokens) for ratio in ratios]
    with torch.no_grad():
        trained = RoutedForward(backbone, routers, "sigmoid")(given, mixes)[0]
    plan = Plan(backbone.layout, backbone.layout.by_block, 1 - ratios.numpy()[None])
    selector = RoutedTokens(routers.detach(), backbone.layout, "sigmoid", "separate")
    run = Run(backbone, plan, tokens, lambda: Parts(Pass(), selector))
    with torch.no_grad(), attached(run):
        sampled = backbone.network(**given)[0]
    assert torch.allclose(trained, sampled, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_that_are_not_routed_are_the_network_s_own(name: str) -> None:
    backbone = make(name, torch.float64)
    given, routers = inputs(backbone, name, 0, 2), routers_of(backbone).detach()
    tokens, blocks = backbone.tokens(**given), backbone.layout.blocks
    method = get_method("mod", {"ratio": 0.5, "blocks": "every-other", "gated": "routed"})
    assert isinstance(method, MixtureOfDepths)
    gated, shape = method.scaled_blocks(blocks), Shape(1, backbone.layout, tokens)
    assert gated == [False, True, False, True][:blocks]
    # With every block's tokens all going through: those that are gated are scaled, the others are not to the last bit.
    entered = backbone.enter(**given)
    forward = RoutedForward(backbone, routers, "sigmoid", gated=gated)
    whole = Mix(tokens, tokens, None)
    for block, unit in enumerate(backbone.layout.by_block):
        streams = [replace(entered, memo={}, fed={}, pending=[]) for _ in range(2)]
        for branch in range(unit.start, unit.stop):
            backbone.add(streams[0], branch, backbone.compute(streams[0], branch))
        with torch.no_grad():
            found = forward._block(block, unit, streams[1], {}, entered.hidden, entered.text, whole)[0]
        assert torch.equal(found, streams[0].hidden) != gated[block], block
    # And what samples does what was trained.
    counts = method.plan(shape).counts(tokens)[0].tolist()
    with torch.no_grad():
        trained = forward(given, [Mix(count, count, None) for count in counts])[0]
    selector = RoutedTokens(routers, backbone.layout, "sigmoid", "separate", gated)
    run = Run(backbone, method.plan(shape), tokens, lambda: Parts(Pass(), selector))
    with torch.no_grad(), attached(run):
        sampled = backbone.network(**given)[0]
    assert torch.allclose(trained, sampled, atol=1e-10)


@pytest.mark.parametrize(
    ("ratio", "tokens", "kept"), [(0.0, 30, 30), (0.1, 30, 27), (0.9, 1024, 103), (0.2, 1024, 820)]
)
def test_a_bin_keeps_as_many_tokens_as_a_plan_of_its_share(ratio: float, tokens: int, kept: int) -> None:
    assert kept_tokens(ratio, tokens) == kept
    layout = make("pixart").layout
    plan = Plan(layout, layout.by_block, np.full((1, 2), 1 - ratio))
    assert plan.counts(tokens)[0, 0] == kept


@pytest.mark.parametrize(
    ("ratio", "more", "fewer", "weight"),
    [(0.12, 90, 80, 0.2), (0.1, 90, 80, 0.0), (0.0, 100, 90, 0.0), (0.9, 20, 10, 1.0), (0.85, 20, 10, 0.5)],
)
def test_a_ratio_lies_between_its_two_nearest_bins(ratio: float, more: int, fewer: int, weight: float) -> None:
    mix = mix_of(torch.tensor(ratio, dtype=torch.float64), SHARES, 100)
    assert (mix.more, mix.fewer) == (more, fewer)
    assert mix.weight is not None
    assert float(mix.weight) == pytest.approx(weight, abs=1e-12)


class Block:
    """One block of a network, run by itself with two bins."""

    def __init__(self, name: str = "pixart") -> None:
        self.backbone = make(name, torch.float64)
        self.routers = routers_of(self.backbone)
        self.forward = RoutedForward(self.backbone, self.routers, "sigmoid")
        self.stream: Stream = self.backbone.enter(**inputs(self.backbone, name, 0, 2))

    def out(self, mix: Mix) -> Tensor:
        entered = replace(self.stream, memo={}, fed={})
        unit = self.backbone.layout.by_block[0]
        return self.forward._block(0, unit, entered, {}, entered.hidden, entered.text, mix)[0]


def test_twelve_hundredths_are_four_fifths_of_a_tenth_and_a_fifth_of_two() -> None:
    block, tokens = Block(), 12
    ten, twenty = Mix(kept_tokens(0.1, tokens), 0, None), Mix(kept_tokens(0.2, tokens), 0, None)
    ratio = torch.tensor(0.12, dtype=torch.float64, requires_grad=True)
    mixed = block.out(mix_of(ratio, SHARES, tokens))
    first, second = block.out(ten), block.out(twenty)
    assert not torch.allclose(first, second)
    assert torch.allclose(mixed, 0.8 * first + 0.2 * second, atol=1e-12)
    # The gradient of the ratio: the difference of both over the gap between their bins.
    by = torch.randn_like(mixed)
    slope = torch.autograd.grad((mixed * by).sum(), ratio)[0]
    assert slope.item() == pytest.approx(((second - first) * by).sum().item() / 0.1, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_two_bins_that_share_projections_are_two_that_do_not(name: str) -> None:
    block = Block(name)
    weights = [p.requires_grad_(True) for p in block.backbone.network.parameters()]
    mix = mix_of(torch.tensor(0.25, dtype=torch.float64), SHARES, 12)
    assert mix.weight is not None
    mixed = block.out(mix)
    apart = torch.lerp(*(block.out(Mix(kept, 0, None)) for kept in (mix.more, mix.fewer)), mix.weight)
    assert torch.allclose(mixed, apart, atol=1e-12)
    by = torch.randn_like(mixed)
    found, wanted = (torch.autograd.grad((out * by).sum(), weights, allow_unused=True) for out in (mixed, apart))
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        # Wan's norms are of single precision whatever the rest is.
        assert one is None or (one - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("name", ["pixart", "dit", "sd3", "sd3.5-medium"])
def test_projections_are_computed_once_for_both_bins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(name)
    attention = block.backbone.inner(block.backbone.layout.by_block[0].start)[0]
    layer = attention.get_submodule("to_v")
    seen: list[int] = []
    real = nn.functional.linear

    def linear(read: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is layer.weight:
            seen.append(read.shape[1])
        return real(read, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", linear)
    mix = mix_of(torch.tensor(0.25, dtype=torch.float64), SHARES, 12)
    block.out(mix)
    assert seen == [mix.more]
    block.out(Mix(mix.fewer, 0, None))
    assert seen == [mix.more, mix.fewer], "a layer is itself again"


def test_at_a_bin_the_mix_is_that_bin() -> None:
    block = Block()
    ratio = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(block.out(mix_of(ratio, SHARES, 12)), block.out(Mix(6, 0, None)))


def loss_of(backbone: Backbone, given: dict[str, Any], routers: Tensor, ratios: Tensor, target: Tensor) -> Tensor:
    tokens = backbone.tokens(**given)
    mixes = [mix_of(ratio, SHARES, tokens) for ratio in ratios]
    return (RoutedForward(backbone, routers, "sigmoid")(given, mixes)[0] - target).square().mean()


@pytest.mark.parametrize("name", ["pixart", "sd3"])
def test_gradients_are_those_of_small_changes(name: str) -> None:
    backbone = make(name, torch.float64)
    given, routers = inputs(backbone, name, 0, 2), routers_of(backbone)
    ratios = torch.full((backbone.layout.blocks,), 0.34, dtype=torch.float64, requires_grad=True)
    target = backbone.network(**given)[0]
    loss_of(backbone, given, routers, ratios, target).backward()
    assert ratios.grad is not None
    assert routers.grad is not None
    some = [(routers, routers.grad, (0, 3)), (routers, routers.grad, (backbone.layout.blocks - 1, 5))]
    for values, gradient, place in [*some, *((ratios, ratios.grad, (n,)) for n in range(len(ratios)))]:
        step = torch.zeros_like(values)
        step[place] = 1e-6
        with torch.no_grad():
            sides = [
                loss_of(backbone, given, routers + s * step, ratios, target)
                if values is routers
                else loss_of(backbone, given, routers, ratios + s * step, target)
                for s in (1, -1)
            ]
        slope = float(sides[0] - sides[1]) / 2e-6
        assert slope != 0
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["pixart", "sd3"])
def test_blocks_that_are_run_again_give_the_same_gradients(name: str) -> None:
    backbone = make(name, torch.float64)
    given, found = inputs(backbone, name, 0, 2), []
    for checkpointing in (False, True):
        routers = routers_of(backbone)
        ratios = torch.full((backbone.layout.blocks,), 0.34, dtype=torch.float64, requires_grad=True)
        mixes = [mix_of(ratio, SHARES, backbone.tokens(**given)) for ratio in ratios]
        RoutedForward(backbone, routers, "sigmoid", checkpointing)(given, mixes)[0].square().mean().backward()
        assert ratios.grad is not None
        assert routers.grad is not None
        found.append((ratios.grad, routers.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-12)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-12)
