"""A study's table: one model of it, rendered as Markdown, LaTeX, CSV and HTML.

Best and second best are marked among the accelerated arms only: the baseline stands apart, controls are no rivals,
and published values are never ranked against measured ones.
"""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ditbench.elsewhere import made_otherwise
from ditbench.faults import Fault
from ditbench.report import absent, comparable, controls
from ditbench.report.escapes import markdown as _md
from ditbench.report.escapes import tex
from ditbench.report.results import Cell, Difference, Results, Value
from ditbench.study import FACTORS, Column, Row, Study
from ditbench.traits import TRAITS, word_of

Role = Literal["baseline", "arm", "published", "control"]
ORDER: dict[Role, int] = {"baseline": 0, "arm": 1, "published": 1, "control": 2}
Rank = Literal["", "best", "second"]

ARROWS = {"lower": "↓", "higher": "↑"}
SAME = "≈"
ABSENT = "–"
BEST, SECOND = "**", "*"  # in plain text
PAGE = "../../report/index.html"
FEW = 3  # reasons that a note tells apart


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
    apart: str = ""  # why it does not compare with the others of its column

    @property
    def same(self) -> bool:
        return self.difference is not None and not self.difference.distinguishable


@dataclass(frozen=True)
class Line:
    """One arm (with one seed), or what others published about it."""

    label: str
    role: Role
    part: Role  # of its arm in the study: a published line stands beside what it is about
    arm: str
    seed: int | None
    state: str
    entries: tuple[Entry, ...]
    note: str = ""
    cell: Cell | None = None
    group: str = ""

    @property
    def blank(self) -> bool:
        """Whether there is no number at all."""
        return all(entry.value is None for entry in self.entries)

    @property
    def suffix(self) -> str:
        """What the label does not say: the line's part, that it was not run here, and what is wrong with it."""
        parts: list[str] = [] if self.role == "arm" else [self.role]
        parts += ["finished elsewhere"] if self.cell is not None and self.cell.elsewhere is not None else []
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
        """The lines in blocks that a rule divides: the baseline, arms by the study's groups, controls."""
        blocks: list[list[Line]] = []
        for line in self.lines:
            if blocks and (ORDER[line.part], line.group) == (ORDER[blocks[-1][0].part], blocks[-1][0].group):
                blocks[-1].append(line)
            else:
                blocks.append([line])
        return blocks


def build_table(study: Study, results: Results) -> Table:
    """The table of a study."""
    lines = [line for row in study.rows for line in _lines(study, row, results)]
    groups = list(dict.fromkeys(line.group for line in lines))
    lines.sort(key=lambda line: (ORDER[line.part], groups.index(line.group)))
    lines = comparable.marked(study, lines)
    headings = tuple(_heading(column, i, lines) for i, column in enumerate(study.columns))
    ranked = _ranked(headings, lines)
    trouble = [f"What cannot be run as configured: {results.trouble}."] if results.trouble and not study.awaits else []
    notes = (*_notes(study, ranked), *absent.notes(headings, ranked), *trouble, *controls.passed(headings, ranked))
    return Table(study.name, study.title, headings, tuple(ranked), notes, tuple(controls.warnings(headings, ranked)))


def _lines(study: Study, row: Row, results: Results) -> Iterator[Line]:
    role: Role = "baseline" if row.arm == study.baseline else "control" if row.arm in study.controls else "arm"
    cells = results.of_arm(study.world, row.arm) if row.method else []
    waits = study.awaits or row.awaits
    absent = f"not run: awaits {waits}" if waits else f"not run: {results.absent}"
    if not cells and not row.published:
        blank = tuple(Entry() for _ in study.columns)
        yield Line(row.label, role, role, row.arm, None, absent, blank, row.note, group=row.group)
    for cell in cells:
        label = row.label if len(cells) == 1 else f"{row.label}, seed {cell.seed}"
        entries = tuple(_entry(column, cell.value(column.measure), cell.differences) for column in study.columns)
        yield Line(label, role, role, row.arm, cell.seed, cell.state_text, entries, row.note, cell, row.group)
    if row.published:
        units = {column.measure: column.unit for column in study.columns}
        values = {m: Value(p.value, unit=units[m], kind="published", source=p.source) for m, p in row.published.items()}
        entries = tuple(_entry(column, values.get(column.measure), {}) for column in study.columns)
        state = "done" if cells else absent
        yield Line(
            row.label, "published", role, row.arm, None, state, entries, "" if cells else row.note, group=row.group
        )


def _entry(column: Column, value: Value | None, differences: dict[str, Difference]) -> Entry:
    if value is None:
        return Entry()
    value = _in_unit(value, column)
    interval = ""
    if value.low is not None and value.high is not None:
        interval = f"[{number(value.low, column.digits)}, {number(value.high, column.digits)}]"
    if column.measure in TRAITS:
        return Entry(value, word_of(column.measure, value.value))
    text = number(value.value, column.digits) + ("×" if value.unit == "x" else "")
    return Entry(value, text, interval, "", differences.get(column.measure))


def _in_unit(value: Value, column: Column) -> Value:
    """A value in its column's unit, which may be another than its own."""
    unit = column.unit
    if not unit or unit == value.unit:
        return value
    factor = FACTORS.get((value.unit, unit))
    if factor is None:
        raise Fault(f"column {column.measure}: in {unit} it cannot show a value in {value.unit or 'no unit'}")
    low, high = (None if bound is None else bound * factor for bound in (value.low, value.high))
    return replace(value, value=value.value * factor, low=low, high=high, unit=unit)


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
    """Marks the best of each column, and the second best where at least three arms compete.

    An arm of several seeds is ranked by their mean, and all its lines are marked: one lucky seed ranks nowhere.
    """
    for i, heading in enumerate(headings):
        rivals: dict[str, list[float]] = {}
        for line in lines:
            value = line.entries[i].value
            if _competes(line, i):
                rivals.setdefault(line.arm, [])
                if value is not None and math.isfinite(value.value):
                    rivals[line.arm].append(value.value)
        # What is printed alike ranks alike.
        means = {arm: round(sum(own) / len(own), heading.digits) for arm, own in rivals.items() if own}
        places = sorted(set(means.values()), reverse=heading.direction == "higher")
        if not heading.direction or len(rivals) < 2 or not places:
            continue
        if len(means) > 1 and len(places) == 1:  # all alike: nobody is the best
            continue
        marks: dict[float, Rank] = {places[0]: "best"}
        if len(rivals) > 2 and len(places) > 1:
            marks[places[1]] = "second"
        lines = [_marked(line, i, marks.get(means.get(line.arm, math.nan), "")) for line in lines]
    return lines


def _competes(line: Line, i: int) -> bool:
    return line.role == "arm" and line.state == "done" and not line.entries[i].apart


def _marked(line: Line, i: int, mark: Rank) -> Line:
    entry = line.entries[i]
    if not _competes(line, i) or entry.value is None or not math.isfinite(entry.value.value):
        return line
    return replace(line, entries=(*line.entries[:i], replace(entry, rank=mark), *line.entries[i + 1 :]))


def _notes(study: Study, lines: list[Line]) -> Iterator[str]:
    """What a reader must know to read the table."""
    shown = [(line, entry) for line in lines for entry in line.entries if entry.value is not None]
    if not shown:
        yield "Nothing has been run yet."
        yield from study.notes
        yield from _elsewhere(study)
        return
    if not any(line.cell for line, _ in shown):
        yield "Nothing of it has been run yet: all values are published ones."
    if any(line.role == "published" for line, _ in shown):
        told = dict.fromkeys(e.value.source for line, e in shown if line.role == "published" and e.value)
        yield f"Published values are others', never ranked or compared with ours: {'; '.join(told)}."
    yield from study.notes
    yield from _elsewhere(study)
    if not any(line.cell for line, _ in shown):
        yield from _row_notes(lines)
        return
    counts = sorted({e.value.n for _, e in shown if e.value and e.value.n and e.value.source.endswith("scores.json")})
    seeds = sorted({line.seed for line, _ in shown if line.seed is not None})
    images = f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} images per arm" if counts else ""
    seed_text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""
    cells = [line.cell for line, entry in shown if line.cell and comparable.of_sets(entry.value)]
    against = dict.fromkeys(text for cell in cells if (text := comparable.references_text(cell)))
    references = f"references {' and '.join(against)}" if against else ""
    yield "; ".join(part for part in (f"World: {study.world}", images, seed_text, references) if part) + "."
    yield "In brackets: 95 % interval; for speed and time, the slowest and the fastest of the interleaved rounds."
    if any(entry.rank for _, entry in shown):
        second = ", second best is underlined" if any(entry.rank == "second" for _, entry in shown) else ""
        means = " An arm is ranked by the mean of its seeds." if len(seeds) > 1 else ""
        yield f"Best of the accelerated arms is bold{second}; the baseline and controls are not ranked.{means}"
    if any(entry.same for _, entry in shown):
        baseline = study.row(study.baseline).label if study.baseline else "full"
        yield f"{SAME}: the 95 % interval of the paired difference to {baseline} includes zero."
    yield from comparable.notes(lines)
    yield from _taken(lines)
    yield from _row_notes(lines)
    if refused := {
        line.label: why for line in lines if line.cell and line.cell.elsewhere is None and (why := _refused(line.cell))
    }:
        reasons = "; ".join(f"{label}: {why}" for label, why in refused.items())
        yield (
            f"No speed of {', '.join(refused)}: the machine was contended meanwhile ({reasons}); time again on a quiet "
            "one with `uv run snakemake --cores 2 -R latency`, or report it all the same with "
            "`stopwatch: {contended: report}`."
        )
    contended: dict[str, list[str]] = {}
    for line in lines:
        if line.cell and _contended(line.cell):
            contended.setdefault(line.cell.bodies["latency"]["note"], []).append(line.label)
    if contended:
        yield f"The machine was contended while arms were timed: {_told(contended)}."


def _told(reasons: dict[str, list[str]]) -> str:
    """Reasons with the arms that have them: a few, and of more how many there are."""
    if len(reasons) == 1:
        return next(iter(reasons))
    arms = sum(map(len, reasons.values()))
    if len(reasons) > FEW:
        first, last = min(reasons, key=_leading), max(reasons, key=_leading)
        return f"{arms} of them, from “{first}” to “{last}”; each cell's record says how much"
    return "; ".join(f"{why} ({', '.join(labels)})" for why, labels in reasons.items())


def _leading(text: str) -> tuple[float, str]:
    """The first number in a text, to order texts that differ by it."""
    found = re.search(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else 0.0, text


def _elsewhere(study: Study) -> Iterator[str]:
    """What of the original is not here, and where the same is asked of the embedded world."""
    if study.not_printed:
        yield f"Without digits in what could be read, so not here: {study.not_printed}."
    if study.twin:
        yield f"The same in the embedded world: study {study.twin}."


def _taken(lines: Iterable[Line]) -> Iterator[str]:
    """Which rows were finished elsewhere: another day's, and perhaps another machine's and other code's."""
    taken: dict[str, list[Cell]] = {}
    for line in lines:
        if line.cell is not None and line.cell.elsewhere is not None:
            taken.setdefault(line.cell.elsewhere.name, []).append(line.cell)
    for name, cells in taken.items():
        known = [made for cell in cells for made in cell.provenance.values()]
        days = sorted({str(made["created"])[:10] for made in known if made.get("created")})
        when = f" ({' to '.join(dict.fromkeys((days[0], days[-1])))})" if days else ""
        rows = "1 row was" if len(cells) == 1 else f"{len(cells)} rows were"
        other = sum(bool(made_otherwise(cell)) for cell in cells)
        by = f"; {other} of them by other code of engine, method or judges than is here now" if other else ""
        yield f"{rows} finished elsewhere{when} and taken from {name}: their speed is against the full model there{by}."


def _row_notes(lines: Iterable[Line]) -> Iterator[str]:
    for line in lines:
        if line.note:
            yield f"{line.label} ({line.role}): {line.note}." if line.role != "arm" else f"{line.label}: {line.note}."


def _refused(cell: Cell) -> str:
    """Why the stopwatch gave no speed."""
    return str(cell.bodies.get("latency", {}).get("refused") or "")


def _contended(cell: Cell) -> bool:
    latency = cell.bodies.get("latency", {})
    return bool(latency.get("contended")) and not latency.get("refused")


# Plain text


def plain(table: Table) -> str:
    """The table for a terminal."""
    rows = [["arm", *(f"{h.label} {h.arrow}".strip() for h in table.headings)]]
    for group in table.groups():
        if group[0].group:
            rows.append([group[0].group])
        rows += [[_plain_label(line), *map(_plain_entry, line.entries)] for line in group]
    columns = len(rows[0])
    widths = [max(len(row[i]) for row in rows if len(row) == columns) for i in range(columns)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False))]
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    notes = [*(f"WARNING: {warning}." for warning in table.warnings), *table.notes]
    told = [textwrap.fill(note, 110, initial_indent="- ", subsequent_indent="  ") for note in notes]
    text = "\n".join([table.title, "", *(line.rstrip() for line in lines), "", *told])
    return text.replace("is bold", f"has {BEST}").replace("is underlined", f"{SECOND}") + "\n"


def _plain_label(line: Line) -> str:
    return f"{line.label} ({line.suffix})" if line.suffix else line.label


def _plain_entry(entry: Entry) -> str:
    mark = {"best": BEST, "second": SECOND}.get(entry.rank, "") + (comparable.MARK if entry.apart else "")
    return " ".join(part for part in (f"{mark}{entry.text}", SAME if entry.same else "", entry.interval) if part)


# Markdown


def markdown(table: Table, page: str = PAGE) -> str:
    """The table for a README or an issue; arms link to their cell in the page."""
    heads = ["arm", *(f"{_md(h.label)} {h.arrow}".strip() for h in table.headings)]
    rows: list[list[str]] = []
    for group in table.groups():
        if group[0].group:
            rows.append([f"*{_md(group[0].group)}*", *("" for _ in table.headings)])
        rows += [[_md_label(line, page), *(_md_entry(entry) for entry in line.entries)] for line in group]
    rules = [":--", *("--:" for _ in table.headings)]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rules, *rows])
    notes = "\n".join(f"- {_md(note)}" for note in table.notes)
    loud = "".join(f"> **WARNING: {_md(warning)}.**\n\n" for warning in table.warnings)
    return f"### {_md(table.title)}\n\n{loud}{body}\n\n{notes.replace('underlined', 'in italics')}\n"


def _in_order(table: Table) -> list[Line]:
    return [line for group in table.groups() for line in group]


def _md_label(line: Line, page: str) -> str:
    label = f"[{_md(line.label)}]({page}#{line.cell.anchor})" if line.cell else _md(line.label)
    return f"{label} ({_md(line.suffix)})" if line.suffix else label


def _md_entry(entry: Entry) -> str:
    text = {"best": f"**{entry.text}**", "second": f"*{entry.text}*"}.get(entry.rank, entry.text)
    text += comparable.MARK if entry.apart else ""
    return " ".join(part for part in (text, SAME if entry.same else "", _md(entry.interval)) if part)


# LaTeX


def latex(table: Table) -> str:
    """A table* environment; it needs the packages booktabs and graphicx, and T1-encoded fonts."""
    heads = " & ".join(["", *(_tex_head(h) for h in table.headings)])
    blocks = ["\n".join([*_tex_group(group[0], table), *map(_tex_line, group)]) for group in table.groups()]
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


def _tex_group(first: Line, table: Table) -> Iterator[str]:
    if first.group:
        yield rf"\multicolumn{{{1 + len(table.headings)}}}{{l}}{{\textit{{{tex(first.group)}}}}} \\"


def _tex_head(heading: Heading) -> str:
    """A heading broken over lines, so that it is no wider than its numbers."""
    lines: list[str] = []
    for word in f"{heading.label} {heading.arrow}".replace("/", "/ ").split():
        if lines and len(lines[-1]) + len(word) < 12:
            lines[-1] += word if lines[-1].endswith("/") else f" {word}"
        else:
            lines.append(word)
    stacked = r" \\ ".join(_first_in_row(tex(line)) if i else tex(line) for i, line in enumerate(lines))
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}"


def _tex_line(line: Line) -> str:
    """Values, and their intervals in small print beneath."""
    own = _first_in_row(tex(line.label))
    if line.blank:
        return rf"{own} & \multicolumn{{{len(line.entries)}}}{{l}}{{{{\scriptsize {tex(line.suffix)}}}}} \\"
    label = own + (rf" {{\scriptsize ({tex(line.suffix)})}}" if line.suffix else "")
    values = " & ".join([label, *(_tex_value(entry) for entry in line.entries)]) + r" \\"
    if not any(entry.interval for entry in line.entries):
        return values
    small = (rf"{{\scriptsize {tex(e.interval)}}}" if e.interval else "" for e in line.entries)
    return values + "\n" + " & ".join(["", *small]) + r" \\[2pt]"


def _first_in_row(label: str) -> str:
    """A label that begins a row; the rule or the row before it would take a bracket or a star for an option."""
    return f"{{}}{label}" if label.startswith(("[", "*")) else label


def _tex_value(entry: Entry) -> str:
    marked = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(entry.rank, "%s") % tex(entry.text)
    marked += r"\textsuperscript{\dag}" if entry.apart else ""
    return (tex(SAME) + r"\," if entry.same else "") + marked


# CSV

CSV_COLUMNS = (
    "study",
    "world",
    "group",
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
            what = entry.text if heading.measure in TRAITS else v.value if v else ""
            numbers = (v.kind, what, v.low, v.high, v.n, v.unit, v.direction, v.interval) if v else ("",) * 8
            paired = (d.difference, d.low, d.high) if d else ("",) * 3
            where = (line.cell.hash if line.cell else "", v.source if v else "")
            who = (
                table.name,
                world,
                line.group,
                line.arm,
                line.label,
                line.role,
                line.seed,
                line.state,
                heading.measure,
            )
            writer.writerow(["" if item is None else item for item in (*who, *numbers, *paired, *where)])
    return out.getvalue()


# HTML


def html(table: Table, page: str = PAGE) -> str:
    """The table as a document of its own; numbers link to their cell in the page."""
    from ditbench.report.templating import render

    return render("table.html.j2", table=table, page=page)
