"""Small multiples: which knobs a study varies, and the picture of them."""

from __future__ import annotations

from typing import Any

from ditbench.report.figures import COLOURS, MARKERS
from ditbench.report.multiples import NAMED, Series, looks_of, multiples, multiples_file, varied
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


def test_every_series_of_many_looks_different() -> None:
    few, many = ([Series(str(i), ()) for i in range(count)] for count in (8, 20))
    assert looks_of(few) == list(zip(COLOURS, MARKERS, strict=True))
    assert len(set(looks_of(many))) == 20
    assert len({colour for colour, _ in looks_of(many)}) == 20


def test_each_of_two_knobs_has_a_legend_of_its_own_series() -> None:
    figure = multiples(grid(range(2, 5), range(20, 36)), grid_table(range(2, 5), range(20, 36)))
    said = [[text.get_text() for text in part.legends[0].get_texts()] for part in figure.subfigs]
    assert said[1] == ["interval = 2", "interval = 3", "interval = 4"]
    # Sixteen series are too many to name: the first and the last are among those that are.
    assert len(said[0]) == NAMED and said[0][0] == "steps = 20" and said[0][-1] == "steps = 35"
    assert not figure.legends


def test_the_line_of_a_series_goes_through_the_mean_of_seeds() -> None:
    alike = table()
    other = table(lambda i: i + 1.0)
    both = Table("s", "S", alike.headings, (*alike.lines, *other.lines), ())
    (axes,) = multiples(study(), both).axes
    line = next(line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3)
    assert list(line.get_xdata()) == [2.0, 3.0, 4.0]
    assert list(line.get_ydata()) == [1.5, 3.5, 5.5]  # arms 1, 3 and 5 of the table, and each one more


def grid(intervals: range, steps: range) -> Study:
    rows = [Row(arm="full", method="full", label="full")]
    rows += [
        Row(arm=f"i{i}s{s}", method="fora", knobs={"interval": i}, steps=s, label=f"{i} {s}")
        for i in intervals
        for s in steps
    ]
    return study().model_copy(update={"rows": rows})


def grid_table(intervals: range, steps: range) -> Table:
    lines = [
        Line(row.label, "arm", "arm", row.arm, 0, "done", (Entry(Value(float(i))), Entry()))
        for i, row in enumerate(grid(intervals, steps).rows)
    ]
    return Table("s", "S", table().headings, tuple(lines), ())


def test_nothing_measured_or_nothing_varied_draws_nothing() -> None:
    assert multiples_file(study(), table(None), "svg") is None
    alone = study().model_copy(update={"rows": study().rows[:2]})
    assert multiples_file(alone, table(), "png") is None
