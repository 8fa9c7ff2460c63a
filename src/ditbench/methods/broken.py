"""A control that must do harm: every judge has to rank it last."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ditbench.engine.fills import Fill, Misplaced
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, by_step
from ditbench.methods.base import Method, knob


@dataclass(frozen=True)
class Broken(Method):
    """Reuses cached outputs for most steps, and gives each token the output of another one."""

    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "control: reuses most steps, from wrong tokens"
    paper: ClassVar[str] = ""

    interval: int = knob(4, "steps from one full step to the next", least=1)
    shift: float = knob(0.375, "how far away the wrong token is, as a share of all tokens", least=0, most=1)

    def plan(self, shape: Shape) -> Plan:
        return by_step(shape, np.arange(shape.steps) % self.interval == 0)

    def fill(self, shape: Shape) -> Fill:
        return Misplaced(round(self.shift * shape.tokens))
