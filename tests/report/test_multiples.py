"""Small multiples: which knobs a study varies, and the picture of them."""

from __future__ import annotations

from typing import Any

from ditbench.report.multiples import multiples, multiples_file, varied
from ditbench.report.results import Value
from ditbench.report.tables import Entry, Heading, Line, Table
from ditbench.study import Axes, Column, Row, Study


def study() -> Study:
    rows = [Row(arm="full", method="full", label="full")]
    rows += [
        Row(arm=f"a{i}{d}", method="fora", knobs={"interval": i, "direction": d}, label=f"{i} {d}")
        for i in (2, 3, 4)
        for d in ("up", "down")
    ]
    columns = [Column(measure="speedup", label="speedup"), Column(measure="fid/scenes", label="FID/scenes")]
    axes = Axes(x="speedup", y="fid/scenes")
    return Study(name="s", title="S", world="scenes", rows=rows, columns=columns, figure=axes, baseline="full")


def table(value: Any = lambda i: float(i)) -> Table:
    headings = (Heading("speedup", "speedup", 2, "higher"), Heading("fid/scenes", "FID/scenes", 2, "lower"))
    lines = []
    for i, row in enumerate(study().rows):
        entry = Entry(None if value is None else Value(value(i), value(i) - 0.1, value(i) + 0.1))
        lines.append(Line(row.label, "arm", "arm", row.arm, 0, "done", (entry, Entry())))
    return Table("s", "S", headings, tuple(lines), ())


def test_a_knob_is_varied_where_all_others_stay() -> None:
    found = varied(study())
    assert list(found) == ["interval"]  # words have no axis
    assert [(each.label, [value for value, _ in each.spots]) for each in found["interval"]] == [
        ("direction = up", [2.0, 3.0, 4.0]),
        ("direction = down", [2.0, 3.0, 4.0]),
    ]


def test_only_measures_with_numbers_have_a_panel() -> None:
    figure = multiples(study(), table())
    assert [axes.get_title() for axes in figure.axes] == ["speedup ↑"]
    assert len(figure.axes[0].containers) == 2


def test_nothing_measured_or_nothing_varied_draws_nothing() -> None:
    assert multiples_file(study(), table(None), "svg") is None
    alone = study().model_copy(update={"rows": study().rows[:2]})
    assert multiples_file(alone, table(), "png") is None
