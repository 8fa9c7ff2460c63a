"""A network's forward in which every token is mixed of what is computed for it now and what was computed before.

Weights of 1 are the network to the last bit, weights of 0 a step that reuses; what lies between has the gradient of
how much a token is worth computing. Mixed is what branches give out before their gates, or what whole blocks add; a
block of one branch is a branch here as it is where plans are executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ditbench.backbones.stream import Output

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.layout import Unit

# What every unit gave out, by its first branch.
Given = dict[int, Output]


class MixedForward:
    """The forward of a network; `by_block` says that whole blocks are mixed, else branches are."""

    def __init__(self, backbone: Backbone, by_block: bool, checkpointing: bool = False) -> None:
        self.backbone, self.by_block, self.checkpointing = backbone, by_block, checkpointing

    def plain(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], look: Callable[[Stream], None] | None = None
    ) -> tuple[Any, Given]:
        """The network's own answer, and what its units gave out; `look` sees what enters them."""
        stream = self.backbone.enter(*args, **kwargs)
        if look is not None:
            look(stream)
        given: Given = {}
        for unit in self.backbone.layout.by_block:
            before = (stream.hidden, stream.text)
            for branch in range(unit.start, unit.stop):
                output = self.backbone.compute(stream, branch)
                self.backbone.add(stream, branch, output)
                if not self._whole(unit):
                    given[branch] = output
            if self._whole(unit):
                given[unit.start] = _added(stream, *before)
        return self.backbone.leave(stream), given

    def mixed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], before: Given, weigh: Callable[[Stream], Tensor]
    ) -> Any:
        """The answer where tokens are mixed with what was given `before`.

        `weigh` answers with the weights [samples or 1, blocks, tokens] of the first blocks; later ones are computed.
        """
        stream = self.backbone.enter(*args, **kwargs)
        weights = weigh(stream)
        for block, unit in enumerate(self.backbone.layout.by_block):
            own = weights[:, block, :, None] if block < weights.shape[1] else None
            if self.checkpointing:
                # What a block computes once for all must not outlive it: it is computed again with the block.
                memo = dict(stream.memo)
                stream.hidden, stream.text = checkpoint(
                    self._block, unit, stream, memo, stream.hidden, stream.text, before, own, use_reentrant=False
                )
            else:
                stream.hidden, stream.text = self._block(
                    unit, stream, stream.memo, stream.hidden, stream.text, before, own
                )
        return self.backbone.leave(stream)

    def _whole(self, unit: Unit) -> bool:
        """Whether what a block adds is mixed, and not what its branches give out."""
        return self.by_block and not unit.single

    def _block(
        self,
        unit: Unit,
        stream: Stream,
        memo: dict[Any, Any],
        hidden: Tensor,
        text: Tensor | None,
        before: Given,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What leaves a block: image and text tokens."""
        memo = dict(memo) if self.checkpointing else memo
        part = replace(stream, given=hidden, text=text, pending=[], fed={}, memo=memo)
        for branch in range(unit.start, unit.stop):
            output = self.backbone.compute(part, branch)
            if weights is not None and not self._whole(unit):
                output = mix(before[branch], output, weights)
            self.backbone.add(part, branch, output)
        if weights is None or not self._whole(unit):
            return part.hidden, part.text
        added = before[unit.start]
        reused = Output(hidden + added.image, None if text is None or added.text is None else text + added.text)
        mixed = mix(reused, Output(part.hidden, part.text), weights)
        return mixed.image, mixed.text


def mix(before: Output, now: Output, weights: Tensor) -> Output:
    """`weights` [samples or 1, tokens, 1] of what is computed, and for the rest what was before.

    The text's own tokens are computed with any of the image's: they are mixed by how probable it is that one is, were
    weights probabilities.
    """
    image = torch.lerp(before.image, now.image, weights.to(now.image.dtype).expand(len(now.image), -1, -1))
    if now.text is None or before.text is None:
        return Output(image, now.text)
    of_text = 1 - (1 - weights).prod(dim=1, keepdim=True)
    return Output(image, torch.lerp(before.text, now.text, of_text.to(now.text.dtype)))


def _added(stream: Stream, hidden: Tensor, text: Tensor | None) -> Output:
    """What a block added to its stream."""
    added = None if text is None or stream.text is None or stream.text is text else stream.text - text
    return Output(stream.hidden - hidden, added)
