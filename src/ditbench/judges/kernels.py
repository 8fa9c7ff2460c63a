"""Maximum mean discrepancies of two sets of features, over all pairs, with and without each group of the first set.

Sums of kernel values are kept by group, so that what a group's absence changes follows without another pass. Pairs are
taken some rows at a time, on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Kernel = Callable[[Tensor, Tensor], Tensor]

GROUPS = 50
ROWS = 1024


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """KID's polynomial kernel (x.y / width + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / 2 sigma^2) less 1, which no difference of means notices and single precision is thankful for."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * (x @ y.T)
        return (-squares.clamp_min(0) / (2 * sigma**2)).expm1()

    return kernel


@dataclass(frozen=True)
class Sums:
    """Sums of kernel values: between groups of the first set, to the second set, and within the second set."""

    within: NDArray[np.float64]  # [groups, groups]
    diagonal: NDArray[np.float64]  # [groups]
    across: NDArray[np.float64]  # [groups]
    sizes: NDArray[np.int64]  # [groups]
    other: float
    other_diagonal: float
    others: int

    def discrepancy(self, unbiased: bool, without: int | None = None) -> float:
        """The squared discrepancy, of all of the first set or without one group."""
        kept = np.ones(len(self.sizes), dtype=bool)
        if without is not None:
            kept[without] = False
        n, m = int(self.sizes[kept].sum()), self.others
        own, other = self.within[np.ix_(kept, kept)].sum(), self.other
        if unbiased:
            own, other = own - self.diagonal[kept].sum(), other - self.other_diagonal
            pairs, other_pairs = n * (n - 1), m * (m - 1)
        else:
            pairs, other_pairs = n * n, m * m
        return float(own / pairs + other / other_pairs - 2 * self.across[kept].sum() / (n * m))

    def leaving_out(self, unbiased: bool) -> tuple[float, NDArray[np.float64]]:
        """The squared discrepancy, and those with each group left out."""
        every = [self.discrepancy(unbiased, group) for group in range(len(self.sizes))]
        return self.discrepancy(unbiased), np.array(every)


def sums(first: NDArray[np.float32], second: NDArray[np.float32], kernel: Kernel, device: str = "cpu") -> Sums:
    """Kernel sums of two sets of features [n, width] and [m, width]; groups are interleaved, as the jackknife's are."""
    import torch

    groups = min(GROUPS, len(first))
    x, y = (torch.from_numpy(np.ascontiguousarray(f)).to(device) for f in (first, second))
    of = torch.arange(len(x), device=device) % groups
    within = torch.zeros(groups, groups, dtype=torch.float64, device=device)
    diagonal, across = (torch.zeros(groups, dtype=torch.float64, device=device) for _ in range(2))
    for start in range(0, len(x), ROWS):
        rows, own = x[start : start + ROWS], of[start : start + ROWS]
        values = kernel(rows, x)
        columns = torch.zeros(len(rows), groups, dtype=torch.float64, device=device)
        columns.index_add_(1, of, values.double())
        within.index_add_(0, own, columns)
        number = torch.arange(len(rows), device=device)
        diagonal.index_add_(0, own, values[number, start + number].double())
        across.index_add_(0, own, kernel(rows, y).double().sum(1))
    other = other_diagonal = 0.0
    for start in range(0, len(y), ROWS):
        values = kernel(y[start : start + ROWS], y)
        number = torch.arange(len(values), device=device)
        other += float(values.double().sum())
        other_diagonal += float(values[number, start + number].double().sum())
    sizes = torch.bincount(of, minlength=groups)
    moved = [t.cpu().numpy() for t in (within, diagonal, across, sizes)]
    return Sums(moved[0], moved[1], moved[2], moved[3], other, other_diagonal, len(y))
