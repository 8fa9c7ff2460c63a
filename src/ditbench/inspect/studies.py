"""Any study as it stands: published values, and those of cells that are at hand. Nothing is run for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.faults import Fault
from ditbench.report import tables
from ditbench.report.results import Results, load_results
from ditbench.study import Study, load_study, study_names

if TYPE_CHECKING:
    from ditbench.config import Config

FORMS = ("md", "tex", "csv", "html")


def standing(study: Study, config: Config, results: str | Path | None = None, place: str | None = None) -> Results:
    """The cells of a study that lie in the results of a configuration; `place` is its file where that is no other's.

    Where they cannot even be asked for (no weights, no captions, a study that waits for something), there are none,
    and the table says why.
    """
    root = Path(results if results is not None else config.results)
    alone = config.model_copy(update={"studies": [place or study.name], "arms": {}, "sweeps": {}, "world": study.world})
    try:
        return load_results(alone, root)
    except Fault as fault:
        return Results(root, (), (), absent="cannot be run as configured", trouble=" ".join(str(fault).split()))


def rendered(study: Study, results: Results, form: str) -> str:
    """A study's table in one of `FORMS`, or as `text` for a terminal."""
    table = tables.build_table(study, results)
    if form == "csv":
        return tables.csv_text(table, study.world)
    return {"text": tables.plain, "md": tables.markdown, "tex": tables.latex, "html": tables.html}[form](table)


def write(study: Study, results: Results, folder: Path) -> list[Path]:
    """Writes a study's table in every form to a folder."""
    from ditbench.storage import replacing

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"table.{form}" for form in FORMS]
    for path, form in zip(paths, FORMS, strict=True):
        with replacing(path) as partial:
            Path(partial).write_text(rendered(study, results, form), encoding="utf-8")
    return paths


def write_figures(study: Study, results: Results, folder: Path) -> Iterator[str]:
    """Draws a study's figures into a folder; a line for each says where it is, and what it lacks."""
    from ditbench.report import figures
    from ditbench.report.build import write_file
    from ditbench.report.drawn import drawings
    from ditbench.report.tables import build_table

    if study.figure is not None:
        table = build_table(study, results)
        pictures = {"svg": figures.pareto(study, table), "png": figures.pareto_png(study, table)}
        for kind, content in pictures.items():
            write_file(folder / f"pareto.{kind}", content)
        there = all(content is not None for content in pictures.values())
        yield f"{study.title}: " + (f"{folder / 'pareto'}.svg and .png." if there else "no arm has both measures yet.")
    for drawing in drawings(study, results):
        for name, content in drawing.files(study.name):
            write_file(folder / name, content)
        drawn = drawing.picture is not None
        where = f"{folder / drawing.asked.file}.svg, .png and .csv." if drawn else "not drawn."
        yield " ".join([f"{drawing.asked.title}: {where}", *drawing.missing])


def listed() -> list[dict[str, object]]:
    """Every study: what it is about, how many of its rows can be run, and how many wait for something."""
    studies = [load_study(name) for name in study_names()]
    return [
        {
            "study": study.name,
            "world": study.world,
            "arms": sum(row.method is not None for row in study.rows),
            "awaiting": sum(row.method is None for row in study.rows),
            "title": study.title,
        }
        for study in studies
    ]
