"""Training dynamic widths and tokens: gates, the budget of MACs, gradients, and what a short training leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ditbench.backbones import Backbone
from ditbench.cells import Spec
from ditbench.engine.dynamic import TokenRouters, kinds_of
from ditbench.faults import Fault
from ditbench.generate import Sampler, Texts
from ditbench.learn.diffusion import stratified
from ditbench.learn.dynamic import (
    DynamicForward,
    DynamicTraining,
    Noises,
    Shares,
    even_shares,
    fresh_routers,
    gate,
    group_counts,
    logistic,
    narrowable,
    off_target,
    orders_of,
    width_gates,
)
from ditbench.learn.job import learned_method, write_learned
from ditbench.learn.lesson import Lesson, Notebook
from ditbench.learn.processes import Team
from ditbench.learn.tuning import _trained
from ditbench.methods import get_method
from ditbench.methods.dydit import DyDiT
from ditbench.records import read_record
from ditbench.worlds import get_world
from tests.backbones.networks import inputs, make

# Routers near the edge, and fast: a few steps close some gates.
SHORT: dict[str, Any] = {"iterations": 3, "batch": 2, "rate": 1e-3, "router_rate": 0.3, "falling": 0.25, "groups": 4}
NEAR = {"width_bias": 0.4, "token_bias": 0.4}


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler("scenes")


def training(sampler: Sampler, method: DyDiT, folder: Path, weights: Any) -> DynamicTraining:
    spec = {"arm": "arm", "world": "scenes", "steps": None, "weights": None}
    lesson = Lesson(method, spec, sampler, Texts([], {}, {}), 4, Notebook(folder / "learned.notes.json", ""))
    return DynamicTraining(lesson, method, weights, folder / "training.pt")


def method_of(**knobs: Any) -> DyDiT:
    method = get_method("dydit", knobs)
    assert isinstance(method, DyDiT)
    return method


# Gates


def test_gates_open_by_the_sigmoid_whatever_their_temperature() -> None:
    noise = logistic((20_000,), torch.Generator().manual_seed(0))
    for logit in (-1.0, 0.0, 2.0):
        for temperature in (1.0, 5.0):
            opened = gate(torch.full((20_000,), logit), noise, temperature)
            assert set(opened.tolist()) == {0.0, 1.0}
            assert float(opened.mean()) == pytest.approx(1 / (1 + np.exp(-logit)), abs=0.012)


def test_a_gate_s_gradient_is_that_of_the_sigmoid_at_its_temperature() -> None:
    logits = torch.tensor([-2.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([0.5, -0.1, 1.0], dtype=torch.float64)
    gate(logits, noise, 5.0).sum().backward()
    soft = 1 / (1 + np.exp(-(logits.detach().numpy() + noise.numpy()) / 5))
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx((soft * (1 - soft) / 5).tolist())


def test_the_first_group_is_always_kept() -> None:
    routers = {f"widths.{kind}": torch.zeros(3, 3, 8) for kind in ("heads", "channels")}
    routers |= {f"widths.{kind}_bias": torch.full((3, 3), -50.0) for kind in ("heads", "channels")}
    noises = Noises(*(logistic((2, 3, n), torch.Generator().manual_seed(0)) for n in (3, 3, 5)))
    gates = width_gates(torch.randn(2, 8), routers, noises, 5.0)
    assert gates.heads.sum(2).tolist() == gates.channels.sum(2).tolist() == [[1.0] * 3] * 2
    assert gates.heads[..., 0].all() and gates.channels[..., 0].all()


# The budget


def test_shares_are_of_the_published_macs() -> None:
    backbone, _ = get_world("dit-xl-2-256").backbone("meta")
    costs = backbone.costs(256, 0).branches
    assert [round(cost.macs(256) / 1e9, 4) for cost in costs[:2]] == [1.5099, 2.7179]
    shares = Shares(costs, backbone.layout, kinds_of(backbone.layout, "whole"), 256)
    one, half = torch.ones(1, 28, dtype=torch.float64), torch.full((1, 28), 0.5, dtype=torch.float64)
    assert float(shares.of(one, one, one)) == pytest.approx(1)
    assert float(shares.of(half, one, one)) == pytest.approx(1 - 0.5 * 1.50995 / (1.50995 + 2.71791), abs=1e-5)
    # Of an MLP: channels x tokens.
    assert float(shares.of(one, half, half)) == pytest.approx(1 - 0.75 * 2.71791 / (1.50995 + 2.71791), abs=1e-5)


def test_cross_attention_and_a_text_s_mlp_take_no_part_in_what_tokens_save() -> None:
    half = torch.full((1, 3), 0.5, dtype=torch.float64)
    sd3 = make("sd3")
    costs = sd3.costs(12, 5).branches
    shares = Shares(costs, sd3.layout, kinds_of(sd3.layout, "whole"), 12)
    mlp, text = 3 * 12 * 8 * 256, 2 * 5 * 8 * 256  # the last block writes no text
    attention = sum(cost.macs(12) for cost in costs[::2])
    found = float(shares.of(2 * half, half, half))
    assert found == pytest.approx((attention + mlp / 4 + text / 2) / (attention + mlp + text))
    pixart = make("pixart")
    costs = pixart.costs(12, 5).branches
    whole = Shares(costs, pixart.layout, kinds_of(pixart.layout, "whole"), 12)
    narrowed = Shares(costs, pixart.layout, kinds_of(pixart.layout, "heads"), 12)
    two = half[:, :2]
    saved = float(whole.of(two, 2 * two, 2 * two) - narrowed.of(two, 2 * two, 2 * two))
    cross, all_ = sum(c.macs(12) for c in costs[1::3]), sum(c.macs(12) for c in costs)
    assert saved == pytest.approx(cross / 2 / all_)


@pytest.mark.parametrize("ratio", [0.5, 0.7])
def test_a_complete_network_is_off_its_target_by_all_that_is_to_go(ratio: float) -> None:
    value, slope = off_target(1.0, ratio, 2.0)
    assert value == pytest.approx(2 * (1 - ratio) ** 2)
    step = 1e-6
    rise = off_target(1 + step, ratio, 2.0)[0] - off_target(1 - step, ratio, 2.0)[0]
    assert slope == pytest.approx(rise / (2 * step))


def test_the_target_falls_after_some_steps() -> None:
    method = method_of()
    targets = [method.target_at(step) for step in (0, 99, 100, 599, 1099, 150_000)]
    assert targets == pytest.approx([1, 1, 1 - 0.5 / 1000, 0.75, 0.5, 0.5])
    assert method_of(iterations=1, forced=0.0, falling=0.0).target_at(0) == 0.5


def test_timesteps_are_drawn_from_strata_in_turn() -> None:
    drawn = stratified(16, torch.Generator().manual_seed(0), 4)
    assert np.bincount((4 * drawn).int().numpy(), minlength=4).tolist() == [4] * 4
    every = stratified(16, torch.Generator().manual_seed(0))
    assert np.bincount((16 * every).int().numpy(), minlength=16).tolist() == [1] * 16


# Gradients


def loss_of(
    backbone: Backbone, given: dict[str, Any], routers: dict[str, Tensor], checkpointing: bool = False
) -> Tensor:
    """Of soft gates, with the budget's term."""
    method = method_of(groups=4, order="given")
    kinds, groups = narrowable(backbone, "whole"), group_counts(backbone, method)
    orders = orders_of(backbone, kinds, groups, "given")
    forward = DynamicForward(backbone, kinds, orders, groups, 5.0, checkpointing, hard=False)
    tokens, blocks = backbone.tokens(**given), backbone.layout.blocks
    generator = torch.Generator().manual_seed(0)
    noises = [logistic((2, blocks, n), generator).double() for n in (groups[0] - 1, groups[1] - 1, tokens)]
    embedded = backbone.time_embedding(torch.tensor([900.0, 300.0]))
    gates = width_gates(embedded, routers, Noises(*noises), 5.0, hard=False)
    answer, shares = forward(given, gates, TokenRouters.of(routers))
    costs = backbone.costs(tokens, backbone.text_tokens(**given)).branches
    spent = Shares(costs, backbone.layout, kinds, tokens).of(gates.heads.mean(2), gates.channels.mean(2), shares)
    return answer[0].square().mean() + 2 * (spent.mean() - 0.5) ** 2


@pytest.mark.parametrize("name", ["pixart", "dit", "sd3"])
def test_gradients_are_those_of_small_changes(name: str) -> None:
    backbone = make(name, torch.float64)
    given = inputs(backbone, name, 0, 2)
    start = fresh_routers(method_of(), backbone.layout.blocks, 16, group_counts(backbone, method_of(groups=4)))
    torch.manual_seed(1)
    routers = {n: nn.Parameter(0.3 * torch.randn(t.shape, dtype=torch.float64)) for n, t in start.items()}
    loss_of(backbone, given, dict(routers)).backward()
    found = {n: parameter.grad.clone() for n, parameter in routers.items() if parameter.grad is not None}
    assert set(found) == set(routers)
    for parameter in routers.values():
        parameter.grad = None
    loss_of(backbone, given, dict(routers), checkpointing=True).backward()
    for n, parameter in routers.items():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, found[n], atol=1e-12), n
        place = int(found[n].abs().argmax())
        flat = parameter.data.view(-1)
        with torch.no_grad():
            sides = []
            for step in (1e-6, -1e-6):
                flat[place] += step
                sides.append(float(loss_of(backbone, given, dict(routers))))
                flat[place] -= step
        slope = (sides[0] - sides[1]) / 2e-6
        assert slope != 0
        assert float(found[n].flatten()[place]) == pytest.approx(slope, rel=1e-4), n


# Training


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dydit")
    method = method_of(**SHORT, **NEAR, average=0.0)
    knobs = {knob: getattr(method, knob) for knob in method.knobs()}
    spec = Spec("scenes", "arm", "dydit", knobs, 3, 0, 2, "some", None, "float32", learning="pairs-own")
    write_learned(spec, None, None, folder / "learned.json", batch=2)
    return folder / "learned.json"


def test_a_record_of_training_is_all_that_sampling_needs(record: Path, sampler: Sampler) -> None:
    found = read_record(record, "learned")["found"]
    assert len(found["times"]) == 3
    assert not (record.parent / "training.pt").exists()
    tensors = load_file(record.parent / found["file"])
    assert tuple(tensors["table.heads"].shape) == (1001, 8, 3)
    assert tuple(tensors["table.channels"].shape) == (1001, 8, 4)
    assert tensors["table.heads"][..., 0].all()
    assert 0 < found["channels"] < 1
    assert tensors["order.2.0"].sort().values.tolist() == list(range(768))

    texts = Texts(["a", "b"], {"text": torch.randn(2, 20, 128), "mask": torch.ones(2, 20)}, {})
    world = sampler.world
    empty = world.embed(sampler.handle, ["", ""])
    texts = Texts(["a", "b"], empty, {name: tensor[:1] for name, tensor in empty.items()})
    full, method = get_method("full"), learned_method(record)
    before, _ = sampler.run(full, 3, 0, texts)
    drawn, trace = sampler.run(method, 3, 0, texts)
    assert not np.array_equal(drawn, before)
    assert np.array_equal(sampler.run(full, 3, 0, texts)[0], before)
    assert np.array_equal(sampler.run(method, 3, 0, texts)[0], drawn)
    heads = trace.widths[:, trace.shape.layout.name_of == "self"]
    assert heads.mean() == pytest.approx(found["heads"])
    assert (trace.widths[:, trace.shape.layout.name_of == "cross"] == 1).all()
    assert trace.realised_ratio > 0


def test_the_history_tells_of_the_budget(record: Path) -> None:
    history = read_record(record, "learned")["found"]["history"]
    assert history["target"] == [0.5] * 3
    for ratio, budget in zip(history["ratio"], history["budget"], strict=True):
        assert 0 < ratio < 1
        assert budget == pytest.approx(2 * (ratio - 0.5) ** 2)


def test_a_training_starts_complete(sampler: Sampler, tmp_path: Path) -> None:
    method = method_of(iterations=10, batch=2, forced=0.0, falling=0.0, complete=0.0)
    with _trained(method, sampler.handle.pipeline.transformer) as weights:
        run = training(sampler, method, tmp_path, weights)
        run._step()
        assert run.history["ratio"] == [1.0]
        assert run.history["budget"] == [pytest.approx(2 * (1 - 0.5) ** 2)]
        assert {kind: table.all().item() for kind, table in run.tables().items()} == {"heads": True, "channels": True}


def test_training_goes_on_from_where_it_stopped(sampler: Sampler, tmp_path: Path) -> None:
    method = method_of(**SHORT, **NEAR, tuning="lora", rank=2)
    network = sampler.handle.pipeline.transformer
    found = []
    for parts in ((2,), (1, 1)):
        folder = tmp_path / str(len(parts))
        folder.mkdir()
        for count in parts:
            with _trained(method, network) as weights:
                run = training(sampler, method, folder, weights)
                run.recall()
                for _ in range(count):
                    run._step()
                    run.done += 1
                run.save()
                kept = {name: tensor.detach().clone() for name, tensor in run._kept().items()}
                found.append((kept, run.average.tensors, run.history, run.done))
    whole, again = found[0], found[-1]
    assert whole[3] == again[3] == 2
    assert whole[2]["ratio"] == again[2]["ratio"]
    assert any(name.startswith("tokens.") for name in whole[0])
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, again[0][name]), name
        assert torch.equal(whole[1][name], again[1][name]), name


def test_how_many_go_at_once_is_a_matter_of_memory(sampler: Sampler, tmp_path: Path) -> None:
    found = []
    for at_once in (2, 1):
        method = method_of(**SHORT, **NEAR, at_once=at_once)
        with _trained(method, sampler.handle.pipeline.transformer) as weights:
            run = training(sampler, method, tmp_path, weights)
            run._step()
            found.append({name: values[-1] for name, values in run.history.items() if values})
    for name in ("loss", "ratio", "norm"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4), name


class Pretended(Team):
    """One of two processes; `given` is what the other adds to each sum, in turn."""

    def __init__(self, rank: int, given: list[Tensor] | None = None) -> None:
        self.size, self.rank, self.given, self.sums = 2, rank, given, list[Tensor]()

    def sum(self, tensor: Tensor) -> Tensor:
        found = tensor.clone() if self.given is None else tensor + self.given.pop(0)
        self.sums.append(found)
        return found


def test_a_process_without_a_pair_takes_the_step_of_the_others(sampler: Sampler, tmp_path: Path) -> None:
    method, found = method_of(**{**SHORT, **NEAR, "batch": 1}), []
    first, other = Pretended(0), Pretended(1, [])
    for team in (None, first, other):
        with _trained(method, sampler.handle.pipeline.transformer) as weights:
            run = training(sampler, method, tmp_path, weights)
            run.team = run.team if team is None else team  # type: ignore[assignment]
            run._step()
            kept = {name: tensor.detach().clone() for name, tensor in run._kept().items()}
            found.append(({name: values[-1] for name, values in run.history.items() if values}, kept))
        if team is first:
            other.given = list(first.sums)  # the other has nothing to add: these are the whole
    assert other.given == [], "both must meet at every sum"
    alone = found[0]
    for history, kept in found[1:]:
        for name in ("loss", "ratio", "norm"):
            assert history[name] == pytest.approx(alone[0][name], rel=1e-5), name
        assert all(torch.allclose(kept[name], tensor, atol=1e-6) for name, tensor in alone[1].items())


@pytest.mark.parametrize(("batch", "at_once", "size"), [(16, 16, 2), (5, 16, 4), (7, 2, 3), (3, 16, 8)])
def test_every_process_has_pairs_where_there_are_enough(
    batch: int, at_once: int, size: int, sampler: Sampler, tmp_path: Path
) -> None:
    method = method_of(**{**SHORT, "batch": batch, "at_once": at_once})
    with _trained(method, sampler.handle.pipeline.transformer) as weights:
        run = training(sampler, method, tmp_path, weights)
        run.team.size = size
        parts = [places for _, places in run._parts(np.zeros(batch, dtype=np.int64))]
    assert sorted(place for part in parts for place in part) == list(range(batch))
    assert len(parts) >= min(batch, size)
    assert max(map(len, parts)) <= at_once


def test_a_step_of_too_large_gradients_is_left_out(sampler: Sampler, tmp_path: Path) -> None:
    method = method_of(**SHORT, **NEAR, skipped=1e-9)
    with _trained(method, sampler.handle.pipeline.transformer) as weights:
        run = training(sampler, method, tmp_path, weights)
        before = {name: tensor.detach().clone() for name, tensor in run._kept().items()}
        run._step()
        assert run.history["skipped"] == [1.0]
        assert len(run.history["loss"]) == 1
        assert run.average.count == 0
        assert all(torch.equal(tensor, before[name]) for name, tensor in run._kept().items())


def test_the_complete_network_learns_at_first(sampler: Sampler, tmp_path: Path) -> None:
    found = []
    for complete in (0.0, 1.0):
        method = method_of(**SHORT, **NEAR, complete=complete)
        with _trained(method, sampler.handle.pipeline.transformer) as weights:
            run = training(sampler, method, tmp_path, weights)
            run._step()
            found.append((run.history["loss"][0], run.history["norm"][0]))
    assert found[0][0] == pytest.approx(found[1][0])  # the loss that is noted is of what was left in
    assert found[0][1] != pytest.approx(found[1][1], rel=1e-3)


@pytest.mark.parametrize("dynamic", ["both", "widths", "tokens"])
def test_even_shares_come_to_the_target(dynamic: str) -> None:
    backbone, _ = get_world("dit-xl-2-256").backbone("meta")
    method = method_of(dynamic=dynamic, ratio=0.5)
    shares = Shares(backbone.costs(256, 0).branches, backbone.layout, kinds_of(backbone.layout, "whole"), 256)
    (heads, channels), tokens = even_shares(shares, (16, 16), 28, method)
    each = (torch.full((1, 28), share, dtype=torch.float64) for share in (heads / 16, channels / 16, tokens))
    assert float(shares.of(*each)) == pytest.approx(0.5, abs=0.03 if dynamic == "widths" else 1e-9)
    assert (tokens == 1) == (dynamic == "widths")
    assert (heads == channels == 16) == (dynamic == "tokens")


def test_weights_of_another_kind_are_refused(record: Path, tmp_path: Path) -> None:
    for name, knobs, said in (
        ("full-finetuned", {}, "is of dydit, whose weights full-finetuned cannot take"),
        ("dydit", {"dynamic": "widths"}, "was trained with dynamic 'both', this arm has 'widths'"),
    ):
        method = get_method(name, {**knobs, "weights_file": str(record)})
        everything = {knob: getattr(method, knob) for knob in method.knobs()}
        spec = Spec("scenes", "arm", name, everything, 3, 0, 2, "some", None, "float32", learning="pairs-own")
        with pytest.raises(Fault, match=said):
            write_learned(spec, None, None, tmp_path / "learned.json", batch=2)
