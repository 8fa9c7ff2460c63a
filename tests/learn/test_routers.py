"""Learning-to-Cache: the mixing that routers are trained by, what they learn, and going on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditbench.backbones import Backbone
from ditbench.caption_sets import TRAINING_SPLIT, write_captions
from ditbench.cells import Spec
from ditbench.engine.run import attached
from ditbench.faults import Fault
from ditbench.generate import embed
from ditbench.learn.job import learned_method, write_learned
from ditbench.learn.routers import CLAMP, Routers, _mixed, _Tutor, through
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.l2c import LearningToCache
from ditbench.records import read_record
from ditbench.sampling import run_of
from ditbench.worlds import get_world
from tests.backbones.networks import inputs, make

NAMES = ("pixart", "dit", "sd3", "flux-dev", "wan")
STEPS = 4


def l2c(**knobs: Any) -> LearningToCache:
    method = get_method("l2c", knobs)
    assert isinstance(method, LearningToCache)
    return method


def outputs(backbone: Backbone, given: dict[str, Any]) -> list[Any]:
    """What every branch gives out."""
    found: list[Any] = []

    def noted(branch: int, output: Any) -> Any:
        found.append(output)
        return output

    through(backbone, (), given, noted)
    return found


def knowing(keep: np.ndarray, **knobs: Any) -> LearningToCache:
    return l2c(**knobs).knowing({"keep": keep.tolist()})


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_steps_come_in_pairs_and_the_first_is_computed(steps: int) -> None:
    expected = {1: [], 2: [1], 5: [2, 4], 6: [1, 3, 5]}
    assert l2c().reusing(steps).nonzero()[0].tolist() == expected[steps]


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_is_computed_where_its_router_says_more_than_theta(name: str) -> None:
    backbone = make(name)
    shape = backbone.shape(STEPS, **inputs(backbone, name, 0, 2))
    keep = np.random.default_rng(0).uniform(0.05, 0.95, shape.sites)
    plan = knowing(keep, theta=0.5).plan(shape)
    assert (plan.shares[[0, 2]] == 1).all()
    assert (plan.shares[[1, 3]] == (keep[[1, 3]] > 0.5)).all()
    # theta 0 is the network.
    run = run_of(knowing(keep, theta=0.0), backbone, shape)
    with attached(run):
        found = [backbone.network(**inputs(backbone, name, step, 2))[0] for step in range(STEPS)]
    for step, answer in enumerate(found):
        assert torch.equal(answer, backbone.network(**inputs(backbone, name, step, 2))[0])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_is_sampled(name: str) -> None:
    backbone = make(name, torch.float64)
    given = [inputs(backbone, name, step, 2) for step in range(2)]
    keep = np.ones((2, len(backbone.layout)))
    keep[1, ::2] = 0  # every other branch is reused
    run = run_of(knowing(keep), backbone, backbone.shape(2, **given[0]))
    with attached(run):
        sampled = [backbone.network(**each)[0] for each in given][1]
    before = outputs(backbone, given[0])
    weights = torch.tensor(keep[1])
    trained = through(backbone, (), given[1], lambda branch, now: _mixed(weights[branch], before[branch], now))[0]
    assert torch.allclose(sampled, trained, atol=1e-9)


def test_gradients_are_those_of_small_changes() -> None:
    backbone = make("pixart", torch.float64)
    first, second = (inputs(backbone, "pixart", step, 2) for step in range(2))
    before, full = outputs(backbone, first), backbone.network(**second)[0]
    weights = torch.full((len(backbone.layout),), 0.6, dtype=torch.float64, requires_grad=True)

    def off(by: torch.Tensor) -> torch.Tensor:
        mixed = through(backbone, (), second, lambda branch, now: _mixed(by[branch], before[branch], now))[0]
        return ((mixed - full) ** 2).mean()

    off(weights).backward()
    assert weights.grad is not None
    for branch in range(len(weights)):
        step = torch.zeros_like(weights)
        step[branch] = 1e-5
        with torch.no_grad():
            slope = (off(weights + step) - off(weights - step)) / 2e-5
        assert weights.grad[branch] == pytest.approx(slope.item(), rel=1e-5, abs=1e-9)
        assert abs(slope) > 0


def taught(backbone: Backbone, method: LearningToCache, rounds: int) -> Routers:
    routers = Routers(method, 2, len(backbone.layout), "cpu")
    for number in range(rounds):
        run = run_of(get_method("full"), backbone, backbone.shape(2, **inputs(backbone, "pixart", 0, 2)))
        tutor = _Tutor(run, routers)
        with torch.no_grad(), attached(tutor):  # type: ignore[arg-type]
            for step in range(2):
                backbone.network(**inputs(backbone, "pixart", 2 * number + step, 2))
                tutor.advance()
        routers.state(number + 1)
    return routers


def test_a_branch_that_never_changes_is_left_out_and_the_others_are_not() -> None:
    backbone = make("pixart")
    with torch.no_grad():
        backbone.network.transformer_blocks[1].attn2.to_out[0].weight.zero_()
    dull = list(backbone.layout.branches).index((1, "cross"))  # type: ignore[arg-type]
    routers = taught(backbone, l2c(start="even", rate=0.2, penalty=1e-6), 15)
    said = routers.keep()[1]
    assert said[dull] < 0.1
    assert min(value for branch, value in enumerate(said) if branch != dull) > 0.5
    assert routers.keep()[0] == [1.0] * len(said)
    assert routers.updates == 15
    assert routers.losses[-1] < routers.losses[0]


def test_logits_stay_within_bounds() -> None:
    routers = taught(make("pixart"), l2c(start="even", rate=4.0, penalty=1e3), 4)
    assert routers.keep()[1] == pytest.approx([1 / (1 + np.exp(CLAMP))] * 6)


def test_training_goes_on_from_where_it_stopped() -> None:
    method = l2c(start="random", rate=0.1)
    whole = taught(make("pixart"), method, 3)
    stopped = taught(make("pixart"), method, 2)
    again = Routers(method, 2, 6, "cpu")
    stopped.losses.pop()  # told again by `state`
    stopped._of_batch = [0.0]
    assert again.load(stopped.state(2)) == 2
    backbone = make("pixart")
    run = run_of(get_method("full"), backbone, backbone.shape(2, **inputs(backbone, "pixart", 0, 2)))
    tutor = _Tutor(run, again)
    with torch.no_grad(), attached(tutor):  # type: ignore[arg-type]
        for step in range(2):
            backbone.network(**inputs(backbone, "pixart", 4 + step, 2))
            tutor.advance()
    assert again.keep()[1] == whole.keep()[1]


def test_routers_of_the_embedded_world_meet_their_target(tmp_path: Path) -> None:
    write_captions(get_world("scenes"), "training", 4, 0, tmp_path / "captions.json", split=TRAINING_SPLIT)
    embed("scenes", tmp_path / "captions.json", tmp_path / "embeddings.json")
    knobs = {name: getattr(l2c(), name) for name in l2c().knobs()} | {"target": 1.3, "rate": 0.3, "start": "even"}
    spec = Spec("scenes", "arm", "l2c", knobs, 4, 0, 8, "some", None, "float32", learning="training")
    out = tmp_path / "learned.json"
    write_learned(spec, tmp_path / "captions.json", tmp_path / "embeddings.json", out, batch=2)
    found = read_record(out, "learned")["found"]
    assert found["updates"] == 2 * 2
    assert np.array(found["keep"]).shape == (4, 24)
    costs = [count_macs("scenes", method, steps=4)["total"] for method in (get_method("full"), learned_method(out))]
    assert costs[0] / costs[1] == pytest.approx(found["reached"]) == pytest.approx(1.3, rel=0.05)
    assert not list(tmp_path.glob("*.notes.json"))


@pytest.mark.parametrize("target", [1.0, 2.0, 0.5])
def test_a_target_that_pairs_of_steps_cannot_reach_is_a_fault(target: float) -> None:
    with pytest.raises(Fault, match="must lie between 1 and 2"):
        l2c(target=target)


def test_routers_of_other_steps_are_refused() -> None:
    backbone = make("pixart")
    shape = backbone.shape(6, **inputs(backbone, "pixart", 0, 2))
    with pytest.raises(Fault, match="the routers are of 4 steps and 6 branches, this run has 6 and 6"):
        knowing(np.ones((4, 6))).plan(shape)
    with pytest.raises(Fault, match="l2c must be fitted first"):
        l2c().plan(shape)
