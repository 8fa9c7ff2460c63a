"""ToMA: token merge with attention (ICML 2025, arXiv 2509.10918)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.engine.fills import Fill, Pass
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import Method, knob
from ditbench.methods.merges import WHERE, BlockMatching, merged_branches, merging_plan

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.facility import Weighted
    from ditbench.engine.merging import Merge, Merging


@dataclass(frozen=True)
class ToMA(Method):
    """In each tile the tokens that cover it best are destinations, among which the others are shared by attention.

    Destinations are found every `destinations_every` steps, the weights every `weights_every`, in the first merged
    block, and serve all blocks until then. Merging is a product with weights that sum to 1 for each destination,
    unmerging one with weights that sum to 1 for each token. Periods and temperature are a reading: what the paper has
    is not known for sure. With softer weights the embedded world's training captions came out worse.
    """

    name: ClassVar[str] = "toma"
    summary: ClassVar[str] = "tokens become weighted means in tiles by products alone, with weights that are reused"
    paper: ClassVar[str] = "ToMA"

    ratio: float = knob(0.5, "share of tokens that are merged away, of a merged branch", least=0, most=1)
    where: str = knob("all", "branches that are merged", choices=tuple(WHERE))
    tile: int = knob(8, "side of a tile in tokens, which the grid's sides must be multiples of", least=2)
    temperature: float = knob(0.01, "of the softmax over a token's cosines to the destinations", least=1e-6)
    destinations_every: int = knob(10, "steps that destinations are used for", least=1)
    weights_every: int = knob(5, "steps that weights are used for", least=1)

    def kept(self) -> int:
        """The destinations of one tile."""
        return max(self.tile**2 - int(self.ratio * self.tile**2 + 1e-9), 1)

    def plan(self, shape: Shape) -> Plan:
        side = isqrt(shape.tokens)
        if side * side == shape.tokens and side % self.tile:
            raise Fault(f"tile: {self.tile} does not divide a grid of {side} x {side} tokens")
        left = np.full((1, 1), self.kept() / self.tile**2)
        return merging_plan(shape, left, merged_branches(shape.layout, self.where))

    def fill(self, shape: Shape) -> Fill:
        return Pass()

    def selector(self, shape: Shape, generator: Generator) -> Merging:
        return _Matching(self.plan(shape), shape.tokens, self)


class _Matching(BlockMatching):
    """One matching for all blocks and some steps."""

    def __init__(self, plan: Plan, tokens: int, method: ToMA) -> None:
        super().__init__(plan, tokens, method.where == "mlp")
        self.method = method
        self._destinations: Tensor | None = None
        self._weights: Weighted | None = None
        self._made = -1  # the step at which weights were made

    def kind(self, step: int) -> Any:
        return step % self.method.destinations_every == 0, step % self.method.weights_every == 0

    def match(self, branch: int, step: int, stream: Stream, read: Tensor, count: int) -> Merge:
        merge = super().match(branch, step, stream, read, count)
        assert self._weights is not None
        self.count_macs(self._weights.macs(read.shape[2]))
        return merge

    def match_block(self, branch: int, step: int, stream: Stream, hidden: Tensor, read: Tensor, count: int) -> Merge:
        from ditbench.engine.facility import Weighted, facilities, facility_macs
        from ditbench.engine.matching import Windows
        from ditbench.engine.scored import grid_of

        if self._weights is not None and (step == self._made or step % self.method.weights_every):
            return self._weights
        windows = Windows(grid_of(stream), self.method.tile, hidden.device)
        if len(windows) * windows.size != hidden.shape[1]:
            raise Fault(f"tile: {self.method.tile} does not divide a grid of {windows.grid[0]} x {windows.grid[1]}")
        if self._destinations is None or step % self.method.destinations_every == 0:
            self._destinations = facilities(hidden, windows, self.method.kept())
            self.count_macs(facility_macs(hidden, windows))
        self._weights = Weighted.of(hidden, windows, self._destinations, self.method.temperature)
        self._made = step
        self.count_macs(hidden.numel() * (1 + self.method.kept()))
        return self._weights

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        weights = self._weights
        return 0 if weights is None else weights.merging.nbytes + weights.spreading.nbytes + weights.kept.nbytes
