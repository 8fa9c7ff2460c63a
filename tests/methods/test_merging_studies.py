"""What the studies say of merging: their settings, their columns, and the methods that they compare."""

from __future__ import annotations

import numpy as np
import pytest

from ditbench.engine.layout import Layout, Shape
from ditbench.methods import Method, get_method
from ditbench.methods.dydit import DyDiT
from ditbench.methods.tokencache import TokenCache
from ditbench.methods.tomesd import ToMeSD
from ditbench.study import Study, load_study, study_names

SD3 = Layout.regular(24, ("attn", "mlp"))


def saved(study: Study, tokens: int) -> float:
    """The share of its blocks' linear MACs that a study's arm of SDTM saves in SD3 Medium, text included."""
    row = study.row("sdtm")
    assert row.steps is not None
    left = get_method("sdtm", row.knobs).plan(Shape(row.steps, SD3, tokens)).counts(tokens)
    weights = np.where(SD3.name_of == "attn", 4, 8)
    text = 333
    return 1 - float(((left + text) * weights).sum() / (row.steps * weights.sum() * (tokens + text)))


def test_figure_s2_saves_as_much_as_the_rows_of_table_s3() -> None:
    others = [saved(load_study(f"sdtm/table-s3-{size}"), (size // 16) ** 2) for size in (512, 768, 1536)]
    assert min(others) < saved(load_study("sdtm/figure-s2"), 4096) < max(others)


@pytest.mark.parametrize("name", [name for name in study_names() if name.startswith(("embedded", "sdtm"))])
def test_where_sdtm_s_macs_are_shown_so_is_what_choosing_takes(name: str) -> None:
    study = load_study(name)
    measures = {column.measure for column in study.columns}
    if any(row.method == "sdtm" for row in study.rows) and any(each.startswith("macs-") for each in measures):
        assert "macs-selecting" in measures


def test_sdtm_s_study_sets_the_others_as_its_authors_did() -> None:
    """Supplement, A.2: a staggered ToMeSD whose ratio falls, TokenCache in two phases, DyDiT with an interval of 2."""
    rows = load_study("embedded_sdtm").rows
    methods = {row.arm: get_method(str(row.method), row.knobs) for row in rows}
    merged = [method for method in methods.values() if isinstance(method, ToMeSD)]
    assert merged and all(method.pattern == "staggered" and method.deviation > 0 for method in merged)
    caching = [method for method in methods.values() if isinstance(method, TokenCache)]
    assert {(method.scheduled, method.phase, method.early, method.late) for method in caching} == {
        ("two-phase", 0.5, 4, 2)
    }
    assert len(caching) == 3
    intervals = [method.interval for method in methods.values() if isinstance(method, DyDiT)]
    assert sorted(intervals) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(("level", "times"), [("1.2", 1.2), ("1.4", 1.4), ("1.7", 1.7)])
def test_staggered_arms_cost_what_their_group_says(level: str, times: float) -> None:
    """By the plan alone, of the blocks of `scenes-mmdit`: 256 image tokens, 20 of text, 144 wide."""
    shape, width, text = Shape(10, Layout.regular(8, ("attn", "mlp")), 256), 144, 20

    def cost(method: Method) -> float:
        counts = method.plan(shape).counts(shape.tokens).astype(float) + text
        attends = counts[:, shape.layout.name_of == "attn"]
        linear = attends.sum() * 4 + counts[:, shape.layout.name_of == "mlp"].sum() * 8
        return float(linear * width**2 + 2 * width * (attends**2).sum())

    row = load_study("embedded_sdtm").row(f"tomesd-{level}")
    assert cost(get_method("full")) / cost(get_method(str(row.method), row.knobs)) == pytest.approx(times, rel=0.03)
