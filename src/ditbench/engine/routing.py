"""Routers: a learned score for every token of every block, which says which tokens pass through it, and how much.

One linear map without a bias per block reads what enters the block; the sigmoid of what it gives is the token's score
(DiffCR, after mixture of depths). The tokens of highest score go through the block, and the score multiplies what its
last branch, the MLP, adds: that is what a router learns by. All else about a token is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditbench.backbones.stream import Output
from ditbench.engine.rows import Rows
from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.backbones import Stream
    from ditbench.engine.layout import Layout, Unit

# What a token's score is, of its router's raw answer.
SIGMOID, DOUBLED = "sigmoid", "doubled"


def scores_of(hidden: Tensor, router: Tensor, kind: str) -> Tensor:
    """The score of every token, [samples, tokens]; `doubled` lies between 0 and 2, so that it may be 1."""
    score = torch.sigmoid(hidden @ router)
    return 2 * score if kind == DOUBLED else score


def best(scores: Tensor, count: int) -> Tensor:
    """The `count` tokens of highest score of every sample, in raster order."""
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def gate_of(scores: Tensor, rows: Rows | None, like: Tensor) -> Tensor:
    """The scores of the tokens at `rows`, or of all, as what multiplies their outputs."""
    own = scores if rows is None else scores.gather(1, rows.index)
    return own[..., None].to(like.dtype)


def scaled_branches(layout: Layout, gated: Sequence[bool] | None = None) -> list[bool]:
    """Which branches scores multiply: the last of every gated block, its MLP, or all of it where it is one branch.

    All blocks are gated unless it is said of each.
    """
    own = gated or [True] * layout.blocks
    last = {int(block): number for number, block in enumerate(layout.block_of)}
    return [last[int(block)] == number and own[int(block)] for number, block in enumerate(layout.block_of)]


class RoutedTokens:
    """Chooses tokens by routers' scores, and scales what blocks give them.

    `routers` is [blocks, width], the kind of score as in `scores_of`. `sharing` says by which score both branches of
    guidance choose: each by its own (`separate`), or by the greater (`max`) or the mean of the two (`mean`). Blocks
    that are not `gated` are left as they are, unscored, where all their tokens are computed.
    """

    def __init__(
        self, routers: Tensor | None, layout: Layout, kind: str, sharing: str, gated: Sequence[bool] | None = None
    ) -> None:
        if routers is not None and (routers.ndim != 2 or len(routers) != layout.blocks):
            found = tuple(routers.shape)
            raise Fault(f"the routers are {found} by blocks and width, and this network has {layout.blocks} blocks")
        self._routers, self._kind, self._sharing = routers, kind, sharing
        self._scales, self._gated = scaled_branches(layout, gated), gated or [True] * layout.blocks
        self._block_of: Sequence[int] = layout.block_of.tolist()
        self._scores: Tensor | None = None  # of the block that is computed now
        self._macs = 0

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        """The tokens that pass through a block."""
        ranked = self.score(unit, step, stream)
        if self._sharing != "separate" and stream.halves == 2:
            first, second = ranked.chunk(2)
            both = torch.maximum(first, second) if self._sharing == "max" else (first + second) / 2
            index = best(both, count)
            return Rows(torch.cat([index, index]), stream.tokens)
        return Rows(best(ranked, count), stream.tokens)

    def enter(self, unit: Unit, step: int, stream: Stream) -> None:
        """Scores the tokens that enter a block, where scores scale it."""
        if self._gated[self._block_of[unit.start]]:
            self.score(unit, step, stream)

    def score(self, unit: Unit, step: int, stream: Stream) -> Tensor:
        """The scores of the tokens that enter a block."""
        hidden = stream.hidden
        block = self._block_of[unit.start]
        self._macs += hidden.shape[0] * hidden.shape[1] * hidden.shape[2]
        self._scores = scores_of(hidden, self._router(block, hidden), self._kind)
        return self._scores

    def _router(self, block: int, hidden: Tensor) -> Tensor:
        if self._routers is None:
            if not hidden.is_meta:  # what has no values is run without routers, to count what it costs
                raise Fault("routers must be trained before tokens are routed by them: `ditbench learn` does it")
            return hidden.new_empty(hidden.shape[-1])
        if self._routers.shape[1] != hidden.shape[-1]:
            raise Fault(f"the routers are of a width of {self._routers.shape[1]}, this network's is {hidden.shape[-1]}")
        if self._routers.device != hidden.device or self._routers.dtype != hidden.dtype:
            self._routers = self._routers.to(hidden.device, hidden.dtype)
        return self._routers[block]

    def scaled(self, branch: int, output: Output, rows: Rows | None) -> Output:
        """A branch's output, scaled where scores scale it."""
        if not self._scales[branch]:
            return output
        assert self._scores is not None
        return Output(output.image * gate_of(self._scores, rows, output.image), output.text)

    def macs(self) -> int:
        """What scoring took since this was last asked."""
        taken, self._macs = self._macs, 0
        return taken

    def nbytes(self) -> int:
        """Nothing is kept from one step to the next."""
        return 0
