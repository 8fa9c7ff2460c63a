"""Whole sampling runs of diffusers' own pipelines, a small random one of every family, with the engine in the loop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ditbench
from ditbench.engine.plan import Plan
from ditbench.engine.selectors import RandomTokens
from ditbench.faults import Fault
from tests.tiny_pipelines import PIPELINES, draw, loaded, one_thread, saved

STEPS = 4
each_pipeline = pytest.mark.parametrize("name", PIPELINES)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp("pipelines") / name) for name in PIPELINES}


def pipeline_of(name: str, folders: dict[str, Path], dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline as it loads from disk: in bf16, some families keep some of their modules in fp32."""
    made = loaded(name, folders[name], dtype)
    made.set_progress_bar_config(disable=True)
    return made


@each_pipeline
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("guided", [True, False])
def test_a_full_plan_draws_what_the_pipeline_draws(
    folders: dict[str, Path], name: str, dtype: torch.dtype, batch: int, guided: bool
) -> None:
    pipeline = pipeline_of(name, folders, dtype)
    guidance = None if guided else 1.0
    expected = draw(pipeline, name, steps=STEPS, batch=batch, guidance=guidance)
    with ditbench.accelerate(pipeline, "full") as accelerated:
        actual = draw(pipeline, name, steps=STEPS, batch=batch, guidance=guidance)
    assert torch.isfinite(expected).all()
    assert torch.equal(actual, expected)
    assert accelerated.trace.realised_ratio == 0
    assert (accelerated.trace.whole == accelerated.trace.samples).all(), "every call of the network is in the trace"


@each_pipeline
def test_reuse_changes_the_picture_and_leaves_nothing_behind(folders: dict[str, Path], name: str) -> None:
    pipeline = pipeline_of(name, folders)
    with ditbench.accelerate(pipeline, "full") as full:
        expected = draw(pipeline, name, steps=STEPS)
    accelerated = ditbench.accelerate(pipeline, "fora", interval=2)
    first = draw(pipeline, name, steps=STEPS)
    assert not torch.equal(first, expected)
    assert accelerated.trace.realised_ratio == 0.5
    assert full.bill.total / 2 < accelerated.bill.total < 0.75 * full.bill.total
    draw(pipeline, name, steps=3, batch=2)
    assert torch.equal(draw(pipeline, name, steps=STEPS), first), "a call depends on the calls before it"
    accelerated.restore()
    assert torch.equal(draw(pipeline, name, steps=STEPS), expected)
    assert "forward" not in vars(pipeline.transformer)
    assert {"step", "set_timesteps"}.isdisjoint(vars(pipeline.scheduler))


@each_pipeline
def test_fewer_steps_is_the_pipeline_at_fewer_steps(folders: dict[str, Path], name: str) -> None:
    pipeline = pipeline_of(name, folders)
    half = draw(pipeline, name, steps=2)
    with ditbench.accelerate(pipeline, "fewer-steps", share=0.5) as accelerated:
        drawn = draw(pipeline, name, steps=STEPS)
        assert accelerated.trace.shape.steps == 2
    assert torch.equal(drawn, half)


@each_pipeline
def test_a_plan_that_computes_some_tokens_is_given_as_an_object(folders: dict[str, Path], name: str) -> None:
    pipeline = pipeline_of(name, folders)
    backbone = ditbench.accelerate(pipeline, "full")
    layout = backbone.backbone.layout
    backbone.restore()
    shares = np.ones((STEPS, len(layout)))
    shares[1:, ::2] = 0
    shares[2:, 1::2] = 0.5
    plan = Plan(layout, layout.by_branch, shares)
    with ditbench.accelerate(pipeline, plan), pytest.raises(Fault, match="needs a selector"):
        draw(pipeline, name, steps=STEPS)
    with pytest.raises(Fault, match="no knob 'interval'"):
        ditbench.accelerate(pipeline, plan, interval=2)
    chooser = partial(RandomTokens, torch.Generator().manual_seed(0))
    with ditbench.accelerate(pipeline, plan, selector=chooser) as accelerated:
        drawn = draw(pipeline, name, steps=STEPS)
        assert torch.isfinite(drawn).all()
        assert (accelerated.trace.computed[1:, ::2] == 0).all()
        with pytest.raises(Fault, match="plan is for 4 steps"):
            draw(pipeline, name, steps=3)
