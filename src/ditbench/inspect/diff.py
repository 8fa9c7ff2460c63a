"""What differs between two cells: what they are, what ran them, and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.inspect.cells import cell_name
from ditbench.inspect.show import OF_INTERVALS, decimals, value_data, with_interval
from ditbench.report.comparable import refused as _refused
from ditbench.storage import check_contents

if TYPE_CHECKING:
    from ditbench.report.results import Cell, Value
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
    first: Value
    second: Value
    paired: Estimate | None
    refused: str = ""


@dataclass(frozen=True)
class Diff:
    """All that differs between two cells."""

    names: tuple[str, str]
    states: tuple[str, str]
    spec: list[Change]
    provenance: list[Change]
    measures: list[Comparison]
    unpaired: str  # why there are no paired differences
    alone: tuple[tuple[str, ...], tuple[str, ...]]  # the measures that only the first has, and only the second


def diff(first: Cell, second: Cell, roots: tuple[Path, Path]) -> Diff:
    """Compares two cells, whose results lie in `roots`."""
    unpaired = _why_unpaired(first, second, roots)
    samples = (
        None if unpaired else tuple(_samples(root, cell) for root, cell in zip(roots, (first, second), strict=True))
    )
    return Diff(
        (cell_name(first), cell_name(second)),
        (first.state_text, second.state_text),
        list(_changes(first.spec, second.spec)),
        list(_provenance(first, second)),
        list(_measures(first, second, samples)),
        unpaired,
        (_only(first, second), _only(second, first)),
    )


def _only(one: Cell, other: Cell) -> tuple[str, ...]:
    return tuple(name for name in one.values if name not in other.values)


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
    known = cell.bodies.get("scores", {}).get("samples_sha256")
    check_contents(path, known, "delete scores.json beside it and run again")
    try:
        table = pq.read_table(path)
        found = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        if "caption_id" not in found:
            raise ValueError("has no `caption_id`")
        for name in set(found) & set(cell.values):
            if found[name].dtype.kind not in "fiub":
                raise ValueError(f"`{name}` are no numbers")
    except (OSError, ValueError, NotImplementedError) as error:
        raise Fault(f"{path} cannot be read ({error}); delete scores.json beside it and run again") from error
    return found


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
        elif samples is not None and not refused:
            paired = _of_sets(name, first, second)
        yield Comparison(name, mine, other, paired, refused)


def _of_sets(name: str, first: Cell, second: Cell) -> Estimate | None:
    """The difference of a measure of whole sets, by what it is with each group of pictures left out."""
    import numpy as np

    from ditbench.statistics import jackknife

    measures = [_measure(cell, name) for cell in (first, second)]
    groups = [measure.get("left_out", []) for measure in measures]
    if not groups[0] or len(groups[0]) != len(groups[1]):  # records of before these were kept
        return None
    apart = np.array(groups[1]) - np.array(groups[0])
    return jackknife(measures[1]["value"] - measures[0]["value"], apart, measures[0]["n"])


def _measure(cell: Cell, name: str) -> dict[str, Any]:
    measures: list[dict[str, Any]] = cell.bodies.get("scores", {}).get("measures", [])
    return next((measure for measure in measures if measure["name"] == name), {})


def as_data(found: Diff) -> dict[str, Any]:
    """For a program."""
    return {
        "cells": list(found.names),
        "states": list(found.states),
        "spec": [vars(change) for change in found.spec],
        "provenance": [vars(change) for change in found.provenance],
        "measures": [
            {
                "measure": m.measure,
                "first": value_data(m.first),
                "second": value_data(m.second),
                "refused": m.refused,
                "paired": None if m.paired is None else vars(m.paired),
            }
            for m in found.measures
        ],
        "unpaired": found.unpaired,
        "alone": [list(names) for names in found.alone],
    }


def told(found: Diff) -> str:
    """For a person."""
    # What is not there of a cell cannot differ: who compares too early should know.
    first, second = (
        name if state == "done" else f"{name}  ({state})" for name, state in zip(found.names, found.states, strict=True)
    )
    lines = [f"first   {first}", f"second  {second}"]
    for title, changes in (("what they are", found.spec), ("what ran them", found.provenance)):
        lines += ["", title]
        lines += [f"  {c.place}: {_shown(c.first)} -> {_shown(c.second)}" for c in changes] or ["  the same"]
    lines += ["", "what was measured"]
    lines += [*_table(found.measures), f"  {OF_INTERVALS}"] if found.measures else ["  no measure that both have"]
    for place, names in zip(("first", "second"), found.alone, strict=True):
        if names:
            lines.append(f"  only of the {place}: {', '.join(names)}")
    if found.unpaired and found.measures:
        lines.append(f"  no paired differences: {found.unpaired}")
    return "\n".join(lines)


def _table(measures: list[Comparison]) -> list[str]:
    """A line for each measure, below what its columns are."""
    if not measures:
        return []
    rows = [("measure", "first, interval", "second", "second - first, 95 % interval, same captions")]
    rows += [_row(m) for m in measures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"  {name.ljust(widths[0])}  {first.rjust(widths[1])}  {second.rjust(widths[2])}  {said}".rstrip()
        for name, first, second, said in rows
    ]


def _row(m: Comparison) -> tuple[str, str, str, str]:
    one, other = m.first.value, m.second.value
    digits = max(decimals(one), decimals(other)) if one and other else decimals(one or other)
    said = m.refused and f"not comparable: {m.refused}"
    if m.paired is not None:
        p = m.paired
        same = "" if p.excludes_zero() else "  not distinguishable"
        said = f"{p.value:+.{digits}f} [{p.low:+.{digits}f}, {p.high:+.{digits}f}], n = {p.n}{same}"
    return m.measure, with_interval(m.first, digits), with_interval(m.second, digits), said


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
