"""An audit's record, and its tables and page from the record alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditbench.audit import audited, findings, load_audit
from ditbench.audit.verdicts import KINDS, shown
from ditbench.report.audit_texts import ABSENT, CONVENTIONS, Body, csv_text, latex, markdown
from ditbench.report.templating import render


def write_audit(name_or_path: str | Path, folder: Path, code: str | None = None) -> Path:
    """Counts every figure of an audit and writes its record, its tables and its page to `folder`."""
    from ditbench.records import Clock, read_record, write_record

    clock, record = Clock(), folder / "audit.json"
    audit = load_audit(name_or_path)
    with clock("compute"):
        body = audited(audit)
    write_record(record, "audit", body, timings=clock.seconds, code=code)
    return write_pages(read_record(record, "audit"), folder)


def write_pages(body: Body, folder: Path) -> Path:
    """Writes the tables in four forms and the page; returns the page's path."""
    from ditbench.storage import replacing

    papers, overview, resisting = list(_papers(body)), list(_overview(body)), list(_resisting(body))
    shown_parts: dict[str, Any] = {"title": body["title"], "papers": papers}
    files = {
        "table.md": markdown(body, papers, overview, (text for _, text in resisting)),
        "table.tex": latex(body, papers),
        "table.csv": csv_text(body),
        "table.html": render("audit_table.html.j2", **shown_parts),
        "index.html": render(
            "audit.html.j2",
            **shown_parts,
            findings=body["findings"],
            resisting=resisting,
            overview=overview,
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
