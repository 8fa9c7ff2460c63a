"""Why a finished arm has no number where others have one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ditbench.study import BASELINE, is_cost

if TYPE_CHECKING:
    from ditbench.report.results import Cell
    from ditbench.report.tables import Heading, Line

# What a device may not tell.
_UNTOLD = {
    "peak-memory": "a process on a CPU has one peak for both arms",
    "energy-per-image": "this device tells nothing of its energy",
    "forward-ms": "calls of the network were not timed one by one",
}


def reason(measure: str, cell: Cell) -> str:
    """In few words; empty where the cell's state, or another note, says it."""
    latency = cell.bodies.get("latency", {})
    if cell.state != "done" or (is_cost(measure) and latency.get("refused")):
        return ""
    if is_cost(measure):
        return _UNTOLD.get(measure, "not among the batches and modes that were timed (`stopwatch`)")
    return _of_judge(measure, cell)


def _of_judge(measure: str, cell: Cell) -> str:
    from ditbench.judges.registry import judge_classes, judge_of

    name = judge_of(measure)
    if name is None:
        return ""  # a column of published values
    if judge_classes()[name].needs_full and cell.arm == BASELINE:
        return "not defined: it compares with this arm"
    if "scores" not in cell.bodies:
        return "these weights draw no images to judge"
    if name not in cell.bodies["scores"].get("judge_seconds", {}):
        if cell.elsewhere is not None:
            return f"judge {name} did not run where they were finished"
        return f"judge {name} did not run; `ditbench judges` says what it needs"
    return "not defined for any of these images"


def notes(headings: Iterable[Heading], lines: Iterable[Line]) -> Iterator[str]:
    """A sentence for every column with gaps, and every reason."""
    lines = list(lines)
    for i, heading in enumerate(headings):
        gaps: dict[str, list[str]] = {}
        for line in lines:
            if line.cell and line.entries[i].value is None and (why := reason(heading.measure, line.cell)):
                gaps.setdefault(why, []).append(line.label)
        for why, labels in gaps.items():
            whose = "all" if len(labels) == sum(line.cell is not None for line in lines) else ", ".join(labels)
            yield f"No {heading.label} of {whose}: {why}."
