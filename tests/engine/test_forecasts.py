"""Forecasts of tokens that were computed at different steps: each by its own line."""

from __future__ import annotations

import pytest
import torch

from ditbench.engine.fills import Key
from ditbench.engine.forecasts import TokenTaylor
from ditbench.engine.rows import Rows

KEY = Key(0, "image")


def line(step: float) -> torch.Tensor:
    """What is to be forecast, [1, 4, 2]: each token moves by its own number."""
    return torch.arange(4.0)[None, :, None] * step + torch.tensor([1.0, 2.0])


def rows(*places: int) -> Rows:
    return Rows(torch.tensor([list(places)]), 4)


def test_a_token_that_was_computed_once_receives_that() -> None:
    fill = TokenTaylor()
    fill.keep(KEY, 0, line(0))
    given = fill.supply(KEY, 3)
    assert given is not None and torch.equal(given, line(0))


def test_lines_are_continued_as_far_as_they_span() -> None:
    fill = TokenTaylor()
    fill.keep(KEY, 0, line(0))
    fill.keep(KEY, 2, line(2))
    for step, expected in ((3, 3.0), (4, 4.0), (5, 4.0), (9, 4.0)):
        given = fill.supply(KEY, step)
        assert given is not None
        torch.testing.assert_close(given, line(expected))


def test_each_token_has_a_line_of_its_own() -> None:
    fill = TokenTaylor()
    fill.keep(KEY, 0, line(0))
    fill.keep(KEY, 1, line(1))
    whole = fill.complete(KEY, 3, rows(1, 3), line(3)[:, [1, 3]])
    assert whole is not None
    # Tokens 0 and 2 have a line from 0 to 1, which reaches to 2.
    torch.testing.assert_close(whole[:, [1, 3]], line(3)[:, [1, 3]])
    torch.testing.assert_close(whole[:, [0, 2]], line(2)[:, [0, 2]])
    given = fill.supply(KEY, 5)
    assert given is not None
    # Tokens 1 and 3 have one from 1 to 3, which reaches to 5.
    torch.testing.assert_close(given[:, [1, 3]], line(5)[:, [1, 3]])
    torch.testing.assert_close(given[:, [0, 2]], line(2)[:, [0, 2]])
    assert fill.nbytes() == 4 * (8 + 8 + 4 + 4)


@pytest.mark.parametrize("name", ["pixart", "dit", "sd3", "flux-dev"])
def test_a_plan_of_all_tokens_is_the_network_whatever_fills(name: str) -> None:
    import numpy as np

    from ditbench.engine.run import attached
    from ditbench.methods.diffsparse import DiffSparse
    from ditbench.sampling import run_of
    from tests.backbones.networks import inputs, make

    backbone = make(name)
    shape = backbone.shape(3, **inputs(backbone, name, 0, 2))
    for filling in ("reuse", "taylor"):
        method = DiffSparse(filling=filling, score="attention", cell=2)
        full = method.knowing({"shares": np.ones(shape.sites).tolist()})
        some = method.knowing({"shares": np.where(np.arange(3)[:, None] == 1, 0.5, np.ones(shape.sites)).tolist()})
        found = {}
        for label, each in (("full", full), ("some", some)):
            run = run_of(each, backbone, shape)
            with attached(run), torch.no_grad():
                found[label] = [backbone.network(**inputs(backbone, name, step, 2))[0] for step in range(3)]
        own = [backbone.network(**inputs(backbone, name, step, 2))[0] for step in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(found["full"], own, strict=True))
        assert not torch.equal(found["some"][1], own[1])
