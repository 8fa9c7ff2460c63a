"""What a cell is and what its records say, for a person or a program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ditbench.inspect.cells import cell_name

if TYPE_CHECKING:
    from pathlib import Path

    from ditbench.report.results import Cell, Value


def as_data(cell: Cell, root: Path) -> dict[str, Any]:
    """Everything about a cell."""
    return {
        "cell": cell_name(cell),
        "hash": cell.hash,
        "state": cell.state,
        "reason": cell.reason,
        "folder": str(root / cell.folder),
        "spec": cell.spec,
        "measures": {name: value_data(value) for name, value in cell.values.items()},
        "differences": {
            name: {
                "difference": d.difference,
                "low": d.low,
                "high": d.high,
                "n": d.n,
                "against": d.against,
                "distinguishable": d.distinguishable,
            }
            for name, d in cell.differences.items()
        },
        "plan": plan_told(cell),
        "elsewhere": None if cell.elsewhere is None else str(cell.elsewhere),
        "shards": [str(path.relative_to(root)) for path in cell.shards],
        "provenance": cell.provenance,
        "seconds": {
            f"{job.stage} {job.record}": job.timings.get("total_s") for job in cell.jobs if job.timings.get("total_s")
        },
    }


def value_data(value: Value) -> dict[str, Any]:
    """A measured value with all that is known of it, for a program."""
    names = ("value", "low", "high", "n", "unit", "direction", "kind", "interval", "source")
    return {name: getattr(value, name) for name in names}


def plan_told(cell: Cell) -> str:
    """The plan in a sentence; empty where there is none."""
    from ditbench.report.plans import plan_text

    return plan_text(cell.plan, cell.arm) if cell.plan else ""


def told(cell: Cell, root: Path) -> str:
    """Everything about a cell, in lines for a person."""
    from ditbench.report.page import cell_facts

    lines = [f"{cell_name(cell)}  {cell.hash}  {cell.state_text}", ""]
    facts = [(name, text) for name, text, _ in cell_facts(cell)]
    width = max(len(name) for name, _ in facts)
    lines += [f"{name.ljust(width)}  {text}" for name, text in facts]
    lines.append(f"{'folder'.ljust(width)}  {root / cell.folder}")
    if cell.plan:
        lines += ["", plan_told(cell)]
    if cell.values:
        lines += ["", *_measures(cell)]
    jobs = [(job.stage, job.record, job.timings.get("total_s"), job.created) for job in cell.jobs]
    if jobs:
        lines += ["", f"{'stage':14}{'record':24}{'seconds':>9}  written"]
        lines += [f"{stage:14}{record:24}{seconds or 0:>9.1f}  {created}" for stage, record, seconds, created in jobs]
    return "\n".join(lines)


def _measures(cell: Cell) -> Iterator[str]:
    width = max(len(name) for name in cell.values)
    yield f"{'measure'.ljust(width)}  {'value':>12}  {'interval':>24}  {'n':>6}  difference to full"
    for name, value in cell.values.items():
        digits = decimals(value.value)
        interval = ""
        if value.low is not None and value.high is not None:
            interval = f"[{value.low:.{digits}f}, {value.high:.{digits}f}]"
        paired, difference = cell.differences.get(name), ""
        if paired is not None:
            ends = f"[{paired.low:+.{digits}f}, {paired.high:+.{digits}f}]"
            same = "" if paired.distinguishable else "  not distinguishable"
            difference = f"{paired.difference:+.{digits}f} {ends}{same}"
        unit = f" {value.unit}" if value.unit else ""
        shown = f"{value.value:.{digits}f}{unit}"
        yield f"{name.ljust(width)}  {shown:>12}  {interval:>24}  {value.n or '':>6}  {difference}".rstrip()
    yield OF_INTERVALS


OF_INTERVALS = "Intervals are 95 % ones; those of speed and time, the slowest and the fastest round."


def with_interval(value: Value, digits: int) -> str:
    """A value, and its interval where it has one: `17.72 [16.30, 19.14]`."""
    text = f"{value.value:.{digits}f}"
    if value.low is not None and value.high is not None:
        text += f" [{value.low:.{digits}f}, {value.high:.{digits}f}]"
    return text


def decimals(value: float) -> int:
    """As many decimals as show four digits of a number."""
    from ditbench.report.page import decimals_of

    return decimals_of(value)
