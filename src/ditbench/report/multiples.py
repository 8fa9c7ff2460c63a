"""Small multiples: every measure against every knob that a study varies, one panel each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditbench.methods import get_method
from ditbench.report.figures import COLOURS, INK, MARKERS, plain_axes, saved, span_of
from ditbench.report.tables import Heading, Line, Table
from ditbench.study import Row, Study

# Panels that a reader can still tell apart on one page.
MOST = 8
# Letters of a series' name.
LONGEST = 70


@dataclass(frozen=True)
class Series:
    """Arms that differ in one knob alone, by its values."""

    label: str
    spots: tuple[tuple[float, str], ...]


def varied(study: Study) -> dict[str, list[Series]]:
    """The numeric knobs (and steps) that a study varies, each with the series that vary it alone."""
    settings = {row.arm: _settings(row) for row in study.rows if row.method and row.arm not in study.controls}
    settings.pop(study.baseline or "", None)
    found: dict[str, list[Series]] = {}
    knobs = list(dict.fromkeys(knob for each in settings.values() for knob in each if knob != "method"))
    for knob in knobs:
        groups: dict[tuple[Any, ...], list[tuple[float, str]]] = {}
        for arm, each in settings.items():
            value = each.get(knob)
            if isinstance(value, int | float) and not isinstance(value, bool):
                rest = tuple(sorted((name, str(v)) for name, v in each.items() if name != knob))
                groups.setdefault(rest, []).append((float(value), arm))
        series = [Series(_told(rest, groups), tuple(sorted(spots))) for rest, spots in groups.items()]
        series = [each for each in series if len(each.spots) > 1]
        if series:
            found[knob] = series
    return found


def _settings(row: Row) -> dict[str, Any]:
    method = get_method(str(row.method), row.knobs)
    steps: dict[str, Any] = {} if row.steps is None else {"steps": row.steps}
    steps |= {} if row.weights_of is None else {"weights_of": row.weights_of}
    return {"method": row.method, **{knob: getattr(method, knob) for knob in method.knobs()}, **steps}


def _told(rest: tuple[Any, ...], groups: dict[tuple[Any, ...], Any]) -> str:
    """What tells a series from the others: the settings that are not the same in all of them."""
    shared = set.intersection(*(set(other) for other in groups))
    told = ", ".join(f"{name} = {value}" for name, value in rest if (name, value) not in shared)
    # A legend has one line; where series differ in this much, their table says the rest.
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}…"


def multiples(study: Study, table: Table) -> Any:
    """The figure; None where nothing is varied or nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    knobs = varied(study)
    lines: dict[str, list[Line]] = {}
    for line in table.lines:
        if line.role != "published":
            lines.setdefault(line.arm, []).append(line)
    shown = [(i, heading) for i, heading in enumerate(table.headings) if _drawn(knobs, lines, i)][:MOST]
    if not shown:
        return None
    across = min(len(shown), 4)
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.7 * across, 2.5 * down * len(knobs) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for k, (knob, series) in enumerate(knobs.items()):
        for place, (i, heading) in enumerate(shown):
            axes = figure.add_subplot(down * len(knobs), across, 1 + k * down * across + place)
            _panel(axes, knob, series, lines, i, heading)
            if study.baseline and (span := _first_span(lines.get(study.baseline, []), i)):
                axes.axhline(span[0], color=INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)))
        handles, labels = axes.get_legend_handles_labels()
        if any(labels):
            figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _panel(axes: Any, knob: str, series: list[Series], lines: dict[str, list[Line]], i: int, heading: Heading) -> None:
    plain_axes(axes)
    axes.tick_params(labelsize=8)
    axes.set_title(f"{heading.label} {heading.arrow}".strip(), fontsize=8.5, color=INK)
    axes.set_xlabel(knob, fontsize=8.5, color=INK)
    for j, each in enumerate(series):
        spots = [
            (value, span)
            for value, arm in each.spots
            for line in lines.get(arm, [])
            if (span := span_of(line, i)) is not None
        ]
        if not spots:
            continue
        x, y = [value for value, _ in spots], [span[0] for _, span in spots]
        below = [span[0] - span[1] for _, span in spots]
        above = [span[2] - span[0] for _, span in spots]
        axes.errorbar(
            x, y, yerr=[below, above], color=COLOURS[j % len(COLOURS)], marker=MARKERS[j % len(MARKERS)],
            markersize=4, linewidth=1.2, elinewidth=0.8, label=each.label,
        )  # fmt: skip


def _first_span(lines: list[Line], i: int) -> tuple[float, float, float] | None:
    return next((span for line in lines if (span := span_of(line, i))), None)


def _drawn(knobs: dict[str, list[Series]], lines: dict[str, list[Line]], i: int) -> bool:
    arms = {arm for series in knobs.values() for each in series for _, arm in each.spots}
    return sum(_first_span(lines.get(arm, []), i) is not None for arm in arms) > 1


def multiples_file(study: Study, table: Table, kind: str) -> bytes | None:
    """The figure as SVG or PNG; None where there is none."""
    figure = multiples(study, table)
    return None if figure is None else saved(figure, kind, f"{study.name}-multiples")
