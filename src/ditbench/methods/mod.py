"""Mixture of depths: routers, and one ratio for all blocks and steps (arXiv 2404.02258)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.faults import Fault
from ditbench.methods.base import knob
from ditbench.methods.tuned import Routed


@dataclass(frozen=True)
class MixtureOfDepths(Routed):
    """Each block's router lets the same share of the tokens pass by, at every step.

    As DiffCR's baseline: scores are sigmoids and scale the MLP, all blocks are routed, the number of tokens that are
    computed is rounded down. The original (of language models) routes every other block, by raw scores that scale all
    that a block adds.
    """

    name: ClassVar[str] = "mod"
    summary: ClassVar[str] = "learned routers pass the same share of tokens by every block"
    paper: ClassVar[str] = "arXiv 2404.02258, as in 2412.16822"

    ratio: float = knob(0.2, "share of the tokens that pass by", least=0, most=1)
    blocks: str = knob(
        "all", "which blocks are routed; `every-other` as in the original", choices=("all", "every-other")
    )
    gated: str = knob(
        "all",
        "blocks whose MLP is multiplied by scores: all, or, as in the original, those that are routed, and the others "
        "are left as they are",
        choices=("all", "routed"),
        later=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio == 1:
            raise Fault("ratio: 1 would let every token pass by every block")

    def scaled_blocks(self, blocks: int) -> list[bool]:
        only_routed = self.gated == "routed" and self.blocks == "every-other"
        return [not only_routed or block % 2 == 1 for block in range(blocks)]

    def kept(self, shape: Shape) -> NDArray[np.float64]:
        count = max(1, int((1 - self.ratio) * shape.tokens + 1e-9))  # 0.7 x 30 is 21, whatever binary makes of it
        shares = np.full((shape.steps, shape.layout.blocks), count / shape.tokens)
        if self.blocks == "every-other":
            shares[:, ::2] = 1
        return shares
