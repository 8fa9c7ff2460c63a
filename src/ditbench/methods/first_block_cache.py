"""First-block cache, as ParaAttention and diffusers have it: the first block says whether the rest is worth it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import UNSET, Thresholded, knob

if TYPE_CHECKING:
    from ditbench.engine.deciders import Decider

POOLS = ("sample", "pair", "batch")


@dataclass(frozen=True)
class FirstBlockCache(Thresholded):
    """The first block always; the others where it adds something else than when they were last computed.

    What else is the relative change of what it adds to the image; where that is within the threshold, the other blocks
    add again what they added then.
    """

    name: ClassVar[str] = "first-block-cache"
    summary: ClassVar[str] = "the first block; the rest only where that has changed enough (online)"
    paper: ClassVar[str] = "ParaAttention"

    threshold: float = knob(UNSET, "change beyond which all is computed; 0.05 to 0.2 are used for FLUX", least=UNSET)
    pool: str = knob("sample", "who is decided together; pair: both branches of guidance", choices=POOLS)

    def plan(self, shape: Shape) -> Plan:
        self.need_threshold()
        return self.probing(shape, 1)

    def decider(self, shape: Shape) -> Decider:
        from ditbench.engine.changes import FirstBlock

        return FirstBlock(self.bound, self.pool, [False] * shape.steps)  # type: ignore[arg-type]
