"""Plans of routed methods: how many tokens go through each block at each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ditbench.engine.fills import Pass, PassBy, Reuse
from ditbench.engine.forecasts import Taylor
from ditbench.engine.layout import Layout, Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods import get_method
from ditbench.methods.base import Method
from ditbench.worlds import get_world

SHAPE = Shape(9, Layout.regular(4, ("self", "cross", "mlp")), 1024)


def diffcr(ratios: Any, **knobs: Any) -> Method:
    times = np.linspace(990, 10, 9).tolist()
    return get_method("diffcr", knobs).knowing({"ratios": np.asarray(ratios, dtype=float).tolist(), "times": times})


def counts(method: Method, shape: Shape = SHAPE) -> np.ndarray:
    plan: Plan = method.plan(shape)
    return plan.counts(shape.tokens)


@pytest.mark.parametrize(("ratio", "kept"), [(0.2, 819), (0.1, 921), (0.3, 716), (0.5, 512), (0.9991, 1)])
def test_mod_rounds_down_and_keeps_a_token(ratio: float, kept: int) -> None:
    assert (counts(get_method("mod", {"ratio": ratio})) == kept).all()
    with pytest.raises(Fault, match="1 would let every token pass by"):
        get_method("mod", {"ratio": 1.0})


def test_mod_may_route_every_other_block() -> None:
    assert counts(get_method("mod", {"ratio": 0.5, "blocks": "every-other"}))[0].tolist() == [1024, 512, 1024, 512]


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.7])
def test_one_ratio_for_all_is_mod_but_for_the_rounding(ratio: float) -> None:
    ours, theirs = counts(diffcr(np.full((4, 4), ratio))), counts(get_method("mod", {"ratio": ratio}))
    assert ours.shape == theirs.shape
    assert (np.abs(ours - theirs) <= 1).all()


def test_ratios_are_their_nearest_bins() -> None:
    method = diffcr([[0.04, 0.06, 0.349, 0.9]], variant="L")
    assert counts(method)[0].tolist() == [1024, 922, 717, 103]
    assert counts(diffcr([[0.9] * 4], variant="L", bins="code"))[0].tolist() == [308] * 4  # at most 70 %


def test_regions_are_of_timesteps() -> None:
    method = diffcr([[0.0] * 4, [0.1] * 4, [0.2] * 4, [0.3] * 4])
    # 990, 867.5, 745, 622.5, 500, 377.5, 255, 132.5, 10
    assert (1 - method.plan(SHAPE).shares[:, 0]).round(2).tolist() == [0.3, 0.3, 0.2, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0]
    method = diffcr([[0.0] * 4, [0.1] * 4, [0.2] * 4], edges="642,700")
    assert (1 - method.plan(SHAPE).shares[:, 0]).round(2).tolist() == [0.2, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("whole", "steps"), [("none", []), ("last-third", [6, 7, 8]), ("every-third", [0, 3, 6])])
def test_a_third_of_the_steps_may_be_whole(whole: str, steps: list[int]) -> None:
    shares = get_method("mod", {"ratio": 0.5, "whole": whole}).plan(SHAPE).shares
    assert np.flatnonzero((shares == 1).all(axis=1)).tolist() == steps


def test_routed_blocks_may_be_cached() -> None:
    method = get_method("mod", {"ratio": 0.5, "interval": 2})
    assert counts(method)[:, 0].tolist() == [512, 0, 512, 0, 512, 0, 512, 0, 512]
    fill = method.fill(SHAPE)
    assert isinstance(fill, PassBy)
    assert isinstance(fill.inner, Reuse)
    fill = get_method("mod", {"interval": 3, "order": 2}).fill(SHAPE)
    assert isinstance(fill, PassBy)
    assert isinstance(fill.inner, Taylor)
    assert type(get_method("mod").fill(SHAPE)) is Pass


def test_other_networks_than_the_ratios_are_refused() -> None:
    with pytest.raises(Fault, match="the ratios are of 4 regions and 3 blocks, here are 4 and 4"):
        diffcr(np.zeros((4, 3))).plan(SHAPE)
    with pytest.raises(Fault, match="diffcr must be fitted first"):
        get_method("diffcr").plan(get_world("scenes").shape(4))
