"""TaylorSeer: forecasting features instead of reusing them (arXiv 2503.06923)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, by_step
from ditbench.methods.base import Method, knob

if TYPE_CHECKING:
    from ditbench.engine.fills import Fill


@dataclass(frozen=True)
class TaylorSeer(Method):
    """All units in the first steps and at every `interval`-th after them; in between, forecasts of their outputs.

    Outputs are forecast before their gates, over the index of the step. Published differences mix spacings where the
    first full steps lie closer than the later ones; divided differences do not.
    """

    name: ClassVar[str] = "taylorseer"
    summary: ClassVar[str] = "all units every N-th step, forecasts of their outputs in between"
    paper: ClassVar[str] = "arXiv 2503.06923"

    interval: int = knob(4, "steps from one full step to the next (the paper's N)", least=1)
    order: int = knob(1, "of the forecast; 0 reuses", least=0, most=8)
    first: int = knob(2, "full steps at the start (the code's first_enhance)", least=1)
    differences: str = knob("published", "how orders above 0 are made", choices=("published", "divided"))
    build_from: int = knob(1, "first step at which differences are made; FLUX's code has 2", least=1)
    precision: str = knob("model", "what differences are kept in", choices=("model", "float32"))
    forecast: str = knob(
        "branches",
        'what is forecast: the output of every branch, or what leaves the last block alone ("lite" in other codes), '
        "for which little is kept",
        choices=("branches", "last-block"),
    )

    def plan(self, shape: Shape) -> Plan:
        step = np.arange(shape.steps)
        whole = (step < self.first) | ((step - self.first + 1) % self.interval == 0)
        if self.forecast == "branches":
            return by_step(shape, whole)
        units = (shape.layout.span(0, shape.layout.blocks),)
        return Plan(shape.layout, units, whole[:, None].astype(float))

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.forecasts import StreamTaylor, Taylor

        taylor = Taylor(self.order, self.differences == "divided", self.build_from, self.precision == "float32")
        return taylor if self.forecast == "branches" else StreamTaylor(taylor)
