"""The plan of least total cost at a given total: tokens as DiffSparse counts them, or weights such as MACs.

Exact. Time is O(sites x total x levels) at worst, for a total counted in units of the levels; of costs without many
ties a bound settles all but a few sites, and then it grows as the number of sites. Memory is bounded (`exact.MEMORY`).

Budgets of MACs take several times as long as those of tokens, since they are solved anew where rounding has missed the
budget, and longer where hundreds of sites are nearly alike; `benchmarks/solver.py` times both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ditbench.faults import Fault
from ditbench.solve.core import solve
from ditbench.solve.units import Floats, Ints, checked_costs, checked_levels, common_unit, near_unit, units_of

RESOLUTION = 20_000  # units that a budget of weights is counted in, where weights have no unit of their own
FINER = (1, 4, 16)  # times the resolution that is tried where a coarser one does not meet the budget
TRIES, INSET = 8, 0.06  # of ends that are moved; the share of the distance between them that each is drawn in by


@dataclass(frozen=True)
class Solution:
    """The chosen level of every site, as its place among the levels, their cost, and the total they come to."""

    choices: Ints
    cost: float
    total: float


def solve_tokens(costs: ArrayLike, levels: ArrayLike, total: float) -> Solution:
    """The choice of least cost [site, level] whose shares of tokens come to exactly `total`.

    `levels` are shares of tokens that are computed, from 0 to 1; all sites together may compute from 0 to as many as
    there are. A total between two that the levels can come to is taken at the lower one: no more is computed than was
    asked for.

    >>> solve_tokens([[0.0, 1.0, 3.0], [0.0, 0.2, 0.3]], [0, 0.5, 1], 1.0).choices.tolist()
    [0, 2]
    """
    shares = checked_levels(levels)
    given = checked_costs(costs, len(shares))
    if not 0 <= total <= len(given):
        raise Fault(f"{len(given)} sites can compute from 0 to {len(given)} times their tokens, not {total:g}")
    units = units_of(shares)
    wanted = int(np.floor(total * units[-1] + 1e-6))
    each = np.broadcast_to(units, given.shape)
    cost, choices = solve(given, each, wanted, wanted)
    if not np.isfinite(cost):
        raise Fault(f"no choice of the levels {shares.tolist()} for {len(given)} sites comes to {total:g}")
    return Solution(choices, cost, float(shares[choices].sum()))


def solve_weights(
    costs: ArrayLike, weights: ArrayLike, budget: float, slack: float = 0.005, resolution: int = RESOLUTION
) -> Solution:
    """The choice of least cost [site, level] whose weights [site, level] come to `budget` or a little less.

    Weights are MACs or milliseconds of a site at a level, ascending from level to level. The total lies within `slack`
    of the budget, and never above it. Weights with a common unit of which the budget is at most `resolution` are
    counted exactly. Others are counted in about the budget's `resolution`-th part, of which all kinds of sites are
    nearly multiples; what rounding still leaves is measured on the choice that it led to, and asked for at the next.
    """
    loads = np.ascontiguousarray(weights, dtype=np.float64)
    if loads.ndim != 2 or loads.shape != np.shape(costs):
        raise Fault(f"weights must be of the costs' shape {list(np.shape(costs))}, not {list(loads.shape)}")
    given = checked_costs(costs, loads.shape[1])
    if not np.isfinite(loads).all() or (loads < 0).any() or (np.diff(loads, axis=1) < 0).any():
        raise Fault("weights must be finite, not negative, and may not fall from one level to the next")
    least, most = float(loads[:, 0].sum()), float(loads[:, -1].sum())
    if not least <= budget * (1 + 1e-12) or budget > most * (1 + 1e-12):
        raise Fault(f"the weights come to {least:g} at least and to {most:g} at most: {budget:g} cannot be met")
    lowest, highest = budget * (1 - slack) * (1 - 1e-12), budget * (1 + 1e-12)
    common = common_unit(loads)
    if common and budget / common <= resolution:
        found = _within(given, loads, common, lowest, highest)
    else:
        found = None
        for finer in FINER:
            found = found or _within(given, loads, near_unit(loads, budget, finer * resolution), lowest, highest)
    if found is None:
        raise Fault(f"no choice of these weights lies within {slack:.2%} below {budget:g}; a larger slack may have one")
    return found


def _within(costs: Floats, loads: Floats, unit: float, lowest: float, highest: float) -> Solution | None:
    """The choice of least cost whose weights, counted in a unit, come to what lies between two ends.

    What a choice weighs beyond its units hardly changes from one choice to the next: both ends are moved by it until
    the true total lies between them. None where that does not come about.
    """
    units = np.rint(loads / unit).astype(np.int64)
    drift = 0.0
    for number in range(TRIES):
        # After the first few the ends are drawn in, so that a little more or less rounding does not matter.
        inset = max(0, number - 1) * INSET * (highest - lowest)
        begin = int(np.ceil((lowest + inset - drift) / unit - 1e-6))
        end = int(np.floor((highest - inset - drift) / unit + 1e-6))
        if begin > end:
            return None
        cost, choices = solve(costs, units, begin, end)
        if not np.isfinite(cost):
            return None
        total = float(np.take_along_axis(loads, choices[:, None], 1).sum())
        if lowest <= total <= highest:
            return Solution(choices, cost, total)
        drift = total - float(np.take_along_axis(units, choices[:, None], 1).sum()) * unit
    return None
