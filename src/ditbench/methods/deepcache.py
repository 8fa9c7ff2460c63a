"""DeepCache (arXiv 2312.00858), read for transformers whose blocks are all alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import Method, knob

if TYPE_CHECKING:
    from ditbench.engine.fills import Fill


@dataclass(frozen=True)
class DeepCache(Method):
    """All blocks every `interval` steps; in between, one of them.

    The paper is about U-Nets, whose skip connections bring shallow features to the end. A transformer has none, and its
    printed costs imply one block for each step in between. Two readings are possible: the first block is computed, and
    what all others added before is added again; or the last one is, from what entered it before.
    """

    name: ClassVar[str] = "deepcache"
    summary: ClassVar[str] = "all blocks every N-th step, one block in between (approximation: no U-Net here)"
    paper: ClassVar[str] = "arXiv 2312.00858"

    interval: int = knob(2, "steps from one full step to the next (the paper's N)", least=1)
    variant: str = knob("first-block", "which block is computed in between", choices=("first-block", "last-block"))

    def plan(self, shape: Shape) -> Plan:
        layout = shape.layout
        if layout.blocks < 2:
            raise Fault("deepcache needs a network of two blocks or more")
        edge = 1 if self.variant == "first-block" else layout.blocks - 1
        units = (layout.span(0, edge), layout.span(edge, layout.blocks))
        shares = np.ones((shape.steps, 2))
        shares[np.arange(shape.steps) % self.interval != 0, 1 if self.variant == "first-block" else 0] = 0
        return Plan(layout, units, shares)

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.fills import Replace, Reuse

        return Reuse() if self.variant == "first-block" else Replace()
