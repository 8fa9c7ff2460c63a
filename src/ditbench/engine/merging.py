"""Merging: a branch computes fewer tokens than it is given, each of which stands for a group of alike ones.

Tokens are merged where a branch reads them, after its norm and modulation, and what it gives out for a group is copied
to all tokens of the group before its gate. The stream itself is never merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ditbench.engine.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ditbench.backbones import Stream


# In place of a count: as many as a selector finds right.
ASK_MERGING = -1


class Merge(Protocol):
    """How the tokens of each sample become fewer, and many again."""

    @property
    def kept(self) -> Tensor:
        """The tokens that stand for groups, [samples, groups], ascending; where positions are asked for, theirs."""

    def before(self, read: Tensor) -> Tensor:
        """[samples, tokens, width] -> [samples, groups, width]."""

    def after(self, output: Tensor) -> Tensor:
        """[samples, groups, width] -> [samples, tokens, width]."""

    @property
    def shared(self) -> Tensor:
        """Which tokens are not computed by themselves, [samples, tokens]."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Tokens in groups, each computed once: as the mean of its tokens, or (`mean` off) as the one that is kept.

    `group` [samples, tokens] has each token's group by its place in `kept`.
    """

    kept: Tensor
    group: Tensor
    mean: bool = True
    # Tokens that count as shared even where none has joined them, [samples, k].
    pooled: Tensor | None = None

    @classmethod
    def of(
        cls, sources: Tensor, destinations: Tensor, tokens: int, mean: bool = True, pooled: Tensor | None = None
    ) -> Groups:
        """Every token at `sources` [samples, k] joins the one at `destinations` [samples, k]; the others stay."""
        samples = sources.shape[0]
        stays = sources.new_ones(samples, tokens).scatter_(1, sources, 0)
        place = stays.cumsum(1) - 1
        group = place.scatter(1, sources, place.gather(1, destinations))
        # Stable, so that those that stay come in their order; how many is known without looking.
        kept = stays.argsort(dim=1, descending=True, stable=True)[:, : tokens - sources.shape[1]]
        return cls(kept, group, mean, pooled)

    @cached_property
    def _kept(self) -> Rows:
        return Rows(self.kept, self.group.shape[1])

    @cached_property
    def _sources(self) -> tuple[Rows, Tensor, Tensor]:
        """The tokens that are not kept, the groups they join among those of all samples, and how large groups are."""
        samples, tokens = self.group.shape
        count = self.kept.shape[1]
        sources = self.away.int().argsort(dim=1, descending=True, stable=True)[:, : tokens - count]
        first = torch.arange(samples, device=self.group.device)[:, None] * count
        joined = (self.group.gather(1, sources) + first).flatten()
        sizes = torch.ones(samples * count, device=self.group.device)
        sizes.index_add_(0, joined, sizes.new_ones(joined.shape))
        return Rows(sources, tokens), joined, sizes.view(samples, count, 1)

    @cached_property
    def _members(self) -> Rows:
        return Rows(self.group, self.kept.shape[1])

    @cached_property
    def away(self) -> Tensor:
        """Which tokens are not kept, [samples, tokens]."""
        return torch.ones_like(self.group, dtype=torch.bool).scatter_(1, self.kept, False)

    @cached_property
    def shared(self) -> Tensor:
        _, _, sizes = self._sources
        shared = sizes[..., 0].gather(1, self.group) > 1
        return shared if self.pooled is None else shared.scatter(1, self.pooled, True)

    def before(self, read: Tensor) -> Tensor:
        kept = self._kept.take(read)
        if not self.mean:
            return kept
        sources, joined, sizes = self._sources
        width = read.shape[-1]
        sums = kept.reshape(-1, width).index_add(0, joined, sources.take(read).reshape(-1, width))
        return (sums.view(kept.shape) / sizes).to(read.dtype)

    def after(self, output: Tensor) -> Tensor:
        return self._members.take(output)


@runtime_checkable
class Merging(Protocol):
    """A selector that does not choose tokens to compute but merges them."""

    @property
    def attends_whole(self) -> bool:
        """In branches that join attention and MLP (FLUX's single-stream blocks): whether all tokens attend."""

    def looks(self, branch: int, step: int) -> bool:
        """Whether it wants to see what a branch reads that computes all tokens."""

    def look(self, branch: int, step: int, stream: Stream, read: Tensor) -> None:
        """Called with what such a branch reads, for all tokens."""

    def match(self, branch: int, step: int, stream: Stream, read: Tensor, count: int) -> Merge:
        """How what a branch reads is merged into `count` tokens, or ASK_MERGING."""

    def kind(self, step: int) -> Any:
        """What tells a step from others of the same counts by what matching does at it."""

    def macs(self) -> int:
        """The MACs of all matching since it was last asked, of all samples together."""


@runtime_checkable
class Apart(Protocol):
    """A selector that merges other numbers of tokens of each image."""

    def apart(self, stream: Stream) -> Iterator[tuple[Tensor, Merging]]:
        """The samples of each image of a batch, and the selector that merges it."""


@runtime_checkable
class Counting(Protocol):
    """A selector that finds by itself how many tokens a batch merges, of each of its images as many."""

    @property
    def finds_counts(self) -> bool:
        """Whether it does, where it is asked to."""


def merging_of(selector: object) -> Merging | None:
    """A selector as one that merges, if it does."""
    return selector if isinstance(selector, Merging) else None


@dataclass
class Site:
    """One branch at one step, whose tokens are merged while it computes, or looked at as they are.

    A block family calls `before` on what the module of a branch reads, and `after` on what it gives out.
    """

    merging: Merging
    branch: int
    step: int
    count: int  # or ASK_MERGING
    tokens: int = field(default=0, init=False)
    merge: Merge | None = field(default=None, init=False)
    _positions: tuple[Tensor, ...] = field(default=(), init=False)

    @property
    def attends_whole(self) -> bool:
        """Whether a branch that joins attention and MLP merges its tokens for the MLP alone."""
        return self.merging.attends_whole

    def before(self, stream: Stream, read: Tensor) -> Tensor:
        """What the module reads instead; rotary positions become those of the tokens that stand for groups."""
        self.tokens, self._positions = read.shape[1], stream.positions
        if self.count == read.shape[1]:
            self.merging.look(self.branch, self.step, stream, read)
            return read
        found = self.merging.match(self.branch, self.step, stream, read, self.count)
        if found.kept.shape[1] == read.shape[1]:
            return read  # nothing is alike enough
        self.merge = found
        fewer = self.merge.before(read)
        self.tokens = fewer.shape[1]
        stream.positions = tuple(table[self.merge.kept] for table in stream.positions)
        return fewer

    def after(self, stream: Stream, output: Tensor) -> Tensor:
        """What the branch gives out for all tokens."""
        stream.positions = self._positions
        return output if self.merge is None else self.merge.after(output)
