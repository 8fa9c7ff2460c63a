"""DuCa: dual feature caching (arXiv 2412.18911)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import knob
from ditbench.methods.toca import SCORES, Cycle, Schedule, ToCa, cycle_of, fresh_shares, schedule_of

if TYPE_CHECKING:
    from ditbench.engine.fills import Fill

# Its published bonus for DiT, whose samplers count down; for PixArt it is ToCa's.
BONUS_OF_DIT = 0.8


@dataclass(frozen=True)
class DuCa(ToCa):
    """ToCa's steps in turn with steps that compute nothing and hand on what the last block gave out before.

    Within an interval a step whose count is odd computes some tokens, one whose count is even none. Samplers that count
    down (DiT's) so begin with the step that computes nothing. PixArt's intervals are all the same, DiT's weighted.

    In `paper`, the second version's reading, tokens are chosen at random; in `repo` by the score that the published
    commands use.
    """

    name: ClassVar[str] = "duca"
    summary: ClassVar[str] = "between full steps, steps of some tokens in turn with steps that are skipped"
    paper: ClassVar[str] = "arXiv 2412.18911"

    fresh: float = knob(
        0.75,
        "the ratio of tokens computed; published: 0.75 for PixArt-alpha, 0.05 for DiT; for FLUX ToCa's is 0.1",
        least=0,
        most=1,
    )
    variant: str = knob("paper", "random tokens and whole full steps, or as in the code", choices=("paper", "repo"))
    intervals: str = knob(
        "auto", "all the same, weighted as ToCa's, or auto: as published", choices=("auto", "weighted", "uniform")
    )
    score: str = knob("auto", "what tokens are chosen by; auto: the variant's", choices=SCORES)

    def cycle(self, shape: Shape) -> Cycle:
        schedule = schedule_of(self.schedule, shape)
        weighted = schedule.down if self.intervals == "auto" else self.intervals == "weighted"
        return cycle_of(
            shape.steps,
            shape.layout.blocks,
            self.interval,
            schedule,
            weighted and self.fresh > 0,
            self.variant == "repo",
            self.leading(),
        )

    def passed(self, shape: Shape) -> NDArray[np.bool_]:
        cycle = self.cycle(shape)
        skipped: NDArray[np.bool_] = (~cycle.whole & (cycle.phase % 2 == 0))[:, shape.layout.block_of]
        return skipped

    def plan(self, shape: Shape) -> Plan:
        shares = fresh_shares(shape, self.fresh, schedule_of(self.schedule, shape))
        shares[self.passed(shape)] = 0
        shares[self.cycle(shape).whole[:, shape.layout.block_of]] = 1
        return Plan(shape.layout, shape.layout.by_branch, shares)

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.fills import HandOn

        return HandOn(self.passed(shape))

    def own_bonus(self, schedule: Schedule) -> float:
        return BONUS_OF_DIT if schedule.down else schedule.bonus

    def own_score(self, schedule: Schedule) -> str:
        if self.score != "auto":
            return self.score
        return schedule.score if self.variant == "repo" else "random"
