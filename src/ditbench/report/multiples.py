"""Small multiples: every measure against every knob that a study varies, one panel each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ditbench.methods import get_method
from ditbench.report.figures import COLOURS, INK, MARKERS, in_words, plain_axes, saved, span_of
from ditbench.report.tables import Heading, Line, Table
from ditbench.study import Row, Study

# Panels of one knob that a reader can still tell apart on one page.
MOST = 12
# Series that a legend names one by one; of more, the first, the last and some between.
NAMED = 10
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


@in_words
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
    figure = Figure(figsize=(2.7 * across, (2.5 * down + 0.4) * len(knobs)), layout="constrained")
    FigureCanvasAgg(figure)
    # A part of its own for each knob, because its series, and so its legend, are its own.
    for part, (knob, series) in zip(figure.subfigures(len(knobs), 1, squeeze=False)[:, 0], knobs.items(), strict=True):
        part.patch.set_alpha(0)
        looks = looks_of(series)
        for place, (i, heading) in enumerate(shown):
            axes = part.add_subplot(down, across, 1 + place)
            _panel(axes, knob, list(zip(series, looks, strict=True)), lines, i, heading)
            if study.baseline and (level := _level(lines.get(study.baseline, []), i)) is not None:
                axes.axhline(level, color=INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)))
        named = _named(*axes.get_legend_handles_labels())
        if named:
            handles, labels = zip(*named, strict=True)
            part.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def looks_of(series: list[Series]) -> list[tuple[str, str]]:
    """Colour and marker of each series, none twice; of more than there are colours, a scale from blue to yellow."""
    if len(series) <= len(COLOURS):
        return list(zip(COLOURS, MARKERS, strict=False))[: len(series)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    # Without its palest end, which does not stand on white.
    shades = [to_hex(colormaps["viridis"](0.9 * i / (len(series) - 1))) for i in range(len(series))]
    return [(shade, MARKERS[i % len(MARKERS)]) for i, shade in enumerate(shades)]


def _named(handles: list[Any], labels: list[str]) -> list[tuple[Any, str]]:
    """The series that the legend names, at most `NAMED` of them, evenly chosen."""
    both = [(handle, label) for handle, label in zip(handles, labels, strict=True) if label]
    if len(both) <= NAMED:
        return both
    return [both[round(i * (len(both) - 1) / (NAMED - 1))] for i in range(NAMED)]


def _panel(
    axes: Any,
    knob: str,
    series: list[tuple[Series, tuple[str, str]]],
    lines: dict[str, list[Line]],
    i: int,
    heading: Heading,
) -> None:
    plain_axes(axes)
    axes.tick_params(labelsize=8)
    axes.set_title(f"{heading.label} {heading.arrow}".strip(), fontsize=8.5, color=INK)
    axes.set_xlabel(knob, fontsize=8.5, color=INK)
    for each, (colour, marker) in series:
        by_value = {
            value: [span for line in lines.get(arm, []) if (span := span_of(line, i)) is not None]
            for value, arm in each.spots
        }
        spots = [(value, span) for value, spans in by_value.items() for span in spans]
        if not spots:
            continue
        # Seeds are points of their own; the line goes through their mean.
        means = [(value, sum(span[0] for span in spans) / len(spans)) for value, spans in by_value.items() if spans]
        axes.plot(*zip(*means, strict=True), color=colour, linewidth=1.2)
        x, y = [value for value, _ in spots], [span[0] for _, span in spots]
        below = [span[0] - span[1] for _, span in spots]
        above = [span[2] - span[0] for _, span in spots]
        axes.errorbar(
            x, y, yerr=[below, above], color=colour, marker=marker, markersize=4, linestyle="none", elinewidth=0.8,
            label=each.label,
        )  # fmt: skip


def _level(lines: list[Line], i: int) -> float | None:
    """The mean of an arm's seeds; None where none of them has a value."""
    values = [span[0] for line in lines if (span := span_of(line, i))]
    return sum(values) / len(values) if values else None


def _drawn(knobs: dict[str, list[Series]], lines: dict[str, list[Line]], i: int) -> bool:
    arms = {arm for series in knobs.values() for each in series for _, arm in each.spots}
    return sum(_level(lines.get(arm, []), i) is not None for arm in arms) > 1


def multiples_file(study: Study, table: Table, kind: str) -> bytes | None:
    """The figure as SVG or PNG; None where there is none."""
    figure = multiples(study, table)
    return None if figure is None else saved(figure, kind, f"{study.name}-multiples")
