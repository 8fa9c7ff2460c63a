"""SpeCa: when it drafts, checks and computes, and that every sample does so for itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ditbench.engine.drafts import Rules, SampledTaylor, error_of
from ditbench.engine.fills import Key
from ditbench.engine.forecasts import Taylor
from ditbench.engine.rows import Rows
from tests.methods.test_caching import sample

KEY = Key(0, "image")


def kinds(steps: int, **knobs: Any) -> str:
    """F for a computed step, d for a draft, c for one that is checked, r for one that is thrown away."""
    run, _ = sample("pixart", "speca", {"decay": 1.0, "order": 1, "pool": "batch", **knobs}, 2, steps=steps)
    blocks = run.trace.shares.reshape(steps, 2, 3).mean(2)  # this network has two
    names = {(0, 0): "d", (0, 1): "c", (1, 1): "F", (1, 2): "r"}
    return "".join(names[int(first), int(last)] for first, last in blocks.tolist())


def test_the_published_code_drafts_after_every_computed_step_and_checks_from_the_third_draft_on() -> None:
    # Never too far off: the longest row of drafts ends it. The first three steps are computed, but for the one after a
    # computed one.
    assert kinds(14, threshold=1e9) == "FdFddcccFddccc"
    # Always too far off: the step after the one that was checked is computed.
    assert kinds(12, threshold=0.0, floor=0.0) == "FdFddcFddcFd"
    assert kinds(8, threshold=1e9, longest=2, unchecked=0, first=1) == "FccFccFc"


def test_in_the_paper_a_draft_that_is_too_far_off_is_computed_at_once() -> None:
    assert kinds(6, threshold=0.0, floor=0.0, variant="paper") == "Frrrrr"
    assert kinds(9, threshold=1e9, variant="paper", longest=3, first=1) == "FcccFcccF"


def test_the_threshold_decays_to_its_floor() -> None:
    rules = Rules(10, 0.1, 0.01, 0.01, 3, 2, 5, False)
    assert rules.allowed(0) == pytest.approx(0.1 * 0.01**0.1)
    assert rules.allowed(3) == pytest.approx(0.1 * 0.01**0.4)
    assert rules.allowed(9) == 0.01


def test_errors_are_relative_to_every_number() -> None:
    exact, draft = torch.tensor([[[1.0, 2.0, -4.0]]]), torch.tensor([[[2.0, 2.0, -2.0]]])
    assert error_of(draft, exact, "relative-l1").item() == pytest.approx(0.5)
    assert error_of(draft, exact, "relative-l2").item() == pytest.approx(((1 + 0.25) / 3) ** 0.5)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_forecasts_of_samples_in_step_are_those_of_a_batch(order: int) -> None:
    generator = torch.Generator().manual_seed(0)
    each, whole = SampledTaylor(order, build_from=2), Taylor(order, build_from=2)
    for step in (0, 1, 2, 4, 7, 8):
        output = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
        each.keep(KEY, step, output)
        whole.keep(KEY, step, output)
        expected = whole.supply(KEY, step + 2)
        found = each.supply(KEY, step + 2)
        assert found is not None and expected is not None
        assert torch.allclose(found, expected)


def test_a_sample_is_forecast_from_its_own_steps() -> None:
    def line(step: int) -> torch.Tensor:
        slopes = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)[:, None, None]
        return 10 + slopes * step * torch.ones(3, 2, 2, dtype=torch.float64)

    fill = SampledTaylor(order=1, build_from=1)
    fill.keep(KEY, 0, line(0))
    fill.keep(KEY, 1, line(1))
    two = torch.tensor([0, 2])
    whole = fill.complete(KEY, 5, Rows.of_samples(two, 2), line(5)[two])
    assert whole is not None
    assert torch.allclose(whole, line(5))  # the second sample's was forecast, and lies on its line
    found = fill.supply(KEY, 7)
    assert found is not None
    assert torch.allclose(found, line(7))


def test_drafts_that_are_kept_are_checked_once_where_others_are_thrown_away() -> None:
    knobs = {"threshold": 1.5, "decay": 1.0, "order": 2, "variant": "paper"}
    run, _ = sample("dit", "speca", knobs, 3, steps=10)
    computed, last = run.trace.ran[:, 0], run.trace.ran[:, -1]
    assert ((computed > 0) & (computed < 3)).any()
    # Beside those that are computed, the last block runs once for each draft.
    assert (last - computed <= 3).all()


def test_samples_check_and_compute_for_themselves() -> None:
    # Between what the samples' errors are: not all are computed in the same steps.
    run, _ = sample("dit", "speca", {"threshold": 1.0, "decay": 1.0, "order": 2}, 3, steps=10)
    ran = run.trace.ran[:, 0]
    assert ((ran > 0) & (ran < 3)).any()
    pooled, _ = sample("dit", "speca", {"threshold": 1.0, "decay": 1.0, "order": 2, "pool": "batch"}, 3, steps=10)
    assert set(pooled.trace.ran[:, 0].tolist()) == {0, 3}
