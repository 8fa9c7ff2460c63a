"""Dynamic widths and tokens: slices and gathers are what masks say, cost what is computed, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ditbench.backbones import Backbone
from ditbench.engine.dynamic import TokenRouters
from ditbench.engine.ledger import bill, by_site
from ditbench.engine.run import Run, attached
from ditbench.engine.trace import Trace
from ditbench.engine.widths import inner_of, order_of
from ditbench.faults import Fault
from ditbench.learn.dynamic import (
    KINDS,
    DynamicForward,
    Noises,
    beside,
    fresh_routers,
    group_counts,
    narrowable,
    orders_of,
    tables_of,
    width_gates,
    width_logits,
)
from ditbench.macs import run_every_kind
from ditbench.methods import get_method
from ditbench.methods.dydit import DyDiT
from ditbench.sampling import run_of
from ditbench.storage import hash_file, write_tensors
from tests.backbones.networks import inputs, make

NAMES = ("pixart", "pixart-1024", "dit", "sd3", "sd3.5-large", "sd3.5-medium")
TIME = 900.0  # of `inputs` at step 0


def method_of(**knobs: Any) -> DyDiT:
    method = get_method("dydit", {"groups": 0 if knobs.get("dynamic") == "tokens" else 4, **knobs})
    assert isinstance(method, DyDiT)
    return method


def random_routers(backbone: Backbone, method: DyDiT) -> dict[str, Tensor]:
    """Routers that keep about half of everything."""
    torch.manual_seed(5)
    width = backbone.costs(1, 1).branches[0].width
    start = fresh_routers(method, backbone.layout.blocks, width, group_counts(backbone, method))
    routers = {name: torch.randn(tensor.shape, dtype=torch.float64) for name, tensor in start.items()}
    if method.routes_tokens:  # with a single hidden unit, whatever is random keeps all tokens or none
        routers["tokens.up"].fill_(1.0)
        routers["tokens.up_bias"].fill_(-1.0)
    return routers


def trained(backbone: Backbone, method: DyDiT, routers: dict[str, Tensor], folder: Path) -> DyDiT:
    """The method with routers as its learner leaves them in a file."""
    kinds, groups = narrowable(backbone, method.cross), group_counts(backbone, method)
    tables = {}
    if method.routes_widths:
        embedded = backbone.time_embedding(torch.arange(1001.0))
        tables = {kind: tables_of(width_logits(embedded, routers, kind) > 0) for kind in KINDS}
    orders = orders_of(backbone, kinds, groups, method.order)
    path = folder / "weights.safetensors"
    write_tensors(path, {**routers, **beside(tables, orders)})
    return method.knowing({"file": str(path), "sha256": hash_file(path), "times": [TIME, 300.0]})


def new_run(backbone: Backbone, name: str, method: DyDiT, steps: int = 1, halves: int = 1) -> Run:
    return run_of(method, backbone, backbone.shape(steps, **inputs(backbone, name, 0, 2)), halves=halves)


def sampled(backbone: Backbone, name: str, method: DyDiT, given: dict[str, Any]) -> tuple[Tensor, Run]:
    run = new_run(backbone, name, method)
    with torch.no_grad(), attached(run):
        return backbone.network(**given)[0], run


def masked(
    backbone: Backbone, method: DyDiT, routers: dict[str, Tensor], given: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """The training forward's answer without noise, and the shares of tokens that MLPs compute."""
    kinds, groups = narrowable(backbone, method.cross), group_counts(backbone, method)
    forward = DynamicForward(backbone, kinds, orders_of(backbone, kinds, groups, method.order), groups, 5.0)
    samples, blocks, tokens = 2, backbone.layout.blocks, backbone.tokens(**given)
    shapes = (groups[0] - 1, groups[1] - 1, tokens)
    noises = Noises(*(torch.zeros(samples, blocks, size, dtype=torch.float64) for size in shapes))
    gates = width_gates(backbone.time_embedding(torch.full((samples,), TIME)), routers, noises, 5.0)
    with torch.no_grad():
        answer, shares = forward(given, gates, TokenRouters.of(routers))
    return answer[0], shares


@pytest.mark.parametrize("name", NAMES)
def test_routers_start_with_the_network_as_it_is(name: str, tmp_path: Path) -> None:
    backbone, method = make(name), method_of()
    width = backbone.costs(1, 1).branches[0].width
    routers = fresh_routers(method, backbone.layout.blocks, width, group_counts(backbone, method))
    assert {float(t.max()) for name, t in routers.items() if name.endswith("s_bias")} == {15.0}
    assert routers["tokens.up_bias"].tolist() == [35.0] * backbone.layout.blocks
    given = inputs(backbone, name, 0, 2)
    found, run = sampled(backbone, name, trained(backbone, method, routers, tmp_path), given)
    assert torch.equal(found, backbone.network(**given)[0])
    assert run.trace.realised_ratio == 0
    assert (run.trace.whole == 2).all()


@pytest.mark.parametrize("cross", ["whole", "heads"])
@pytest.mark.parametrize("name", NAMES)
def test_slices_and_gathered_tokens_are_what_masks_say(name: str, cross: str, tmp_path: Path) -> None:
    backbone, method = make(name, torch.float64), method_of(cross=cross)
    given, routers = inputs(backbone, name, 0, 2), random_routers(backbone, method)
    found, run = sampled(backbone, name, trained(backbone, method, routers, tmp_path), given)
    expected, shares = masked(backbone, method, routers, given)
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(found, backbone.network(**given)[0], atol=1e-2)
    layout, tokens = backbone.layout, backbone.tokens(**given)
    mlp = layout.name_of == "mlp"
    assert run.trace.computed[0, mlp].tolist() == (shares.sum(0) * tokens).round().int().tolist()
    assert (run.trace.computed[0, ~mlp] == 2 * tokens).all()
    assert 0 < run.trace.computed[0, mlp].sum() < 2 * tokens * layout.blocks
    # One number for each token and hidden unit, and each of these once more.
    width = backbone.costs(1, 1).branches[0].width
    assert run.trace.selecting.sum() == 2 * tokens * layout.blocks * (width + 1)


@pytest.mark.parametrize("dynamic", ["widths", "tokens"])
def test_either_part_may_stand_alone(dynamic: str, tmp_path: Path) -> None:
    backbone, method = make("pixart"), method_of(dynamic=dynamic)
    routers = {name: tensor.float() for name, tensor in random_routers(backbone, method).items()}
    own = trained(backbone, method, routers, tmp_path)
    _, run = sampled(backbone, "pixart", own, inputs(backbone, "pixart", 0, 2))
    assert own.plan(run.trace.shape).online == (dynamic == "tokens")
    assert run.trace.narrowed == (dynamic == "widths")
    assert bool((run.trace.computed < 2 * 12).any()) == (dynamic == "tokens")
    with pytest.raises(Fault, match="dydit must be fitted first"):
        method.plan(run.trace.shape)


@pytest.mark.parametrize("name", ["pixart", "dit", "sd3"])
def test_widths_hang_on_the_timestep_alone(name: str, tmp_path: Path) -> None:
    backbone, method = make(name), method_of()
    routers = {name: tensor.float() for name, tensor in random_routers(backbone, method).items()}
    own = trained(backbone, method, routers, tmp_path)
    runs = []
    for seed in (0, 1):
        run = new_run(backbone, name, own, steps=2)
        with torch.no_grad(), attached(run):
            for _ in range(2):
                given = inputs(backbone, name, 0, 2)
                torch.manual_seed(seed)
                for key in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
                    if key in given:
                        given[key] = torch.randn_like(given[key])
                if name == "dit":
                    given["class_labels"] = torch.tensor([seed, 5 + seed])
                backbone.network(**given)
        runs.append(run.trace)
    assert np.array_equal(runs[0].widths, runs[1].widths)
    assert not np.array_equal(runs[0].computed, runs[1].computed)  # tokens are the samples' own
    assert not np.array_equal(runs[0].widths[0], runs[0].widths[1])  # 900 and 300


def test_macs_are_those_of_the_heads_channels_and_tokens_that_ran(tmp_path: Path) -> None:
    backbone, method = make("pixart"), method_of()
    routers = {name: tensor.float() for name, tensor in random_routers(backbone, method).items()}
    own, given = trained(backbone, method, routers, tmp_path), inputs(backbone, "pixart", 0, 2)
    _, run = sampled(backbone, "pixart", own, given)
    d, tokens, text, heads, groups = 16, 12, 5, 2, 4
    widths = run.trace.widths[0].reshape(2, 3)
    assert set((widths[:, 0] * heads).tolist()) <= {1.0, 2.0}
    assert widths[:, 1].tolist() == [1, 1]
    assert (widths[:, 2] * groups % 1 == 0).all() and (widths[:, 2] < 1).any()
    total = 0.0
    for block in range(2):
        computed = run.trace.computed[0].reshape(2, 3)[block, 2] / 2  # of one sample, on average
        total += widths[block, 0] * (4 * d * d * tokens + 2 * d * tokens * tokens)
        total += 2 * d * d * tokens + 2 * d * d * text + 2 * d * tokens * text
        total += widths[block, 2] * 8 * d * d * computed
    costs = backbone.costs(tokens, text)
    charged = bill(run.trace, costs)
    assert charged.total - charged.outside == pytest.approx(total, rel=1e-12)
    assert charged.whole + charged.partial + charged.outside == pytest.approx(charged.total)
    assert by_site(run.trace, costs).sum() == pytest.approx(total, rel=1e-12)
    assert run.trace.realised_ratio == pytest.approx(1 - run.trace.shares.mean())
    again = Trace.from_summary(run.trace.summary())
    assert np.array_equal(again.widths, run.trace.widths)
    assert bill(again, costs) == charged


def test_what_widths_cost_is_known_without_weights(tmp_path: Path) -> None:
    backbone, method = make("sd3"), method_of(dynamic="widths")
    routers = {name: tensor.float() for name, tensor in random_routers(backbone, method).items()}
    own = trained(backbone, method, routers, tmp_path)
    run = new_run(backbone, "sd3", own, steps=2)
    with torch.no_grad(), attached(run):
        for step in range(2):
            backbone.network(**inputs(backbone, "sd3", step, 2))
    empty = make("sd3", device="meta")
    given = empty.example_inputs(1, (8, 6), 5, torch.float32, "meta")
    counted = run_of(own, empty, empty.shape(2, **given))
    run_every_kind(counted, given)
    costs = backbone.costs(12, 5)
    assert bill(counted.trace, costs).total == pytest.approx(bill(run.trace, costs).total)
    assert bill(run.trace, costs).total < bill(new_full(backbone), costs).total


def new_full(backbone: Backbone) -> Trace:
    run = run_of(get_method("full"), backbone, backbone.shape(2, **inputs(backbone, "sd3", 0, 2)))
    with torch.no_grad(), attached(run):
        for step in range(2):
            backbone.network(**inputs(backbone, "sd3", step, 2))
    return run.trace


def test_a_run_leaves_the_network_as_it_was_even_if_it_breaks(tmp_path: Path) -> None:
    backbone, method = make("sd3"), method_of()
    routers = {name: tensor.float() for name, tensor in random_routers(backbone, method).items()}
    own = trained(backbone, method, routers, tmp_path)
    before = {name: (p.data_ptr(), p.clone()) for name, p in backbone.network.named_parameters()}
    given = inputs(backbone, "sd3", 0, 2)
    first, _ = sampled(backbone, "sd3", own, given)

    def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    hook = backbone.network.transformer_blocks[1].ff.net[2].register_forward_hook(breaks)
    with pytest.raises(ZeroDivisionError):
        sampled(backbone, "sd3", own, given)
    hook.remove()
    assert {m.heads for m in backbone.network.modules() if hasattr(m, "to_q")} == {2}
    for name, parameter in backbone.network.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
    larger = inputs(backbone, "sd3", 0, 3)
    sampled(backbone, "sd3", own, larger)
    assert torch.equal(sampled(backbone, "sd3", own, given)[0], first)


def test_a_sample_does_not_hang_on_its_batch(tmp_path: Path) -> None:
    backbone, method = make("pixart", torch.float64), method_of()
    own = trained(backbone, method, random_routers(backbone, method), tmp_path)
    given = inputs(backbone, "pixart", 0, 2)
    both, _ = sampled(backbone, "pixart", own, given)
    for sample in range(2):
        alone = {k: v[sample : sample + 1] if torch.is_tensor(v) else v for k, v in given.items()}
        assert torch.allclose(sampled(backbone, "pixart", own, alone)[0], both[sample : sample + 1], atol=1e-10)


def test_between_computed_steps_branches_give_what_they_gave(tmp_path: Path) -> None:
    backbone, method = make("sd3"), method_of(interval=2)
    routers = {name: tensor.float() for name, tensor in random_routers(backbone, method).items()}
    run = new_run(backbone, "sd3", trained(backbone, method, routers, tmp_path), steps=2)
    given = inputs(backbone, "sd3", 0, 2)
    with torch.no_grad(), attached(run):
        first, second = backbone.network(**given)[0], backbone.network(**given)[0]
    assert torch.allclose(first, second, atol=1e-5)
    assert run.trace.computed[1].sum() == 0 < run.trace.computed[0].sum()


def test_both_branches_of_guidance_may_compute_what_either_wants(tmp_path: Path) -> None:
    backbone = make("pixart")
    found: dict[str, Tensor] = {}
    for sharing in ("separate", "either"):
        method = method_of(guidance=sharing, dynamic="tokens")
        routers = {name: tensor.float() for name, tensor in random_routers(backbone, method).items()}
        run = new_run(backbone, "pixart", trained(backbone, method, routers, tmp_path), halves=2)
        selector: Any = run.branches[0].selector
        stream = backbone.enter(**inputs(backbone, "pixart", 0, 2))
        stream.halves = 2
        flat = selector.gather(2, 0, stream)._flat
        found[sharing] = torch.zeros(24).index_fill(0, flat, 1).view(2, 12)
    assert not torch.equal(found["separate"][0], found["separate"][1])
    assert torch.equal(found["either"][0], found["separate"].amax(0))
    assert torch.equal(found["either"][0], found["either"][1])


def test_the_largest_heads_and_channels_come_first() -> None:
    layer = make("pixart").network.transformer_blocks[0]
    with torch.no_grad():
        layer.attn1.to_out[0].weight[:, 8:] *= 10
        layer.ff.net[0].proj.weight[[7, 31]] *= 10
    assert order_of(inner_of(layer.attn1), 2, True).tolist() == [*range(8, 16), *range(8)]
    assert set(order_of(inner_of(layer.ff), 4, True)[:2].tolist()) == {7, 31}
    assert order_of(inner_of(layer.ff), 4, False).tolist() == list(range(64))


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda: narrowable(make("flux-dev"), "whole"), "FluxTransformer2DModel has 'attn' branches that it cannot"),
        (lambda: narrowable(make("wan"), "whole"), "WanTransformer3DModel has 'self' branches"),
        (lambda: order_of(inner_of(make("dit").inner(1)[0]), 7, True), "64 inner channels cannot be split into 7"),
        (lambda: get_method("dydit", {"dynamic": "tokens", "groups": 4}), "groups: of channels there are none"),
    ],
)
def test_what_cannot_be_is_one_sentence(does: Callable[[], Any], said: str) -> None:
    with pytest.raises(Fault, match=said):
        does()


def test_samples_of_one_site_have_one_width() -> None:
    backbone = make("pixart")
    first, second = (Trace.empty(backbone.shape(2, **inputs(backbone, "pixart", 0, 2))) for _ in range(2))
    first.record(0, 0, 12, 1, 0.5)
    second.record(1, 0, 12, 1, 0.25)
    first.add(second)
    assert first.widths[:, 0].tolist() == [0.5, 0.25]
    assert first.whole.sum() == 0
    with pytest.raises(Fault, match="one width for some samples"):
        first.record(0, 0, 12, 1)
