"""What MLflow holds of a study: a run of its own, with the tables and figures that the report renders.

It has no numbers of its own, so that in charts it is nothing; its note is the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ditbench.report.build import study_figures, study_tables
from ditbench.report.drawn_before import drawn_of, recall
from ditbench.report.tables import build_table

if TYPE_CHECKING:
    from ditbench.report.results import Cell, Results
    from ditbench.study import Study

# MLflow's tags end there.
NOTE_LENGTH = 7_500


def tables_kept(study: Study, results: Results) -> dict[str, bytes]:
    """The table of a study, in every form."""
    return dict(study_tables(study, build_table(study, results)))


def figures_kept(study: Study, results: Results) -> dict[str, bytes]:
    """The figures that its run holds; the grid of samples is the report's, and too large to keep once more."""
    before = recall(results.root, study.name, drawn_of(study, results))
    if before is not None:
        return before
    drawn = study_figures(study, build_table(study, results), results)
    return {name: content for name, content in drawn if content is not None}


def study_note(files: dict[str, bytes]) -> str:
    """The study's table as the run's description; where it is too long for one, where to find it."""
    text = files["table.md"].decode("utf-8")
    return text if len(text) <= NOTE_LENGTH else "The table is among the artifacts: table.md, table.html, table.csv."


def cells_of(study: Study, results: Results) -> Sequence[Cell]:
    """The finished or failed cells of a study."""
    return [
        cell
        for row in study.rows
        for cell in (results.of_arm(study.world, row.arm) if row.method else [])
        if cell.state != "not run"
    ]
