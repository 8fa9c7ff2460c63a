"""Attention that is kept before its output projection, for steps that compute tokens from it.

A branch that joins attention and MLP (FLUX's single-stream blocks) can compute some of its tokens at little cost where
attention is not made anew: their MLP alone, beside what attention gave them when the branch was last computed whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, cat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ditbench.engine.costs import UnitCost
    from ditbench.engine.rows import Rows


class RecalledAttention:
    """State of one run: of each of `branches`, what attention last gave the text's tokens and the image's."""

    def __init__(self, branches: Iterable[int]) -> None:
        self._branches = frozenset(branches)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def covers(self, branch: int) -> bool:
        """Whether tokens of a branch are computed from attention that is kept."""
        return branch in self._branches

    def keep(self, branch: int, attended: Tensor, text_tokens: int) -> None:
        """Called where a branch is computed whole: [samples, text + image tokens, width], the text's first."""
        if self.covers(branch):
            text, image = attended[:, :text_tokens], attended[:, text_tokens:]
            self._kept[branch] = (text.contiguous(), image.contiguous())

    def of(self, branch: int, image_rows: Rows, text_rows: Rows | None) -> Tensor:
        """What was kept of some of the image's tokens, and of some of the text's or all, the text's first."""
        text, image = self._kept[branch]
        return cat([text if text_rows is None else text_rows.take(text), image_rows.take(image)], dim=1)

    @staticmethod
    def square(cost: UnitCost, tokens: int) -> int:
        """What a trace has as the square of a count of tokens, where nobody attends to anything: pairs sum to 0."""
        return -cost.joined * (2 * tokens + cost.joined)

    @staticmethod
    def spared(cost: UnitCost, tokens: int) -> int:
        """MACs of linear layers that so many tokens of image and text do without."""
        return cost.attending * tokens

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return sum(tensor.nbytes for pair in self._kept.values() for tensor in pair)
