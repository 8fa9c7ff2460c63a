"""ToMeSD: token merging for Stable Diffusion (arXiv 2303.17604), at a transformer's single resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.fills import Fill, Pass
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import Method, knob
from ditbench.methods.merges import LAYERS_EVERY, STEPS_EVERY, WHERE, BlockMatching, merged_branches, merging_plan

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.merging import Merge, Merging

# Of every four blocks, the share of the ratio that each merges (SDTM, supplement, A.2). It names no number for
# "reduced".
STAGGERED = (0.0, 1.0, 0.5, 1.0)


@dataclass(frozen=True)
class ToMeSD(Method):
    """Of each square of tokens one, drawn by chance, is a destination, and the others join the one most like them.

    As many as the ratio says of those that are most alike are merged into the mean of their group. The same
    destinations serve both branches of guidance.
    """

    name: ClassVar[str] = "tomesd"
    summary: ClassVar[str] = "tokens join the most alike of those drawn from each square, and are computed as one"
    paper: ClassVar[str] = "ToMeSD"

    ratio: float = knob(0.5, "share of tokens that are merged away, of a merged branch", least=0, most=1)
    where: str = knob("attention", "branches that are merged", choices=tuple(WHERE))
    pattern: str = knob(
        "staggered",
        "of every four blocks none, all, half and all of the ratio (as SDTM's authors ran it), or all in every block",
        choices=("staggered", "every"),
    )
    deviation: float = knob(
        0.2, "the ratio falls by this above it at the first step to this below at the last", least=0
    )
    side: int = knob(2, "side of a square in tokens", least=2)
    layers_every: int = knob(1, LAYERS_EVERY, least=1, later=True)
    steps_every: int = knob(1, STEPS_EVERY, least=1, later=True)

    def left(self, shape: Shape) -> NDArray[np.float64]:
        """The share of tokens [step, block] that a merged branch computes."""
        falling = np.linspace(1, -1, shape.steps) if shape.steps > 1 else np.zeros(1)
        blocks = shape.layout.blocks
        pattern = np.resize(STAGGERED, blocks) if self.pattern == "staggered" else np.ones(blocks)
        ratio = (self.ratio + self.deviation * falling)[:, None] * pattern
        most = 1 - 1 / self.side**2
        gone = np.floor(ratio.clip(0, most) * shape.tokens + 1e-9)
        return np.asarray(1 - gone / shape.tokens)

    def plan(self, shape: Shape) -> Plan:
        return merging_plan(shape, self.left(shape), merged_branches(shape.layout, self.where))

    def fill(self, shape: Shape) -> Fill:
        return Pass()

    def selector(self, shape: Shape, generator: Generator) -> Merging:
        return _Matching(self.plan(shape), shape.tokens, self, generator)


class _Matching(BlockMatching):
    """Destinations by chance; alike in what entered the block."""

    def __init__(self, plan: Plan, tokens: int, method: ToMeSD, generator: Generator) -> None:
        super().__init__(plan, tokens, method.where == "mlp", (method.layers_every, method.steps_every))
        self.side, self.generator = method.side, generator

    def match_block(self, branch: int, step: int, stream: Stream, hidden: Tensor, read: Tensor, count: int) -> Merge:
        from ditbench.engine.chance import uniform
        from ditbench.engine.matching import Windows, bipartite, bipartite_macs, one_of_each
        from ditbench.engine.merging import Groups
        from ditbench.engine.scored import grid_of

        windows = Windows(grid_of(stream), self.side, hidden.device)
        pairs = bipartite(hidden, one_of_each(windows, uniform(stream, step, branch, self.generator)))
        self.count_macs(bipartite_macs(hidden, len(windows)))
        return Groups.of(*pairs.closest(hidden.shape[1] - count), hidden.shape[1])
