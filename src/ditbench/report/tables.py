"""A study's table: one model of it, rendered as Markdown, LaTeX, CSV and HTML.

Best and second best are marked among the accelerated arms only: the baseline stands apart, controls are no rivals,
and published values are never ranked against measured ones.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ditbench.report import controls
from ditbench.report.escapes import tex
from ditbench.report.results import Cell, Difference, Results, Value
from ditbench.study import Column, Row, Study

Role = Literal["baseline", "arm", "published", "control"]
Rank = Literal["", "best", "second"]

ARROWS = {"lower": "↓", "higher": "↑"}
SAME = "≈"
ABSENT = "–"
PAGE = "../../report/index.html"


@dataclass(frozen=True)
class Heading:
    """A column: what it is, how it is printed, and which way is better."""

    measure: str
    label: str
    digits: int
    direction: str

    @property
    def arrow(self) -> str:
        return ARROWS.get(self.direction, "")


@dataclass(frozen=True)
class Entry:
    """One number of the table as it is shown; `same` where it cannot be told from the baseline's."""

    value: Value | None = None
    text: str = ABSENT
    interval: str = ""
    rank: Rank = ""
    difference: Difference | None = None

    @property
    def same(self) -> bool:
        return self.difference is not None and not self.difference.distinguishable


@dataclass(frozen=True)
class Line:
    """One arm (with one seed), or what others published about it."""

    label: str
    role: Role
    arm: str
    seed: int | None
    state: str
    entries: tuple[Entry, ...]
    note: str = ""
    cell: Cell | None = None

    @property
    def blank(self) -> bool:
        """Whether there is no number at all."""
        return all(entry.value is None for entry in self.entries)

    @property
    def suffix(self) -> str:
        """What the label does not say: the line's part, and what is wrong with it."""
        parts = [] if self.role == "arm" else [self.role]
        return ", ".join(parts + ([] if self.state == "done" else [self.state]))


@dataclass(frozen=True)
class Table:
    """A study's table; lines come in groups: baseline, arms with their published values, controls."""

    name: str
    title: str
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def groups(self) -> list[list[Line]]:
        """The lines in blocks that a rule divides."""
        parts: tuple[tuple[Role, ...], ...] = (("baseline",), ("arm", "published"), ("control",))
        blocks = [[line for line in self.lines if line.role in roles] for roles in parts]
        return [block for block in blocks if block]


def build_table(study: Study, results: Results) -> Table:
    """The table of a study."""
    lines = [line for row in study.rows for line in _lines(study, row, results)]
    order: dict[Role, int] = {"baseline": 0, "arm": 1, "published": 1, "control": 2}
    lines.sort(key=lambda line: order[line.role])
    headings = tuple(_heading(column, i, lines) for i, column in enumerate(study.columns))
    ranked = _ranked(headings, lines)
    notes = (*_notes(study, ranked), *controls.passed(headings, ranked))
    return Table(study.name, study.title, headings, tuple(ranked), notes, tuple(controls.warnings(headings, ranked)))


def _lines(study: Study, row: Row, results: Results) -> Iterator[Line]:
    role: Role = "baseline" if row.arm == study.baseline else "control" if row.arm in study.controls else "arm"
    cells = results.of_arm(study.world, row.arm)
    if not cells:
        blank = tuple(Entry() for _ in study.columns)
        yield Line(row.label, role, row.arm, None, "not run: not in the config", blank, row.note)
    for cell in cells:
        label = row.label if len(cells) == 1 else f"{row.label}, seed {cell.seed}"
        entries = tuple(_entry(column, cell.values, cell.differences) for column in study.columns)
        yield Line(label, role, row.arm, cell.seed, cell.state_text, entries, row.note, cell)
    if row.published:
        values = {m: Value(p.value, kind="published", source=p.source) for m, p in row.published.items()}
        sources = "; ".join(dict.fromkeys(p.source for p in row.published.values()))
        entries = tuple(_entry(column, values, {}) for column in study.columns)
        yield Line(row.label, "published", row.arm, None, "done", entries, sources)


def _entry(column: Column, values: dict[str, Value], differences: dict[str, Difference]) -> Entry:
    value = values.get(column.measure)
    if value is None:
        return Entry()
    interval = ""
    if value.low is not None and value.high is not None:
        interval = f"[{number(value.low, column.digits)}, {number(value.high, column.digits)}]"
    text = number(value.value, column.digits) + ("×" if value.unit == "x" else "")
    return Entry(value, text, interval, "", differences.get(column.measure))


def number(value: float, digits: int) -> str:
    """A number for reading: fixed digits, a true minus sign."""
    if math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}f}"
    # -0.00 is no news.
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def _heading(column: Column, position: int, lines: Iterable[Line]) -> Heading:
    found = (line.entries[position].value for line in lines)
    direction = next((value.direction for value in found if value is not None and value.direction), "")
    return Heading(column.measure, column.label, column.digits, direction)


def _ranked(headings: tuple[Heading, ...], lines: list[Line]) -> list[Line]:
    """Marks the best of each column, and the second best where at least three arms compete."""
    for i, heading in enumerate(headings):
        rivals = [line.entries[i] for line in lines if line.role == "arm" and line.state == "done"]
        # What is printed alike ranks alike.
        seen = {round(e.value.value, heading.digits) for e in rivals if e.value and math.isfinite(e.value.value)}
        if not heading.direction or len(rivals) < 2 or not seen:
            continue
        places = sorted(seen, reverse=heading.direction == "higher")
        marks: dict[float, Rank] = {places[0]: "best"}
        if len(rivals) > 2 and len(places) > 1:
            marks[places[1]] = "second"
        lines = [_marked(line, i, heading.digits, marks) for line in lines]
    return lines


def _marked(line: Line, i: int, digits: int, marks: dict[float, Rank]) -> Line:
    entry = line.entries[i]
    if line.role != "arm" or line.state != "done" or entry.value is None or not math.isfinite(entry.value.value):
        return line
    mark: Rank = marks.get(round(entry.value.value, digits), "")
    return replace(line, entries=(*line.entries[:i], replace(entry, rank=mark), *line.entries[i + 1 :]))


def _notes(study: Study, lines: list[Line]) -> Iterator[str]:
    """What a reader must know to read the table."""
    shown = [(line, entry) for line in lines for entry in line.entries if entry.value is not None]
    if not shown:
        yield "Nothing has been run yet."
        return
    counts = sorted({e.value.n for _, e in shown if e.value and e.value.n and "round" not in e.value.interval})
    seeds = sorted({line.seed for line, _ in shown if line.seed is not None})
    images = f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} images per arm" if counts else ""
    seed_text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""
    yield "; ".join(part for part in (f"World: {study.world}", images, seed_text) if part) + "."
    yield "In brackets: 95 % interval; for speed and time, the slowest and the fastest of the interleaved rounds."
    if any(entry.rank for _, entry in shown):
        second = ", second best is underlined" if any(entry.rank == "second" for _, entry in shown) else ""
        yield f"Best of the accelerated arms is bold{second}; the baseline and controls are not ranked."
    if any(entry.same for _, entry in shown):
        baseline = study.row(study.baseline).label
        yield f"{SAME}: the 95 % interval of the paired difference to {baseline} includes zero."
    for line in lines:
        if line.note:
            yield f"{line.label} ({line.role}): {line.note}." if line.role != "arm" else f"{line.label}: {line.note}."
    for line in lines:
        if line.cell and (reason := line.cell.bodies.get("latency", {}).get("refused")):
            yield (
                f"{line.label}: no speed is given, the machine was contended while it was timed ({reason}); run again, "
                "or report all the same with `stopwatch: {contended: report}`."
            )
    contended = {c.bodies["latency"]["note"] for c in (line.cell for line in lines) if c and _contended(c)}
    yield from (f"The machine was contended while the arms were timed: {note}." for note in sorted(contended))


def _contended(cell: Cell) -> bool:
    latency = cell.bodies.get("latency", {})
    return bool(latency.get("contended")) and not latency.get("refused")


# Markdown


def markdown(table: Table, page: str = PAGE) -> str:
    """The table for a README or an issue; arms link to their cell in the page."""
    heads = ["arm", *(f"{_md(h.label)} {h.arrow}".strip() for h in table.headings)]
    rows = [[_md_label(line, page), *(_md_entry(entry) for entry in line.entries)] for line in _in_order(table)]
    rules = [":--", *("--:" for _ in table.headings)]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rules, *rows])
    notes = "\n".join(f"- {_md(note)}" for note in table.notes)
    loud = "".join(f"> **WARNING: {_md(warning)}.**\n\n" for warning in table.warnings)
    return f"### {_md(table.title)}\n\n{loud}{body}\n\n{notes.replace('underlined', 'in italics')}\n"


def _in_order(table: Table) -> list[Line]:
    return [line for group in table.groups() for line in group]


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _md_label(line: Line, page: str) -> str:
    label = f"[{_md(line.label)}]({page}#{line.cell.anchor})" if line.cell else _md(line.label)
    return f"{label} ({_md(line.suffix)})" if line.suffix else label


def _md_entry(entry: Entry) -> str:
    text = {"best": f"**{entry.text}**", "second": f"*{entry.text}*"}.get(entry.rank, entry.text)
    return " ".join(part for part in (text, SAME if entry.same else "", _md(entry.interval)) if part)


# LaTeX


def latex(table: Table) -> str:
    """A table* environment; it needs the packages booktabs and graphicx, and T1-encoded fonts."""
    heads = " & ".join(["", *(_tex_head(h) for h in table.headings)])
    blocks = ["\n".join(_tex_line(line) for line in group) for group in table.groups()]
    loud = [rf"\textbf{{WARNING: {tex(warning)}.}}" for warning in table.warnings]
    notes = " ".join([*loud, *(tex(note) for note in table.notes)])
    return "\n".join(
        [
            r"% \usepackage[T1]{fontenc} \usepackage{booktabs,graphicx}",
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{tex(table.title)}. {notes}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9-]', '-', table.name)}}}",
            r"\par\smallskip",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(table.headings)}}}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
            "\n\\midrule\n".join(blocks),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )


def _tex_head(heading: Heading) -> str:
    """A heading broken over lines, so that it is no wider than its numbers."""
    lines: list[str] = []
    for word in f"{heading.label} {heading.arrow}".replace("/", "/ ").split():
        if lines and len(lines[-1]) + len(word) < 12:
            lines[-1] += word if lines[-1].endswith("/") else f" {word}"
        else:
            lines.append(word)
    stacked = r" \\ ".join(tex(line) for line in lines)
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}"


def _tex_line(line: Line) -> str:
    """Values, and their intervals in small print beneath."""
    if line.blank:
        return rf"{tex(line.label)} & \multicolumn{{{len(line.entries)}}}{{l}}{{{{\scriptsize {tex(line.suffix)}}}}} \\"
    label = tex(line.label) + (rf" {{\scriptsize ({tex(line.suffix)})}}" if line.suffix else "")
    values = " & ".join([label, *(_tex_value(entry) for entry in line.entries)]) + r" \\"
    if not any(entry.interval for entry in line.entries):
        return values
    small = (rf"{{\scriptsize {tex(e.interval)}}}" if e.interval else "" for e in line.entries)
    return values + "\n" + " & ".join(["", *small]) + r" \\[2pt]"


def _tex_value(entry: Entry) -> str:
    marked = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(entry.rank, "%s") % tex(entry.text)
    return (tex(SAME) + r"\," if entry.same else "") + marked


# CSV

CSV_COLUMNS = (
    "study",
    "world",
    "arm",
    "label",
    "role",
    "seed",
    "state",
    "measure",
    "kind",
    "value",
    "low",
    "high",
    "n",
    "unit",
    "direction",
    "interval",
    "difference_to_baseline",
    "difference_low",
    "difference_high",
    "spec_hash",
    "source",
)


def csv_text(table: Table, world: str) -> str:
    """One row per number, unrounded; an arm without a number still has its row, with an empty value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for line in _in_order(table):
        for heading, entry in zip(table.headings, line.entries, strict=True):
            if entry.value is None and line.role == "published":
                continue
            v, d = entry.value, entry.difference
            numbers = (v.kind, v.value, v.low, v.high, v.n, v.unit, v.direction, v.interval) if v else ("",) * 8
            paired = (d.difference, d.low, d.high) if d else ("",) * 3
            where = (line.cell.hash if line.cell else "", v.source if v else "")
            who = (table.name, world, line.arm, line.label, line.role, line.seed, line.state, heading.measure)
            writer.writerow(["" if item is None else item for item in (*who, *numbers, *paired, *where)])
    return out.getvalue()


# HTML


def html(table: Table, page: str = PAGE) -> str:
    """The table as a document of its own; numbers link to their cell in the page."""
    from ditbench.report.templating import render

    return render("table.html.j2", table=table, page=page)
