"""FORA: Fast-Forward Caching (arXiv 2407.01425)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, by_step
from ditbench.methods.base import Method, knob


@dataclass(frozen=True)
class Fora(Method):
    """All units every `interval` steps; in between, each unit's last output before its gate.

    The published code counts steps down from the last (`direction: down`): the first and the last step are then
    always full. Ports to samplers that count up leave the last step to the interval (`up`).
    """

    name: ClassVar[str] = "fora"
    summary: ClassVar[str] = "all units every N-th step, cached outputs in between"
    paper: ClassVar[str] = "arXiv 2407.01425"

    interval: int = knob(2, "steps from one full step to the next (the paper's N)", least=1)
    direction: str = knob("up", "where the interval counts from: the first step or the last", choices=("up", "down"))

    def plan(self, shape: Shape) -> Plan:
        step = np.arange(shape.steps)
        count = step if self.direction == "up" else shape.steps - 1 - step
        return by_step(shape, (step == 0) | (count % self.interval == 0))
