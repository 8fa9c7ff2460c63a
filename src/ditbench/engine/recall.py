"""Attention that is kept before its output projection, for steps that compute tokens from it.

A branch that joins attention and MLP (FLUX's single-stream blocks) can compute some of its tokens at little cost where
attention is not made anew: their MLP alone, beside what attention gave them when the branch was last computed whole.
Tokens of text and image lie side by side in such a branch, the text's first, and are chosen and kept together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ditbench.engine.costs import UnitCost
    from ditbench.engine.rows import Rows


class RecalledAttention:
    """State of one run: of each of `branches`, what attention last gave all tokens.

    `whole` and `some` say at which sites [step, branch] a branch is computed with its attention, and from what is kept.
    """

    def __init__(self, branches: Iterable[int], whole: NDArray[np.bool_], some: NDArray[np.bool_]) -> None:
        self._branches = frozenset(branches)
        self._whole: list[list[bool]] = whole.tolist()
        self._some: list[list[bool]] = some.tolist()
        self._needed: list[list[bool]] = _needed(whole, some).tolist()
        self._kept: dict[int, Tensor] = {}
        self._step = 0

    def begin(self, step: int) -> None:
        """What comes now belongs to a step."""
        self._step = step

    def covers(self, branch: int) -> bool:
        """Whether tokens of a branch are computed from attention that is kept."""
        return branch in self._branches

    def recalls(self, branch: int) -> bool:
        """Whether they are so in this step."""
        return branch in self._branches and self._some[self._step][branch]

    def needed(self, branch: int) -> bool:
        """Whether a later step asks for what a branch gives in this one."""
        return branch in self._branches and self._needed[self._step][branch]

    def keep(self, branch: int, attended: Tensor) -> None:
        """Called where a branch is computed whole, with what attention gives [samples, text + image tokens, width]."""
        if self.needed(branch):
            self._kept[branch] = attended.contiguous()

    def of(self, branch: int, rows: Rows) -> Tensor:
        """What was kept of some of the tokens."""
        return rows.take(self._kept[branch])

    @staticmethod
    def bill(cost: UnitCost, image: int, both: int) -> tuple[int, int]:
        """What `both` tokens of text and image cost less than a trace of `image` tokens has it, and its square.

        The first are MACs of linear layers; the second makes the sum of pairs that attend 0.
        """
        spared = cost.per_token * image + cost.once - (cost.per_token - cost.attending) * both
        return spared, -cost.joined * (2 * image + cost.joined)

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return sum(tensor.nbytes for tensor in self._kept.values())


def _needed(whole: NDArray[np.bool_], some: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The sites computed whole whose attention is asked for before it is made again."""
    needed = np.zeros(whole.shape, dtype=bool)
    asked = np.zeros(whole.shape[1], dtype=bool)
    for step in reversed(range(len(whole))):
        needed[step] = whole[step] & asked
        asked = (asked & ~whole[step]) | some[step]
    return needed
