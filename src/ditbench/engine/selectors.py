"""Selectors: which k tokens of a unit are computed.

A selector belongs to one run. Its token indices ascend, so kept tokens stay in raster order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ditbench.engine.chance import uniform
from ditbench.engine.rows import Rows

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.backbones import Output, Stream
    from ditbench.engine.layout import Unit


class Selector(Protocol):
    """State of one run."""

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        """The `count` tokens of each sample to compute. Answering with the same object again shares its gather."""


@runtime_checkable
class Scaling(Protocol):
    """A selector whose scores also multiply what units give out, for all the tokens or for those it chose."""

    def enter(self, unit: Unit, step: int, stream: Stream) -> None:
        """Called before a unit is computed for all tokens; where some are chosen, `choose` is called instead."""

    def scaled(self, branch: int, output: Output, rows: Rows | None) -> Output:
        """A branch's output, of the tokens at `rows` or of all, as it is to be added."""

    def macs(self) -> int:
        """What scoring took since this was last asked."""


def scaling_of(selector: object) -> Scaling | None:
    """A selector as one that scales, if it does."""
    return selector if isinstance(selector, Scaling) else None


class RandomTokens:
    """Tokens drawn at random, afresh at every site, with a generator of its own."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        draw = uniform(stream, step, unit.start, self.generator)
        return Rows(draw.topk(count, dim=1).indices.sort(dim=1).values, stream.tokens)
