"""Two measures of arms against each other: what was published in one panel, what was measured here in another.

A mark's area may show a third measure, and arms of a group may be joined, as the models on the way of one training are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ditbench.report.drawn.drawing import Drawing, canvas, why_missing
from ditbench.report.figures import (
    BASELINE_COLOUR,
    COLOURS,
    CONTROL_COLOUR,
    INK,
    Point,
    arm_colours,
    arm_markers,
    by_method,
    draw_points,
    legend_of,
    name_marks,
    plain_axes,
    span_of,
)
from ditbench.report.tables import ARROWS, Line, Table, build_table

if TYPE_CHECKING:
    from ditbench.report.results import Results
    from ditbench.study import Study
    from ditbench.study_figures import Figure

LARGEST, PLAIN = 190.0, 70.0  # areas of marks, in square points
KINDS = {"published": "as published", "measured": "measured here"}


@dataclass(frozen=True)
class Spot:
    """One arm in one panel."""

    line: Line
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    size: float | None


def draw(study: Study, figure: Figure, results: Results) -> Drawing:
    """A panel for each kind of value that is there."""
    table = build_table(study, results)
    arms = figure.drawn_arms(row.arm for row in study.rows)
    spots = {kind: _spots(table, figure, arms, kind == "published") for kind in KINDS}
    shown = {kind: found for kind, found in spots.items() if found}
    missing = _missing(study, figure, results, arms, spots)
    if not shown:
        return Drawing(figure, missing=missing)
    if by_method(study) and set(shown) == {"measured"}:
        picture = _by_method(study, figure, table, shown["measured"])
        return Drawing(figure, picture, _rows(figure, shown), _caption(study, figure), missing)
    colours = _colours(study, figure, arms)
    picture = canvas(5.6 * len(shown) + 0.4, 4.3)
    panels = picture.subplots(1, len(shown), squeeze=False)[0]
    for axes, (kind, found) in zip(panels, shown.items(), strict=True):
        _panel(axes, study, figure, found, colours)
        axes.set_title(KINDS[kind], fontsize=10, color=INK)
    # Only what is laid out says where there is room for a name.
    picture.canvas.draw()
    for axes, found in zip(panels, shown.values(), strict=True):
        marks = [(spot.line.label, colours[spot.line.arm], spot.x[0], spot.y[0]) for spot in found]
        name_marks(axes, marks, led_from=0)
    return Drawing(figure, picture, _rows(figure, shown), _caption(study, figure), missing)


def _by_method(study: Study, figure: Figure, table: Table, spots: list[Spot]) -> Any:
    """Many arms: one mark for each method, the names of those that no other beats, and what is far off at the edge."""
    headings = {heading.measure: heading for heading in table.headings}
    looks, marks = arm_colours(study), arm_markers(study)
    largest = max((spot.size for spot in spots if spot.size is not None), default=1.0)
    points, areas = [], {}
    for spot in spots:
        line = spot.line
        key = line.arm if line.seed is None else f"{line.arm}.seed{line.seed}"
        points.append(Point(line.arm, line.label, line.role, looks[line.arm], marks[line.arm], spot.x, spot.y, key))
        if spot.size is not None:
            areas[key] = LARGEST * spot.size / largest
    picture = canvas(9.6, 5.6)
    axes = picture.add_subplot()
    plain_axes(axes)
    for said, measure in ((axes.set_xlabel, str(figure.x)), (axes.set_ylabel, str(figure.y))):
        said(f"{study.column(measure).label} {_arrow(spots, study, measure)}".strip(), color=INK, fontsize=10)
    named = draw_points(axes, study, points, headings[str(figure.x)], headings[str(figure.y)], areas)
    legend_of(axes, study, points)
    picture.canvas.draw()
    named()
    return picture


def _spots(table: Table, figure: Figure, arms: list[str], published: bool) -> list[Spot]:
    places = [heading.measure for heading in table.headings]
    ix, iy = places.index(str(figure.x)), places.index(str(figure.y))
    found = []
    for arm in arms:
        for line in table.lines:
            if line.arm != arm or (line.role == "published") != published:
                continue
            x, y = span_of(line, ix), span_of(line, iy)
            size = span_of(line, places.index(figure.size)) if figure.size else None
            if x and y and (size or not figure.size):
                found.append(Spot(line, x, y, size[0] if size else None))
    return found


def _missing(
    study: Study, figure: Figure, results: Results, arms: list[str], spots: dict[str, list[Spot]]
) -> list[str]:
    """Why arms are not in the panel of what was measured; published values are missing where none were printed."""
    wanted = [study.column(measure).label for measure in (figure.x, figure.y, figure.size) if measure]
    missing = []
    measured = {spot.line.arm for spot in spots["measured"]}
    for arm in arms:
        if arm in measured:
            continue
        cells = results.of_arm(study.world, arm)
        if cells and all(cell.state == "done" for cell in cells):
            missing.append(f"{study.row(arm).label}: measured, but not all of {', '.join(wanted)}.")
        else:
            missing.append(why_missing(study, study.row(arm), results))
    # Nothing at all was run: one sentence says it for every arm.
    reasons = {text.partition(": ")[2] for text in missing}
    if len(missing) > 1 and len(reasons) == 1 and not measured:
        return [f"All {len(missing)} arms: {reasons.pop()}"]
    return missing


def _colours(study: Study, figure: Figure, arms: list[str]) -> dict[str, str]:
    """By arm; by group where a line joins one."""
    own = [arm for arm in arms if arm != study.baseline and arm not in study.controls]
    keys = {arm: study.row(arm).group if figure.joined and study.row(arm).group else arm for arm in own}
    order = list(dict.fromkeys(keys.values()))
    colours = {arm: COLOURS[order.index(key) % len(COLOURS)] for arm, key in keys.items()}
    others = {arm: BASELINE_COLOUR if arm == study.baseline else CONTROL_COLOUR for arm in arms if arm not in own}
    return colours | others


def _panel(axes: Any, study: Study, figure: Figure, spots: list[Spot], colours: dict[str, str]) -> None:
    plain_axes(axes)
    sizes = [spot.size for spot in spots if spot.size is not None]
    for spot in spots:
        area = PLAIN
        if spot.size is not None:
            area = LARGEST * spot.size / max(sizes)
        colour = colours[spot.line.arm]
        (x, x_low, x_high), (y, y_low, y_high) = spot.x, spot.y
        axes.errorbar(
            [x], [y], xerr=[[x - x_low], [x_high - x]], yerr=[[y - y_low], [y_high - y]], color=colour, elinewidth=1,
            linestyle="none",
        )  # fmt: skip
        axes.scatter([x], [y], s=area, color=colour, alpha=0.75, zorder=3, linewidths=0)
    if figure.joined:
        groups: dict[str, list[Spot]] = {}
        for spot in spots:
            if spot.line.group:
                groups.setdefault(spot.line.group, []).append(spot)
        for group in groups.values():
            axes.plot(
                [s.x[0] for s in group], [s.y[0] for s in group], color=colours[group[0].line.arm], linewidth=1.2,
                zorder=2,
            )  # fmt: skip
    axes.margins(0.16)
    for said, measure in ((axes.set_xlabel, str(figure.x)), (axes.set_ylabel, str(figure.y))):
        said(f"{study.column(measure).label} {_arrow(spots, study, measure)}".strip(), color=INK, fontsize=10)


def _arrow(spots: list[Spot], study: Study, measure: str) -> str:
    place = [column.measure for column in study.columns].index(measure)
    values = (spot.line.entries[place].value for spot in spots)
    return ARROWS.get(next((value.direction for value in values if value and value.direction), ""), "")


def _caption(study: Study, figure: Figure) -> str:
    x, y = study.column(str(figure.x)).label, study.column(str(figure.y)).label
    size = f" A mark's area grows with {study.column(figure.size).label}." if figure.size else ""
    joined = " Lines join the arms of a group in the order of the table." if figure.joined else ""
    return f"{y} against {x}, published values and ours in panels of their own.{size}{joined}"


def _rows(figure: Figure, shown: dict[str, list[Spot]]) -> list[dict[str, Any]]:
    return [
        {
            "arm": spot.line.arm,
            "label": spot.line.label,
            "group": spot.line.group,
            "seed": "" if spot.line.seed is None else spot.line.seed,
            "kind": kind,
            str(figure.x): spot.x[0],
            str(figure.y): spot.y[0],
            **({figure.size: "" if spot.size is None else spot.size} if figure.size else {}),
        }
        for kind, found in shown.items()
        for spot in found
    ]
