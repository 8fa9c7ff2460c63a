"""A selector made of parts: a score, an age that grows while a token is not computed, and a bonus in its neighbourhood.

The tokens of a unit with the highest sums are computed. ToCa's four terms are all here, each with its own weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ditbench.engine.rows import Rows
from ditbench.engine.scores import Score, normalised
from ditbench.faults import Fault

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ditbench.backbones import Stream
    from ditbench.engine.layout import Unit
    from ditbench.engine.plan import Plan
    from ditbench.engine.watch import Glance


@dataclass(frozen=True)
class Terms:
    """What is added to a score. `age`: the weight of one step of age. `bonus`: the share of its own sum that the best
    token of each `cell` x `cell` square gets on top. `shared`: the two branches of guidance compute the same tokens.
    """

    age: float = 0.0
    bonus: float = 0.0
    cell: int = 1
    shared: bool = False


class ScoredTokens:
    """State of one run of a static plan. `passed` marks units of steps [step, unit] that nobody looks at.

    A token's age is the number of steps since it was computed in which its unit was looked at. It needs no counter
    where all are computed: those steps are the plan's. With `always` it can tell the order of a unit's tokens at any
    step, not just where the plan computes some of them.
    """

    def __init__(
        self,
        score: Score,
        plan: Plan,
        tokens: int,
        terms: Terms,
        passed: NDArray[np.bool_] | None = None,
        always: bool = False,
    ) -> None:
        self.score, self.terms, self.tokens = score, terms, tokens
        self.generator = score.generator
        self._number = {unit.start: number for number, unit in enumerate(plan.units)}
        self._counts = counts = plan.counts(tokens)
        self._needed = _watched(score, plan) if always else _needed(score, plan, counts, tokens)
        looked_at = np.ones(counts.shape, dtype=bool) if passed is None else ~passed
        # How often a unit was looked at, up to and with each step; the age of a token is a difference of these.
        self._looks: list[list[int]] = looked_at.cumsum(axis=0).tolist()
        self._whole_at: list[list[int]] = _last_whole(np.equal(counts, tokens)).tolist()
        self._computed: dict[int, tuple[int, Tensor]] = {}

    def watches(self, branch: int, step: int) -> bool:
        return branch in self._needed and self._needed[branch][step]

    def see(self, branch: int, step: int, glance: Glance) -> int:
        return self.score.see(branch, glance)

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        index = self.order(unit, step, stream)[:, :count].sort(dim=1).values
        self.computing(unit, step, index)
        return Rows(torch.cat([index, index]) if self._halves(stream) == 2 else index, stream.tokens)

    def count(self, unit: Unit, step: int) -> int:
        """How many tokens of a unit its plan computes at a step."""
        return int(self._counts[step, self._number[unit.start]])

    def order(self, unit: Unit, step: int, stream: Stream) -> Tensor:
        """All tokens of each sample, the first to be computed first; where halves share, of one half [samples, tokens].

        Asking changes nothing.
        """
        number = self._number[unit.start]
        values = self.score.of(unit, step, stream)
        if self._halves(stream) == 2:
            values = self.score.shared(values.unflatten(0, (2, -1)))
        total = normalised(values)
        if self.terms.age:
            last = self._last_computed(number, step, total)
            total = total + self.terms.age * (self._looks[step - 1][number] - last)
        if self.terms.bonus:
            total = with_bonus(total, grid_of(stream), self.terms.cell, self.terms.bonus)
        # Stable: of equal tokens the first ones, so that a choice depends on nothing but the scores.
        return total.argsort(dim=1, descending=True, stable=True)

    def computing(self, unit: Unit, step: int, index: Tensor) -> None:
        """The tokens at `index` [samples, k] of a unit are computed now: they are of age 0."""
        number = self._number[unit.start]
        last = self._last_computed(number, step, index.new_zeros(len(index), self.tokens, dtype=torch.float32))
        self._computed[number] = (step, last.scatter(1, index, float(self._looks[step][number])))

    def _halves(self, stream: Stream) -> int:
        return 2 if self.terms.shared and stream.halves == 2 else 1

    def _last_computed(self, number: int, step: int, like: Tensor) -> Tensor:
        """How often the unit had been looked at when each token was last computed, [samples, tokens]."""
        whole_at = self._whole_at[step][number]
        if number in self._computed:
            chosen_at, last = self._computed[number]
            if chosen_at > whole_at:
                return last
        if whole_at < 0:
            return torch.zeros_like(like)
        return torch.full_like(like, float(self._looks[whole_at][number]))

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return self.score.nbytes() + sum(last.nbytes for _, last in self._computed.values())


def _last_whole(whole: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The last step before or at each at which each unit was computed whole; -1 where there was none."""
    steps = np.where(whole, np.arange(len(whole))[:, None], -1)
    return np.maximum.accumulate(steps, axis=0)


def _watched(score: Score, plan: Plan) -> dict[int, list[bool]]:
    """Every branch that a score can learn from, at every step."""
    return {branch: [True] * plan.steps for branch in range(len(plan.layout)) if score.watches(branch)}


def _needed(score: Score, plan: Plan, counts: NDArray[np.int64], tokens: int) -> dict[int, list[bool]]:
    """For each branch that a score watches, the steps at which what it sees is asked for before it is seen anew."""
    unit_of = np.repeat(np.arange(len(plan.units)), plan.sizes)
    whole = np.array(counts == tokens, dtype=bool)
    some = np.array(counts > 0, dtype=bool) & ~whole
    found: dict[int, list[bool]] = {}
    for branch in range(len(plan.layout)):
        if not score.watches(branch):
            continue
        block = plan.layout.branches[branch].block
        asked = some[:, np.unique(unit_of[plan.layout.block_of == block])].any(axis=1)
        found[branch] = [False] * plan.steps
        needed = False
        for step in reversed(range(plan.steps)):
            # A unit before the branch may still ask at the very step that shows it anew.
            needed = needed or bool(asked[step])
            found[branch][step] = needed
            if whole[step, unit_of[branch]]:
                needed = bool(asked[step])
    return found


def grid_of(stream: Stream) -> tuple[int, int]:
    """Rows and columns of the image's tokens; the frames of a video lie below one another."""
    grid = getattr(stream.setting, "grid", None)
    if grid is not None:
        *rows, columns = grid
        return math.prod(rows), columns
    side = math.isqrt(stream.tokens)
    if side * side != stream.tokens:
        raise Fault(
            f"the grid of the {stream.tokens} tokens is not known: windows and neighbourhoods need a square image here"
        )
    return side, side


def with_bonus(total: Tensor, grid: tuple[int, int], cell: int, bonus: float) -> Tensor:
    """Sums [samples, tokens] in which the best token of each square of `cell` tokens a side has grown by a share."""
    rows, columns = grid
    cell = min(cell, max(grid))  # a larger square holds the same tokens
    down, across = -(-rows // cell), -(-columns // cell)
    padded = functional.pad(
        total.unflatten(1, grid), (0, across * cell - columns, 0, down * cell - rows), value=-torch.inf
    )
    cells = padded.unflatten(2, (across, cell)).unflatten(1, (down, cell)).transpose(2, 3).flatten(3)
    best = functional.one_hot(cells.argmax(-1), cell * cell).to(total.dtype)
    grown = (best * bonus).unflatten(3, (cell, cell)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return total * (1 + grown[:, :rows, :columns].flatten(1))
