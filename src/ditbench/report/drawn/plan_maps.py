"""Plans as maps: the share of tokens that every site leaves out, a map of blocks and steps for each branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault
from ditbench.report import plans
from ditbench.report.drawn.drawing import Drawing, canvas, first_cell, method_of_row, why_missing
from ditbench.report.figures import INK

if TYPE_CHECKING:
    from ditbench.report.results import Results
    from ditbench.study import Row, Study
    from ditbench.study_figures import Figure


def draw(study: Study, figure: Figure, results: Results) -> Drawing:
    """A row of maps for each arm, from blue (all tokens computed) to yellow (none)."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    missing: list[str] = []
    for arm in figure.drawn_arms(row.arm for row in study.rows):
        try:
            found[arm] = _maps(_plan(study, study.row(arm), results), figure.first_step)
        except Fault as fault:
            missing.append(str(fault))
    if not found:
        return Drawing(figure, missing=missing)
    across = max(len(maps) for maps in found.values())
    steps, blocks = next(iter(next(iter(found.values())).values())).shape
    picture = canvas(max(2.2, 0.085 * blocks + 1.2) * across + 0.9, max(2.0, 0.1 * steps + 1.1) * len(found))
    panels = picture.subplots(len(found), across, squeeze=False)
    image = None
    for line, (arm, maps) in zip(panels, found.items(), strict=True):
        for axes in line[len(maps) :]:
            axes.set_axis_off()
        for axes, (kind, left_out) in zip(line, maps.items(), strict=False):
            image = _map(axes, left_out, figure.first_step, kind)
        line[0].set_ylabel(f"{study.row(arm).label}\nstep", color=INK, fontsize=9)
    picture.colorbar(image, ax=panels, shrink=0.85, pad=0.015).set_label("tokens left out, %", color=INK, fontsize=9)
    rows = [
        {"arm": arm, "branch": kind, "step": figure.first_step + step, "block": block + 1, "left_out": float(share)}
        for arm, maps in found.items()
        for kind, left_out in maps.items()
        for step, of_step in enumerate(left_out)
        for block, share in enumerate(of_step)
        if not np.isnan(share)
    ]
    first = f"; the first {figure.first_step - 1} steps are not shown" if figure.first_step > 2 else ""
    first = "; the first step is not shown" if figure.first_step == 2 else first
    caption = f"Share of tokens left out by branch: blocks across, steps down, from blue (none) to yellow (all){first}."
    return Drawing(figure, picture, rows, caption, missing)


def _map(axes: Any, left_out: NDArray[np.float64], first: int, title: str) -> Any:
    steps, blocks = left_out.shape
    extent = (0.5, blocks + 0.5, first + steps - 0.5, first - 0.5)
    image = axes.imshow(
        100 * left_out, vmin=0, vmax=100, cmap="viridis", aspect="auto", extent=extent, interpolation="nearest"
    )
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel("block", color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return image


def _plan(study: Study, row: Row, results: Results) -> dict[str, Any]:
    """An arm's plan: its cell's, what ran where that was decided while sampling, or what its method makes here."""
    from ditbench.worlds import get_world

    cells = results.of_arm(study.world, row.arm) if row.method else []
    cell = first_cell(study, row, results) or next((cell for cell in cells if cell.plan), None)
    if cell is not None and cell.plan is not None:
        if not plans.decides_online(cell.plan):
            return cell.plan
        trace = plans.trace_of(cell)
        if trace is None:
            raise Fault(f"{row.label}: decided while sampling, and no record tells what ran.")
        return plans.executed(trace)
    if row.method is None:
        raise Fault(why_missing(study, row, results))
    method, world = method_of_row(row), get_world(study.world)
    if not method.waits():
        try:
            plan = method.plan(world.shape(method.steps(row.steps or world.default_steps))).to_json()
        except Fault as fault:
            raise Fault(f"{row.label}: {fault}.") from fault
        if not plans.decides_online(plan):
            return plan
    raise Fault(why_missing(study, row, results))


def _maps(plan: dict[str, Any], first: int) -> dict[str, NDArray[np.float64]]:
    """Of every kind of unit [step, block] what is left out; nan where a block has no such unit."""
    shares = np.array(plan["shares"], dtype=float)
    blocks = plan["layout"][-1][0] + 1
    if first > len(shares):
        raise Fault(f"a plan of {len(shares)} steps has no step {first}.")
    maps = {}
    for kind, unit_of in plans.panels(plan).items():
        found = np.full((len(shares), blocks), np.nan)
        for block, unit in unit_of.items():
            found[:, block] = 1 - shares[:, unit]
        maps[kind] = found[first - 1 :]
    return maps
