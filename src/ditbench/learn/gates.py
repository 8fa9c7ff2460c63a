"""Gates: how much of a token's fresh output counts at a site, 1 where a plan computes it and 0 where it does not.

Their values are the plan's own; their gradients say what it would be worth to compute more tokens there, or fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Gates(Protocol):
    """The gates of one plan, all steps but the first."""

    def learns(self, step: int) -> bool:
        """Whether a step's gates have a gradient; where they have none, all its tokens are computed."""

    def of(self, step: int, branch: int, rank: Tensor) -> Tensor:
        """The gate of each token by its rank (0 is computed first), [samples, tokens]."""

    def of_text(self, step: int, branch: int) -> Tensor:
        """The gate of a text's own tokens, which are computed with any of the image's: a number."""


class LevelGates:
    """Gates from levels `picked` [step, branch, level], one-hot; `forced` steps compute all and learn nothing."""

    def __init__(self, picked: Tensor, counts: Sequence[int], forced: Sequence[bool]) -> None:
        self._forced = list(forced)
        # A token is computed where the level that was picked is one that reaches its rank, or a higher one.
        self._reaching = picked.flip(-1).cumsum(-1).flip(-1)
        self._counts = torch.tensor(list(counts), device=picked.device)

    def learns(self, step: int) -> bool:
        return not self._forced[step]

    def of(self, step: int, branch: int, rank: Tensor) -> Tensor:
        lowest = torch.searchsorted(self._counts, rank, right=True)
        return self._reaching[step, branch][lowest]

    def of_text(self, step: int, branch: int) -> Tensor:
        return self._reaching[step, branch, 1]


class StepGates:
    """Gates from steps that are `picked` [step, 2] to be full (second column) or not; in these a plan's `counts` hold.

    `counts` are of tokens, [step, branch]. The first step is full and learns nothing.
    """

    def __init__(self, picked: Tensor, counts: Sequence[Sequence[int]]) -> None:
        self._picked, self._counts = picked, counts

    def learns(self, step: int) -> bool:
        return step > 0

    def of(self, step: int, branch: int, rank: Tensor) -> Tensor:
        partly, full = self._picked[step]
        return full + partly * (rank < self._counts[step][branch])

    def of_text(self, step: int, branch: int) -> Tensor:
        partly, full = self._picked[step]
        return full + partly * float(self._counts[step][branch] > 0)
