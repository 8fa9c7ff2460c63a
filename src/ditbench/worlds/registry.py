"""Finds the worlds of this package: every module or folder that defines a subclass of `World`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from pathlib import Path

from ditbench.faults import Fault
from ditbench.worlds.base import World

_NOT_WORLDS = {"base", "registry"}


@cache
def _worlds() -> dict[str, World]:
    found: dict[str, World] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name in _NOT_WORLDS:
            continue
        # A folder keeps its light description in world.py; a single file is its own.
        suffix = ".world" if info.ispkg else ""
        module = importlib.import_module(f"{__package__}.{info.name}{suffix}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, World) and value.__module__ == module.__name__:
                found[value.name] = value()
    return dict(sorted(found.items()))


def world_names() -> list[str]:
    """The names of all worlds."""
    return list(_worlds())


def get_world(name: str) -> World:
    """A world by its name."""
    worlds = _worlds()
    if name not in worlds:
        near = difflib.get_close_matches(name, worlds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise Fault(f"no world {name!r}{hint} Possible: {', '.join(worlds)}")
    return worlds[name]
