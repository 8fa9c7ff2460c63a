"""Finds the worlds of this package: every module or folder that defines a subclass of `World`, or offers several."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType

from ditbench.faults import Fault
from ditbench.worlds.base import World

_NOT_WORLDS = {"base", "registry"}


@cache
def _modules() -> list[ModuleType]:
    infos = pkgutil.iter_modules([str(Path(__file__).parent)])
    # A folder keeps its light description in world.py; a single file is its own.
    return [
        importlib.import_module(f"{__package__}.{info.name}{'.world' if info.ispkg else ''}")
        for info in infos
        if info.name not in _NOT_WORLDS
    ]


@cache
def _made(world: type[World]) -> World:
    return world()


def _worlds() -> dict[str, Callable[[], World]]:
    """What makes each world, by its name."""
    found: dict[str, Callable[[], World]] = {}
    for module in _modules():
        if hasattr(module, "offered"):  # several worlds of one class
            found |= module.offered()
            continue
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, World) and value.__module__ == module.__name__:
                found[value.name] = partial(_made, value)
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
    return worlds[name]()
