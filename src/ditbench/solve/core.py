"""The sites that are undecided: a price on units decides most of them, and a bound says that it does so rightly.

With a price p on a unit, the least of cost - p x units at every site, added up, is a lower bound for every plan of the
total (Lagrange). Against any known plan, a level whose own loss at that price is more than the gap between the two
cannot be in the best one. What is left goes to the table; of costs without many ties that is a handful of sites.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ditbench.solve.exact import Table
from ditbench.solve.units import Floats, Ints

FIRST = 64  # sites that are tried first
ROUNDING = 1e-9  # of the costs' size: bounds this near do not decide


class Priced(NamedTuple):
    """Each level's loss at a price against the site's best one, the best levels, and the lower bound."""

    losses: Floats
    best: Ints
    bound: float


def solve(costs: Floats, units: Ints, least: int, most: int) -> tuple[float, Ints]:
    """The levels of least cost with a total of units from `least` to `most`; (inf, …) where there are none.

    `units` [site, level] ascend within a site.
    """
    base = units[:, 0]
    units, least, most = units - base[:, None], least - int(base.sum()), most - int(base.sum())
    if most < 0 or least > int(units[:, -1].sum()):
        return np.inf, np.zeros(len(costs), dtype=np.int64)
    size = float(np.abs(costs).max()) * len(costs) or 1.0
    priced = _lean(price(costs, units, max(least, 0), most), units, max(least, 0), most, ROUNDING * size / len(costs))
    # Sites by how little another level would lose: those first in doubt come first.
    doubt = np.sort(priced.losses, axis=1)[:, 1]
    order = np.argsort(doubt, kind="stable")
    count = min(FIRST, len(costs))
    while True:
        cost, levels = _solve_core(costs, units, least, most, priced, order[:count])
        if count == len(costs):
            return cost, levels
        if np.isfinite(cost):
            gap = cost - priced.bound + ROUNDING * size
            if gap <= 2 * ROUNDING * size:
                return cost, levels  # at the bound: nothing is better
            needed = int((doubt <= gap).sum())
            if needed <= count:
                return cost, levels
            priced = priced._replace(losses=np.where(priced.losses <= gap, priced.losses, np.inf))
            count = needed
        else:
            count = min(4 * count, len(costs))


def price(costs: Floats, units: Ints, least: int, most: int) -> Priced:
    """The price with the highest lower bound, to the precision that decides."""
    free = _at(costs, units, 0.0)
    used = _total(units, free.best)
    if least <= used <= most:
        return free
    target = least if used < least else most
    # Beyond the steepest change between two levels, all sites are at one end.
    rises = np.diff(costs, axis=1) / np.maximum(np.diff(units, axis=1), 1)
    low, high = float(rises.min()) - 1, float(rises.max()) + 1
    best = free
    for _ in range(60):
        middle = (low + high) / 2
        found = _at(costs, units, middle)
        found = found._replace(bound=found.bound + middle * target)
        if found.bound > best.bound or best is free:
            best = found
        used = _total(units, found.best)
        if used == target or high - low <= 1e-12 * max(abs(low), abs(high)):
            break
        low, high = (middle, high) if used < target else (low, middle)
    return best


def _lean(priced: Priced, units: Ints, least: int, most: int, even: float) -> Priced:
    """The best levels with ties broken towards the total: what is equally good is taken as it is needed.

    From the last site on, so that the first ones, which are tried first, are left to make up what is missing.
    """
    tied = priced.losses <= even
    low = np.where(tied, units, units.max() + 1).argmin(1)
    high = np.where(tied, units, -1).argmax(1)
    few, many = (np.take_along_axis(units, which[:, None], 1)[:, 0] for which in (low, high))
    target = least if int(many.sum()) <= least else min(most, int(many.sum()))
    raised = (few.sum() + np.cumsum((many - few)[::-1]) <= target)[::-1]
    return priced._replace(best=np.where(raised, high, low))


def _at(costs: Floats, units: Ints, price: float) -> Priced:
    weighed = costs - price * units
    best = weighed.argmin(1)
    least = np.take_along_axis(weighed, best[:, None], 1)
    return Priced(weighed - least, best, float(least.sum()))


def _total(units: Ints, levels: Ints) -> int:
    return int(np.take_along_axis(units, levels[:, None], 1).sum())


def _solve_core(costs: Floats, units: Ints, least: int, most: int, priced: Priced, sites: Ints) -> tuple[float, Ints]:
    """The best plan in which all but `sites` are at their best level for the price."""
    levels = priced.best.copy()
    fixed = np.ones(len(costs), dtype=bool)
    fixed[sites] = False
    settled = np.take_along_axis(units, levels[:, None], 1)[:, 0][fixed].sum()
    rest_least, rest_most = max(0, least - int(settled)), most - int(settled)
    own = np.where(np.isinf(priced.losses[sites]), np.inf, costs[sites])
    if rest_most < 0 or rest_least > int(units[sites, -1].sum()):
        return np.inf, levels
    rest_most = min(rest_most, int(units[sites, -1].sum()))
    _, found = Table(own, units[sites], rest_least, rest_most).best(rest_least)
    if not found:
        return np.inf, levels
    levels[sites] = found
    return float(np.take_along_axis(costs, levels[:, None], 1).sum()), levels
