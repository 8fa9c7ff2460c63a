"""From a method to a run on a backbone: the one place where a plan meets its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ditbench.backbones import Backbone
from ditbench.engine.layout import Shape
from ditbench.engine.run import Parts, Run
from ditbench.methods import Method


def run_of(
    method: Method,
    backbone: Backbone,
    shape: Shape,
    seed: int = 0,
    by_itself: bool = True,
    halves: int = 1,
    seeds: Sequence[int] | None = None,
) -> Run:
    """A run of a method on a backbone, with fresh state; `by_itself`, `halves` and `seeds` as in `Run`."""
    network: Any = backbone.network
    # A network without values (`meta`) has no generator either.
    generator = torch.Generator("cpu" if network.device.type == "meta" else network.device).manual_seed(seed)

    def parts() -> Parts:
        return Parts(*method.parts(shape, generator))

    return Run(backbone, method.plan(shape), shape.tokens, parts, by_itself, halves, seeds, method.guided(shape))
