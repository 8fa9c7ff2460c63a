"""Keys of tokens that are left out: what others attend to, what that costs, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ditbench.backbones import Backbone
from ditbench.engine.fills import Reuse
from ditbench.engine.keys import KeptKeys, _needed
from ditbench.engine.ledger import bill
from ditbench.engine.plan import Plan
from ditbench.engine.rows import Rows
from ditbench.engine.run import Parts, Run, attached
from tests.backbones.networks import inputs, make

NAMES = ("pixart", "dit", "sd3", "sd3.5-medium", "flux-dev", "wan")


class First:
    """Chooses the first tokens, beside kept keys or without."""

    def __init__(self, kept_keys: KeptKeys | None) -> None:
        self.kept_keys = kept_keys

    def choose(self, unit: Any, step: int, stream: Any, count: int) -> Rows:
        return Rows(torch.arange(count).expand(stream.samples, -1), stream.tokens)


def run_with(backbone: Backbone, name: str, shares: np.ndarray, keys: bool = True, by_block: bool = True) -> Run:
    units = backbone.layout.by_block if by_block else backbone.layout.by_branch
    tokens = backbone.tokens(**inputs(backbone, name, 0, 2))
    plan = Plan(backbone.layout, units, np.tile(shares[:, None], (1, len(units))))
    return Run(backbone, plan, tokens, lambda: Parts(Reuse(), First(KeptKeys(plan, tokens) if keys else None)))


def answers(backbone: Backbone, name: str, run: Run, given: list[dict[str, Any]]) -> list[Tensor]:
    with torch.no_grad(), attached(run):
        return [backbone.network(**each)[0] for each in given]


def test_keys_are_kept_where_they_are_asked_for_before_they_are_made_anew() -> None:
    counts = np.array([[4, 4, 4], [4, 0, 4], [2, 0, 4], [1, 3, 4], [4, 4, 0], [0, 4, 1]])
    expected = [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert _needed(counts, 4).astype(int).tolist() == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_block", [True, False])
def test_where_nothing_moves_tokens_left_out_make_no_difference(name: str, by_block: bool) -> None:
    # Of equal steps all keys are as they were: computing some tokens gives what computing all gives.
    backbone = make(name, torch.float64)
    given = [inputs(backbone, name, 0, 2)] * 3
    shares = np.array([1.0, 0.5, 0.3])
    whole, again, third = answers(backbone, name, run_with(backbone, name, shares, by_block=by_block), given)
    assert torch.allclose(again, whole, atol=1e-5)
    assert torch.allclose(third, whole, atol=1e-5)
    dropped = answers(backbone, name, run_with(backbone, name, shares, keys=False, by_block=by_block), given)
    assert not torch.allclose(dropped[1], whole, atol=1e-4)


def test_the_plain_products_of_attention_are_completed_too() -> None:
    backbone = make("pixart", torch.float64)
    given = [inputs(backbone, "pixart", step, 2) for step in range(2)]
    fused = answers(backbone, "pixart", run_with(backbone, "pixart", np.array([1.0, 0.5])), given)
    backbone.network.set_attn_processor(AttnProcessor())
    plain = answers(backbone, "pixart", run_with(backbone, "pixart", np.array([1.0, 0.5])), given)
    assert torch.allclose(fused[1], plain[1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_bills_what_attending_to_all_costs(name: str) -> None:
    backbone = make(name)
    given = [inputs(backbone, name, step, 2) for step in range(2)]
    run = run_with(backbone, name, np.array([1.0, 0.4]))
    with FlopCounterMode(display=False) as counter:
        answers(backbone, name, run, given)
    charged = bill(run.trace, run.costs)
    assert 2 * 2 * charged.total == counter.get_total_flops()
    assert run.trace.cache_bytes > run_with(backbone, name, np.array([1.0, 0.4]), keys=False).trace.cache_bytes
