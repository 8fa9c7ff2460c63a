"""What MLflow holds of a study: a run of its own, with the tables and figures that the report renders.

It has no numbers of its own, so that in charts it is nothing; its note is the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ditbench.report.build import study_files

if TYPE_CHECKING:
    from ditbench.report.results import Cell, Results
    from ditbench.study import Study

# Rendered by the report too, and too large to keep once more.
LEFT_OUT = ("grid.png",)
# MLflow's tags end there.
NOTE_LENGTH = 7_500


def study_files_kept(study: Study, results: Results) -> dict[str, bytes]:
    """The files of a study that its run holds."""
    return {
        name: content for name, content in study_files(study, results) if content is not None and name not in LEFT_OUT
    }


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
