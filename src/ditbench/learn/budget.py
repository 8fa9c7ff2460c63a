"""What a plan may compute: a share of all token computations, of all MACs or of time, and the best plan within it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault
from ditbench.solve.knapsack import solve_tokens, solve_weights
from ditbench.solve.plans import Space

if TYPE_CHECKING:
    from ditbench.engine.costs import Costs, UnitCost
    from ditbench.engine.layout import Shape
    from ditbench.methods.token_plans import TokenPlan

# Of a budget of MACs or of time: how far below it a plan may stay.
SLACK = 0.005


class Budget:
    """The budget of a method for a run. Levels are places among the method's candidates, [step, branch]."""

    def __init__(
        self,
        method: TokenPlan,
        shape: Shape,
        costs: Costs,
        times: Mapping[str, Sequence[float]] | None = None,
        outside: float = 0.0,
    ) -> None:
        """`times` of a branch of each name at each level (site_times.py), where the budget is one of time.

        `outside`: what a whole run takes that belongs to no branch, where that counts too (`macs-linear`). What a plan
        spares of it, where a network prepares something for branches that then compute nothing, is not made use of.
        """
        self.shape, self.candidates = shape, np.array(method.candidates)
        # Counted as plans count: ceil(share x tokens).
        self.counts: list[int] = np.ceil(self.candidates * shape.tokens - 1e-9).astype(int).tolist()
        if len(set(self.counts)) < len(self.counts):
            raise Fault(f"levels: {method.levels} shares of {shape.tokens} tokens are not all different")
        self._alike, self._linear = method.budget == "tokens", method.budget == "macs-linear"
        self._weights = np.array(
            [
                self._weights_of(name, cost, times)
                for name, cost in zip(shape.layout.name_of, costs.branches, strict=True)
            ],
            dtype=np.float64,
        )
        self._of_step = float(self._weights[:, -1].sum())
        # No plan leaves out what belongs to no branch: branches have to leave out the more.
        self._outside = outside
        self._of_all = shape.steps * self._of_step + outside
        self.total = (1 - method.ratio) * self._of_all - outside
        self.ratio = method.ratio

    def _weights_of(
        self, name: str, cost: UnitCost, times: Mapping[str, Sequence[float]] | None
    ) -> Sequence[float] | NDArray[np.float64]:
        """What each level of a branch takes of the budget."""
        if self._alike:
            return self.candidates
        if times is not None:
            return times[name]
        return [cost.linear_macs(count) if self._linear else cost.macs(count) for count in self.counts]

    def solve(self, costs: NDArray[np.float64], whole: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The levels of least cost [step, branch, level] within the budget, where some steps are `whole`."""
        return self._within(costs, ~whole, self._left(whole))

    def between(self, costs: NDArray[np.float64], whole: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The levels that any step but the first has while it is not whole.

        Those of the plan in which some steps are `whole`, and for these, which have none in it, the best ones at the
        share that they leave the others.
        """
        levels, own = self.solve(costs, whole), whole & (np.arange(self.shape.steps) > 0)
        partly = int((~whole).sum())
        if partly and own.any():
            share = self._left(whole) / partly
            levels[own] = self._within(costs, own, share * int(own.sum()))[own]
        return levels

    def space(self) -> Space:
        """The plans within the budget, of all steps but the first, which is whole: levels of [step x branch]."""
        first = np.arange(self.shape.steps) == 0
        left, sites = self._left(first), (self.shape.steps - 1) * self.shape.sites[1]
        if self._alike:
            return Space(sites, self.candidates, left)
        return Space.of_weights(np.tile(self._weights, (self.shape.steps - 1, 1)), left * (1 - SLACK), left)

    def _left(self, whole: NDArray[np.bool_]) -> float:
        left = self.total - int(whole.sum()) * self._of_step
        if left < -1e-9 * self._of_step:
            raise Fault(
                f"ratio: {self.ratio:g} leaves less than {int(whole.sum())} whole steps of {self.shape.steps} compute; "
                "take fewer full_steps, or a smaller ratio"
            )
        return max(left, 0.0)

    def _within(self, costs: NDArray[np.float64], free: NDArray[np.bool_], left: float) -> NDArray[np.int64]:
        """The levels of least cost of the `free` steps that come to `left`; the others are whole."""
        levels = np.full(self.shape.sites, len(self.candidates) - 1, dtype=np.int64)
        if left >= int(free.sum()) * self._of_step * (1 - 1e-9):
            return levels
        own = costs[free].reshape(-1, len(self.candidates))
        if self._alike:
            chosen = solve_tokens(own, self.candidates, left).choices
        else:
            weights = np.tile(self._weights, (int(free.sum()), 1))
            chosen = solve_weights(own, weights, left, slack=SLACK).choices
        levels[free] = chosen.reshape(-1, self.shape.sites[1])
        return levels

    def used(self, levels: NDArray[np.int64]) -> float:
        """The share that levels leave out, counted as the budget counts."""
        weights = np.broadcast_to(self._weights, (*levels.shape, len(self.candidates)))
        kept = np.take_along_axis(weights, levels[..., None], 2).sum()
        return float(1 - (kept + self._outside) / self._of_all)

    def expected(self, picked: NDArray[np.float64]) -> float:
        """The share that is left out where levels have probabilities [step, branch, level]."""
        return float(1 - ((picked * self._weights).sum() + self._outside) / self._of_all)
