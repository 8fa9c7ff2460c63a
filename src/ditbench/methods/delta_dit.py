"""Delta-DiT (arXiv 2406.01125), from its abstract and what others print of it: there is no public code."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import Method, knob


@dataclass(frozen=True)
class DeltaDit(Method):
    """All blocks every `interval` steps; in between, a run of blocks is replaced by what it added before.

    Early steps, which outline the picture, leave out the last blocks, later ones the first. That and the boundary are
    the paper's; how many blocks are left out is not printed, 21 of 28 fit the speed-up that is.
    """

    name: ClassVar[str] = "delta-dit"
    summary: ClassVar[str] = "in between full steps, most blocks replaced by what they added (approximation: no code)"
    paper: ClassVar[str] = "arXiv 2406.01125"

    interval: int = knob(2, "steps from one full step to the next (the paper's N)", least=1)
    boundary: float = knob(0.6, "share of the steps that leave out the last blocks (b = 12 of 20)", least=0, most=1)
    blocks: float = knob(0.75, "share of the blocks that is left out", least=0, most=1)

    def plan(self, shape: Shape) -> Plan:
        layout, steps = shape.layout, np.arange(shape.steps)
        count = round(self.blocks * layout.blocks)
        # What either end leaves out is put together from pieces, so that one set of units serves all steps.
        edges = sorted({0, count, layout.blocks - count, layout.blocks})
        spans = list(pairwise(edges))
        units = tuple(layout.span(first, last) for first, last in spans)
        shares = np.ones((shape.steps, len(units)))
        early = steps < round(self.boundary * shape.steps)
        between = steps % self.interval != 0
        for number, (first, last) in enumerate(spans):
            rear, front = first >= layout.blocks - count, last <= count
            shares[between & ((early & rear) | (~early & front)), number] = 0
        return Plan(layout, units, shares)
