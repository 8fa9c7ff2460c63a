"""Fewer sampling steps: the first thing any acceleration method must beat."""

from dataclasses import dataclass
from typing import ClassVar

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, full_plan
from ditbench.methods.base import Method, knob


@dataclass(frozen=True)
class FewerSteps(Method):
    """The full model at a share of the steps; the sampler spaces them anew."""

    name: ClassVar[str] = "fewer-steps"
    summary: ClassVar[str] = "the full model with fewer sampling steps"
    paper: ClassVar[str] = ""

    share: float = knob(0.5, "share of the world's step count", least=0.01, most=1)

    def steps(self, default: int) -> int:
        return max(1, round(default * self.share))

    def plan(self, shape: Shape) -> Plan:
        return full_plan(shape)
