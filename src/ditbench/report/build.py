"""Writes everything that people see: each study's tables, figures and grid, and the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.report import drawn, drawn_before, figures, tables
from ditbench.report.multiples import multiples_file
from ditbench.report.page import build_page
from ditbench.report.results import Results, load_results
from ditbench.report.samples import collect
from ditbench.study import Study
from ditbench.sweeps import run_studies

if TYPE_CHECKING:
    from ditbench.config import Config


def write_report(config: Config, results: str | Path | None = None) -> Path:
    """Writes the tables, figures and the page of every study of a config; returns the page's path.

    A record beside the page tells what that took: the page can't, it is written before.
    """
    from ditbench.records import Clock, write_record

    clock = Clock()
    with clock("load"):
        studies, found = run_studies(config), load_results(config, results)
    with clock("compute"):
        page = write_studies(studies, found)
    write_record(page.with_name("report.json"), "report", {"page": page.name}, timings=clock.seconds)
    return page


def write_studies(studies: list[Study], results: Results) -> Path:
    """Writes studies from results that have been read, and says which cells have failed, and why."""
    for cell in results.cells:
        if cell.state == "failed":
            print(f"report: {cell.world}/{cell.arm}/seed{cell.seed} failed: {cell.reason}", file=sys.stderr)
    for damaged in results.damaged:
        print(f"report: WARNING: {damaged}", file=sys.stderr)
    for study in studies:
        for warning in tables.build_table(study, results).warnings:
            print(f"report: WARNING: {study.name}: {warning}", file=sys.stderr)
        folder = results.root / "studies" / study.name
        drawn_before.forget(results.root, study.name)
        table = tables.build_table(study, results)
        for name, content in study_tables(study, table):
            write_file(folder / name, content)
        drawn_of = drawn_before.drawn_of(study, results)  # before: what changes meanwhile is not drawn
        figured = dict(study_figures(study, table, results))
        for name, picture in figured.items():
            write_file(folder / name, picture)
        there = [name for name, picture in figured.items() if picture is not None]
        drawn_before.remember(results.root, study.name, drawn_of, there)
        write_file(folder / "grid.png", study_grid(study, results))
    page = results.root / "report" / "index.html"
    write_file(page, build_page(studies, results).encode("utf-8"))
    return page


def study_grid(study: Study, results: Results) -> bytes | None:
    """Pictures of a study's arms for the same captions, beside each other."""
    found = collect(study, results)
    return figures.sample_grid(found.arms, found.captions, found.images) if found and found.captions else None


def study_tables(study: Study, table: tables.Table) -> Iterator[tuple[str, bytes]]:
    """The table of a study in every form."""
    yield "table.md", tables.markdown(table).encode("utf-8")
    yield "table.tex", tables.latex(table).encode("utf-8")
    yield "table.csv", tables.csv_text(table, study.world).encode("utf-8")
    yield "table.html", tables.html(table).encode("utf-8")


def study_figures(study: Study, table: tables.Table, results: Results) -> Iterator[tuple[str, bytes | None]]:
    """The figures of a study, which take much longer than its table; None where there is nothing to draw yet."""
    yield "pareto.svg", figures.pareto(study, table)
    yield "pareto.png", figures.pareto_png(study, table)
    yield "multiples.svg", multiples_file(study, table, "svg")
    yield "multiples.png", multiples_file(study, table, "png")
    yield from drawn.files_of(study, results)


def write_file(path: Path, content: bytes | None) -> None:
    """Writes a file whole or not at all; what can no longer be drawn is removed, so that no old picture stays."""
    from ditbench.storage import replacing

    if content is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        Path(partial).write_bytes(content)
