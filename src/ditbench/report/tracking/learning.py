"""What an arm's learning becomes in MLflow: a run beneath the arm's own, with the curves of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from ditbench.report.results import Cell, Results


def learned_record(cell: Cell, results: Results) -> dict[str, Any] | None:
    """What was learned for a cell's arm, where it learns anything and has."""
    from ditbench.learn.record import read_shown

    if not cell.spec.get("learning") or cell.elsewhere is not None:  # what lies here may be of another training
        return None
    path = results.root / "learned" / cell.world / cell.arm / "learned.json"
    return read_shown(path) if path.is_file() else None


def curves(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """By name, the numbers that a learner noted one after the other.

    A training keeps them as its `history`; a calibration has tried thresholds, each with the speed-up it gave.
    """
    kept = {name: _numbers(values) for name, values in dict(found.get("history") or {}).items()}
    if found.get("tried"):
        kept["threshold"], kept["reached"] = (list(map(float, column)) for column in zip(*found["tried"], strict=True))
    if found.get("losses"):
        kept["loss"] = _numbers(found["losses"])
    return {f"learning_{name}": values for name, values in kept.items() if values}


def summary(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The single numbers of what was found."""
    for name, value in found.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"learned_{name}", float(value)


def period(record: Mapping[str, Any]) -> tuple[int, int]:
    """When the learning began and ended, in milliseconds."""
    made = record.get("provenance", {})
    if not made.get("created"):
        return 0, 0
    end = datetime.fromisoformat(made["created"]).timestamp()
    return int(1000 * (end - float(made.get("timings", {}).get("total_s") or 0))), int(1000 * end)


def _numbers(values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(values) else []
