"""MACs by kind of branch: in worlds of several sizes, and along the steps.

What a finished cell's trace says ran is billed; where there is none, a plan that is known before sampling is run on a
network without weights. Only what is decided or learned before or while sampling needs a cell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault
from ditbench.report.drawn.drawing import Drawing, canvas, first_cell, method_of_row, why_missing
from ditbench.report.figures import BASELINE_COLOUR, COLOURS, INK, plain_axes

if TYPE_CHECKING:
    from ditbench.engine.costs import Costs
    from ditbench.engine.trace import Trace
    from ditbench.report.results import Cell, Results
    from ditbench.study import Row, Study
    from ditbench.study_figures import Figure

TERA, GIGA = 1e12, 1e9
COUNTED = {
    "linear": "linear layers",
    "attention": "products of attention",
    "total": "linear layers and products of attention",
}


@dataclass(frozen=True)
class Billed:
    """MACs [step, kind of branch] of one image and one branch of guidance, and what of a step belongs to no branch."""

    names: tuple[str, ...]
    sites: NDArray[np.float64]
    outside: float
    source: str


def by_branch(study: Study, figure: Figure, results: Results) -> Drawing:
    """Bars of kinds of branches for each world, a panel for each arm: MACs of a step, on the mean over the run."""
    worlds = figure.worlds or [study.world]
    found, missing = _billed(study, figure, results, worlds)
    if not found:
        return Drawing(figure, missing=missing)
    arms = list(dict.fromkeys(arm for arm, _ in found))
    scale, unit = _scale(max(each.sites.sum(1).mean() for each in found.values()))
    picture = canvas(max(3.4, 1.15 * len(worlds) + 1.2) * len(arms), 3.2)
    panels = picture.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    rows: list[dict[str, Any]] = []
    for axes, arm in zip(panels, arms, strict=True):
        label = study.row(arm).label
        here = {world: found[arm, world] for world in worlds if (arm, world) in found}
        _bars(axes, here, scale)
        axes.set_title(label, fontsize=10, color=INK)
        rows += [row for world, each in here.items() for row in _rows(study.row(arm), world, each, figure.counted)]
    panels[0].set_ylabel(f"MACs of a step, {unit}", color=INK, fontsize=10)
    panels[-1].legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left")
    most = max(each.outside / (each.sites.sum() + each.outside) for each in found.values())
    caption = (
        f"MACs of a step by kind of branch ({COUNTED[figure.counted]}), one image, one branch of guidance, on the mean "
        f"over the run. Percentages are of the branches shown; embeddings and head ({most:.1%} at most) are "
        "in the data."
    )
    return Drawing(figure, picture, rows, caption, missing)


def _bars(axes: Any, found: dict[str, Billed], scale: float) -> None:
    from ditbench.worlds import get_world

    plain_axes(axes)
    names = list(dict.fromkeys(name for each in found.values() for name in each.names))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        for place, each in enumerate(found.values()):
            means = dict(zip(each.names, each.sites.mean(0), strict=True))
            if name not in means:
                continue
            value, left = means[name] / scale, place + (i - (len(names) - 1) / 2) * width
            said = name if place == 0 else None
            axes.bar(left, value, width * 0.94, color=COLOURS[i % len(COLOURS)], label=said)
            share = means[name] / sum(means.values())
            axes.annotate(
                f"{value:#.3g}\n{share:.0%}", (left, value), (0, 2), textcoords="offset points", ha="center",
                va="bottom", fontsize=7.5, color=INK,
            )  # fmt: skip
    axes.set_xticks(range(len(found)), [get_world(world).size_text.replace("x", " × ") for world in found])
    axes.grid(False, axis="x")
    axes.margins(y=0.16)


def by_step(study: Study, figure: Figure, results: Results) -> Drawing:
    """Lines of arms along the steps, a panel for each kind of branch; the baseline is dashed."""
    found, missing = _billed(study, figure, results, [study.world])
    if not found:
        return Drawing(figure, missing=missing)
    names = list(dict.fromkeys(name for each in found.values() for name in each.names))
    scale, unit = _scale(max(each.sites.max() for each in found.values()))
    picture = canvas(3.9 * len(names), 3.3)
    panels = picture.subplots(1, len(names), sharey=True, squeeze=False)[0]
    rows: list[dict[str, Any]] = []
    arms = [arm for arm, _ in found]
    plain = [arm for arm in arms if arm != study.baseline]
    for axes, name in zip(panels, names, strict=True):
        plain_axes(axes)
        for (arm, _), each in found.items():
            if name not in each.names:
                continue
            values = each.sites[:, each.names.index(name)] / scale
            steps = np.arange(1, len(values) + 1)
            look: dict[str, Any] = {"color": BASELINE_COLOUR, "linestyle": "--"}
            if arm != study.baseline:
                look = {"color": COLOURS[plain.index(arm) % len(COLOURS)]}
            axes.plot(steps, values, linewidth=1.8, label=study.row(arm).label, **look)
            if arm != study.baseline:
                _mark(axes, steps, values, figure.marked, look["color"])
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel("step, from noise to image", color=INK, fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylim(bottom=0)  # shared, so not before all is drawn
    panels[0].set_ylabel(f"MACs, {unit}", color=INK, fontsize=10)
    panels[-1].legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    for (arm, world), each in found.items():
        rows += _rows(study.row(arm), world, each, figure.counted, by_step=True)
    caption = (
        f"MACs of each step by kind of branch ({COUNTED[figure.counted]}), one image, one branch of guidance; the "
        "baseline is dashed."
    )
    return Drawing(figure, picture, rows, caption, missing)


def _mark(axes: Any, steps: NDArray[np.int64], values: NDArray[np.float64], marked: list[int], colour: str) -> None:
    for step in marked:
        if step <= len(steps):
            axes.plot([step], [values[step - 1]], "o", color=colour, markersize=5)
            axes.annotate(
                f"{values[step - 1]:#.3g}", (step, values[step - 1]), (0, -6), textcoords="offset points", ha="center",
                va="top", fontsize=8, color=INK,
            )  # fmt: skip


def _rows(row: Row, world: str, each: Billed, counted: str, by_step: bool = False) -> list[dict[str, Any]]:
    """One row for every value, in MACs."""
    common = {"world": world, "arm": row.arm, "label": row.label, "counted": counted}
    values = each.sites if by_step else each.sites.mean(0)[None]
    rows = [
        common | ({"step": step + 1} if by_step else {}) | {"branch": name, "macs": float(value), "source": each.source}
        for step, of_step in enumerate(values)
        for name, value in zip(each.names, of_step, strict=True)
    ]
    if not by_step:
        outside = each.outside / len(each.sites)
        rows.append(common | {"branch": "embeddings and head", "macs": outside, "source": each.source})
    return rows


def _scale(largest: float) -> tuple[float, str]:
    return (TERA, "T") if largest >= TERA / 10 else (GIGA, "G")


def _billed(
    study: Study, figure: Figure, results: Results, worlds: list[str]
) -> tuple[dict[tuple[str, str], Billed], list[str]]:
    """What each arm costs in each world, and why others are not there."""
    found: dict[tuple[str, str], Billed] = {}
    missing: list[str] = []
    for arm in figure.drawn_arms(row.arm for row in study.rows):
        row = study.row(arm)
        cell = first_cell(study, row, results)
        if row.method is None or (cell is None and method_of_row(row).waits()):
            missing.append(why_missing(study, row, results))
            continue
        for world in worlds:
            ran = cell if world == study.world else None
            try:
                source = str(ran.folder) if ran else "the ledger, without weights"
                found[arm, world] = _summed(*(_ran(ran) if ran else _planned(row, world)), figure.counted, source)
            except Fault as fault:
                missing.append(f"{row.label} in {world}: {fault}.")
    return found, missing


def _ran(cell: Cell) -> tuple[Trace, Costs]:
    """What all images of a cell executed, and what each part of its network costs."""
    from ditbench.engine.costs import Costs
    from ditbench.records import read_record
    from ditbench.report.plans import trace_of

    trace = trace_of(cell)
    if trace is None:
        raise Fault("no record of its images tells what was executed")
    body = read_record(cell.traced[0], "shard") if cell.traced else cell.bodies["latency"]
    return trace, Costs.from_json(body["costs"])


def _planned(row: Row, world: str) -> tuple[Trace, Costs]:
    return _on_meta(world, str(row.method), json.dumps(row.knobs, sort_keys=True), row.steps)


@cache
def _on_meta(world: str, method: str, knobs: str, steps: int | None) -> tuple[Trace, Costs]:
    """Of a large network, where no two steps are alike, this takes half a minute: once for all figures and the page."""
    from ditbench.macs import run_on_meta
    from ditbench.methods import get_method

    run, backbone, inputs = run_on_meta(world, get_method(method, json.loads(knobs)), steps)
    return run.trace, backbone.costs(run.trace.shape.tokens, backbone.text_tokens(**inputs))


def _summed(trace: Trace, costs: Costs, counted: str, source: str) -> Billed:
    from ditbench.engine.ledger import bill, by_site

    layout = trace.shape.layout
    whole = bill(trace, costs)  # says so where both are not of one network
    sites = by_site(trace, costs, counted)
    sums = np.stack([sites[:, layout.name_of == name].sum(1) for name in layout.names], axis=1)
    outside = 0.0 if counted == "attention" else whole.outside
    return Billed(tuple(layout.names), sums, outside, source)
