"""Selectors: which k tokens of a unit are computed.

A selector belongs to one run. It answers with sorted token indices, so kept tokens stay in raster order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.engine.fills import Unit


class Selector(Protocol):
    """State of one run."""

    def choose(self, unit: Unit, step: int, hidden: Tensor, count: int) -> Tensor:
        """The indices of the `count` tokens to compute, [batch, count], ascending in each row."""


class RandomTokens:
    """Tokens drawn at random, afresh at every site, with a generator of its own."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def choose(self, unit: Unit, step: int, hidden: Tensor, count: int) -> Tensor:
        draw = hidden.new_empty(hidden.shape[:2], dtype=None).float()
        draw.uniform_(generator=self.generator)
        return draw.topk(count, dim=1).indices.sort(dim=1).values
