"""T-GATE: cross-attention and guidance are for the first steps (arXiv 2404.02747)."""

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
class TGate(Method):
    """Before the gate self-attention at intervals; after it no guidance, and cross-attention's last output throughout.

    At the gate what was cached of both branches of guidance becomes their mean, and the conditional branch goes on
    alone. Most of what it saves is guidance: compare it with `cfg-off` at the same gate. Where a pipeline does not
    guide, cross-attention alone ends. DiT and MMDiT have none: there self-attention, or the joint attention of image
    and text, is computed at intervals, and guidance ends.
    """

    name: ClassVar[str] = "t-gate"
    summary: ClassVar[str] = "after some steps no guidance and no new cross-attention; self-attention at intervals"
    paper: ClassVar[str] = "arXiv 2404.02747"

    gate: int = knob(10, "steps that are guided and attend to the text (the paper's m)", least=1)
    before: int = knob(5, "steps from one self-attention to the next before the gate (the code's sp_interval)", least=1)
    after: int = knob(1, "the same after the gate (the code's fi_interval)", least=1)
    warmup: int = knob(2, "steps at the start, beside the first, that are computed whole (the code's warm_up)", least=0)

    def plan(self, shape: Shape) -> Plan:
        names = shape.layout.name_of
        if "single" in shape.layout.names:
            raise Fault(
                "t-gate caches attention by itself, and this network has blocks that compute it in one with the MLP "
                f"(its branches are {', '.join(shape.layout.names)}); cfg-off ends guidance alone"
            )
        step = np.arange(shape.steps)
        early = (step <= self.warmup) | (step % self.before == 0) | (step == self.gate - 1)
        shares = np.ones(shape.sites)
        attends = np.isin(names, ("self", "attn", "attn2"))
        shares[:, attends] = np.where(step < self.gate, early, step % self.after == 0)[:, None]
        shares[:, names == "cross"] = (step < self.gate)[:, None]
        return Plan(shape.layout, shape.layout.by_branch, shares)

    def guided(self, shape: Shape) -> list[bool]:
        return [step < self.gate for step in range(shape.steps)]

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.fills import ReuseMean

        return ReuseMean()
