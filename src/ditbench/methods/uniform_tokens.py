"""A control: every branch of every step after the first computes the same share of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import knob
from ditbench.methods.token_plans import TokenPlan


@dataclass(frozen=True)
class UniformTokens(TokenPlan):
    """What DiffSparse's learning has to beat: its selector and its filling, with nothing learned about where.

    The first step computes everything; the ratio is met over all steps.
    """

    name: ClassVar[str] = "uniform-tokens"
    summary: ClassVar[str] = "the same share of tokens for every branch and step but the first, the rest reused"
    paper: ClassVar[str] = "a control of ditbench"

    ratio: float = knob(0.43, "share of the token computations of all steps that is left out", least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        nothing_to_find = {"budget": "tokens", "plan_file": "", "levels": 5, "captions": 0}
        strange = [name for name, plain in nothing_to_find.items() if getattr(self, name) != plain]
        if strange:
            raise Fault(f"uniform-tokens has no {strange[0]}: its plan follows from the ratio alone")

    def waits(self) -> bool:
        return False

    def plan(self, shape: Shape) -> Plan:
        later = shape.steps - 1
        left_out = self.ratio * shape.steps / max(later, 1)
        if left_out > 1 or (self.ratio > 0 and not later):
            raise Fault(
                f"uniform-tokens computes the first step whole: of {shape.steps} steps at most "
                f"{later / shape.steps:.2f} can be left out; lower ratio ({self.ratio:g})"
            )
        shares = np.full(shape.sites, 1 - left_out)
        shares[0] = 1
        return self.plan_of(shape, shares)
