"""What benchmarks time is what they say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.routing import OFF, RATIOS, agreed, around, prepare, trained_share
from ditbench.learn.tuning import Training
from ditbench.methods import get_method
from ditbench.methods.diffcr import DiffCR
from ditbench.worlds import get_world


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("variant", ["L", "LT"])
def test_a_step_of_training_runs_the_tokens_of_two_bins(ratio: float, variant: str) -> None:
    method, shape = get_method("diffcr", {"variant": variant}), get_world("scenes").shape(10)
    assert isinstance(method, DiffCR)
    regions = len(method.dividers()) + 1
    run: Any = SimpleNamespace(method=method, diffcr=method, shape=shape, weighing=[1.0] * regions)
    run.ratios = torch.zeros(regions, shape.layout.blocks)
    run.table = lambda: Training.table(run)
    run._mixes = lambda region: Training._mixes(run, region)
    prepare(run, ratio)
    assert float(run.table().mean()) == pytest.approx(ratio)
    assert trained_share(run) == pytest.approx(2 - 2 * ratio, rel=OFF)


@pytest.mark.parametrize("ratio", RATIOS)
def test_sampling_runs_the_tokens_that_are_told(ratio: float) -> None:
    method = get_method("diffcr", {})
    assert isinstance(method, DiffCR)
    assert float(method.nearest(np.array(around(ratio, 8, on_bins=True))).mean()) == pytest.approx(ratio)


def test_other_work_than_is_told_is_not_timed() -> None:
    agreed(1.609, 1.6)
    with pytest.raises(SystemExit, match=r"tokens run are 1\.500 of all, and were to be 1\.600"):
        agreed(1.5, 1.6)
