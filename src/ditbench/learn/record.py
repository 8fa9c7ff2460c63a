"""Reading a record of learning: its parts, and what was found for its method, have the form that this has.

Records are files of a run, of what ships with ditbench, or of someone else. Whoever takes one over reads it here, and
what cannot be used is one sentence that names the file and what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from ditbench.faults import Fault
from ditbench.methods import Method, get_method
from ditbench.methods.forms import Form, Keyed, Numbers, Text, check_forms, check_shown, described
from ditbench.records import read_record

NAME = Text("a name of letters, digits and . _ -", r"[A-Za-z0-9][\w.-]{0,99}")
TEXT = Text()
HEAD: dict[str, Form] = dict.fromkeys(("arm", "world", "method", "learner"), NAME)
SETTINGS: dict[str, Form] = {"dtype": NAME, "arm_hash": Text("twelve hexadecimal digits", "[0-9a-f]{12}")}
TRAINING: dict[str, Form] = {"name": TEXT, "sha256": TEXT, "count": Numbers(least=0, most=1e12)}
TIMINGS: dict[str, Form] = {"timings": Keyed(Numbers(least=-1e12, most=1e12), needed=False)}
MOST_STEPS = 10_000
T = TypeVar("T")


def read_learned(path: str | Path) -> dict[str, Any]:
    """A record of learning whose method can sample with it; else a Fault that names the file and what is wrong."""
    return read_method(path)[0]


def read_method(path: str | Path) -> tuple[dict[str, Any], Method]:
    """Such a record, and its method with its knobs, which knows nothing yet."""
    record = read_shown(path)
    return record, _checked(Path(path), lambda: _usable(record))


def read_shown(path: str | Path) -> dict[str, Any]:
    """A record of learning to tell of, whether or not its method and knobs are still there."""
    record = read_record(path, "learned")
    _checked(Path(path), lambda: _showable(record))
    return record


def _checked(path: Path, check: Callable[[], T]) -> T:
    try:
        return check()
    except Fault as wrong:
        said = f"{path} is no record of learning that can be used: {wrong}; learn it anew, or take another"
        raise Fault(said) from wrong


def _showable(record: Mapping[str, Any]) -> None:
    check_forms(record, HEAD)
    _named(record, "knobs")
    check_forms(_named(record, "training"), TRAINING, "training.")
    check_shown(_named(record, "found"))
    if "provenance" in record:  # records of others may not tell where they are from
        made = _named(record, "provenance")
        check_forms(made, TIMINGS, "provenance.")
        _check_date(made.get("created"))


def _usable(record: Mapping[str, Any]) -> Method:
    check_forms(record, SETTINGS)
    for name in ("weights", "learning"):
        if record.get(name) is not None:
            TEXT.check(record[name], name)
    steps = record.get("steps")
    if steps is not None and (type(steps) is not int or not 1 <= steps <= MOST_STEPS):
        raise Fault(f"steps is {described(steps)} and must be a whole number from 1 to {MOST_STEPS:,}")
    method = get_method(record["method"], record["knobs"])
    if method.learner is None or not method.waits():
        raise Fault(f"{method.name} with these knobs has nothing to learn")
    if method.learner != record["learner"]:
        raise Fault(f"learner is {described(record['learner'])}, {method.name} has {method.learner}")
    check_forms(record["found"], method.finds(), "found.")
    return method


def _check_date(created: Any) -> None:
    if created is None:
        return
    try:
        datetime.fromisoformat(created).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise Fault(f"provenance.created is {described(created)} and must be a date and a time") from None


def _named(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of a record that is names with values."""
    value = record[name]
    if not isinstance(value, dict):
        raise Fault(f"{name} is {described(value)} and must be names with values")
    return value
