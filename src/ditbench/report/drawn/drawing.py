"""What comes of drawing a figure, and what all kinds of figures share."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ditbench.report.figures import inline_svg, saved

if TYPE_CHECKING:
    from ditbench.methods import Method
    from ditbench.report.results import Cell, Results
    from ditbench.study import Row, Study
    from ditbench.study_figures import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure: its picture (None where nothing can be drawn), the data behind it, and what is missing, and why."""

    asked: Figure
    picture: Any = None
    rows: Sequence[Mapping[str, Any]] = ()
    caption: str = ""  # how to read it
    missing: Sequence[str] = field(default_factory=tuple)

    @property
    def told(self) -> str:
        """The caption, and what is missing."""
        return " ".join([*([self.caption] if self.picture is not None else []), *self.missing])

    def files(self, study: str) -> Iterator[tuple[str, bytes | None]]:
        """Its files; None where there is nothing to draw."""
        name, there = f"{study}-{self.asked.file}", self.picture is not None
        for kind in ("svg", "png"):
            yield f"{self.asked.file}.{kind}", saved(self.picture, kind, name) if there else None
        yield f"{self.asked.file}.csv", self.table().encode("utf-8") if there else None

    def inline(self, study: str) -> str:
        """The picture for the inside of a page; empty where there is none."""
        if self.picture is None:
            return ""
        name = f"{study}-{self.asked.file}"
        return inline_svg(saved(self.picture, "svg", name), f"{self.asked.title}. {self.caption}", name)

    def table(self) -> str:
        """The data behind it, unrounded."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(dict.fromkeys(key for row in self.rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()


def canvas(width: float, height: float) -> Any:
    """An empty picture, without pyplot: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def method_of_row(row: Row) -> Method:
    """The method of an arm as its row has it, which has learned nothing."""
    from ditbench.methods import get_method

    return get_method(str(row.method), row.knobs)


def first_cell(study: Study, row: Row, results: Results) -> Cell | None:
    """The finished cell that stands for an arm: of its seeds the first."""
    cells = results.of_arm(study.world, row.arm) if row.method else []
    return next((cell for cell in cells if cell.state == "done"), None)


def why_missing(study: Study, row: Row, results: Results) -> str:
    """Why an arm has no finished cell, in a sentence."""
    waits = study.awaits or row.awaits
    if waits:
        return f"{row.label}: not run: awaits {waits}."
    cells = results.of_arm(study.world, row.arm)
    if cells:
        return f"{row.label}: {cells[0].state_text}."
    return f"{row.label}: not run: {results.absent}{f' ({results.trouble})' if results.trouble else ''}."
