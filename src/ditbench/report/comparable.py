"""What stands in one table but does not compare: distances of sets against other references, or of other counts, speeds
that were timed otherwise, scores by judges with other weights.

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
# What the stopwatch measured, and what it hangs on.
OF_STOPWATCH = ("seconds-per-image", "peak-memory", "latency-p50", "latency-p90", "forward-ms", "energy-per-image")
CIRCUMSTANCES = ("hardware", "device", "threads", "batch", "mode")


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


def refused(name: str, first: Cell, second: Cell) -> str:
    """Why two values of a measure may not be compared."""
    if first.world != second.world:
        return "of different worlds"
    if of_stopwatch(name):
        return timed_otherwise(first, second)
    if judged_otherwise(name, first, second):
        return "by judges with other weights"
    mine, other = first.values[name], second.values[name]
    if not of_sets(mine):  # of single pictures, or no measure of pictures at all
        return ""
    if mine.n != other.n:
        return f"of {mine.n} and {other.n} images, and such a distance falls with their number"
    if reference_mark(first) != reference_mark(second):
        return "against different references"
    return ""


def of_stopwatch(name: str) -> bool:
    """Whether the stopwatch measured it."""
    return name in OF_STOPWATCH or name.startswith("speedup")


def timed_otherwise(first: Cell, second: Cell) -> str:
    """Which circumstances of the stopwatch differ; a ratio to `full` hangs on them as seconds do."""
    times = [
        {
            **{name: cell.bodies.get("latency", {}).get(name) for name in CIRCUMSTANCES[1:]},
            "hardware": cell.provenance.get("latency", {}).get("hardware"),
        }
        for cell in (first, second)
    ]
    differing = [name for name in CIRCUMSTANCES if times[0][name] != times[1][name]]
    return f"timed with another {', '.join(differing)}" if differing else ""


def judged_otherwise(name: str, first: Cell, second: Cell) -> bool:
    """Whether judges had other weights where they gave a measure."""
    read = [cell.bodies.get("scores", {}).get("judge_weights", {}) for cell in (first, second)]
    names = {measure["name"] for measure in first.bodies.get("scores", {}).get("measures", [])}
    return name in names and any(read[0].get(key) != read[1].get(key) for key in read[0].keys() & read[1].keys())


def marked(study: Study, lines: Sequence[Line]) -> list[Line]:
    """The lines, with what does not compare told at every value; most values, or the baseline's, are the measure."""
    found = list(lines)
    for i, column in enumerate(study.columns):
        basis, against = _basis(found, i), _first(found, i)
        for number, line in enumerate(found):
            entry = line.entries[i]
            if line.cell is None or entry.value is None or entry.value.kind == "published":
                continue
            told = _told(study, line.cell, entry, basis) if of_sets(entry.value) else None
            if told is None and against is not None:
                told = _told_otherwise(column.measure, against, line.cell, entry)
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


def _first(lines: Sequence[Line], i: int) -> Cell | None:
    """The cell that others are held against in what they were timed and judged with: the baseline's, else the first."""
    there = [line for line in lines if line.cell is not None and line.entries[i].value is not None]
    return next((line.cell for line in there if line.part == "baseline"), there[0].cell if there else None)


def _told_otherwise(measure: str, against: Cell, cell: Cell, entry: Entry) -> Entry | None:
    why = ""
    if of_stopwatch(measure):
        why = timed_otherwise(against, cell)
    elif judged_otherwise(measure, against, cell):
        why = "by judges with other weights"
    return replace(entry, difference=None, apart=f"{why} than the others") if why else None


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
