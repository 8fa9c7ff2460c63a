"""What DiffSparse's studies claim of themselves, as far as it can be told before anything is drawn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ditbench.engine.layout import Branch, Layout, Shape
from ditbench.engine.scored import ScoredTokens
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.study import load_study, study_names
from ditbench.worlds import get_world, world_names


def test_no_row_of_a_table_that_names_steps_falls_back_to_others() -> None:
    for study in (load_study(name) for name in study_names()):
        named = {row.steps for row in study.rows if row.steps is not None}
        if named and study.world in world_names():
            silent = [row.arm for row in study.rows if row.method and row.steps is None]
            default = get_world(study.world).default_steps
            assert not silent or default in named, f"{study.name}: {silent} would take {default} steps, not {named}"


def test_arms_of_the_embedded_study_are_compared_at_equal_macs() -> None:
    study = load_study("embedded_diffsparse")
    full = count_macs("scenes", get_method("full"))
    rows = [row for row in study.rows if row.group and row.method != "fewer-steps"]
    for group, arms in itertools.groupby(rows, key=lambda row: row.group):
        macs: dict[str, float] = {}
        for row in arms:
            if row.knobs.get("budget") == "macs":
                # All of it but what belongs to no branch, which no plan leaves out.
                macs[row.arm] = full["outside"] + (1 - row.knobs["ratio"]) * (full["total"] - full["outside"])
            elif row.method and row.knobs.get("budget") != "milliseconds":
                macs[row.arm] = count_macs("scenes", get_method(row.method, row.knobs))["total"]
        assert {arm.split("-")[0] for arm in macs} == {"toca", "uniform", "random", "genetic", "diffsparse"}
        assert max(macs.values()) <= 1.01 * min(macs.values()), f"{group}: {macs}"


def test_on_flux_tokens_are_chosen_by_the_terms_that_the_paper_gives() -> None:
    row = load_study("diffsparse/table9").row("diffsparse")
    layout = Layout((*Layout.regular(2, ("attn", "mlp")).branches, Branch(2, "single")))
    shape = Shape(4, layout, 16)
    shares = np.full(shape.sites, 0.5)
    shares[0] = 1
    assert row.method is not None
    method = get_method(row.method, row.knobs).knowing({"shares": shares.tolist()})
    selector = method.selector(shape, torch.Generator())
    assert isinstance(selector, ScoredTokens)
    # A.5.1: 0.25 / 3 for a step of age, a bonus of 0.4 in squares of 4; attention stands for what FLUX has not.
    assert (selector.terms.age, selector.terms.bonus, selector.terms.cell) == (pytest.approx(0.25 / 3), 0.4, 4)
    assert selector.score.name == "attention"
