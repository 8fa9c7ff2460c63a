"""Other libraries' implementations of a rule that we have too: the same images, step by step, on small random networks.

What diffusers itself has is always there; cache-dit comes with `uv sync --group peers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_pyramid_attention_broadcast,
)

from ditbench.backbones import Backbone
from ditbench.engine.fills import Reuse
from ditbench.engine.plan import Plan
from ditbench.engine.run import Parts, Run, attached
from ditbench.methods import get_method
from ditbench.sampling import run_of
from tests.backbones.networks import inputs, make

STEPS = 10
# Rounding differs where theirs adds up in another order.
CLOSE = 1e-12


def sample(backbone: Backbone, name: str) -> list[torch.Tensor]:
    """A network's answers along a sampling run that they steer."""
    given = inputs(backbone, name, 0, 2)
    latent, found = given["hidden_states"], []
    for step in range(STEPS):
        time = torch.full_like(given["timestep"], 1 - step / STEPS)
        with torch.no_grad():
            answer = backbone.network(**{**given, "hidden_states": latent, "timestep": time})[0]
        found.append(answer)
        # Some networks answer with a variance besides.
        moved = answer if answer.shape == latent.shape else answer.chunk(2, 1)[0]
        latent = latent - 0.3 / STEPS * moved
    return found


def ours(name: str, make_run: Callable[[Backbone], Run]) -> tuple[list[torch.Tensor], Run]:
    backbone = make(name, torch.float64)
    run = make_run(backbone)
    with attached(run):
        return sample(backbone, name), run


def by(method: str, knobs: dict[str, Any], name: str) -> Callable[[Backbone], Run]:
    return lambda b: run_of(get_method(method, knobs), b, b.shape(STEPS, **inputs(b, name, 0, 2)))


def by_plan(shares: Callable[[Plan], np.ndarray], name: str) -> Callable[[Backbone], Run]:
    def made(backbone: Backbone) -> Run:
        shape = backbone.shape(STEPS, **inputs(backbone, name, 0, 2))
        plan = Plan(shape.layout, shape.layout.by_branch, np.ones(shape.sites))
        return Run(backbone, Plan(plan.layout, plan.units, shares(plan)), shape.tokens, lambda: Parts(Reuse()))

    return made


def apart(own: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(own, other, strict=True))


def left_out_something(run: Run, own: list[torch.Tensor], name: str) -> None:
    assert 0 < run.trace.realised_ratio < 1
    assert apart(own, sample(make(name, torch.float64), name)) > 1e-3, (
        "leaving out changed nothing: nothing is compared"
    )


@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.1])
def test_first_block_cache_is_diffusers_own(threshold: float) -> None:
    own, run = ours("flux-dev", by("first-block-cache", {"threshold": threshold, "pool": "batch"}, "flux-dev"))
    backbone = make("flux-dev", torch.float64)
    backbone.network.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    with backbone.network.cache_context("cond"):
        theirs = sample(backbone, "flux-dev")
    left_out_something(run, own, "flux-dev")
    assert apart(own, theirs) < CLOSE


@pytest.mark.parametrize("order", [0, 1, 2])
def test_taylorseer_is_diffusers_own(order: int) -> None:
    own, run = ours("flux-dev", by("taylorseer", {"interval": 2, "first": 2, "order": order}, "flux-dev"))
    backbone = make("flux-dev", torch.float64)
    config = TaylorSeerCacheConfig(
        cache_interval=2,  # counted otherwise from 3 on
        disable_cache_before_step=2,
        max_order=order,
        taylor_factors_dtype=torch.float64,
        # By itself it forecasts attention alone. A single-stream block's last layer is linear: it may as well be
        # given the forecasts as be forecast.
        cache_identifiers=[
            r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
            r"single_transformer_blocks\.\d+\.(attn|act_mlp)",
        ],
    )
    backbone.network.enable_cache(config)
    with backbone.network.cache_context("cond"):
        theirs = sample(backbone, "flux-dev")
    left_out_something(run, own, "flux-dev")
    assert apart(own, theirs) < CLOSE


def test_a_plan_of_attention_at_intervals_is_pyramid_attention_broadcast() -> None:
    def shares(plan: Plan) -> np.ndarray:
        names, step = plan.layout.name_of, np.arange(STEPS)
        found = np.ones((STEPS, len(names)))
        found[:, names == "self"] = (step % 2 == 0)[:, None]
        found[:, names == "cross"] = (step % 3 == 0)[:, None]
        return found

    own, run = ours("pixart", by_plan(shares, "pixart"))
    backbone = make("pixart", torch.float64)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(-1, 1000),
        cross_attention_timestep_skip_range=(-1, 1000),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(backbone.network, config)
    theirs = sample(backbone, "pixart")
    left_out_something(run, own, "pixart")
    assert apart(own, theirs) < CLOSE


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_first_block_cache_is_cache_dits_with_one_block_and_no_warmup(threshold: float) -> None:
    cache_dit, name = pytest.importorskip("cache_dit", reason="uv sync --group peers"), "pixart"
    own, run = ours(name, by("first-block-cache", {"threshold": threshold, "pool": "batch"}, name))
    backbone = make(name, torch.float64)
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=backbone.network,
            blocks=backbone.network.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3,
            check_forward_pattern=False,
        ),
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=threshold,
            max_warmup_steps=0,
            enable_separate_cfg=False,
            num_inference_steps=STEPS,
        ),
    )
    theirs = sample(backbone, name)
    left_out_something(run, own, name)
    assert apart(own, theirs) < CLOSE
