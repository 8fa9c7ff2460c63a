"""AT-EDM: attention-driven training-free efficient diffusion (CVPR 2024, arXiv 2405.05252), on a transformer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.engine.layout import Shape, Unit
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import Method, Trio, knob

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True)
class ATEDM(Method):
    """In groups of blocks the tokens that matter least leave after the first block and come back at the end as copies.

    How much a token matters is its page rank over the first block's self-attention, where a token counts as much as
    those that attend to it do. It comes back as the token to which it attends most of those that stayed. The last
    block of the groups of the second half computes all tokens in the early steps. The exact weights of the paper's
    ranking and its form for transformers without convolutions are not published: this is a reading, with groups as
    SDTM's authors took them.
    """

    name: ClassVar[str] = "at-edm"
    summary: ClassVar[str] = "tokens of low page rank leave groups of blocks and come back as copies"
    paper: ClassVar[str] = "AT-EDM"

    ratio: float = knob(0.63, "share of tokens that leave", least=0, most=1)
    groups: int = knob(0, "groups of blocks; 0: of four blocks each", least=0)
    early: float = knob(
        0.3, "share of the steps that are early, in which fewer blocks leave tokens out", least=0, most=1
    )
    iterations: int = knob(5, "rounds of the page rank", least=1)

    def spans(self, shape: Shape) -> list[tuple[int, int]]:
        """The groups' first blocks and their ends."""
        blocks = shape.layout.blocks
        groups = self.groups or max(blocks // 4, 1)
        if blocks < 2 * groups:
            raise Fault(f"groups: {groups} of {blocks} blocks: each needs a block that ranks and one that follows")
        edges = [0, *np.cumsum([len(part) for part in np.array_split(np.arange(blocks), groups)]).tolist()]
        return list(itertools.pairwise(edges))

    def units(self, shape: Shape) -> list[tuple[Unit, str]]:
        """The plan's units and what each is: `all` tokens, `some`, or all in the `early` steps."""
        layout = shape.layout
        found: list[tuple[Unit, str]] = []
        spans = self.spans(shape)
        for group, (first, end) in enumerate(spans):
            found += [(unit, "all") for unit in layout.by_branch if layout.block_of[unit.start] == first]
            rises = group >= len(spans) / 2
            middle = end - 1 if rises else end
            if middle > first + 1:
                found.append((layout.span(first + 1, middle), "some"))
            if rises:
                found.append((layout.span(end - 1, end), "early"))
        return found

    def plan(self, shape: Shape) -> Plan:
        units = self.units(shape)
        left = 1 - np.floor(self.ratio * shape.tokens + 1e-9) / shape.tokens
        early = np.arange(shape.steps) < self.early * shape.steps - 1e-9
        shares = np.ones((shape.steps, len(units)))
        for number, (_, kind) in enumerate(units):
            if kind != "all":
                shares[:, number] = np.where(early & (kind == "early"), 1, left)
        return Plan(shape.layout, tuple(unit for unit, _ in units), shares)

    def parts(self, shape: Shape, generator: Generator) -> Trio:
        from ditbench.engine.ranked import CopyModels, RankedTokens

        plan, layout = self.plan(shape), shape.layout
        attends = np.flatnonzero(np.isin(layout.name_of, ("self", "attn", "single")))
        first_of = {block: first for first, end in self.spans(shape) for block in range(first, end)}
        ranked_by = {
            unit.start: int(attends[layout.block_of[attends] == first_of[int(layout.block_of[unit.start])]][0])
            for unit, kind in self.units(shape)
            if kind != "all"
        }
        selector = RankedTokens(ranked_by, self.iterations, plan, shape.tokens)
        return Trio(CopyModels(selector), selector, None)
