"""Reads an audit's file and checks what no type can say: names that must exist, readings that must be whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ditbench.audit.sheet import Audit, Awaited, Reading
from ditbench.faults import Fault
from ditbench.mistakes import lines_of, possible, told


def load_audit(name_or_path: str | Path) -> Audit:
    """An audit by its name or path; all mistakes of its file are told in one Fault, one line each."""
    import yaml

    from ditbench.study import study_kind, study_path

    path = study_path(name_or_path)
    if study_kind(path) != "audit":
        raise Fault(f"{path} is no audit: an audit holds `kind: audit`")
    try:
        # The file is long, and the parser in C twenty times as fast.
        body = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Fault(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, Mapping):
        raise Fault(f"{path} must hold keys and values (kind, title, papers, tables, figures, …)")
    if "name" in body:
        raise Fault(f"{path}: name: an audit is called like its file ({path.stem}); remove the key")
    try:
        audit = Audit.model_validate({"name": path.stem, **body})
    except ValidationError as error:
        raise Fault(told(str(path), lines_of(error, Audit, hidden={"name"}))) from error
    problems = list(_problems(audit))
    if problems:
        raise Fault(told(str(path), problems))
    return audit


def _problems(audit: Audit) -> Iterator[str]:
    """What no type can say: names that must exist, names that must be unique, readings that must be whole."""
    for twice in (name for name, n in Counter(figure.id for figure in audit.figures).items() if n > 1):
        yield f"figures: {twice!r} is listed twice"
    for name, table in audit.tables.items():
        if table.paper not in audit.papers:
            yield f"tables.{name}.paper: no paper {table.paper!r}{possible(table.paper, audit.papers)}"
        yield from _reading_problems(f"tables.{name}", table.reading)
    # What is tried beside a reading is there to be counted: it waits for nothing.
    there = audit.model_copy(update={"awaited": Awaited()})
    for figure in audit.figures:
        place = f"figures.{figure.id}"
        if figure.table not in audit.tables:
            yield f"{place}.table: no table {figure.table!r}{possible(figure.table, audit.tables)}"
            continue
        world = audit.world(figure)
        if not world:
            yield f"{place}: needs a world, its own or its table's"
        yield from _name_problems(audit, place, world, figure.method, figure.knobs)
        yield from _reading_problems(place, figure.reading or {})
        for i, tried in enumerate(figure.tried):
            yield from _name_problems(there, f"{place}.tried.{i}", tried.world, tried.method, tried.knobs)
            yield from _reading_problems(f"{place}.tried.{i}", tried.reading)


def _name_problems(
    audit: Audit, place: str, world: str | None, method: str | None, knobs: Mapping[str, Any]
) -> Iterator[str]:
    from ditbench.methods import get_method, method_names
    from ditbench.worlds import world_names

    if world and world not in (*world_names(), *audit.awaited.worlds):
        yield f"{place}.world: no world {world!r}{possible(world, [*world_names(), *audit.awaited.worlds])}"
    if method in method_names():
        try:
            get_method(str(method), knobs)
        except Fault as fault:
            yield f"{place}.knobs: {fault}"
    elif method is not None and method not in audit.awaited.methods:
        yield f"{place}.method: no method {method!r}{possible(method, [*method_names(), *audit.awaited.methods])}"


def _reading_problems(place: str, given: Mapping[str, Any]) -> Iterator[str]:
    try:
        Reading.model_validate(dict(given))
    except ValidationError as error:
        yield from (f"{place}.reading.{line}" for line in lines_of(error, Reading))
