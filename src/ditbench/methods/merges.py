"""What methods have in common that merge tokens block by block: where, by what, and how many.

A block's tokens are matched once, by what its first branch reads, for all of its branches that are merged.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Layout, Shape
from ditbench.engine.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.merging import Merge

# Branches by what they do, whatever a family calls them. FLUX's single-stream blocks do both in one; their MLP can be
# merged alone.
KINDS = {
    "attention": ("self", "attn", "attn2", "single"),
    "cross": ("cross",),
    "mlp": ("mlp", "single"),
}
WHERE = {
    "attention": ("attention",),
    "mlp": ("mlp",),
    "attention+mlp": ("attention", "mlp"),
    "all": ("attention", "cross", "mlp"),
}


def merged_branches(layout: Layout, where: str) -> NDArray[np.bool_]:
    """Which branches of a network are merged."""
    names = {name for kind in WHERE[where] for name in KINDS[kind]}
    return np.isin(layout.name_of, sorted(names))


def merging_plan(shape: Shape, left: NDArray[np.float64], merged: NDArray[np.bool_]) -> Plan:
    """A plan in which merged branches compute the share `left` [step, block or 1] of tokens, and all others all."""
    shares = np.ones(shape.sites)
    by_branch = np.broadcast_to(left, (shape.steps, shape.layout.blocks))[:, shape.layout.block_of]
    shares[:, merged] = by_branch[:, merged]
    return Plan(shape.layout, shape.layout.by_branch, shares)


def similarity_sums(features: Tensor) -> Tensor:
    """The sum of each token's cosines to all tokens, [samples, tokens]."""
    from ditbench.engine.matching import unit

    normed = unit(features)
    sums: Tensor = (normed @ normed.sum(1, keepdim=True).transpose(1, 2))[..., 0]
    return sums


class BlockMatching:
    """A selector that matches the tokens of each block once a step. State of one run.

    `plan` says what is merged; `match_block` is what a subclass brings. `attends_whole`: where a branch joins attention
    and MLP, its MLP alone is merged.
    """

    def __init__(self, plan: Plan, tokens: int, attends_whole: bool = False) -> None:
        self.attends_whole = attends_whole
        layout = plan.layout
        fewer = plan.counts(tokens) != tokens
        self._first = [layout.span(block, block + 1).start for block in layout.block_of.tolist()]
        merged_in = np.stack([fewer[:, layout.block_of == block].any(1) for block in range(layout.blocks)], axis=1)
        # The first branch shows what it reads where it is not merged itself and another of its block is.
        self._looks: list[list[bool]] = [
            [bool(merged_in[step, block]) and not fewer[step, branch] for branch, block in enumerate(layout.block_of)]
            for step in range(plan.steps)
        ]
        self._merge: Merge | None = None
        self._macs = 0

    def looks(self, branch: int, step: int) -> bool:
        return self._first[branch] == branch and self._looks[step][branch]

    def look(self, branch: int, step: int, stream: Stream, read: Tensor) -> None:
        self._seen = (stream.hidden, read)
        self._merge = None

    def match(self, branch: int, step: int, stream: Stream, read: Tensor, count: int) -> Merge:
        first = self._first[branch]
        if branch == first:
            self._seen = (stream.hidden, read)
            self._merge = None
        if self._merge is None:
            hidden, seen = self._seen
            self._merge = self.match_block(first, step, stream, hidden, seen, count)
        return self._merge

    @abstractmethod
    def match_block(self, branch: int, step: int, stream: Stream, hidden: Tensor, read: Tensor, count: int) -> Merge:
        """The groups of a block, from the stream that entered it and what its first `branch` reads of that."""

    def kind(self, step: int) -> Any:
        return None

    def count_macs(self, macs: int) -> None:
        """Notes what a matching took, of all samples together."""
        self._macs += macs

    def macs(self) -> int:
        taken, self._macs = self._macs, 0
        return taken
