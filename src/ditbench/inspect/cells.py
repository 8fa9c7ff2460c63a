"""Finds a cell by what a person calls it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.faults import Fault
from ditbench.mistakes import possible

if TYPE_CHECKING:
    from ditbench.config import Config
    from ditbench.report.results import Cell, Results


# So many cells are named where one was looked for in vain.
MANY = 12


def load(config: Config, results: Path | None) -> Results:
    """The results of a configuration; a Fault where there are none."""
    from ditbench.report.results import load_results

    found = load_results(config, results)
    if not (found.root / "cells").is_dir() and all(cell.elsewhere is None for cell in found.cells):
        there = "" if results is None else f" --config results={results}"
        raise Fault(f"there are no results in {found.root} yet: `uv run snakemake --cores all{there}` makes them")
    return found


def cell_name(cell: Cell) -> str:
    """`world/arm/seedN`."""
    return f"{cell.world}/{cell.arm}/seed{cell.seed}"


def find_cell(results: Results, called: str) -> Cell:
    """The cell called `world/arm/seedN`, `arm/seedN`, `world/arm`, `arm`, or by the first digits of its hash."""
    wanted = called.strip("/").split("/")
    names = {cell_name(cell): cell for cell in results.cells}
    if called in names:
        return names[called]
    matches = [cell for name, cell in names.items() if _within(wanted, name.split("/"))]
    if not matches and len(called) >= 4:
        matches = [cell for cell in results.cells if cell.hash.startswith(called.lower())]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise Fault(f"{called!r} may be any of {', '.join(cell_name(cell) for cell in matches)}; say which")
    # Of a sweep's many cells those that have the word in their names are what was meant.
    near = [name for name in names if called in name] or list(names)
    if len(near) > MANY:
        near = [*near[:MANY], f"and {len(near) - MANY} more, which `ditbench cells` lists"]
    raise Fault(f"no cell {called!r}{possible(called, near)}")


def _within(wanted: list[str], parts: list[str]) -> bool:
    """Whether the words stand in a cell's name, in their order and without a gap."""
    return any(parts[i : i + len(wanted)] == wanted for i in range(len(parts) - len(wanted) + 1))
