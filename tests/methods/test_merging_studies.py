"""What the studies say of merging: their settings, their columns, and the methods that they compare."""

from __future__ import annotations

import numpy as np
import pytest

from ditbench.engine.layout import Layout, Shape
from ditbench.methods import get_method
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
