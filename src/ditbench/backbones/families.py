"""Finds the block family of a network among the modules of this package."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from ditbench.backbones import Backbone
from ditbench.faults import Fault

_NOT_FAMILIES = {"base", "families", "linear", "stream"}


@cache
def families() -> dict[str, type[Backbone]]:
    """Every block family, by the name of the diffusers class it takes apart."""
    found: dict[str, type[Backbone]] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name in _NOT_FAMILIES:
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Backbone) and value.__module__ == module.__name__:
                found[value.network_class] = value
    return found


def backbone_of(network: Any) -> Backbone:
    """A diffusers network as units."""
    known = families()
    if hasattr(network, "_orig_mod"):
        raise Fault(
            "this network was compiled as a whole, which hides its branches; give the plain one and compile its parts "
            "instead (for instance every block's attention and MLP: `part.compile()`)"
        )
    name = type(network).__name__
    if name not in known:
        raise Fault(f"no block family for {name}; supported: {', '.join(sorted(known))}")
    made: Any = known[name]
    backbone: Backbone = made(network)
    return backbone
