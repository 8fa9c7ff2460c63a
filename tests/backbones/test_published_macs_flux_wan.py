"""FLUX.1 and Wan2.1-1.3B at their published sizes, without values: what a step costs, and published totals of FLUX.

Those leave out the products of attention and count as the thop tool does. No plain way of counting gives the total
published for Wan, so it is not here.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from ditbench.backbones import Backbone
from ditbench.backbones.families import backbone_of
from ditbench.engine.fills import Reuse
from ditbench.engine.ledger import Bill, bill
from ditbench.engine.plan import full_plan
from ditbench.engine.run import Parts, Run, attached


class Case(NamedTuple):
    size: tuple[int, ...]  # of the latent
    text: int
    tokens: int
    linear: float  # G MACs of a step
    attention: float


CASES = {
    "flux-schnell 256": Case((32, 32), 256, 256, 3311.568, 91.805),
    "flux-dev 1024": Case((128, 128), 512, 4096, 29756.128, 7436.199),
    "wan 17 frames 256": Case((5, 32, 32), 512, 1280, 1677.722, 211.393),
}


def network_of(name: str) -> Backbone:
    with torch.device("meta"):
        if name.startswith("wan"):
            return backbone_of(WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30))
        # 19 double-stream and 38 single-stream blocks of 24 heads are what the class builds by itself.
        return backbone_of(FluxTransformer2DModel(guidance_embeds="dev" in name))


@cache
def a_step(name: str) -> tuple[Bill, float]:
    """What the ledger bills a whole step, and what torch counts in it."""
    backbone, case = network_of(name), CASES[name]
    given = backbone.example_inputs(1, case.size, case.text, torch.bfloat16, "meta")
    backbone.network.to(torch.bfloat16)
    shape = backbone.shape(1, **given)
    assert shape.tokens == case.tokens
    run = Run(backbone, full_plan(shape), shape.tokens, lambda: Parts(Reuse()))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), attached(run):
        backbone.network(**given)
    return bill(run.trace, run.costs), counter.get_total_flops() / 2


@pytest.mark.parametrize("name", CASES)
def test_a_step_costs_what_was_measured(name: str) -> None:
    charged, counted = a_step(name)
    assert charged.linear / 1e9 == pytest.approx(CASES[name].linear, abs=5e-4)
    assert charged.attention / 1e9 == pytest.approx(CASES[name].attention, abs=5e-4)
    assert charged.total == counted


def test_published_totals_of_flux() -> None:
    schnell, dev = a_step("flux-schnell 256")[0], a_step("flux-dev 1024")[0]
    assert round(4 * schnell.thop / 1e12, 3) == 13.247
    assert round(4 * schnell.linear / 1e12, 3) == 13.246
    assert round(20 * dev.thop / 1e12, 1) == 595.2
    assert round(20 * dev.thop / 1e12, 2) == 595.17
    assert round(20 * dev.linear / 1e12, 1) == 595.1, "the published digit needs thop's term for LayerNorms"


def test_thop_knows_no_norm_of_wan() -> None:
    charged, _ = a_step("wan 17 frames 256")
    assert charged.thop == charged.linear
