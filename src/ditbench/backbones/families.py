"""Finds the block family of a network among the modules of this package."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from ditbench.backbones import Backbone
from ditbench.faults import Fault


@cache
def _families() -> dict[str, type]:
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name == "families":
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "network_class"):
                found[value.network_class] = value
    return found


def backbone_of(network: Any) -> Backbone:
    """A diffusers network as units."""
    families = _families()
    name = type(network).__name__
    if name not in families:
        raise Fault(f"no block family for {name}; supported: {', '.join(sorted(families))}")
    backbone: Backbone = families[name](network)
    return backbone
