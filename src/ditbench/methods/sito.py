"""SiTo: similarity-based token pruning for Stable Diffusion (AAAI 2025), at a transformer's single resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.fills import Fill, Pass
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import Method, knob
from ditbench.methods.merges import (
    LAYERS_EVERY,
    STEPS_EVERY,
    WHERE,
    BlockMatching,
    merged_branches,
    merging_plan,
    similarity_sums,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.merging import Groups, Merge, Merging


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
    layers_every: int = knob(1, LAYERS_EVERY, least=1, later=True)
    steps_every: int = knob(1, STEPS_EVERY, least=1, later=True)

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
        super().__init__(plan, tokens, method.where == "mlp", (method.layers_every, method.steps_every))
        self.method, self.generator = method, generator

    def match_block(self, branch: int, step: int, stream: Stream, hidden: Tensor, read: Tensor, count: int) -> Merge:
        from ditbench.engine.chance import normal
        from ditbench.engine.scored import grid_of

        noise = normal(stream, step, branch, self.generator)
        matched = pruned(hidden, self.method, noise, grid_of(stream), hidden.shape[1] - count)
        self.count_macs(matched.macs)
        return matched.groups


class Pruned(NamedTuple):
    """The groups of a matching, and the MACs of finding them, of all samples together."""

    groups: Groups
    macs: int


def pruned(features: Tensor, method: SiTo, noise: Tensor, grid: tuple[int, int], gone: int) -> Pruned:
    """Who is left out, `gone` tokens of each sample, and whose answer they receive."""
    from ditbench.engine.matching import (
        Windows,
        bipartite,
        bipartite_macs,
        nearest_kept,
        nearest_kept_macs,
        one_of_each,
    )

    scores = method.similarity * similarity_sums(features) + method.noise * noise
    windows = Windows(grid, method.side, features.device)
    sources, _ = bipartite(features, one_of_each(windows, scores)).closest(gone)
    # The sums take a norm and a product for each token.
    macs = 2 * features.numel() + bipartite_macs(features, len(windows)) + nearest_kept_macs(features, gone)
    return Pruned(nearest_kept(features, sources), macs)
