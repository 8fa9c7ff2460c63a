"""The training forward of a routed network: every block with the two nearest bins of tokens, and the mix of both.

A router learns by what its scores multiply, the MLP of the tokens it chose; a ratio learns by the weight of the two
bins, whose outputs' difference over the gap is its gradient (DiffCR). Where there is one bin, nothing is mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ditbench.engine.routing import gate_of, scaled_branches, scores_of
from ditbench.engine.rows import Rows
from ditbench.learn.shared import Shared

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.layout import Unit


class Mix(NamedTuple):
    """The tokens of a block's two bins, more and fewer, and how much the one of fewer weighs; None: there is one."""

    more: int
    fewer: int
    weight: Tensor | None


def mix_of(ratio: Tensor, shares: Sequence[float], tokens: int) -> Mix:
    """The two bins nearest to a ratio of compression, with the weights that mix them to it."""
    value = float(ratio.detach())
    upper = next((n for n, share in enumerate(shares) if share > value), len(shares) - 1)
    low, high = shares[max(upper - 1, 0)], shares[upper]
    return Mix(kept_tokens(low, tokens), kept_tokens(high, tokens), (ratio - low) / (high - low))


def kept_tokens(share: float, tokens: int) -> int:
    """How many tokens go through a block where a share of them passes by; rounded up, as a plan does."""
    return min(tokens, -int(-((1 - share) * tokens - 1e-9) // 1))


def _mixed(more: Tensor, fewer: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(more, fewer, weight.to(more.dtype))


class RoutedForward:
    """A network's forward in training; `routers` [blocks, width] is None where all tokens go through, unscaled.

    Blocks that are not `gated` are not scaled either; all are unless it is said of each.
    """

    def __init__(
        self,
        backbone: Backbone,
        routers: Tensor | None,
        kind: str,
        checkpointing: bool = False,
        gated: Sequence[bool] | None = None,
    ) -> None:
        self.backbone, self.routers, self.kind, self.checkpointing = backbone, routers, kind, checkpointing
        self._scales = scaled_branches(backbone.layout, gated)

    def __call__(self, inputs: Mapping[str, Any], mixes: Sequence[Mix] | None) -> Any:
        """The network's answer; `mixes` has one for every block."""
        stream = self.backbone.enter(**inputs)
        for block, unit in enumerate(self.backbone.layout.by_block):
            mix = mixes[block] if mixes is not None else None
            if self.checkpointing:
                # What a block computes once for all must not outlive it: it is computed again with the block.
                memo = dict(stream.memo)
                stream.hidden, stream.text = checkpoint(
                    self._block, block, unit, stream, memo, stream.hidden, stream.text, mix, use_reentrant=False
                )
            else:
                stream.hidden, stream.text = self._block(
                    block, unit, stream, stream.memo, stream.hidden, stream.text, mix
                )
        return self.backbone.leave(stream)

    def _block(
        self,
        block: int,
        unit: Unit,
        stream: Stream,
        memo: dict[Any, Any],
        hidden: Tensor,
        text: Tensor | None,
        mix: Mix | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What leaves a block: image and text tokens."""
        memo = dict(memo) if self.checkpointing else memo
        entered = replace(stream, given=hidden, text=text, pending=[], fed={}, memo=memo)
        if self.routers is None or mix is None:
            return self._through(unit, entered, None, None)
        scores = scores_of(hidden, self.routers[block], self.kind)
        # The tokens of the smaller bin are among those of the larger.
        order = scores.detach().topk(max(mix.more, mix.fewer), dim=1).indices
        more, weight = order[:, : mix.more].sort(dim=1).values, mix.weight
        if weight is None:
            return self._with(unit, entered, scores, more)
        shared = Shared(self.backbone.inner(unit.start), more)
        with shared.kept():
            found = self._with(unit, entered, scores, more)
        less = order[:, : mix.fewer].sort(dim=1).values
        with shared.given(less):
            fewer = self._with(unit, entered, scores, less)
        text = None if found[1] is None or fewer[1] is None else _mixed(found[1], fewer[1], weight)
        return _mixed(found[0], fewer[0], weight), text

    def _with(self, unit: Unit, entered: Stream, scores: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """A block of the tokens at `index` [samples, k] (ascending); the others pass by."""
        if index.shape[1] == entered.tokens:
            return self._through(unit, replace(entered, pending=[], fed={}), scores, None)
        rows = Rows(index, entered.tokens)
        part = entered.at(rows)
        hidden, text = self._through(unit, part, scores, rows)
        # Without gradients tokens are put in place, and the other bin still needs them as they were.
        whole = (
            entered.hidden if torch.is_grad_enabled() else entered.hidden.clone(memory_format=torch.contiguous_format)
        )
        return rows.put(whole, hidden), text

    def _through(
        self, unit: Unit, part: Stream, scores: Tensor | None, rows: Rows | None
    ) -> tuple[Tensor, Tensor | None]:
        from ditbench.backbones.stream import Output

        for branch in range(unit.start, unit.stop):
            output = self.backbone.compute(part, branch)
            if scores is not None and self._scales[branch]:
                output = Output(output.image * gate_of(scores, rows, output.image), output.text)
            self.backbone.add(part, branch, output)
        return part.hidden, part.text
