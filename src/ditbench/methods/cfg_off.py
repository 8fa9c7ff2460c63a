"""Guidance for the first steps only: what part of a method's gain is that of leaving guidance out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, full_plan
from ditbench.methods.base import Method, knob


@dataclass(frozen=True)
class CfgOff(Method):
    """The full model, with both branches of guidance for the first `gate` steps and the conditional one after them.

    The control for T-GATE, most of whose gain this is. It needs a pipeline that guides.
    """

    name: ClassVar[str] = "cfg-off"
    summary: ClassVar[str] = "the full model, guided in its first steps only: a control for T-GATE"
    paper: ClassVar[str] = ""

    gate: int = knob(10, "steps that are guided", least=1)

    def plan(self, shape: Shape) -> Plan:
        return full_plan(shape)

    def guided(self, shape: Shape) -> list[bool]:
        return [step < self.gate for step in range(shape.steps)]
