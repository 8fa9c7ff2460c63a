"""What of a results folder must not hang on what happened on the way: everything but times, dates and logs."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

# Of records, what says when, where and how fast something was made.
PASSING = {"provenance", "seal", "earlier", "images_per_second", "judge_seconds", "seconds"}
# Of the stopwatch's, what is no time.
OF_STOPWATCH = ("spec_hash", "batch", "mode", "rounds", "device", "decoded", "not_timed", "weights", "trace", "costs")
# Files and folders that tell of runs, not of results; figures and pages hold dates.
APART = ("logs", "benchmarks", "configs", "mlartifacts", "report")
NAMES = (
    ".run.lock",
    ".folder-id",
    "run.json",
    "published.json",
    "published-so-far.json",
    "mlflow.db",
    ".mlflow.db.lock",
)
DRAWN = (".png", ".svg", ".pdf", ".html")
# Of tables, the notes that tell of the time of the timing.
NOTES = (".md", ".tex")
OF_TIME = ("speed", "second", "latency", "forward", "energy", "memory")


def essence(results: Path) -> dict[str, str]:
    """Every file that counts, by its path, with a hash of what counts in it."""
    return {name: _mark(path) for name, path in _files(results)}


def _files(results: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results)
        if path.is_dir() or name.parts[0] in APART or path.name in NAMES or path.suffix in DRAWN:
            continue
        yield name.as_posix(), path


def _mark(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        with suppress(ValueError):
            content = json.dumps(_lasting(json.loads(content))).encode()
    if path.suffix in NOTES:
        content = b"".join(line for line in content.splitlines(keepends=True) if b"contended" not in line)
    return hashlib.sha256(content).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    if isinstance(value, list):
        return [_lasting(each) for each in value]
    if not isinstance(value, dict):
        return value
    if str(value.get("schema", "")).startswith("ditbench/latency"):
        value = {name: value.get(name) for name in OF_STOPWATCH}
    return {name: _lasting(each) for name, each in value.items() if name not in PASSING}


def published(results: Path) -> list[tuple[str, str, dict[str, float]]]:
    """The runs that MLflow shows: cell, status and the numbers that are no times; none where there is no store."""
    store = results / "mlflow.db"
    if not store.exists():
        return []
    found = []
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as base:
        runs = base.execute("SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'").fetchall()
        for run, name, status in runs:
            rows = base.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", (run,)).fetchall()
            found.append((name, status, {key: value for key, value in rows if not any(t in key for t in OF_TIME)}))
    return sorted(found, key=str)


def differences(undisturbed: Path, results: Path) -> list[str]:
    """What is lost, added, doubled or other than in the undisturbed run; nothing where all is the same."""
    wanted, found = essence(undisturbed), essence(results)
    said = [f"{name} is lost" for name in wanted.keys() - found.keys()]
    said += [f"{name} is left over" for name in found.keys() - wanted.keys()]
    said += [f"{name} differs" for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    if published(results) != published(undisturbed):
        said.append("MLflow shows other runs or numbers")
    return sorted(said)


def wrong_numbers(undisturbed: Path, results: Path) -> list[str]:
    """Numbers that are shown, in MLflow or in a table, and are none of the undisturbed run's."""
    right = {name: numbers for name, _, numbers in published(undisturbed)}
    said = [
        f"MLflow: {name} {key} {value}"
        for name, _, numbers in published(results)
        for key, value in numbers.items()
        if right.get(name, {}).get(key) != value
    ]
    true = set(_rows(undisturbed))
    said += [f"table: {row}" for row in _rows(results) if row not in true]
    return said


def _rows(results: Path) -> Iterator[str]:
    """The numbers of the study's table, with their arms."""
    import csv

    path = results / "studies/campaign/table.csv"
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            arm = next(iter(row.values()))
            for column, text in row.items():
                try:
                    yield f"{arm} {column} {float(text or ''):.9g}"
                except ValueError:
                    continue
