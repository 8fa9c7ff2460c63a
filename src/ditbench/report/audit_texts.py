"""An audit as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ditbench.audit.verdicts import KINDS
from ditbench.report.escapes import tex

Body = Mapping[str, Any]
ABSENT = "–"
CONVENTIONS = (("linear", "linear"), ("thop", "and LayerNorms"), ("total", "and attention"))


# Markdown


def markdown(body: Body, papers: Sequence[Body], overview: Iterable[Body], resisting: Iterable[str]) -> str:
    """The audit for a README or an issue."""
    lines = [f"# {body['title']}", "", *(f"{text}\n" for text in body["findings"])]
    lines += ["Not reproduced:", "", *(f"- {_md(text)}" for text in resisting), ""]
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
            for row in overview
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
