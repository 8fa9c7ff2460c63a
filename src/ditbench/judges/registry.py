"""Finds the judge files of this package."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path

from ditbench.faults import Fault
from ditbench.judges.base import Judge

_NOT_JUDGES = {"base", "registry"}


@cache
def _classes() -> dict[str, type[Judge]]:
    found: dict[str, type[Judge]] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name in _NOT_JUDGES:
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Judge) and value.__module__ == module.__name__:
                if value.name in found:
                    raise Fault(
                        f"two judges are called {value.name!r}: {found[value.name].__module__}, {module.__name__}"
                    )
                found[value.name] = value
    return dict(sorted(found.items()))


def judge_names() -> list[str]:
    """The names of all judges."""
    return list(_classes())


def judges_of(world: str) -> list[str]:
    """The names of the judges that can judge a world."""
    return [name for name, judge in _classes().items() if world in judge.worlds or "*" in judge.worlds]


def grammar_judges(world: str) -> list[str]:
    """The names of those judges of a world that read its grammar's captions only."""
    return [name for name in judges_of(world) if _classes()[name].needs_grammar]


def get_judge(name: str, device: str = "cpu") -> Judge:
    """A judge by its name; its weights are read when it first measures."""
    classes = _classes()
    if name not in classes:
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Fault(f"no judge {name!r}{hint} Possible: {', '.join(classes)}")
    return classes[name](device)
