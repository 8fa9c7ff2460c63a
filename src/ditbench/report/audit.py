"""An audit's tables and page, from its record alone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditbench.audit import findings
from ditbench.audit.verdicts import KINDS, shown
from ditbench.report.escapes import tex
from ditbench.report.templating import render

Body = Mapping[str, Any]
ABSENT = "–"
CONVENTIONS = (("linear", "linear"), ("thop", "and LayerNorms"), ("total", "and attention"))


def write_pages(body: Body, folder: Path) -> Path:
    """Writes the tables in four forms and the page; returns the page's path."""
    from ditbench.storage import replacing

    papers = list(_papers(body))
    shown_parts: dict[str, Any] = {"title": body["title"], "papers": papers}
    files = {
        "table.md": markdown(body, papers),
        "table.tex": latex(body, papers),
        "table.csv": csv_text(body),
        "table.html": render("audit_table.html.j2", **shown_parts),
        "index.html": render(
            "audit.html.j2",
            **shown_parts,
            findings=body["findings"],
            resisting=list(_resisting(body)),
            overview=list(_overview(body)),
            verdicts=body["verdicts"],
            facts=list(_facts(body)),
            kinds=KINDS,
        ),
    }
    for name, text in files.items():
        with replacing(folder / name) as partial:
            Path(partial).write_text(text, encoding="utf-8")
    return folder / "index.html"


def _facts(body: Body) -> Iterator[tuple[str, str]]:
    yield "Figures", str(len(body["figures"]))
    yield from ((kind[0].upper() + kind[1:], str(number)) for kind, number in body["verdicts"].items())
    known = body["provenance"]
    yield (
        "Counted with",
        ", ".join(f"{name} {known[name]}" for name in ("ditbench", "torch", "diffusers") if known[name]),
    )
    commit = str(known["git"] or "")[:12]
    yield "Commit", f"{commit}{' with changes' if known['dirty'] else ''}" if commit else "not a git checkout"


def _resisting(body: Body) -> Iterator[tuple[str, str]]:
    """The figures that are not reproduced: where each stands on the page, and what it is."""
    names = {paper["id"]: paper["short"] for paper in body["papers"]}
    for figure in body["figures"]:
        if figure["verdict"] == "not reproduced":
            row = ", ".join(part for part in (figure["row"], figure["block"], figure["column"]) if part)
            printed = f"{figure['printed']} {figure['unit']}"
            yield figure["id"], f"{printed}: {names[figure['paper']]}, {figure['place']}, {row}"


def _overview(body: Body) -> Iterator[dict[str, Any]]:
    """What each table counts, in a row."""
    for table in body["tables"]:
        figures = [figure for figure in body["figures"] if figure["table"] == table["id"]]
        added = findings.attention_range(figures)
        paper = next(p for p in body["papers"] if p["id"] == table["paper"])
        yield {
            "anchor": table["id"],
            "label": f"{paper['short']}, {table['place']}",
            "figures": len(figures),
            "verdicts": [(kind, number) for kind, number in findings.tally(figures).items()],
            "counts": table["counts"],
            "branches": findings.branches_told(figures) or ABSENT,
            "per": findings.per_told(figures) or ABSENT,
            "attention": f"+ {findings.percent_range(*added)}" if added else ABSENT,
        }


def _papers(body: Body) -> Iterator[dict[str, Any]]:
    for paper in body["papers"]:
        tables = [table for table in body["tables"] if table["paper"] == paper["id"]]
        yield {**paper, "tables": [_table(body, table) for table in tables]}


def _table(body: Body, table: Body) -> dict[str, Any]:
    figures = [figure for figure in body["figures"] if figure["table"] == table["id"]]
    counted = [figure["reading_told"] for figure in figures if "reading_told" in figure]
    shared = [part for part in counted[0] if all(part in other for other in counted)] if counted else []
    return {
        **table,
        "shared": f"Ours: {', '.join(shared)}." if shared else "",
        "rows": [_row(figure, shared) for figure in figures],
        "branches": max((figure.get("cfg_branches", 1) for figure in figures), default=1),
        "notes": list(_notes(figures)),
    }


def _row(figure: Body, shared: Sequence[str]) -> dict[str, Any]:
    """A figure as a row, without the parts of its reading that all rows share."""
    counted = "one_branch" in figure
    own = [part for part in figure.get("reading_told", []) if part not in shared]
    kind, _, reason = figure["verdict_told"].partition(": ")
    return {
        "id": figure["id"],
        "label": figure["row"],
        "where": ", ".join(part for part in (figure["block"], figure["column"]) if part),
        "printed": figure["printed"],
        "saved": _saved(figure),
        "kind": kind,
        "reason": reason,
        "counted": counted,
        "ours": figure["ours_shown"] if counted else "",
        "how": "; ".join([figure["how"], *([", ".join(own)] if own else [])]) if counted else "",
        "one": [shown(figure["printed"], figure["one_branch"][name]) for name, _ in CONVENTIONS] if counted else [],
        "all": [shown(figure["printed"], figure["all_branches"][name]) for name, _ in CONVENTIONS] if counted else [],
    }


def _saved(figure: Body) -> str:
    """What a row saves of the one it is compared with, by the printed digits alone."""
    if not figure["saved"] or figure["saved"][1] <= 0:
        return ""
    low, high = figure["saved"]
    return f"{50 * (low + high):.1f} %"


def _notes(figures: Sequence[Body]) -> Iterator[str]:
    """The table's notes, row by row, with what else was tried."""
    for figure in figures:
        tried = [
            f"{t['label']}: {t['ours_shown']}{', as printed' if t['fits'] else ''}" for t in figure.get("tried", [])
        ]
        if not figure["note"] and not tried:
            continue
        where = ", ".join(part for part in (figure["row"], figure["block"], figure["column"]) if part)
        also = f" Tried beside it: {'; '.join(tried)}." if tried else ""
        yield f"{where} ({figure['printed']}). {figure['note']}{also}"


def _tried(tried: Body) -> str:
    return f"{tried['label']}, {tried['ours_shown']}{' (as printed)' if tried['fits'] else ''}"


# Markdown


def markdown(body: Body, papers: Sequence[Body]) -> str:
    """The audit for a README or an issue."""
    lines = [f"# {body['title']}", "", *(f"{text}\n" for text in body["findings"])]
    lines += ["Not reproduced:", "", *(f"- {_md(text)}" for _, text in _resisting(body)), ""]
    heads = ["table", "figures", *KINDS, "counts", "branches of guidance", "for", "attention would add"]
    lines += _md_table(
        heads,
        [
            [
                row["label"],
                str(row["figures"]),
                *(str(number) for _, number in row["verdicts"]),
                row["counts"],
                row["branches"],
                row["per"],
                row["attention"],
            ]
            for row in _overview(body)
        ],
    )
    for paper in papers:
        lines += [f"## {paper['short']}", "", f"{paper['title']}, {paper['source']}. Read: {paper['read']}.", ""]
        lines += [f"{text}\n" for text in paper["findings"]]
        for table in paper["tables"]:
            lines += [f"### {paper['short']}, {table['place']}: {_md(table['about'])}", ""]
            lines += [f"{_md(text)}\n" for text in (*table["findings"], table["note"], table["shared"]) if text]
            lines += _md_table(_heads(table), [_md_row(row) for row in table["rows"]])
            lines += [*(f"- {_md(note)}" for note in table["notes"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _heads(table: Body) -> list[str]:
    unit = f"{table['unit']} {table['counts']}"
    names = [name if i == 0 else f"… {name}" for i, (_, name) in enumerate(CONVENTIONS)]
    both = "all branches"
    return [
        "row",
        f"printed, {unit}",
        "ours",
        "verdict",
        *(f"one branch: {name}" for name in names),
        *(f"{both}: {name}" for name in names),
        "saved, as printed",
        "how",
    ]


def _md_row(row: Body) -> list[str]:
    label = f"{row['label']}, {row['where']}" if row["where"] else row["label"]
    verdict = f"{row['kind']}: {row['reason']}" if row["reason"] else row["kind"]
    numbers = [*row["one"], *row["all"]] if row["counted"] else [ABSENT] * 6
    return [label, row["printed"], row["ours"] or ABSENT, verdict, *numbers, row["saved"] or ABSENT, row["how"]]


def _md_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [*("| " + " | ".join(_md(cell) for cell in line) + " |" for line in lines), ""]


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


# LaTeX


def latex(body: Body, papers: Sequence[Body]) -> str:
    """One table* for each printed table; they need the packages booktabs and graphicx, and T1-encoded fonts."""
    parts = [rf"% {body['title']}", r"% \usepackage[T1]{fontenc} \usepackage{booktabs,graphicx}"]
    parts += [_tex_table(paper, table) for paper in papers for table in paper["tables"]]
    return "\n".join(parts) + "\n"


def _tex_table(paper: Body, table: Body) -> str:
    caption = " ".join([f"{paper['short']}, {table['place']}: {table['about']}.", *table["findings"], table["shared"]])
    names = " & ".join(name if i == 0 else rf"\ldots{{}} {name}" for i, (_, name) in enumerate(CONVENTIONS))
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{tex(caption)}}}",
            rf"\label{{tab:audit-{table['id']}}}",
            r"\par\smallskip",
            r"\resizebox{\textwidth}{!}{%",
            r"\begin{tabular}{lrrlrrrrrrr}",
            r"\toprule",
            r" & & & & \multicolumn{3}{c}{ours, one branch} & \multicolumn{3}{c}{ours, all branches} & \\",
            r"\cmidrule(lr){5-7} \cmidrule(lr){8-10}",
            rf"row & printed, {table['unit']} {table['counts']} & ours & verdict & {names} & {names} & saved \\",
            r"\midrule",
            *(_tex_row(row) for row in table["rows"]),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
        ]
    )


def _tex_row(row: Body) -> str:
    cells = _md_row(row)[:-1]
    return " & ".join(tex(cell) for cell in cells) + r" \\"


# CSV

CSV_COLUMNS = (
    *("id", "paper", "table", "row", "block", "column", "printed", "unit", "counts", "world", "verdict", "reason"),
    *("ours", "times_printed", "how", "reading", "steps", "tokens", "text_tokens", "cfg_branches"),
    *(f"{count}_{branches}" for branches in ("one_branch", "all_branches") for count, _ in CONVENTIONS),
    *("attention_adds", "saved_low", "saved_high", "note"),
)


def csv_text(body: Body) -> str:
    """One row per figure, unrounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    for figure in body["figures"]:
        low, high = figure["saved"] or ("", "")
        branches = {
            f"{count}_{side}": figure[side][count]
            for side in ("one_branch", "all_branches")
            if side in figure
            for count, _ in CONVENTIONS
        }
        reason = figure["verdict_told"].partition(": ")[2]
        given = {name: value for name, value in figure.items() if value is not None}
        own = {"reading": ", ".join(figure.get("reading_told", [])), "reason": reason, "table": figure["place"]}
        writer.writerow({**given, **own, **branches, "saved_low": low, "saved_high": high})
    return out.getvalue()
