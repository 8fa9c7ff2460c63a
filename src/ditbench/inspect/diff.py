"""What differs between two cells: what they are, what ran them, and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.inspect.cells import cell_name
from ditbench.inspect.show import decimals

if TYPE_CHECKING:
    from ditbench.report.results import Cell
    from ditbench.statistics import Estimate

# What of a spec decides whether two cells drew pictures of the same captions from the same noise.
PAIRING = ("world", "images", "captions", "captions_sha256", "seed")
# Of provenance, what may differ between any two jobs and says nothing.
_CHANGING = ("created", "timings", "host_load")


@dataclass(frozen=True)
class Change:
    """Something that is one thing in the first cell and another in the second."""

    place: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Comparison:
    """A measure of both cells; `paired` is the second's difference to the first on the same captions.

    `refused` says why the two values may not be compared; empty where they may.
    """

    measure: str
    first: float
    second: float
    paired: Estimate | None
    refused: str = ""


@dataclass(frozen=True)
class Diff:
    """All that differs between two cells."""

    names: tuple[str, str]
    spec: list[Change]
    provenance: list[Change]
    measures: list[Comparison]
    unpaired: str  # why there are no paired differences


def diff(first: Cell, second: Cell, roots: tuple[Path, Path]) -> Diff:
    """Compares two cells, whose results lie in `roots`."""
    unpaired = _why_unpaired(first, second, roots)
    samples = (
        None if unpaired else tuple(_samples(root, cell) for root, cell in zip(roots, (first, second), strict=True))
    )
    return Diff(
        (cell_name(first), cell_name(second)),
        list(_changes(first.spec, second.spec)),
        list(_provenance(first, second)),
        list(_measures(first, second, samples)),
        unpaired,
    )


def _changes(first: dict[str, Any], second: dict[str, Any], place: str = "") -> Iterator[Change]:
    for name in dict.fromkeys((*first, *second)):
        a, b = first.get(name), second.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _changes(a, b, f"{place}{name}.")
        elif a != b:
            yield Change(f"{place}{name}", a, b)


def _provenance(first: Cell, second: Cell) -> Iterator[Change]:
    for stage in dict.fromkeys((*first.provenance, *second.provenance)):
        a, b = (
            {key: value for key, value in cell.provenance.get(stage, {}).items() if key not in _CHANGING}
            for cell in (first, second)
        )
        if a and b:
            yield from _changes(a, b, f"{stage}: ")
        elif a != b:
            yield Change(f"{stage}", "recorded" if a else "not recorded", "recorded" if b else "not recorded")


def _why_unpaired(first: Cell, second: Cell, roots: tuple[Path, Path]) -> str:
    differing = [name for name in PAIRING if first.spec.get(name) != second.spec.get(name)]
    if differing:
        return f"their {', '.join(differing)} differ{'s' if len(differing) == 1 else ''}"
    missing = [
        cell_name(cell)
        for root, cell in zip(roots, (first, second), strict=True)
        if not (root / cell.folder / "samples.parquet").is_file()
    ]
    return f"{' and '.join(missing)} has no samples.parquet" if missing else ""


def _samples(root: Path, cell: Cell) -> dict[str, Any]:
    import pyarrow.parquet as pq

    path = root / cell.folder / "samples.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise Fault(f"{path} cannot be read ({error}); delete scores.json beside it and run again") from error
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


def _measures(first: Cell, second: Cell, samples: tuple[dict[str, Any], ...] | None) -> Iterator[Comparison]:
    from ditbench.statistics import paired_mean, paired_share

    for name, mine in first.values.items():
        other = second.values.get(name)
        if other is None:
            continue
        refused = _refused(name, first, second)
        paired = None
        if samples is not None and not refused and all(name in table for table in samples):
            import numpy as np

            before, after = samples
            if list(before["caption_id"]) == list(after["caption_id"]):
                old, new = (table[name].astype(float) for table in samples)
                both = np.isfinite(old) & np.isfinite(new)
                if both.any():
                    shares = bool(np.isin(np.concatenate([old[both], new[both]]), (0, 1)).all())
                    paired = (paired_share if shares else paired_mean)(new[both], old[both])
        yield Comparison(name, mine.value, other.value, paired, refused)


def _refused(name: str, first: Cell, second: Cell) -> str:
    """Why two values of a measure may not be compared."""
    if first.world != second.world:
        return "of different worlds"
    read = [cell.bodies.get("scores", {}).get("judge_weights", {}) for cell in (first, second)]
    if name in _score_names(first) and any(
        read[0].get(key) != read[1].get(key) for key in read[0].keys() & read[1].keys()
    ):
        return "by judges with other weights"
    mine, other = first.values[name], second.values[name]
    if "jackknife" not in mine.interval:  # of single pictures, or no measure of pictures at all
        return ""
    if mine.n != other.n:
        return f"of {mine.n} and {other.n} images, and such a distance falls with their number"
    references = [cell.bodies.get("scores", {}).get("references") for cell in (first, second)]
    if references[0] != references[1]:
        return "against different references"
    return ""


def _score_names(cell: Cell) -> set[str]:
    return {measure["name"] for measure in cell.bodies.get("scores", {}).get("measures", [])}


def as_data(found: Diff) -> dict[str, Any]:
    """For a program."""
    return {
        "cells": list(found.names),
        "spec": [vars(change) for change in found.spec],
        "provenance": [vars(change) for change in found.provenance],
        "measures": [
            {
                "measure": m.measure,
                "first": m.first,
                "second": m.second,
                "refused": m.refused,
                "paired": None if m.paired is None else vars(m.paired),
            }
            for m in found.measures
        ],
        "unpaired": found.unpaired,
    }


def told(found: Diff) -> str:
    """For a person."""
    lines = [f"first   {found.names[0]}", f"second  {found.names[1]}"]
    for title, changes in (("what they are", found.spec), ("what ran them", found.provenance)):
        lines += ["", title]
        lines += [f"  {c.place}: {_shown(c.first)} -> {_shown(c.second)}" for c in changes] or ["  the same"]
    lines += ["", "what was measured"]
    if not found.measures:
        lines.append("  no measure that both have")
        return "\n".join(lines)
    width = max(len(m.measure) for m in found.measures)
    lines.append(
        f"  {'measure'.ljust(width)}  {'first':>10}  {'second':>10}  second - first, 95 % interval, same captions"
    )
    lines += [_line(m, width) for m in found.measures]
    if found.unpaired:
        lines.append(f"  no paired differences: {found.unpaired}")
    return "\n".join(lines)


def _line(m: Comparison, width: int) -> str:
    digits = max(decimals(m.first), decimals(m.second)) if m.first and m.second else decimals(m.first or m.second)
    said = m.refused and f"not comparable: {m.refused}"
    if m.paired is not None:
        p = m.paired
        same = "" if p.excludes_zero() else "  not distinguishable"
        said = f"{p.value:+.{digits}f} [{p.low:+.{digits}f}, {p.high:+.{digits}f}], n = {p.n}{same}"
    return f"  {m.measure.ljust(width)}  {m.first:>10.{digits}f}  {m.second:>10.{digits}f}  {said}".rstrip()


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
