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
    spacing: str = knob(
        "uniform",
        "where the full steps lie: at equal intervals, or as many of them closer together around a step (the paper's "
        "non-uniform 1:N)",
        choices=("uniform", "centred"),
    )
    centre: int = knob(15, "step around which they lie closer (the code's center), where spacing is centred", least=0)
    power: float = knob(
        1.2, "how much closer, at most (the code's pow), where spacing is centred", least=1.01, most=10.0
    )

    def plan(self, shape: Shape) -> Plan:
        layout = shape.layout
        if layout.blocks < 2:
            raise Fault("deepcache needs a network of two blocks or more")
        edge = 1 if self.variant == "first-block" else layout.blocks - 1
        units = (layout.span(0, edge), layout.span(edge, layout.blocks))
        cached = np.ones(shape.steps, dtype=bool)
        cached[self.full_steps(shape.steps)] = False
        shares = np.ones((shape.steps, 2))
        shares[cached, 1 if self.variant == "first-block" else 0] = 0
        return Plan(layout, units, shares)

    def full_steps(self, steps: int) -> list[int]:
        """The steps that are computed whole."""
        if self.spacing == "uniform" or self.interval == 1:
            return list(range(0, steps, self.interval))
        count = steps // self.interval
        if count < 1 or self.centre >= steps:
            raise Fault(
                f"deepcache: no full step every {self.interval} of {steps} around step {self.centre}; `centre` must be "
                "one of the steps, and `interval` no more than they are"
            )
        power = self.power
        while power > 1:
            found = _around(self.centre, steps, count, power)
            if len(found) == count:
                return found
            power -= 0.02
        raise Fault(
            f"deepcache: no power up to {self.power:g} gives {count} different full steps of {steps} around step "
            f"{self.centre}; another `centre` or `interval` does"
        )

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.fills import Replace, Reuse

        return Reuse() if self.variant == "first-block" else Replace()


def _around(centre: int, steps: int, count: int, power: float) -> list[int]:
    """The first step, and steps whose distances from a centre grow by a power.

    The published code raises a negative number to a fraction, which is a complex one, and keeps the real part of its
    power: before the centre, steps so lie otherwise than behind it. Published results were made with those.
    """
    ends = complex(-centre) ** (1 / power), complex(steps - centre) ** (1 / power)
    places = np.linspace(*ends, count + 1) ** power
    inner = np.unique(places.real.astype(np.int32))[1:-1] + centre
    return [0, *(int(step) for step in inner)]
