"""What methods have in common that merge tokens block by block: where, by what, and how many.

A block's tokens are matched once, by what its first branch reads, for all of its branches that are merged.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

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


LAYERS_EVERY = "blocks that use one matching, where they merge as many tokens; it is made in the first that merges"
STEPS_EVERY = "steps that a matching is used for, where they merge as many tokens"


class Kept(NamedTuple):
    """A matching that others use again, and the step at which it was made."""

    step: int
    merge: Merge


class BlockMatching:
    """A selector that matches the tokens of each block once a step. State of one run.

    `plan` says what is merged; `match_block` is what a subclass brings. `attends_whole`: where a branch joins attention
    and MLP, its MLP alone is merged. `shared`: of so many blocks, and for so many steps, a matching is made once and
    used again wherever it leaves as many tokens as are wanted; `stages` [step] tells steps apart whose matchings are of
    another kind.
    """

    def __init__(
        self,
        plan: Plan,
        tokens: int,
        attends_whole: bool = False,
        shared: tuple[int, int] = (1, 1),
        stages: NDArray[np.int64] | None = None,
    ) -> None:
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
        self._block_of: list[int] = layout.block_of.tolist()
        self._layers_every, self._steps_every = shared
        self._shares = shared != (1, 1)
        self._stages: list[int] = [0] * plan.steps if stages is None else stages.tolist()
        self._kept: dict[tuple[int, int, int], Kept] = {}
        self._anew = self._makers(plan.counts(tokens), fewer, merged_in)

    def _key(self, block: int, step: int, count: int) -> tuple[int, int, int]:
        """Matchings of one key may stand for each other."""
        return block // self._layers_every, count, self._stages[step]

    def _makers(
        self, counts: NDArray[np.int64], fewer: NDArray[np.bool_], merged_in: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Where a matching is made anew, [step, block]; the other merged blocks use one again."""
        made = merged_in.copy()
        if not self._shares:
            return made
        last: dict[tuple[int, int, int], int] = {}
        block_of = np.asarray(self._block_of)
        for step, block in np.argwhere(merged_in).tolist():
            count = int(counts[step, (block_of == block) & fewer[step]][0])
            key = self._key(block, step, count)
            made[step, block] = key not in last or step - last[key] >= self._steps_every
            if made[step, block]:
                last[key] = step
        return made

    def makes(self, step: int, branch: int) -> bool:
        """Whether the matching of a branch's block is made anew at a step."""
        return bool(self._anew[step, self._block_of[branch]])

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
            self._merge = self._found(first, step, stream, count)
        return self._merge

    def _found(self, branch: int, step: int, stream: Stream, count: int) -> Merge:
        """The groups of a block: made anew, or those of another block or step."""
        hidden, seen = self._seen
        if not self._shares:
            return self.match_block(branch, step, stream, hidden, seen, count)
        key = self._key(self._block_of[branch], step, count)
        if not self.makes(step, branch):
            merge = self._kept[key].merge
            self.used_again(step, merge)
            return merge
        if not hidden.is_meta:  # where steps are billed as others like them, these stand in for those that were not run
            self._kept = {each: kept for each, kept in self._kept.items() if step - kept.step < self._steps_every}
        merge = self.match_block(branch, step, stream, hidden, seen, count)
        self._kept[key] = Kept(step, merge)
        return merge

    def used_again(self, step: int, merge: Merge) -> None:
        """Told where a matching is used that was made before."""

    @abstractmethod
    def match_block(self, branch: int, step: int, stream: Stream, hidden: Tensor, read: Tensor, count: int) -> Merge:
        """The groups of a block, from the stream that entered it and what its first `branch` reads of that."""

    def kind(self, step: int) -> Any:
        return tuple(self._anew[step].tolist()) if self._shares else None

    def count_macs(self, macs: int) -> None:
        """Notes what a matching took, of all samples together."""
        self._macs += macs

    def macs(self) -> int:
        taken, self._macs = self._macs, 0
        return taken

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next: none where no step uses what another made."""
        if self._steps_every == 1:
            return 0
        return sum(getattr(part, "nbytes", 0) for kept in self._kept.values() for part in vars(kept.merge).values())
