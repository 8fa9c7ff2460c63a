"""Tokens ranked by the attention they receive from tokens of high rank; those left out become copies at the end.

A block's self-attention is looked at, the tokens of low rank leave a run of blocks after it, and where they come back
each is a copy of the token, of those that stayed, to which it attended most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ditbench.engine.fills import Pass
from ditbench.engine.rows import Rows
from ditbench.engine.watch import Attention, map_macs, map_rows

if TYPE_CHECKING:
    from ditbench.backbones import Stream
    from ditbench.engine.layout import Unit
    from ditbench.engine.plan import Plan
    from ditbench.engine.watch import Glance


def image_map(attention: Attention, image: slice) -> Tensor:
    """How the image's tokens attend to each other, mean over heads, rows that sum to 1: [samples, tokens, tokens]."""
    found = torch.cat([rows.mean(1) for _, rows in map_rows(attention)], dim=1)[:, image, image]
    return found / found.sum(2, keepdim=True)


def page_rank(attends: Tensor, iterations: int) -> Tensor:
    """How important each token is [samples, tokens]: as much as those that attend to it are, in sum 1."""
    rank = torch.full_like(attends[:, :1], 1 / attends.shape[1])
    for _ in range(iterations):
        rank = rank @ attends
        rank = rank / rank.sum(2, keepdim=True)
    return rank[:, 0]


class RankedTokens:
    """State of one run. `ranked_by` has for each unit that leaves tokens out the branch whose attention ranks them.

    Units that are ranked by the same branch leave out the same tokens, so that these stay away from one to the next.
    """

    def __init__(self, ranked_by: Mapping[int, int], iterations: int, plan: Plan, tokens: int) -> None:
        self._ranked_by, self._iterations = dict(ranked_by), iterations
        fewer = plan.counts(tokens) != tokens
        number = {unit.start: place for place, unit in enumerate(plan.units)}
        self._looked_at: dict[int, list[bool]] = {}
        for start, branch in ranked_by.items():
            asked = fewer[:, number[start]] | np.array(self._looked_at.get(branch, [False] * plan.steps))
            self._looked_at[branch] = asked.tolist()
        self._maps: dict[int, Tensor] = {}
        self._ranks: dict[int, Tensor] = {}
        self._chosen: dict[int, tuple[Rows, Rows]] = {}

    def watches(self, branch: int, step: int) -> bool:
        return branch in self._looked_at and self._looked_at[branch][step]

    def see(self, branch: int, step: int, glance: Glance) -> int:
        assert glance.attention is not None
        self._maps[branch] = attends = image_map(glance.attention, glance.image)
        self._ranks[branch] = page_rank(attends, self._iterations)
        return map_macs(glance.attention) + self._iterations * attends.numel()

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        branch = self._ranked_by[unit.start]
        if branch in self._maps:
            self._chosen[branch] = self._choice(self._ranks.pop(branch), self._maps.pop(branch), count)
        return self._chosen[branch][0]

    @staticmethod
    def _choice(ranks: Tensor, attends: Tensor, count: int) -> tuple[Rows, Rows]:
        """The tokens of highest rank, and for every token which of these it is a copy of."""
        tokens = attends.shape[1]
        kept = ranks.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
        of_kept = attends.gather(2, kept[:, None].expand(-1, tokens, -1))
        places = torch.arange(count, device=kept.device).expand(kept.shape[0], -1)
        # Those that stay are their own models.
        models = of_kept.argmax(2).scatter(1, kept, places)
        return Rows(kept, tokens), Rows(models, count)

    def models(self, unit: Unit) -> Rows:
        """For every token its model among those that a unit has computed last."""
        return self._chosen[self._ranked_by[unit.start]][1]


class CopyModels(Pass):
    """Tokens that were left out of a run of blocks become what their models have become."""

    def __init__(self, selector: RankedTokens) -> None:
        self.selector = selector

    def refill(self, unit: Unit, part: Tensor) -> Tensor:
        return self.selector.models(unit).take(part)
