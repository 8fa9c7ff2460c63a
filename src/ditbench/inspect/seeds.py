"""What is known of an arm over all its seeds: they draw the same captions, each from noise of its own.

The interval of a mean over seeds: of measures of whole sets the jackknife of that mean, each group of captions left out
of all seeds at once; of others its ends are the means of the seeds' ends, as wide as if every seed after the first
added nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ditbench.report.results import Cell, Difference, Value

NO_NARROWER = "mean of the intervals of the seeds, which is no narrower than the mean's"


def mean_quality(cells: Sequence[Cell], measure: str) -> Value:
    """A measure over the seeds of an arm, all of which have it; of one seed what that seed has."""
    import numpy as np

    from ditbench.statistics import jackknife

    values = [cell.values[measure] for cell in cells]
    if len(values) == 1:
        return values[0]
    mean = sum(value.value for value in values) / len(values)
    merged = replace(values[0], value=mean, low=None, high=None)
    groups = [_left_out(cell, measure) for cell in cells]
    if groups[0] and len({len(group) for group in groups}) == 1 and values[0].n:
        found = jackknife(mean, np.array(groups).mean(0), values[0].n)
        return replace(merged, low=found.low, high=found.high, interval=f"{found.method}, mean over seeds")
    lows, highs = [v.low for v in values if v.low is not None], [v.high for v in values if v.high is not None]
    if len(lows) == len(highs) == len(values):
        low, high = sum(lows) / len(lows), sum(highs) / len(highs)
        return replace(merged, low=low, high=high, interval=NO_NARROWER)
    return merged


def mean_difference(cells: Sequence[Cell], measure: str) -> Difference | None:
    """The paired difference to full over the seeds; None where a seed has not been compared."""
    found = [cell.differences[measure] for cell in cells if measure in cell.differences]
    if not found or len(found) < len(cells):
        return None
    ends = {name: sum(getattr(each, name) for each in found) / len(found) for name in ("difference", "low", "high")}
    return replace(found[0], **ends)


def mean_speedup(cells: Sequence[Cell]) -> Value:
    """The speed-up over the seeds that were timed, from the slowest round of any to the fastest."""
    values = [cell.values["speedup"] for cell in cells]
    if len(values) == 1:
        return values[0]
    lows, highs = [v.low for v in values if v.low is not None], [v.high for v in values if v.high is not None]
    rounds = sum(v.n or 0 for v in values)
    return replace(
        values[0],
        value=sum(v.value for v in values) / len(values),
        low=min(lows, default=None),
        high=max(highs, default=None),
        n=rounds or None,
        interval=f"slowest and fastest of {rounds} rounds of {len(values)} seeds",
    )


def _left_out(cell: Cell, measure: str) -> list[float]:
    measures: list[dict[str, Any]] = cell.bodies.get("scores", {}).get("measures", [])
    return next((list(m.get("left_out") or []) for m in measures if m["name"] == measure), [])
