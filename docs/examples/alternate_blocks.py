"""A method of one's own: even blocks in one step, odd blocks in the next."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import Method, knob


@dataclass(frozen=True)
class AlternateBlocks(Method):
    """All blocks in the first steps; then every other block, in turn, and the others' last outputs."""

    name: ClassVar[str] = "alternate-blocks"
    summary: ClassVar[str] = "every other block, in turn, after some full steps"
    paper: ClassVar[str] = ""

    full: int = knob(1, "steps at the start that compute every block", least=1)

    def plan(self, shape: Shape) -> Plan:
        step = np.arange(shape.steps)[:, None]
        turn = step % 2 == shape.layout.block_of % 2  # [steps, branches]
        return Plan(shape.layout, shape.layout.by_branch, ((step < self.full) | turn).astype(float))
