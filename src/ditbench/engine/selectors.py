"""Selectors: which k tokens of a unit are computed.

A selector belongs to one run. Its token indices ascend, so kept tokens stay in raster order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ditbench.engine.chance import uniform
from ditbench.engine.rows import Rows

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.backbones import Backbone, Output, Stream
    from ditbench.engine.costs import Costs
    from ditbench.engine.keys import KeptKeys
    from ditbench.engine.layout import Unit
    from ditbench.engine.recall import RecalledAttention


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


@runtime_checkable
class Narrowing(Protocol):
    """A selector that has branches computed by some of their heads or channels."""

    def width(self, branch: int, step: int) -> float:
        """The share of a branch's heads or channels that is computed at a step."""

    def narrowed(self, backbone: Backbone, branch: int, step: int) -> AbstractContextManager[None]:
        """Within the context the branch has no more than that."""

    def widths_at(self, step: int) -> Any:
        """What tells a step from others of the same counts by its widths."""


class Gathered(Protocol):
    """Some tokens of each sample, as many as it wants: what stands between a branch and its module for once."""

    counts: list[int]  # of each sample, known once the branch has read them

    def before(self, stream: Stream, read: Tensor) -> Tensor:
        """[samples, tokens, width] -> [1, all that are computed, width], or all as they are."""

    def after(self, stream: Stream, output: Tensor) -> Tensor:
        """[samples, tokens, width] again."""


@runtime_checkable
class Gathering(Protocol):
    """A selector that finds for each sample how many of its tokens a branch is to compute, and which."""

    def gather(self, branch: int, step: int, stream: Stream) -> Gathered:
        """The tokens that a branch computes."""

    def macs(self) -> int:
        """What finding them took since this was last asked."""


def scaling_of(selector: object) -> Scaling | None:
    """A selector as one that scales, if it does."""
    return selector if isinstance(selector, Scaling) else None


@runtime_checkable
class Foreseeing(Protocol):
    """A selector that looks at what enters the network before any unit of a step."""

    def foresee(self, step: int, stream: Stream, backbone: Backbone, costs: Costs) -> int:
        """Called at the start of a step; answers with the MACs that looking took, of all samples together."""


def foreseeing_of(selector: object) -> Foreseeing | None:
    """A selector as one that looks ahead, if it does."""
    return selector if isinstance(selector, Foreseeing) else None


def keys_of(selector: object) -> KeptKeys | None:
    """What keeps the keys and values of tokens that are left out, where a selector has that."""
    keys: KeptKeys | None = getattr(selector, "kept_keys", None)
    return keys


@runtime_checkable
class ChoosingText(Protocol):
    """A selector that chooses among the text's tokens too. Else all are computed with any of the image's."""

    def choose_text(self, unit: Unit, step: int, stream: Stream) -> Rows:
        """The text's tokens to compute in a unit of which some of the image's are."""

    def choose_both(self, unit: Unit, step: int, stream: Stream) -> Rows:
        """Tokens of text and image, the text's first, to compute from attention that is kept."""


def choosing_text_of(selector: object) -> ChoosingText | None:
    """A selector as one that chooses among the text's tokens, if it does."""
    return selector if isinstance(selector, ChoosingText) else None


def recalled_of(selector: object) -> RecalledAttention | None:
    """What keeps attention that tokens are computed from, where a selector has that."""
    recalled: RecalledAttention | None = getattr(selector, "recalled", None)
    return recalled


def narrowing_of(selector: object) -> Narrowing | None:
    """A selector as one that narrows branches, if it does."""
    return selector if isinstance(selector, Narrowing) else None


def gathering_of(selector: object) -> Gathering | None:
    """A selector as one that finds how many tokens to gather, if it does."""
    return selector if isinstance(selector, Gathering) else None


class RandomTokens:
    """Tokens drawn at random, afresh at every site, with a generator of its own."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        draw = uniform(stream, step, unit.start, self.generator)
        return Rows(draw.topk(count, dim=1).indices.sort(dim=1).values, stream.tokens)
