"""What there is to plan: the branches of a network in their order, and units made of them.

A unit is one residual function x <- x + f(x) at one of three scopes: a branch (one sub-layer of a block), a block, or
a span (a run of blocks). A plan splits the whole network into units; it may mix scopes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault


class Branch(NamedTuple):
    """One sub-layer of one block."""

    block: int
    name: str


class Unit(NamedTuple):
    """The branches `start` to `stop` (exclusive) of a layout, in the network's order."""

    start: int
    stop: int

    @property
    def single(self) -> bool:
        """Whether the unit is one branch: its output is then cached before its gate."""
        return self.stop - self.start == 1


@dataclass(frozen=True)
class Layout:
    """Every branch of a network, in the order in which it computes them."""

    branches: tuple[Branch, ...]

    @classmethod
    def regular(cls, blocks: int, names: Iterable[str]) -> Layout:
        """Blocks that all have the same branches."""
        names = tuple(names)
        return cls(tuple(Branch(block, name) for block in range(blocks) for name in names))

    def __len__(self) -> int:
        return len(self.branches)

    @property
    def blocks(self) -> int:
        return self.branches[-1].block + 1

    @cached_property
    def block_of(self) -> NDArray[np.int64]:
        """The block of every branch."""
        return np.array([branch.block for branch in self.branches], dtype=np.int64)

    @cached_property
    def name_of(self) -> NDArray[np.str_]:
        """The name of every branch."""
        return np.array([branch.name for branch in self.branches])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The distinct names of branches, in the order in which they first come."""
        return tuple(dict.fromkeys(branch.name for branch in self.branches))

    @cached_property
    def by_branch(self) -> tuple[Unit, ...]:
        """Units of one branch each."""
        return tuple(Unit(i, i + 1) for i in range(len(self)))

    @cached_property
    def by_block(self) -> tuple[Unit, ...]:
        """Units of one block each."""
        return tuple(self.span(block, block + 1) for block in range(self.blocks))

    def span(self, first: int, last: int) -> Unit:
        """The blocks `first` to `last` (exclusive) as one unit."""
        if not 0 <= first < last <= self.blocks:
            raise Fault(f"no blocks {first} to {last - 1}: the network has blocks 0 to {self.blocks - 1}")
        where = np.flatnonzero((self.block_of >= first) & (self.block_of < last))
        return Unit(int(where[0]), int(where[-1]) + 1)

    def label(self, unit: Unit) -> str:
        """A unit's name for a person: 3.mlp, 3, or 3-17."""
        first, last = self.branches[unit.start], self.branches[unit.stop - 1]
        if unit.single:
            return f"{first.block}.{first.name}"
        return str(first.block) if first.block == last.block else f"{first.block}-{last.block}"

    def to_json(self) -> list[list[Any]]:
        return [[branch.block, branch.name] for branch in self.branches]

    @classmethod
    def from_json(cls, body: list[list[Any]]) -> Layout:
        return cls(tuple(Branch(int(block), str(name)) for block, name in body))


@dataclass(frozen=True)
class Shape:
    """What a plan must cover: the steps of a sampling run, the network's branches, and its tokens."""

    steps: int
    layout: Layout
    tokens: int

    @property
    def sites(self) -> tuple[int, int]:
        """Steps and branches: how many sites there are."""
        return (self.steps, len(self.layout))
