"""SpeCa: speculative feature caching, drafts that the last block checks (arXiv 2509.11628)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import ASK, Plan
from ditbench.faults import Fault
from ditbench.methods.base import UNSET, Thresholded, Trio, knob

if TYPE_CHECKING:
    from torch import Generator

OWN = -1  # of a knob: what the variant has


@dataclass(frozen=True)
class SpeCa(Thresholded):
    """Computed steps, and drafts between them: forecasts as TaylorSeer's, of which the last block is computed too.

    How far it is off says what happens. In `repo`, as in the published code, the first drafts after a computed step go
    unchecked, a draft that is too far off is kept, and the step after it is computed. In `paper` every draft is
    checked, and one that is too far off is thrown away and its step computed: threshold and floor 0 are the full
    network then. Errors are relative to each number: a few that are near 0 decide, so that thresholds are of one
    network (0.1 was published for DiT, 7 for FLUX).
    """

    name: ClassVar[str] = "speca"
    summary: ClassVar[str] = "forecasts as drafts, checked by the last block (online)"
    paper: ClassVar[str] = "arXiv 2509.11628"

    threshold: float = knob(UNSET, "error of the last block that is allowed at the start; 0.1 for DiT", least=UNSET)
    variant: str = knob("repo", "what becomes of a draft that is too far off", choices=("repo", "paper"))
    decay: float = knob(0.01, "what the threshold is multiplied by until the end; 0.3 for FLUX", least=0, most=1)
    floor: float = knob(0.01, "the threshold is never below; 0.1 for FLUX", least=0)
    order: int = knob(4, "of the forecast; 2 for FLUX", least=0, most=8)
    first: int = knob(3, "steps at the start that are computed, if the one before was not", least=1)
    unchecked: int = knob(
        OWN, "drafts after a computed step that are not checked; -1: the variant's, 2 in the code", least=OWN
    )
    longest: int = knob(5, "drafts in a row; 8 for FLUX", least=0)
    error: str = knob("relative-l1", "what the last block is compared by", choices=("relative-l1", "relative-l2"))
    pool: str = knob(
        "sample", "who is decided together; pair: both branches of guidance", choices=("sample", "pair", "batch")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.longest <= self.trusted:
            raise Fault(
                f"no draft would be checked, whatever the threshold: at most {self.longest} come in a row (longest), "
                f"the first {self.trusted} of which are not checked (unchecked)"
            )

    @property
    def trusted(self) -> int:
        """The drafts after a computed step that are not checked."""
        if self.unchecked != OWN:
            return self.unchecked
        return 2 if self.variant == "repo" else 0

    def plan(self, shape: Shape) -> Plan:
        self.need_threshold()
        return Plan(shape.layout, shape.layout.by_branch, np.full(shape.sites, ASK))

    def parts(self, shape: Shape, generator: Generator) -> Trio:
        from ditbench.engine.drafts import Drafts, Rules

        rules = Rules(
            shape.steps,
            self.bound,
            self.decay,
            self.floor,
            self.first,
            self.trusted,
            self.longest,
            self.variant == "paper",
            self.error,  # type: ignore[arg-type]
            self.pool,  # type: ignore[arg-type]
        )
        # One object: what fills is what decides.
        both = Drafts(rules, self.order)
        return Trio(both, None, both)
