"""Learning-to-Cache: which branches a step may reuse, learned for each step (arXiv 2406.01733)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import Method, knob
from ditbench.methods.forms import SHARES, Form, Numbers


@dataclass(frozen=True)
class LearningToCache(Method):
    """Steps in pairs: the first of a pair is computed, the second reuses the branches that a router lets it reuse.

    Routers are numbers, one for each branch of each second step: they do not look at the image. They are trained on
    the full network's own sampling of training captions (the published ones: on real images with noise added), so that
    what is reused changes the network's answer least; `penalty` is the price of a branch that is computed. A branch is
    computed where its router says more than `theta`, or, with a `target`, where the cost asks for it.
    """

    name: ClassVar[str] = "l2c"
    summary: ClassVar[str] = "every second step reuses the branches that a router was trained to leave out"
    paper: ClassVar[str] = "arXiv 2406.01733"
    learner: ClassVar[str | None] = "routers"

    theta: float = knob(0.1, "a branch is computed where its router says more; 0.9 for DiT at 512", least=0, most=1)
    target: float = knob(
        0.0, "times fewer MACs than full, below 2, which theta is chosen for; 0: theta is given", least=0
    )
    penalty: float = knob(5e-6, "price of a computed branch (the paper's lambda); 1e-6 for 50 steps", least=0)
    rate: float = knob(1e-3, "of learning", least=0)
    epochs: int = knob(1, "how often the training captions are sampled, each time from other noise", least=1)
    start: str = knob(
        "random", "routers at the start: random as published, or even, for short trainings", choices=("random", "even")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target and not 1 < self.target < 2:
            raise Fault(f"target: {self.target:g} must lie between 1 and 2: every other step is computed")

    def waits(self) -> bool:
        return self.found is None

    def finds(self) -> Mapping[str, Form]:
        return {"keep": SHARES, "theta": Numbers(least=0, most=1, needed=False)}

    def reusing(self, steps: int) -> NDArray[np.bool_]:
        """The steps that may reuse: counted down as published, those of even numbers, but for the first."""
        count = steps - 1 - np.arange(steps)
        reusing: NDArray[np.bool_] = (count % 2 == 0) & (np.arange(steps) > 0)
        return reusing

    def plan(self, shape: Shape) -> Plan:
        shares = np.ones(shape.sites)
        if self.found is None:
            raise self.unlearned()
        keep = np.asarray(self.found["keep"], dtype=np.float64)
        if keep.shape != shape.sites:
            raise self.misfit(
                f"the routers are of {keep.shape[0]} steps and {keep.shape[1]} branches, "
                f"this run has {shape.steps} and {len(shape.layout)}"
            )
        theta = float(self.found.get("theta", self.theta))
        reusing = self.reusing(shape.steps)
        shares[reusing] = keep[reusing] > theta
        return Plan(shape.layout, shape.layout.by_branch, shares)
