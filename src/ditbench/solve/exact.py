"""Dynamic programming over sites: the least cost of a total, counted in whole units.

F(i, r) = min over levels s of F(i - 1, r - units(i, s)) + C(i, s), equations 6 and 7 of DiffSparse, for totals that the
sites before can reach and from which those after can still reach the end: O(sites x totals x levels) in time. Rows of F
are kept as far as memory allows, and computed anew from checkpoints where it does not; the levels are found from them
on the way back.
"""

from __future__ import annotations

import numpy as np

from ditbench.solve.units import Floats, Ints

MEMORY = 120_000_000  # bytes of rows that are kept at once


class Table:
    """F for sites with `costs` [site, level] (infinite where a level is forbidden) and `units` [site, level].

    Units of a site begin with 0. Totals are from 0 to `most`; `least` is the smallest that is asked for.
    """

    def __init__(self, costs: Floats, units: Ints, least: int, most: int) -> None:
        self.costs, self.units, self.most = costs, units, most
        self._rises = units.max(1)
        before = np.concatenate([[0], np.cumsum(self._rises)])
        self._low = np.maximum(0, least - (before[-1] - before)).tolist()
        self._high = np.minimum(most, before).tolist()
        # Equal steps from level to level let all levels of a site be added at once.
        steps = np.diff(units, axis=1)
        self._step = np.where((steps == steps[:, :1]).all(1) & (steps[:, 0] > 0), steps[:, 0], 0).tolist()
        self._pad = int(self._rises.max())
        width = self._pad + most + 1
        sites = len(costs)
        kept = max(2, MEMORY // (8 * width))
        self.block = sites if sites + 1 <= kept else max(1, min(sites, int(np.sqrt(sites)) + 1))
        self._width = width

    def best(self, least: int) -> tuple[float, list[int]]:
        """The least cost of a total from `least` to the most, and every site's level; infinite where there is none."""
        starts = list(range(0, len(self.costs), self.block))
        rows = self._rows(self.block)
        checkpoints = []
        for start in starts:
            if start:
                rows[0] = rows[self._size(start - self.block)]
            else:
                rows[0] = np.inf
                rows[0, self._pad] = 0
            checkpoints.append(rows[0].copy() if len(starts) > 1 else rows[0])
            self._fill(rows, start)
        last = rows[self._size(starts[-1])][self._pad + least : self._pad + self.most + 1]
        total = least + int(np.argmin(last))
        cost = float(last[total - least])
        if not np.isfinite(cost):
            return cost, []
        levels: list[int] = []
        for number in reversed(range(len(starts))):
            if number < len(starts) - 1:
                rows[0] = checkpoints[number]
                self._fill(rows, starts[number])
            total = self._back(rows, starts[number], total, levels)
        return cost, levels[::-1]

    def _rows(self, count: int) -> Floats:
        return np.full((count + 1, self._width), np.inf)

    def _size(self, start: int) -> int:
        return min(self.block, len(self.costs) - start)

    def _fill(self, rows: Floats, start: int) -> None:
        """Rows of the sites from `start` on, after the first, which is given."""
        pad, count = self._pad, self.costs.shape[1]
        room = np.empty((count, self._width))
        stride = rows.strides[1]
        for i in range(self._size(start)):
            site = start + i
            low, high, step = self._low[site + 1], self._high[site + 1], self._step[site]
            below, above = rows[i], rows[i + 1]
            above.fill(np.inf)
            if high < low:
                continue
            width = high - low + 1
            answer = above[pad + low : pad + high + 1]
            if step:
                shifted = np.ndarray(
                    (count, width),
                    np.float64,
                    rows,
                    i * rows.strides[0] + (pad + low) * stride,
                    (-step * stride, stride),
                )
                candidates = room[:, :width]
                np.add(shifted, self.costs[site, :, None], out=candidates)
                np.minimum.reduce(candidates, axis=0, out=answer)
                continue
            for level in range(count):
                first = pad + low - int(self.units[site, level])
                candidate = room[0, :width]
                np.add(below[first : first + width], self.costs[site, level], out=candidate)
                np.minimum(answer, candidate, out=answer)

    def _back(self, rows: Floats, start: int, total: int, levels: list[int]) -> int:
        """From the total after a block to the one before it; levels are added last site first."""
        for i in reversed(range(self._size(start))):
            site = start + i
            # The same sums as on the way forth: one of them is equal to the last bit.
            sums = rows[i][self._pad + total - self.units[site]] + self.costs[site]
            level = int(np.argmin(sums))
            levels.append(level)
            total -= int(self.units[site, level])
        return total
