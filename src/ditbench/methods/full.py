"""The unaccelerated model."""

from dataclasses import dataclass
from typing import ClassVar

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, full_plan
from ditbench.methods.base import Method


@dataclass(frozen=True)
class Full(Method):
    """Every token at every site: what all others are compared with."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "the unaccelerated model"
    paper: ClassVar[str] = ""

    def plan(self, shape: Shape) -> Plan:
        return full_plan(shape)
