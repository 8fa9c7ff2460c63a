"""Choices of a given total, drawn by chance: where searches begin, and what mends a choice that has missed it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ditbench.faults import Fault
from ditbench.solve.units import Ints, checked_levels, units_of


class Space:
    """All choices of `levels` for `sites` whose shares come to `total`, as near below as the levels allow."""

    def __init__(self, sites: int, levels: ArrayLike, total: float) -> None:
        self.shares = checked_levels(levels)
        if sites < 1 or not 0 <= total <= sites:
            raise Fault(f"{sites} sites can compute from 0 to {sites} times their tokens, not {total:g}")
        self.sites, self.units = sites, units_of(self.shares)
        self.wanted = int(np.floor(total * self.units[-1] + 1e-6))

    def draw(self, rng: np.random.Generator) -> Ints:
        """One choice: every site's level by chance, then mended."""
        return self.mend(rng.integers(0, len(self.units), self.sites), rng)

    def mend(self, choice: Ints, rng: np.random.Generator) -> Ints:
        """The choice with levels of sites moved, one at a time and by chance, until the total is met."""
        choice = choice.copy()
        off = self.wanted - int(self.units[choice].sum())
        for _ in range(100 * self.sites * len(self.units)):
            if off == 0:
                return choice
            # A move that comes nearer, or is as near on the other side.
            site = int(rng.integers(self.sites))
            moves = self.units - self.units[choice[site]]
            nearer = np.flatnonzero((moves != 0) & (np.abs(off - moves) < abs(off)))
            if not len(nearer):
                # Levels of uneven steps may have to be left before they are met.
                if rng.random() > 0.1:
                    continue
                nearer = np.flatnonzero(moves)
            level = int(rng.choice(nearer))
            off -= int(moves[level])
            choice[site] = level
        raise Fault(f"no choice of the levels {self.shares.tolist()} for {self.sites} sites was found at this total")
