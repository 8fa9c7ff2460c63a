"""DiCache: let a shallow probe decide and correct (arXiv 2508.17356)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import UNSET, Thresholded, Trio, knob

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True)
class DiCache(Thresholded):
    """The first blocks always; the rest when what they give out has changed enough since it was computed.

    Changes of the stream behind the probe from step to step add up until the threshold. A step that is left out adds
    what the last two computed ones did, along the way that the probe has come. The first share of the steps is always
    computed. The text's stream, where there is one, is reused as it was.
    """

    name: ClassVar[str] = "dicache"
    summary: ClassVar[str] = "a probe of the first blocks decides about the rest, and corrects it (online)"
    paper: ClassVar[str] = "arXiv 2508.17356"

    threshold: float = knob(
        UNSET, "sum of changes at which all is computed; 0.4 for FLUX-dev, 0.08 for Wan", least=UNSET
    )
    probe: int = knob(1, "blocks of the probe (the paper's m)", least=1)
    warmup: float = knob(0.2, "share of the steps at the start that is always computed", least=0, most=1)
    warmup_end: str = knob(
        "included",
        "whether the step at which that share ends is computed too: FLUX's code does, Wan's does not (excluded)",
        choices=("included", "excluded"),
    )
    last: int = knob(1, "steps at the end that are always computed; 0 for Wan", least=0)
    change: str = knob(
        "delta-y",
        "what adds up: the change behind the probe, or by how much it differs from the input's (0.08 for FLUX-dev)",
        choices=("delta-y", "delta-minus"),
    )
    most: float = knob(1.5, "the farthest that a step goes along the way of the last two; 2 for Wan", least=1)
    pool: str = knob(
        "sample", "who is decided together; pair: both branches of guidance", choices=("sample", "pair", "batch")
    )

    def plan(self, shape: Shape) -> Plan:
        self.need_threshold()
        if self.probe >= shape.layout.blocks:
            raise Fault(f"probe: {self.probe} blocks leave nothing of a network of {shape.layout.blocks}")
        return self.probing(shape, self.probe)

    def parts(self, shape: Shape, generator: Generator) -> Trio:
        from ditbench.engine.trajectory import ProbeTrajectory

        step = np.arange(shape.steps)
        if self.warmup_end == "included":
            early = step <= int(self.warmup * shape.steps)
        else:  # counted in calls, of which each step has two; without a step before it none can be left out
            early = (2 * step < int(self.warmup * 2 * shape.steps)) | (step == 0)
        forced = early | (step >= shape.steps - self.last)
        both = ProbeTrajectory(
            self.bound,
            self.pool,  # type: ignore[arg-type]
            forced.tolist(),
            self.most,
            self.change == "delta-minus",
        )
        # One object: what fills is what was decided by.
        return Trio(both, None, both)
