"""Selectors: which k tokens of a unit are computed.

A selector belongs to one run. Its token indices ascend, so kept tokens stay in raster order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ditbench.engine.chance import uniform
from ditbench.engine.rows import Rows

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.backbones import Stream
    from ditbench.engine.layout import Unit


class Selector(Protocol):
    """State of one run."""

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        """The `count` tokens of each sample to compute. Answering with the same object again shares its gather."""


class RandomTokens:
    """Tokens drawn at random, afresh at every site, with a generator of its own."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        draw = uniform(stream, step, unit.start, self.generator)
        return Rows(draw.topk(count, dim=1).indices.sort(dim=1).values, stream.tokens)
