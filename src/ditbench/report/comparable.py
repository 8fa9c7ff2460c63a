"""What stands in one table but does not compare: distances of sets against other references, or of other counts.

A distance between sets falls with their number, and hangs on the references. Such values are marked, not ranked, and
not drawn into the ranking of others; where a study names its references, values against others are not shown at all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ditbench.report.results import Cell, Value
    from ditbench.report.tables import Entry, Line
    from ditbench.study import Study

MARK = "†"


def of_sets(value: Value | None) -> bool:
    """Whether a value is of a whole set of images, not a mean over single ones."""
    return value is not None and value.kind != "published" and "jackknife" in value.interval


def reference_mark(cell: Cell) -> str:
    """What tells the references of a cell's scores from others: their hash, or in older records their number."""
    scores = cell.bodies.get("scores", {})
    return str((scores.get("reference_set") or {}).get("sha256") or scores.get("references"))


def references_text(cell: Cell) -> str:
    """The references of a cell's scores, for a person; empty where there were none, or an old record is mute."""
    known = cell.bodies.get("scores", {}).get("reference_set") or {}
    if not known.get("sha256"):
        return ""
    count = f"{known['count']:,} images, " if known.get("count") else ""
    way = f", {known['preprocessing']}" if isinstance(known.get("preprocessing"), str) else ""
    return f"{known.get('name', 'images')} ({count}{str(known['sha256'])[:12]}{way})"


def marked(study: Study, lines: Sequence[Line]) -> list[Line]:
    """The lines, with what does not compare told at every value; most values, or the baseline's, are the measure."""
    found = list(lines)
    for i, _ in enumerate(study.columns):
        basis = _basis(found, i)
        for number, line in enumerate(found):
            entry = line.entries[i]
            if line.cell is None or not of_sets(entry.value):
                continue
            told = _told(study, line.cell, entry, basis)
            if told is not None:
                found[number] = replace(line, entries=(*line.entries[:i], told, *line.entries[i + 1 :]))
    return found


def notes(lines: Sequence[Line]) -> Iterator[str]:
    """What the marks say, a note for each reason."""
    told: dict[str, list[str]] = {}
    for line in lines:
        for reason in dict.fromkeys(entry.apart for entry in line.entries if entry.apart):
            told.setdefault(reason, []).append(line.label)
    for reason, labels in told.items():
        yield f"{MARK} {', '.join(labels)}: {reason}, so that it is neither ranked nor compared."


def _basis(lines: Sequence[Line], i: int) -> tuple[int | None, str] | None:
    """Count and references of the baseline's value, else of most values."""
    marks = [
        (line.part == "baseline", (value.n, reference_mark(line.cell)))
        for line in lines
        if line.cell is not None and (value := line.entries[i].value) is not None and of_sets(value)
    ]
    if not marks:
        return None
    own = [mark for is_baseline, mark in marks if is_baseline] or [mark for _, mark in marks]
    return max(dict.fromkeys(own), key=own.count)


def _told(study: Study, cell: Cell, entry: Entry, basis: tuple[int | None, str] | None) -> Entry | None:
    assert entry.value is not None
    mark = reference_mark(cell)
    if study.references and not mark.startswith(study.references):
        from ditbench.report.tables import ABSENT

        reason = f"measured against references {mark[:12]}, and the study names {study.references[:12]}"
        return replace(entry, value=None, text=ABSENT, interval="", difference=None, apart=reason)
    if basis is None or (entry.value.n, mark) == basis:
        return None
    if mark != basis[1]:
        reason = f"against references {mark[:12]}, the others against {basis[1][:12]}"
    else:
        reason = f"a distance of {entry.value.n} images, the others of {basis[0]}, and it falls with their number"
    return replace(entry, difference=None, apart=reason)
