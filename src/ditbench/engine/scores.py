"""Scores: how much a token deserves to be computed, by what its branch, its block or its own values say of it.

A score belongs to one run. What it learns of a block it learns while that block's attention is computed, and keeps as
one number for each token. What uses it scales the squares to a sum of 1 over the tokens of a sample, as ToCa and DuCa
do, so that one score can stand for another; `norm` and `random` are floors that a good score must beat.
"""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ditbench.engine.chance import uniform
from ditbench.engine.watch import entropies, map_macs
from ditbench.faults import Fault

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.backbones import Stream
    from ditbench.engine.layout import Layout, Unit
    from ditbench.engine.rows import Rows
    from ditbench.engine.watch import Glance

# How layouts call the branches in which the image attends to itself, alone or beside a text, and to a text alone.
SELF, CROSS = ("self", "attn", "single"), ("cross",)


class Score(ABC):
    """State of one run."""

    name: ClassVar[str]
    # The branches of a block that it must see computed; none where a token's own values are enough.
    sees: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layout: Layout, generator: Generator) -> None:
        self.layout, self.generator = layout, generator
        self._of_block: dict[int, Tensor] = {}
        self._source = self._sources() if self.sees else {}

    def _sources(self) -> dict[int, int]:
        """For each block, its first branch that the score must see."""
        found: dict[int, int] = {}
        for number, (block, name) in enumerate(self.layout.branches):
            if name in self.sees:
                found.setdefault(block, number)
        without = sorted({branch.block for branch in self.layout.branches} - set(found))
        if without:
            raise Fault(
                f"the score {self.name} needs a branch {' or '.join(self.sees)} in every block; "
                f"block {without[0]} has {', '.join(b.name for b in self.layout.branches if b.block == without[0])}"
            )
        return found

    def watches(self, branch: int) -> bool:
        """Whether it must see a branch computed."""
        return self._source.get(self.layout.branches[branch].block) == branch

    def see(self, branch: int, glance: Glance) -> int:
        """Learns from a computed branch; answers with the MACs that took."""
        if self.sees and glance.attention is None and glance.rows is not None:
            return 0  # computed from attention that is kept: it shows nothing new
        block = self.layout.branches[branch].block
        values, macs = self.read(glance)
        if glance.rows is None:
            self._of_block[block] = values
        else:
            self._of_block[block] = _put(self._of_block[block], glance.rows, values)
        return macs

    def read(self, glance: Glance) -> tuple[Tensor, int]:
        """One number for each computed image token, [samples, tokens], and the MACs that took."""
        raise NotImplementedError

    def of(self, unit: Unit, step: int, stream: Stream) -> Tensor:
        """The score of every image token [samples, tokens] for a unit, before it is normalised."""
        return self._of_block[self.layout.branches[unit.start].block]

    def shared(self, values: Tensor) -> Tensor:
        """One score for the two branches of guidance, [2, samples, tokens] -> [samples, tokens]."""
        return values.mean(0)

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return sum(values.nbytes for values in self._of_block.values())


def normalised(values: Tensor) -> Tensor:
    """Scores whose squares sum to 1 over the tokens of a sample."""
    return functional.normalize(values.float(), dim=1)


def _put(whole: Tensor, rows: Rows, part: Tensor) -> Tensor:
    """Per-token numbers [samples, tokens] with those of some tokens replaced."""
    return rows.put(whole[..., None].contiguous(), part[..., None])[..., 0]


class AttentionReceived(Score):
    """The attention that other tokens paid to a token when its block was last computed whole (ToCa's s1)."""

    name: ClassVar[str] = "attention"
    sees: ClassVar[tuple[str, ...]] = SELF

    def read(self, glance: Glance) -> tuple[Tensor, int]:
        return glance.received[:, glance.image], map_macs(glance.shown)


class CrossEntropy(Score):
    """How undecided a token's attention to the text was, 1 + its entropy (ToCa's s2)."""

    name: ClassVar[str] = "entropy"
    sees: ClassVar[tuple[str, ...]] = CROSS

    def read(self, glance: Glance) -> tuple[Tensor, int]:
        return 1 + entropies(glance.shown), map_macs(glance.shown)

    def shared(self, values: Tensor) -> Tensor:
        # Published code attends to the texts of both branches side by side, half of the weight on each: the entropy
        # of such a mixture is the mean of both and ln 2.
        return values.mean(0) + 0.6931471805599453


class _SmallNorm(Score):
    """1 - the norm of what a token gives to attention, summed over heads."""

    sees: ClassVar[tuple[str, ...]] = SELF
    part: ClassVar[str]

    def read(self, glance: Glance) -> tuple[Tensor, int]:
        vectors: Tensor = getattr(glance.shown, self.part)[:, :, glance.image]
        return (1 - vectors.float().norm(dim=-1)).sum(1), 0


class ValueNorm(_SmallNorm):
    """Tokens with small values first (DuCa's first version; needs no attention map)."""

    name: ClassVar[str] = "value-norm"
    part: ClassVar[str] = "values"


class KeyNorm(_SmallNorm):
    """Tokens with small keys first."""

    name: ClassVar[str] = "key-norm"
    part: ClassVar[str] = "keys"


class Similarity(Score):
    """Tokens first that are least like what their unit last gave out for them: 1 - the cosine of both."""

    name: ClassVar[str] = "similarity"

    def __init__(self, layout: Layout, generator: Generator) -> None:
        super().__init__(layout, generator)
        self._outputs: dict[int, Tensor] = {}

    def watches(self, branch: int) -> bool:
        return True

    def see(self, branch: int, glance: Glance) -> int:
        if glance.rows is None:
            # A copy: the fill writes to the tensor that it keeps.
            self._outputs[branch] = glance.output.image.clone(memory_format=torch.contiguous_format)
        else:
            self._outputs[branch] = glance.rows.put(self._outputs[branch], glance.output.image)
        return 0

    def of(self, unit: Unit, step: int, stream: Stream) -> Tensor:
        # Of a unit of several branches, what the last of them gave out.
        last = self._outputs[unit.stop - 1]
        return 1 - functional.cosine_similarity(stream.hidden.float(), last.float(), dim=-1)

    def nbytes(self) -> int:
        return sum(output.nbytes for output in self._outputs.values())


class Norm(Score):
    """Tokens with large values first."""

    name: ClassVar[str] = "norm"

    def of(self, unit: Unit, step: int, stream: Stream) -> Tensor:
        return stream.hidden.float().norm(dim=-1)


class RandomScore(Score):
    """Uniformly random, afresh at every site."""

    name: ClassVar[str] = "random"

    def of(self, unit: Unit, step: int, stream: Stream) -> Tensor:
        return uniform(stream, step, unit.start, self.generator)

    def shared(self, values: Tensor) -> Tensor:
        return values[0]


class NoScore(Score):
    """All alike: what is chosen is left to a token's age and to its neighbours."""

    name: ClassVar[str] = "none"

    def of(self, unit: Unit, step: int, stream: Stream) -> Tensor:
        return stream.hidden.new_zeros(stream.hidden.shape[:2], dtype=torch.float32)


_SCORES: tuple[type[Score], ...] = (
    AttentionReceived,
    CrossEntropy,
    ValueNorm,
    KeyNorm,
    Similarity,
    Norm,
    RandomScore,
    NoScore,
)
SCORES: dict[str, type[Score]] = {score.name: score for score in _SCORES}


def score_of(name: str, layout: Layout, generator: Any) -> Score:
    """A score by its name, with fresh state for one run."""
    return SCORES[name](layout, generator)
