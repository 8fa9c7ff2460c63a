"""TokenCache's learner: what it trains is what is sampled, its gradients, and going on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ditbench.backbones import Backbone
from ditbench.cells import Spec
from ditbench.engine.predicted import OfPlaces, OfTokens, tensors_of
from ditbench.engine.run import Run, attached
from ditbench.faults import Fault
from ditbench.generate import Sampler, Texts
from ditbench.learn.job import learned_method, write_learned
from ditbench.learn.lesson import Lesson, Notebook
from ditbench.learn.mixed import MixedForward
from ditbench.learn.predictor import Books, School, Training
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.tokencache import TokenCache
from ditbench.records import read_record
from ditbench.sampling import run_of
from ditbench.storage import hash_file, write_tensors
from ditbench.worlds import get_world
from tests.backbones.networks import inputs, make

NAMES = ("pixart", "dit", "sd3", "sd3.5-medium", "flux-dev", "wan")
EVEN: dict[str, Any] = {"allocation": "even", "schedule": "two-phase", "last": 0}


def tokencache(**knobs: Any) -> TokenCache:
    method = get_method("tokencache", knobs)
    assert isinstance(method, TokenCache)
    return method


def predictor(backbone: Backbone, variant: str, blocks: int, tokens: int) -> OfPlaces | OfTokens:
    """One whose weights differ from token to token."""
    torch.manual_seed(3)
    made = OfPlaces(blocks, tokens) if variant == "v1" else OfTokens.of(backbone, blocks)
    last = made.outer if isinstance(made, OfPlaces) else made.head
    torch.nn.init.normal_(last.weight)
    return made


def taught(backbone: Backbone, name: str, steps: int, folder: Path, **knobs: Any) -> TokenCache:
    """The method with such a predictor, and the plan of blocks that are all alike."""
    method = tokencache(**{**EVEN, **knobs})
    shape = backbone.shape(steps, **inputs(backbone, name, 0, 2))
    alike = np.zeros((steps, method.blocks(shape)))
    made = predictor(backbone, method.variant, method.blocks(shape), shape.tokens)
    write_tensors(folder / "weights.safetensors", tensors_of(made))
    return method.knowing(
        {
            "file": str(folder / "weights.safetensors"),
            "sha256": hash_file(folder / "weights.safetensors"),
            "shares": method.shares(shape, alike, alike).tolist(),
        }
    )


def sampled(backbone: Backbone, name: str, method: TokenCache, steps: int, halves: int = 1) -> tuple[Run, list[Tensor]]:
    run = run_of(method, backbone, backbone.shape(steps, **inputs(backbone, name, 0, 2)), halves=halves)
    with torch.no_grad(), attached(run):
        return run, [backbone.network(**inputs(backbone, name, step, 2))[0] for step in range(steps)]


def mixed_with(weights: float, backbone: Backbone, name: str, by_block: bool) -> Tensor:
    forward = MixedForward(backbone, by_block)
    given = [inputs(backbone, name, step, 2) for step in range(2)]
    with torch.no_grad():
        _, before = forward.plain((), given[0])
        blocks, tokens = backbone.layout.blocks, backbone.tokens(**given[0])
        answer = forward.mixed((), given[1], before, lambda stream: torch.full((1, blocks, tokens), weights))
    found: Tensor = answer[0]
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_of_one_are_the_network_to_the_last_bit(name: str, by_block: bool, dtype: torch.dtype) -> None:
    backbone = make(name, dtype)
    assert torch.equal(mixed_with(1.0, backbone, name, by_block), backbone.network(**inputs(backbone, name, 1, 2))[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_weights_of_zero_are_a_step_that_reuses(name: str, variant: str, tmp_path: Path) -> None:
    backbone = make(name, torch.float64)
    method = taught(backbone, name, 2, tmp_path, variant=variant, ratio=1.0, chosen=1.0, phase=1.0)
    run, found = sampled(backbone, name, method, 2)
    assert run.trace.realised_ratio == 0.5
    mixed = mixed_with(0.0, backbone, name, variant == "v2")
    assert torch.allclose(found[1], mixed, atol=1e-5)
    assert not torch.allclose(found[1], backbone.network(**inputs(backbone, name, 1, 2))[0], atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_tokens_of_greatest_weight_are_computed_and_nothing_stays_behind(
    name: str, variant: str, tmp_path: Path
) -> None:
    backbone = make(name)
    method = taught(backbone, name, 4, tmp_path, variant=variant, ratio=0.5, chosen=1.0)
    plan = method.plan(backbone.shape(4, **inputs(backbone, name, 0, 2)))
    run, found = sampled(backbone, name, method, 4)
    assert run.trace.realised_ratio == pytest.approx(0.25)  # full at 0 and 2
    for step in (0, 2):
        assert torch.equal(found[step], backbone.network(**inputs(backbone, name, step, 2))[0])
    # By hand: the tokens of the first unit, at the step after a full one.
    stream = backbone.enter(**inputs(backbone, name, 1, 2))
    made = predictor(backbone, variant, backbone.layout.blocks, stream.tokens)
    with torch.no_grad():
        weights = made.logits(1 / 4, stream, backbone)[:, 0].expand(2, -1)
    count = int(plan.counts(stream.tokens)[1, 0])
    chosen = _chosen(run, backbone, name)
    for sample in range(2):
        greatest = weights[sample].argsort(descending=True)[:count].sort().values
        assert torch.equal(chosen[sample], greatest)
    # A run that is given up, of other images: the next is as the first.
    stopped = run_of(method, backbone, backbone.shape(4, **inputs(backbone, name, 0, 4)))
    with torch.no_grad(), attached(stopped):
        backbone.network(**inputs(backbone, name, 0, 4))
    again = sampled(backbone, name, method, 4)[1]
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def _chosen(run: Run, backbone: Backbone, name: str) -> Tensor:
    """The tokens that a run's selector takes first, at its second step."""
    selector: Any = run.branches[0].selector
    with torch.no_grad():
        stream = backbone.enter(**inputs(backbone, name, 1, 2))
        selector.foresee(1, stream, backbone, run.costs)
    count = int(run.plan.counts(stream.tokens)[1, 0])
    index: Tensor = selector.choose(run.plan.units[0], 1, stream, count).index
    return index


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_a_ratio_of_nothing_is_the_network_to_the_last_bit(variant: str, tmp_path: Path) -> None:
    backbone = make("sd3", torch.bfloat16)
    run, found = sampled(backbone, "sd3", taught(backbone, "sd3", 3, tmp_path, variant=variant, ratio=0.0), 3)
    assert run.trace.realised_ratio == 0
    assert run.trace.selecting.sum() == 0
    for step in range(3):
        assert torch.equal(found[step], backbone.network(**inputs(backbone, "sd3", step, 2))[0])


@pytest.mark.parametrize("sharing", ["separate", "max", "mean"])
def test_both_branches_of_guidance_choose_as_they_are_told(sharing: str, tmp_path: Path) -> None:
    backbone = make("pixart")
    method = taught(backbone, "pixart", 2, tmp_path, ratio=0.5, guidance=sharing, phase=1.0)
    run, _ = sampled(backbone, "pixart", method, 2, halves=2)
    selector: Any = run.branches[0].selector
    index = selector._last[1].index
    assert torch.equal(index[0], index[1]) == (sharing != "separate")


# Learning


class _Held:
    """As much of a training as its loss needs."""

    def __init__(self, backbone: Backbone, variant: str, made: Any) -> None:
        self.predictor, self.forward = made, MixedForward(backbone, variant == "v2")
        self.school = type("School", (), {"steps": 4, "backbone": backbone})()


@pytest.mark.parametrize("name", ["pixart", "dit", "sd3"])
@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_the_predictor_are_those_of_small_changes(name: str, variant: str, checkpointing: bool) -> None:
    backbone = make(name, torch.float64)
    given = [inputs(backbone, name, step, 2) for step in range(2)]
    tokens = backbone.tokens(**given[0])
    made = predictor(backbone, variant, backbone.layout.blocks - 1, tokens).double()
    made.requires_grad_(True)
    held = _Held(backbone, variant, made)
    held.forward.checkpointing = checkpointing
    with torch.no_grad():
        _, before = held.forward.plain((), given[0])
        answer = backbone.network(**given[1])
    loss: Callable[..., tuple[Tensor, Tensor]] = Training.loss

    def off() -> Tensor:
        error, mean = loss(held, 1, before, answer, (), given[1])
        return error + 0.1 * mean

    off().backward()
    names = ("outer.bias", "block.weight") if variant == "v1" else ("head.weight", "head.bias")
    for parameter in [dict(made.named_parameters())[each] for each in names]:
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        slopes = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[place] += step
                slopes.append(off().item())
                parameter.view(-1)[place] -= step
        slope = (slopes[0] - slopes[1]) / 2e-5
        assert slope != 0
        assert parameter.grad.view(-1)[place].item() == pytest.approx(slope, rel=1e-4)


def test_the_copy_of_the_first_block_learns_too_and_the_network_does_not() -> None:
    backbone = make("dit")
    given = [inputs(backbone, "dit", step, 2) for step in range(2)]
    made = predictor(backbone, "v2", 2, backbone.tokens(**given[0]))
    assert isinstance(made, OfTokens)
    held = _Held(backbone, "v2", made.to_train())
    with torch.no_grad():
        answer, before = held.forward.plain((), given[0])
    loss: Callable[..., tuple[Tensor, Tensor]] = Training.loss
    loss(held, 1, before, answer, (), given[1])[0].backward()
    assert made.block.attn1.to_q.weight.grad.abs().sum() > 0  # type: ignore[union-attr,operator]
    assert all(parameter.grad is None for parameter in backbone.network.parameters())
    # The network has as many blocks as before, and its own first one.
    assert len(backbone.network.transformer_blocks) == 2
    assert backbone.network.transformer_blocks[0] is not made.block


def test_books_count_how_many_of_each_block_are_among_the_greatest() -> None:
    backbone = make("pixart")
    stream = backbone.enter(**inputs(backbone, "pixart", 1, 2))
    made = predictor(backbone, "v2", 2, stream.tokens)
    school: Any = type(
        "School", (), {"steps": 4, "blocks": 2, "backbone": backbone, "method": tokencache(ratio=0.25)}
    )()
    books = Books(school, made)
    with torch.no_grad():
        books.enter(1, stream)
        logits = made.logits(1 / 4, stream, backbone).flatten(1)
    importance, wanted = books.means()
    assert importance[1] == pytest.approx(torch.sigmoid(logits).view(2, 2, -1).mean((0, 2)).numpy(), rel=1e-5)
    assert wanted[1].sum() == 18  # of 24
    least = logits.sort(dim=1, descending=True).values[:, 17:18]
    assert wanted[1] == pytest.approx((logits >= least).view(2, 2, -1).sum(2).float().mean(0).numpy())
    assert (wanted[0] == 0).all()


STEPS = 3
SHORT: dict[str, Any] = {"rate": 0.01, "block_rate": 0.001, "ratio": 0.5, "last": 1}


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler("scenes")


def training(sampler: Sampler, folder: Path, **knobs: Any) -> tuple[School, Training]:
    folder.mkdir(exist_ok=True)
    method = tokencache(**{**SHORT, **knobs})
    captions = sampler.world.draw_captions(2, 0, "train")
    given, nothing = (sampler.world.embed(sampler.handle, some) for some in (captions, [""]))
    texts = Texts(["a", "b"], given, nothing)
    spec = {"world": "scenes", "weights": None, "dtype": "float32", "steps": STEPS, "arm": "ours"}
    lesson = Lesson(method, spec, sampler, texts, 1, Notebook(folder / "learned.notes.json", "x"))
    school = School(lesson, method)
    return school, Training(school, {}, folder / "training.pt")


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_training_goes_on_from_where_it_stopped(variant: str, sampler: Sampler, tmp_path: Path) -> None:
    school, whole = training(sampler, tmp_path / "whole", variant=variant)
    whole.finish()
    school, stopped = training(sampler, tmp_path / "stopped", variant=variant)
    batches, finish = school.lesson.batches, stopped.finish
    school.lesson.batches = lambda: batches()[:1]  # type: ignore[method-assign]
    finish()
    stopped.save()
    _, again = training(sampler, tmp_path / "stopped", variant=variant)
    again.recall()
    assert again.done == 1
    again.finish()
    assert again.history["off"] == whole.history["off"]
    own = again.predictor.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in whole.predictor.state_dict().items())
    # Another training does not go on from it.
    _, other = training(sampler, tmp_path / "stopped", variant=variant, rate=0.02)
    other.recall()
    assert other.done == 0


def learned(captions: Path, folder: Path, **knobs: Any) -> Path:
    folder.mkdir()
    method = tokencache(**{**SHORT, **knobs})
    everything = {name: getattr(method, name) for name in method.knobs()}
    spec = Spec("scenes", "arm", "tokencache", everything, STEPS, 0, 2, "some", None, "float32", learning="training")
    write_learned(spec, captions / "captions.json", captions / "embeddings.json", folder / "learned.json", batch=2)
    return folder / "learned.json"


def test_a_record_of_learning_is_all_that_sampling_needs(captions: Path, sampler: Sampler, tmp_path: Path) -> None:
    path = learned(captions, tmp_path / "a", rank=2)
    found = read_record(path, "learned")["found"]
    assert len(found["history"]["off"]) == 1
    assert found["planned_on"] == 2
    assert np.array(found["importance"]).shape == (STEPS, 7)
    assert sorted(p.name for p in path.parent.iterdir()) == ["learned.json", "weights.safetensors"]
    tensors = load_file(path.parent / found["file"])
    assert tensors["predictor.head.weight"].shape == (7, 192)
    assert {name.split(".")[2] for name in tensors if name.startswith("down.")} == {"7"}
    method = learned_method(path)
    texts = Texts(["x", "y"], *(sampler.world.embed(sampler.handle, some) for some in (["a", "b"], [""])))
    full = sampler.run(get_method("full"), STEPS, 0, texts)[0]
    images, trace = sampler.run(method, STEPS, 0, texts)
    assert not np.array_equal(images, full)
    assert np.array_equal(sampler.run(method, STEPS, 0, texts)[0], images)
    assert np.array_equal(sampler.run(get_method("full"), STEPS, 0, texts)[0], full)
    # What is billed without weights is what is billed of images.
    counted = count_macs("scenes", method, steps=STEPS)
    assert counted["realised_ratio"] == pytest.approx(trace.realised_ratio)
    assert counted["selecting"] == pytest.approx(trace.selecting.sum() / trace.samples)


def test_a_predictor_serves_other_ratios(captions: Path, tmp_path: Path) -> None:
    path = learned(captions, tmp_path / "a", variant="v1", last=-1)
    other = learned(captions, tmp_path / "b", variant="v1", last=-1, ratio=0.8, weights_file=str(path))
    mine, theirs = (read_record(each, "learned")["found"] for each in (path, other))
    assert theirs["sha256"] == mine["sha256"]
    assert theirs["from"]["arm"] == "arm"
    left_out = [learned_method(each).plan(get_world("scenes").shape(STEPS)).nominal_ratio for each in (path, other)]
    assert left_out[1] == pytest.approx(1.6 * left_out[0], rel=1e-3)  # type: ignore[operator]
    with pytest.raises(Fault, match="was trained with variant 'v1', this arm has 'v2'"):
        learned(captions, tmp_path / "c", weights_file=str(path))
