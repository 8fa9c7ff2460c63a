"""Real networks on the device `meta`: what the ledger bills, against torch's counter and against published figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ditbench.backbones import Backbone
from ditbench.backbones.families import backbone_of
from ditbench.engine.fills import Pass
from ditbench.engine.ledger import Bill, bill
from ditbench.engine.plan import full_plan
from ditbench.engine.run import Parts, Run, attached

G = 10**9


def _pixart(sample_size: int) -> nn.Module:
    # Sigma has the same at 512 pixels, but other positions, which cost nothing.
    return PixArtTransformer2DModel(sample_size=sample_size, caption_channels=4096, use_additional_conditions=False)


def _sd3(**changes: Any) -> nn.Module:
    published = {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    }
    return SD3Transformer2DModel(**{**published, **changes})


# Name -> how to build it, as its published configuration says. A family adds its own here.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "DiT-XL/2": lambda: DiTTransformer2DModel(out_channels=8),
    "PixArt-256": lambda: _pixart(32),
    "PixArt-512": lambda: _pixart(64),
    "SD3-Medium": _sd3,
    "SD3.5-Medium": lambda: _sd3(qk_norm="rms_norm", dual_attention_layers=tuple(range(13)), pos_embed_max_size=384),
    "SD3.5-Large": lambda: _sd3(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"),
}


@dataclass(frozen=True)
class Case:
    """A network, the latent's [frames,] height and width, and how many text tokens."""

    network: str
    size: tuple[int, ...]
    text: int = 0

    def __str__(self) -> str:
        return f"{self.network}-{'x'.join(map(str, self.size))}-{self.text}"


DIT = Case("DiT-XL/2", (32, 32))
PIXART_256, PIXART_512 = Case("PixArt-256", (32, 32), 120), Case("PixArt-512", (64, 64), 120)
SD3_768, SD3_1024, SD3_1536 = (Case("SD3-Medium", (side, side), 333) for side in (96, 128, 192))
SD35_MEDIUM, SD35_LARGE = Case("SD3.5-Medium", (128, 128), 333), Case("SD3.5-Large", (128, 128), 333)

# G MACs of one forward: linear layers, and products of attention, as torch's counter gave them for diffusers' networks.
FORWARD: list[tuple[Case, float, float]] = [
    (DIT, 114.439, 4.228),
    (PIXART_256, 142.845, 6.210),
    (PIXART_512, 542.420, 75.573),
    (SD3_1024, 3005.917, 1446.251),
    (SD35_LARGE, 11934.885, 3625.672),
]

# What papers print: which of our figures it is, times how much (steps, doubled where they count both branches of
# guidance; a batch; 2 where they print FLOPs, not MACs), and the number in G, to the decimals they give.
PRINTED: list[tuple[Case, str, int, str]] = [
    (PIXART_256, "linear", 20, "2.86e3"),
    (PIXART_256, "thop", 20, "2.86e3"),
    (PIXART_512, "thop", 20, "10.851e3"),
    (PIXART_512, "thop", 2 * 16, "17361.7"),
    (DIT, "linear", 2 * 50, "11.44e3"),
    (SD3_768, "thop", 2, "3.58e3"),
    (SD3_1024, "thop", 2, "6.01e3"),
    (SD3_1536, "thop", 2, "12.97e3"),
    (SD35_LARGE, "thop", 4, "47.7e3"),
    (SD35_LARGE, "thop", 10, "119.4e3"),
]

ALL = list(dict.fromkeys([*(case for case, *_ in FORWARD), *(case for case, *_ in PRINTED), SD35_MEDIUM]))


@cache
def network_of(name: str) -> Backbone:
    with torch.device("meta"):
        return backbone_of(NETWORKS[name]().eval().requires_grad_(False))


def given(case: Case) -> tuple[Backbone, dict[str, Any]]:
    backbone = network_of(case.network)
    return backbone, backbone.example_inputs(1, case.size, case.text, torch.float32, "meta")


@cache
def forward(case: Case) -> tuple[Run, Bill]:
    """One forward under a full plan, and what it is billed."""
    backbone, inputs = given(case)
    run = Run(backbone, full_plan(backbone.shape(1, **inputs)), backbone.tokens(**inputs), lambda: Parts(Pass()))
    with attached(run):
        backbone.network(**inputs)
    return run, bill(run.trace, run.costs)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_ledger_bills_what_torch_counts_for_diffusers_network(case: Case) -> None:
    backbone, inputs = given(case)
    with FlopCounterMode(display=False) as counter:
        backbone.network(**inputs)
    products = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op) or "scaled" in str(op)
    )
    charged = forward(case)[1]
    assert charged.attention * 2 == products
    assert charged.total * 2 == counter.get_total_flops()


@pytest.mark.parametrize(("case", "linear", "attention"), FORWARD, ids=str)
def test_forwards_cost_what_is_known_of_them(case: Case, linear: float, attention: float) -> None:
    charged = forward(case)[1]
    assert (round(charged.linear / G, 3), round(charged.attention / G, 3)) == (linear, attention)


@pytest.mark.parametrize(("case", "figure", "times", "printed"), PRINTED, ids=str)
def test_papers_print_these_figures(case: Case, figure: str, times: int, printed: str) -> None:
    mantissa, _, power = printed.partition("e")
    decimals = len(mantissa.partition(".")[2])
    value = getattr(forward(case)[1], figure) * times / G / 10 ** int(power or 0)
    assert f"{value:.{decimals}f}" == mantissa


def test_dit_is_published_with_one_embedder() -> None:
    """The original network embeds timestep and class once a step; diffusers' once for each block, and for the head."""
    run, own = forward(DIT)
    shared = bill(run.trace, run.backbone.costs(run.tokens, 0, as_published=True))
    assert (round(own.linear / G, 3), round(shared.linear / G, 3)) == (114.439, 114.394)
    assert own.linear - shared.linear == 28 * (256 * 1152 + 1152 * 1152)
    # 50 steps with guidance, by thop on the original network.
    assert round(shared.thop * 100 / G / 1000, 3) == 11.443
