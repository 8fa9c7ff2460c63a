"""Finds the method files of this package."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ditbench.faults import Fault
from ditbench.methods.base import Knob, Method
from ditbench.methods.forms import check_found
from ditbench.mistakes import shown

MOST = 1e15  # beyond it floating-point numbers are no longer exact, and whole ones soon past what libraries hold
_NOT_METHODS = {"base", "forms", "merges", "registry", "token_plans", "tuned"}


@cache
def _classes() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for module_info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module_info.name in _NOT_METHODS:
            continue
        module = importlib.import_module(f"{__package__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                if value.name in found:
                    raise Fault(
                        f"two methods are called {value.name!r}: {found[value.name].__module__}, {module.__name__}"
                    )
                found[value.name] = value
    return dict(sorted(found.items()))


def method_names() -> list[str]:
    """The names of all methods."""
    return list(_classes())


def method_class(name: str) -> type[Method]:
    """The class of a method by its name."""
    classes = _classes()
    if name not in classes:
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise Fault(f"no method {name!r}{hint} Possible: {', '.join(classes)}")
    return classes[name]


def knob_fields(name: str) -> dict[str, Knob]:
    """The knobs of a method by its name."""
    return method_class(name).knobs()


def telling_knobs(method: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs that a cell of a method is known by (see `knob`)."""
    chosen = _classes().get(method)
    return dict(knobs) if chosen is None else chosen.telling(knobs)


def problem_of(chosen: type[Method], knob: str, value: Any) -> str | None:
    """What is wrong with a knob's value, in one line: numbers too that no record can hold or that nothing computes."""
    problem = chosen.problem(knob, value)
    if problem is None and isinstance(value, int | float) and not -MOST <= value <= MOST:  # nor does NaN
        return f"{knob}: {shown(value)} must be a finite number"
    return problem


def get_method(name: str, knobs: Mapping[str, Any] | None = None) -> Method:
    """A method with its knobs set; every wrong knob is named in one Fault."""
    chosen = method_class(name)
    problems = [p for p in (problem_of(chosen, k, v) for k, v in (knobs or {}).items()) if p]
    if problems:
        raise Fault("; ".join(problems))
    return chosen(**(knobs or {}))


def method_of(spec: Mapping[str, Any]) -> Method:
    """The method of a cell, as its spec's record has it, with what was learned for it."""
    method, found = get_method(spec["method"], spec["knobs"]), spec.get("found")
    if found is not None:
        path = getattr(spec, "path", None)  # of one that was read from a record
        try:
            check_found(found, method.finds())
        except Fault as wrong:
            whose = path or f"the spec of {spec['arm']}"
            raise Fault(f"{whose} cannot be used: {wrong}; delete it and run again") from wrong
        if path is not None:
            found = {"record": str(path), **found}  # for what is said where it does not fit this network
    return method.knowing(found).on(spec.get("lent"))
