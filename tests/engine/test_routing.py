"""Routed tokens: who passes through a block, what scores scale, and that nothing else of a token is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ditbench.backbones import Backbone, Output
from ditbench.engine.fills import Fill, Pass, PassBy, Reuse
from ditbench.engine.layout import Layout
from ditbench.engine.outfit import wearing
from ditbench.engine.plan import Plan
from ditbench.engine.routing import RoutedTokens, best, scaled_branches, scores_of
from ditbench.engine.run import Parts, Run, attached
from ditbench.faults import Fault
from ditbench.storage import hash_file, write_tensors
from tests.backbones.networks import inputs, make

NAMES = ("pixart", "dit", "sd3", "sd3.5-medium", "flux-dev", "wan")


def routers_of(backbone: Backbone, scale: float = 0.5) -> Tensor:
    torch.manual_seed(7)
    width = backbone.costs(4, 4).branches[0].width
    return scale * torch.randn(backbone.layout.blocks, width, dtype=backbone.network.dtype)


def routed(
    backbone: Backbone,
    name: str,
    shares: Any,
    routers: Tensor,
    kind: str = "sigmoid",
    sharing: str = "separate",
    halves: int = 1,
    fill: Fill | None = None,
) -> Run:
    given = inputs(backbone, name, 0, 2)
    plan = Plan(backbone.layout, backbone.layout.by_block, np.asarray(shares, dtype=float))
    selector = RoutedTokens(routers, backbone.layout, kind, sharing)
    return Run(backbone, plan, backbone.tokens(**given), lambda: Parts(fill or Pass(), selector), halves=halves)


def by_hand(backbone: Backbone, given: dict[str, Any], routers: Tensor, counts: list[int]) -> Any:
    """The network with each block's tokens taken, computed and put back one block after the other."""
    from ditbench.engine.rows import Rows

    stream = backbone.enter(**given)
    for block, unit in enumerate(backbone.layout.by_block):
        before = stream.hidden.clone()
        score = torch.sigmoid((before * routers[block]).sum(-1))
        index = score.argsort(dim=1, descending=True)[:, : counts[block]].sort(dim=1).values
        rows = Rows(index, stream.tokens)
        part = stream.at(rows)
        for branch in range(unit.start, unit.stop):
            output = backbone.compute(part, branch)
            if branch == unit.stop - 1:
                output = Output(output.image * score.gather(1, index)[..., None], output.text)
            backbone.add(part, branch, output)
        after = before.clone()
        for sample in range(len(after)):
            after[sample, index[sample]] = part.hidden[sample]
        stream.hidden, stream.text = after, part.text
    return backbone.leave(stream)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_routed_run_is_what_its_rule_says(name: str) -> None:
    backbone = make(name, torch.float64)
    given, routers = inputs(backbone, name, 0, 2), routers_of(backbone)
    tokens = backbone.tokens(**given)
    shares = np.linspace(0.3, 0.8, backbone.layout.blocks)[None]
    run = routed(backbone, name, shares, routers)
    with torch.no_grad(), attached(run):
        found = backbone.network(**given)[0]
    with torch.no_grad():
        expected = by_hand(backbone, given, routers, [int(np.ceil(s * tokens)) for s in shares[0]])
    assert torch.allclose(found, expected, atol=1e-10)
    # Scoring is billed: one number for each token and width, in each block.
    width = routers.shape[1]
    assert run.trace.selecting.sum() == 2 * tokens * width * backbone.layout.blocks


@pytest.mark.parametrize("name", NAMES)
def test_without_compression_and_with_scores_of_one_the_network_is_as_it_was(name: str) -> None:
    backbone = make(name)
    given = inputs(backbone, name, 0, 2)
    run = routed(backbone, name, np.ones((1, backbone.layout.blocks)), 0 * routers_of(backbone), kind="doubled")
    with torch.no_grad(), attached(run):
        found = backbone.network(**given)[0]
    assert torch.equal(found, backbone.network(**given)[0])


def test_tokens_that_pass_by_leave_a_block_exactly_as_they_entered() -> None:
    backbone = make("pixart")
    seen: list[Tensor] = []
    leave = backbone.leave
    routers = routers_of(backbone)
    backbone.leave = lambda stream: seen.append(stream.hidden.clone()) or leave(stream)  # type: ignore[method-assign,func-returns-value]
    run = routed(backbone, "pixart", [[0.5, 0.0]], routers)
    given = inputs(backbone, "pixart", 0, 2)
    with torch.no_grad(), attached(run):
        backbone.network(**given)
    entered = backbone.enter(**given).hidden
    through = best(torch.sigmoid(entered @ routers[0]), 6)
    same = (seen[0] == entered).all(-1)
    for sample in range(2):
        assert not same[sample, through[sample]].any()
        assert same[sample].sum() == 6


def test_kept_tokens_ascend_and_follow_their_sample() -> None:
    scores = torch.rand(5, 40)
    index = best(scores, 13)
    assert (index.diff(dim=1) > 0).all()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(best(scores[order], 13), index[order])


def test_scores_are_sigmoids_and_doubled_ones_may_leave_an_output_as_it_was() -> None:
    hidden, router = torch.randn(2, 3, 4), torch.randn(4)
    single, double = scores_of(hidden, router, "sigmoid"), scores_of(hidden, router, "doubled")
    assert torch.allclose(single, 1 / (1 + (-(hidden * router).sum(-1)).exp()))
    assert torch.equal(double, 2 * single)
    assert torch.equal(scores_of(hidden, torch.zeros(4), "doubled"), torch.ones(2, 3))


def test_scores_scale_the_last_branch_of_every_block() -> None:
    layout = Layout.regular(2, ("self", "cross", "mlp"))
    assert scaled_branches(layout) == [False, False, True] * 2
    assert scaled_branches(make("flux-dev").layout) == [False, True, False, True, True, True]


@pytest.mark.parametrize("sharing", ["separate", "max", "mean"])
def test_both_branches_of_guidance_choose_as_they_are_told(sharing: str) -> None:
    backbone = make("pixart")
    stream = backbone.enter(**inputs(backbone, "pixart", 0, 4))
    stream.halves = 2
    routers = routers_of(backbone)
    selector = RoutedTokens(routers, backbone.layout, "sigmoid", sharing)
    index = selector.choose(backbone.layout.by_block[0], 0, stream, 5).index
    scores = torch.sigmoid(stream.hidden @ routers[0])
    if sharing == "separate":
        assert torch.equal(index, best(scores, 5))
        return
    assert torch.equal(index[:2], index[2:])
    both = torch.maximum(scores[:2], scores[2:]) if sharing == "max" else (scores[:2] + scores[2:]) / 2
    assert torch.equal(index[:2], best(both, 5))


def test_between_routed_steps_tokens_receive_what_their_blocks_gave() -> None:
    backbone = make("pixart")
    routers = routers_of(backbone)
    given = inputs(backbone, "pixart", 0, 2)
    run = routed(backbone, "pixart", [[0.5, 0.75], [0, 0]], routers, fill=PassBy(Reuse()))
    once = routed(backbone, "pixart", [[0.5, 0.75]], routers)
    with torch.no_grad():
        with attached(run):
            first, second = backbone.network(**given)[0], backbone.network(**given)[0]
        with attached(once):
            expected = backbone.network(**given)[0]
    assert torch.allclose(first, expected, atol=1e-6)
    # The same inputs once more: what blocks added is added again, and nothing is computed.
    assert torch.allclose(second, expected, atol=1e-5)
    assert run.trace.computed[1].sum() == 0


def test_tuned_weights_are_worn_and_taken_off(tmp_path: Any) -> None:
    network = make("pixart").network
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    layer = "transformer_blocks.1.attn1.to_q"
    torch.manual_seed(1)
    down, up, whole = torch.randn(2, 16), torch.randn(16, 2), torch.randn(16, 16)
    tensors = {f"down.{layer}": down, f"up.{layer}": up, "weight.transformer_blocks.0.attn1.to_k.weight": whole}
    write_tensors(tmp_path / "w.safetensors", tensors)
    found = {"file": str(tmp_path / "w.safetensors"), "sha256": hash_file(tmp_path / "w.safetensors")}
    now = dict(network.named_parameters())
    for _ in range(2):
        with wearing(network, found):
            assert torch.allclose(now[f"{layer}.weight"], before[f"{layer}.weight"] + up @ down)
            assert torch.equal(now["transformer_blocks.0.attn1.to_k.weight"], whole)
        assert all(torch.equal(now[name], value) for name, value in before.items())
    with pytest.raises(ZeroDivisionError), wearing(network, found):
        raise ZeroDivisionError
    assert all(torch.equal(now[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gone", "is missing"),
        ("other", "not the file that was learned"),
        ("name", "no transformer_blocks.9.attn1.to_q.weight"),
        ("size", r"attn1.to_q.weight is \(3, 3\) there"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_leave_nothing_behind(change: str, said: str, tmp_path: Any) -> None:
    network = make("pixart").network
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    block = 9 if change == "name" else 0
    tensors = {f"weight.transformer_blocks.{block}.attn1.to_q.weight": torch.zeros(3, 3)}
    path = tmp_path / f"{change}.safetensors"
    write_tensors(path, tensors)
    sha = hash_file(path) if change != "other" else "0" * 64
    if change == "gone":
        path.unlink()
    with pytest.raises(Fault, match=said), wearing(network, {"file": str(path), "sha256": sha}):
        pass
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
