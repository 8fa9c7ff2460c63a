"""CUDA graphs: the same bits as without, whatever the method, the family and the calls that went before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ditbench
from ditbench.backbones.families import backbone_of
from ditbench.engine.fills import Pass, Reuse
from ditbench.engine.graphs import RecordedRun
from ditbench.engine.layout import Layout
from ditbench.engine.plan import Plan
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.selectors import RandomTokens
from ditbench.faults import Fault
from ditbench.methods import get_method
from ditbench.sampling import run_of
from tests.backbones import networks
from tests.tiny_pipelines import PIPELINES, build, draw

STEPS = 6


def random_tokens() -> RandomTokens:
    return RandomTokens(torch.Generator("cuda").manual_seed(5))


def mixed(layout: Layout) -> Plan:
    """Whole steps, half of the tokens and reuse by turns."""
    shares = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.5, 0.5])[:, None].expand(-1, len(layout)).numpy()
    return Plan(layout, layout.by_branch, shares.copy())


@pytest.fixture
def pipeline(request: pytest.FixtureRequest) -> Any:
    made = build(request.param).to("cuda")
    made.set_progress_bar_config(disable=True)
    return made


def test_graphs_need_a_gpu() -> None:
    pipeline = build("pixart-alpha")
    with (
        ditbench.accelerate(pipeline, "fora", interval=2, graphs=True),
        pytest.raises(Fault, match="need a network on a CUDA device, this one is on cpu"),
    ):
        draw(pipeline, "pixart-alpha", steps=2, batch=1, guidance=None)


@pytest.mark.gpu
@pytest.mark.parametrize("pipeline", PIPELINES, indirect=True)
@pytest.mark.parametrize("batch", [1, 2])
def test_graphs_draw_the_same_bits(pipeline: Any, request: pytest.FixtureRequest, batch: int) -> None:
    name = request.node.callspec.params["pipeline"]
    plan = mixed(backbone_of(pipeline.transformer).layout)
    with ditbench.accelerate(pipeline, plan, selector=random_tokens) as plain:
        expected = draw(pipeline, name, steps=STEPS, batch=batch, guidance=None)
    with ditbench.accelerate(pipeline, plan, selector=random_tokens, graphs=True) as recorded:
        for _ in range(3):  # recorded, replayed, and replayed with what the last replay left behind
            assert torch.equal(draw(pipeline, name, steps=STEPS, batch=batch, guidance=None), expected)
            assert recorded.trace.summary() == plain.trace.summary()
            assert recorded.bill == plain.bill


@pytest.mark.gpu
@pytest.mark.parametrize("pipeline", ["pixart-alpha"], indirect=True)
def test_other_batches_and_steps_are_recorded_anew(pipeline: Any) -> None:
    calls = [(2, 4), (1, 4), (1, 6), (2, 4), (2, 4)]
    with ditbench.accelerate(pipeline, "fora", interval=2):
        expected = [draw(pipeline, "pixart-alpha", steps=s, batch=b, guidance=None) for b, s in calls]
    with ditbench.accelerate(pipeline, "fora", interval=2, graphs=True):
        for (batch, steps), wanted in zip(calls, expected, strict=True):
            assert torch.equal(draw(pipeline, "pixart-alpha", steps=steps, batch=batch, guidance=None), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("pipeline", ["pixart-alpha"], indirect=True)
def test_a_run_that_was_cut_off_leaves_nothing_behind(pipeline: Any) -> None:
    class Stopped(Exception):
        pass

    with ditbench.accelerate(pipeline, "fora", interval=2):
        expected = draw(pipeline, "pixart-alpha", steps=STEPS, batch=1, guidance=None)
    with ditbench.accelerate(pipeline, "fora", interval=2, graphs=True):
        own, count = pipeline.scheduler.step, 0

        def failing(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == 3:
                raise Stopped
            return own(*args, **kwargs)

        pipeline.scheduler.step = failing
        with pytest.raises(Stopped):
            draw(pipeline, "pixart-alpha", steps=STEPS, batch=1, guidance=None)
        pipeline.scheduler.step = own
        for _ in range(2):
            assert torch.equal(draw(pipeline, "pixart-alpha", steps=STEPS, batch=1, guidance=None), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("pipeline", ["pixart-alpha"], indirect=True)
def test_a_plan_without_caches_is_recorded_too(pipeline: Any) -> None:
    plan = mixed(backbone_of(pipeline.transformer).layout)
    with ditbench.accelerate(pipeline, plan, selector=random_tokens, fill=Pass):
        expected = draw(pipeline, "pixart-alpha", steps=STEPS, batch=2, guidance=None)
    with ditbench.accelerate(pipeline, plan, selector=random_tokens, fill=Pass, graphs=True):
        for _ in range(2):
            assert torch.equal(draw(pipeline, "pixart-alpha", steps=STEPS, batch=2, guidance=None), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_static_plan_never_waits_for_the_gpu(name: str) -> None:
    backbone = networks.make(name, torch.bfloat16, "cuda")
    inputs = networks.inputs(backbone, name, 0, 2)
    selector = random_tokens()
    run = Run(backbone, mixed(backbone.layout), backbone.tokens(**inputs), lambda: Parts(Reuse(), selector))
    with attached(run), torch.no_grad():
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(STEPS):
                backbone.network(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_recording_holds_one_number_of_branches_of_guidance() -> None:
    backbone = networks.make("pixart")
    shape = backbone.shape(3, **networks.inputs(backbone, "pixart", 0, 4))

    def run(*seeds: int) -> Run:
        return run_of(get_method("full"), backbone, shape, by_itself=False, halves=2, seeds=seeds)

    recording: Any = SimpleNamespace(run=run(1, 2), calls=[])
    first = RecordedRun(run(1, 2), recording)
    recording.calls, first._next = ["the first step"], 1
    first.settle(1)  # two images of one noise
    assert recording.run.halves == 1
    recording.calls += ["the second"]
    later = RecordedRun(run(5, 6), recording)
    assert recording.run._seeds.tolist() == [5, 6, 5, 6]
    later._next = 1
    later.settle(1)
    with pytest.raises(Fault, match=r"1 branch.* of guidance is recorded, and this one has 2"):
        later.settle(2)
