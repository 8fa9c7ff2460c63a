"""Levels and weights as whole numbers of a unit, which exact solvers count in."""

from __future__ import annotations

from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ditbench.faults import Fault

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FINEST = 1000  # levels are fractions of denominators up to this
KINDS = 64  # of sites, up to which a unit is looked for that suits all of them
UNITS = 2000  # that are compared, from one to twice as fine as was asked for


def checked_levels(levels: ArrayLike) -> Floats:
    """Shares of tokens that a site may compute: ascending, from 0 to 1."""
    given = np.asarray(levels, dtype=np.float64)
    if given.ndim != 1 or not np.isfinite(given).all() or (np.diff(given) <= 0).any():
        raise Fault(f"levels must be a list of ascending shares, not {np.asarray(levels).tolist()}")
    if len(given) < 2 or given[0] != 0 or given[-1] != 1:
        raise Fault(f"levels must begin with 0 (no token) and end with 1 (all tokens), not {given.tolist()}")
    return given


def units_of(levels: Floats) -> Ints:
    """Levels as multiples of the largest unit that they all are multiples of: 0, 0.25, 1 are 0, 1, 4."""
    fractions = [Fraction(float(level)).limit_denominator(FINEST) for level in levels]
    for level, fraction in zip(levels, fractions, strict=True):
        if abs(float(fraction) - level) > 1e-9:
            raise Fault(f"level {level:g} is no fraction with a denominator up to {FINEST}")
    whole = lcm(*(fraction.denominator for fraction in fractions))
    counts = [int(fraction * whole) for fraction in fractions]
    common = gcd(*counts)
    return np.array([count // common for count in counts], dtype=np.int64)


def checked_costs(costs: ArrayLike, levels: int) -> Floats:
    """Costs [site, level], finite."""
    given = np.ascontiguousarray(costs, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != levels or not len(given):
        raise Fault(f"costs must be of shape [sites, {levels} levels], not {list(given.shape)}")
    if not np.isfinite(given).all():
        site, level = (int(where[0]) for where in np.nonzero(~np.isfinite(given)))
        raise Fault(f"the cost of site {site} at level {level} is {given[site, level]}: costs must be finite")
    return given


def common_unit(weights: Floats) -> float:
    """The largest unit that whole weights are multiples of; 0 where they are not whole."""
    rounded = np.rint(weights)
    if not np.array_equal(rounded, weights) or weights.max() >= 2**62:
        return 0.0
    return float(np.gcd.reduce(np.unique(rounded).astype(np.int64)))


def near_unit(weights: Floats, budget: float, resolution: int) -> float:
    """A unit of at most the budget's `resolution`-th part, of which the weights [site, level] are nearly multiples.

    Sites are of few kinds, as a network's branches are: of many units, the one is taken by which all sites together
    are rounded least.
    """
    coarsest = max(budget, float(weights.max())) / resolution
    kinds, counts = np.unique(weights, axis=0, return_counts=True)
    if len(kinds) > KINDS:
        return coarsest
    units = coarsest / np.linspace(1, 2, UNITS)
    parts = kinds / units[:, None, None]
    off = np.abs(parts - np.rint(parts)).max(2) @ counts * units
    return float(units[off.argmin()])
