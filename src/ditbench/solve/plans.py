"""Choices of a given total, drawn by chance: where searches begin, and what mends a choice that has missed it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ditbench.faults import Fault
from ditbench.solve.units import Floats, Ints, checked_levels, units_of


class Space:
    """All choices of `levels` for `sites` whose shares come to `total`, as near below as the levels allow."""

    def __init__(self, sites: int, levels: ArrayLike, total: float) -> None:
        shares = checked_levels(levels)
        if sites < 1 or not 0 <= total <= sites:
            raise Fault(f"{sites} sites can compute from 0 to {sites} times their tokens, not {total:g}")
        units = units_of(shares).astype(np.float64)
        wanted = float(np.floor(total * units[-1] + 1e-6))
        self._take(np.broadcast_to(units, (sites, len(units))), wanted, wanted)
        self._told = f"no choice of the levels {shares.tolist()} for {sites} sites was found at this total"

    @classmethod
    def of_weights(cls, weights: ArrayLike, least: float, most: float) -> Space:
        """All choices whose weights [site, level], such as MACs, come to what lies between two ends."""
        loads = np.asarray(weights, dtype=np.float64)
        if loads.ndim != 2 or not len(loads) or not np.isfinite(loads).all() or (np.diff(loads, axis=1) < 0).any():
            raise Fault("weights must be finite numbers [site, level], and may not fall from one level to the next")
        lightest, heaviest = float(loads[:, 0].sum()), float(loads[:, -1].sum())
        if not least <= most or most < lightest or least > heaviest * (1 + 1e-12):
            raise Fault(f"the weights come to {lightest:g} at least and to {heaviest:g} at most, not to {most:g}")
        space = cls.__new__(cls)
        space._take(loads, least, most * (1 + 1e-12))
        space._told = f"no choice of these weights was found that comes to {least:g} to {most:g}"
        return space

    def _take(self, loads: Floats, least: float, most: float) -> None:
        self.sites, self.levels = len(loads), int(loads.shape[1])
        self._loads, self._least, self._most = loads, least, most

    def draw(self, rng: np.random.Generator) -> Ints:
        """One choice: every site's level by chance, then mended."""
        return self.mend(rng.integers(0, self.levels, self.sites), rng)

    def mend(self, choice: Ints, rng: np.random.Generator) -> Ints:
        """The choice with levels of sites moved, one at a time and by chance, until the total is met."""
        choice = choice.copy()
        total = float(np.take_along_axis(self._loads, choice[:, None], 1).sum())
        for _ in range(100 * self.sites * self.levels):
            if self._least <= total <= self._most:
                return choice
            off = (self._least + self._most) / 2 - total
            # A move that comes nearer, or is as near on the other side.
            site = int(rng.integers(self.sites))
            moves = self._loads[site] - self._loads[site, choice[site]]
            nearer = np.flatnonzero((moves != 0) & (np.abs(off - moves) < abs(off)))
            if not len(nearer):
                # Levels of uneven steps may have to be left before they are met.
                if rng.random() > 0.1:
                    continue
                nearer = np.flatnonzero(moves)
                if not len(nearer):  # of a site that weighs the same at all levels
                    continue
            level = int(rng.choice(nearer))
            total += float(moves[level])
            choice[site] = level
        raise Fault(self._told)
