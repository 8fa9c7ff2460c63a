"""The audit of printed MACs: what papers say a method costs, counted again in every convention."""

from __future__ import annotations

from typing import Any

from ditbench.audit import findings
from ditbench.audit.counting import COUNTS, Counted, Counter
from ditbench.audit.loading import load_audit
from ditbench.audit.sheet import Audit, Figure, Reading
from ditbench.audit.verdicts import Verdict, judge, saved, shown

__all__ = ["Audit", "audited", "load_audit"]

_COUNTED = {
    "linear": "linear layers",
    "thop": "linear layers and LayerNorms",
    "attention": "products of attention",
    "total": "linear layers and products of attention",
    "selecting": "choosing tokens alone",
}


def audited(audit: Audit) -> dict[str, Any]:
    """What the record holds: every figure with ours in all conventions and its verdict, and what follows from them."""
    counter = Counter(audit)
    figures = [_figure(audit, counter, figure) for figure in audit.figures]
    papers = [{"id": key, **paper.model_dump()} for key, paper in audit.papers.items()]
    tables = [
        {"id": key, **table.model_dump(exclude={"reading", "world", "steps"})} for key, table in audit.tables.items()
    ]
    for table in tables:
        table["findings"] = findings.of_table([f for f in figures if f["table"] == table["id"]])
    for paper in papers:
        own = [table for table in tables if table["paper"] == paper["id"]]
        paper["findings"] = findings.of_paper(own, [f for f in figures if f["paper"] == paper["id"]])
    return {
        "study": audit.name,
        "title": audit.title,
        "findings": findings.of_all(figures),
        "verdicts": findings.tally(figures),
        "papers": papers,
        "tables": tables,
        "figures": figures,
    }


def _figure(audit: Audit, counter: Counter, figure: Figure) -> dict[str, Any]:
    table = audit.tables[figure.table]
    baseline = _baseline(audit, figure)
    body: dict[str, Any] = {
        **figure.model_dump(include={"id", "table", "row", "column", "block", "printed", "ratio", "note"}),
        "paper": table.paper,
        "place": table.place,
        "counts": table.counts,
        "unit": audit.unit(figure),
        "world": audit.world(figure),
        "saved": list(saved(figure.printed, baseline)) if baseline else None,
    }
    awaits = counter.awaits(figure)
    if awaits:
        return {**body, **_verdict(Verdict("waits", awaits))}
    counted = counter.count(figure)
    known = audit.reading(figure) is not None
    band, left_out = (counted.band, figure.plan.left_out) if figure.plan and figure.plan.left_out else (None, None)
    verdict = judge(figure.printed, counted.ours if known else None, band, left_out or "")
    values = {f"{count}, {n}": counted.value(count, n) for count in COUNTS for n in (1, 2)}
    return {
        **body,
        **_verdict(verdict),
        "ours": counted.ours if known else None,
        "ours_shown": shown(figure.printed, counted.ours) if known else "",
        "band": list(band) if band else None,
        "how": counted.how,
        "reading": counted.reading.model_dump(),
        "reading_told": told(counted) if known else ["no reading is known"],
        "cfg_branches": counted.cfg_branches,
        "steps": counted.steps,
        "tokens": counted.tokens,
        "text_tokens": counted.text_tokens,
        "one_branch": {count: counted.value(count, 1) for count in COUNTS},
        "all_branches": {count: counted.value(count, counted.cfg_branches) for count in COUNTS},
        "attention_adds": counted.attention / getattr(counted, _without_attention(counted.reading)),
        "also_exact": findings.also_exact(figure.printed, values),
        "tried": [_tried(counter, figure, i) for i in range(len(figure.tried))],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {"verdict": verdict.kind, "verdict_told": verdict.told, "times_printed": verdict.ratio}


def _without_attention(reading: Reading) -> str:
    return reading.count if reading.count in ("linear", "thop") else "linear"


def _tried(counter: Counter, figure: Figure, i: int) -> dict[str, Any]:
    tried = figure.tried[i]
    ours = counter.count(figure, tried).ours
    return {
        "label": tried.label,
        "ours": ours,
        "ours_shown": shown(figure.printed, ours),
        "fits": judge(figure.printed, ours).kind == "exact",
    }


def _baseline(audit: Audit, figure: Figure) -> str | None:
    """What the row that a figure is compared with prints; None for that row itself."""
    rows = audit.tables[figure.table].baseline
    place = (figure.table, figure.column, figure.block)
    found = (
        other for other in audit.figures if other.row in rows and (other.table, other.column, other.block) == place
    )
    baseline = next(found, None)
    return baseline.printed if baseline is not None and baseline.id != figure.id else None


def told(counted: Counted) -> list[str]:
    """A reading in words, part by part."""
    reading = counted.reading
    parts: list[str] = [_COUNTED[reading.count]]
    if counted.cfg_branches == 1:
        parts.append("the only branch")
    else:
        parts.append(f"{'one' if reading.branches == 1 else 'both'} of {counted.cfg_branches} branches")
    parts.append(f"a run of {counted.steps} steps" if reading.per == "run" else "one call")
    if reading.images > 1:
        parts.append(f"{reading.images} images")
    if reading.operations == 2:
        parts.append("two operations per MAC")
    if counted.text_tokens:
        parts.append(f"{counted.text_tokens} text tokens")
    if reading.as_published:
        parts.append("as the original network embeds")
    return parts
