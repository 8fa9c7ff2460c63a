"""SiTo: similarity-based token pruning for Stable Diffusion (AAAI 2025), at a transformer's single resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.fills import Fill, Pass
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import Method, knob
from ditbench.methods.merges import WHERE, BlockMatching, merged_branches, merging_plan, similarity_sums

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.merging import Merge, Merging


@dataclass(frozen=True)
class SiTo(Method):
    """The tokens most like a base token are left out, and receive what the most alike of those computed is given.

    A square's base token is the one most like all tokens of the image, with some noise. The published code turns
    everything to float16 for the similarity, which is not done here.
    """

    name: ClassVar[str] = "sito"
    summary: ClassVar[str] = "tokens much like a base token are left out and receive what their most alike one does"
    paper: ClassVar[str] = "SiTo"

    ratio: float = knob(0.5, "share of tokens that are left out, of a merged branch", least=0, most=1)
    where: str = knob("attention", "branches that leave tokens out", choices=tuple(WHERE))
    similarity: float = knob(1.0, "weight of a token's similarity to all tokens in choosing base tokens (beta)")
    noise: float = knob(0.1, "weight of normal noise in choosing base tokens (alpha)", least=0)
    side: int = knob(2, "side of a square in tokens", least=2)

    def left(self, shape: Shape) -> NDArray[np.float64]:
        """The share of tokens that such a branch computes, [1, 1]."""
        gone = np.floor(min(self.ratio, 1 - 1 / self.side**2) * shape.tokens + 1e-9)
        return np.full((1, 1), 1 - gone / shape.tokens)

    def plan(self, shape: Shape) -> Plan:
        return merging_plan(shape, self.left(shape), merged_branches(shape.layout, self.where))

    def fill(self, shape: Shape) -> Fill:
        return Pass()

    def selector(self, shape: Shape, generator: Generator) -> Merging:
        return _Matching(self.plan(shape), shape.tokens, self, generator)


class _Matching(BlockMatching):
    """Base tokens by similarity to all and chance; alike in what entered the block."""

    def __init__(self, plan: Plan, tokens: int, method: SiTo, generator: Generator) -> None:
        super().__init__(plan, tokens, method.where == "mlp")
        self.method, self.generator = method, generator

    def match_block(self, branch: int, step: int, stream: Stream, hidden: Tensor, read: Tensor, count: int) -> Merge:
        from ditbench.engine.chance import normal
        from ditbench.engine.matching import Windows, bipartite, nearest_kept, one_of_each
        from ditbench.engine.scored import grid_of

        noise = normal(stream, step, branch, self.generator)
        scores = self.method.similarity * similarity_sums(hidden) + self.method.noise * noise
        base = one_of_each(Windows(grid_of(stream), self.method.side, hidden.device), scores)
        gone, _ = bipartite(hidden, base).closest(hidden.shape[1] - count)
        samples, tokens, width = hidden.shape
        # All cosines are made once, as in the published code: what is looked for in them needs no more products.
        self.count_macs(samples * tokens * width * (1 + tokens))
        return nearest_kept(hidden, gone)
