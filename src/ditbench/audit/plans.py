"""Plans that an audit spells out, as methods: what they cost is all that is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.audit.sheet import PlanGiven
from ditbench.engine.fills import Fill, Pass, Reuse
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.engine.rows import Rows
from ditbench.faults import Fault
from ditbench.methods.base import Knob, Method

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.backbones import Stream
    from ditbench.engine.costs import Costs
    from ditbench.engine.layout import Unit
    from ditbench.engine.selectors import Selector


class First:
    """Selects the first tokens: which ones they are costs nothing."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], Rows] = {}

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        import torch

        key = (stream.samples, count)
        if key not in self._rows:
            index = torch.arange(count, device=stream.device).expand(stream.samples, count)
            self._rows[key] = Rows(index, stream.tokens)
        return self._rows[key]


@dataclass(frozen=True)
class GivenMethod(Method):
    """An explicit plan: from step to step outputs are reused, within a step tokens and blocks are passed over."""

    name: ClassVar[str] = "given"
    summary: ClassVar[str] = "a plan that an audit spells out"
    paper: ClassVar[str] = ""

    given: PlanGiven

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        return {}

    def plan(self, shape: Shape) -> Plan:
        shares = np.ones(shape.sites)
        given = self.given
        if given.full_steps is not None:
            beyond = [step for step in given.full_steps if step >= shape.steps]
            if beyond:
                raise Fault(f"full_steps: no step {beyond[0]} in a run of {shape.steps}, counted from 0")
            others = ~np.isin(np.arange(shape.steps), given.full_steps)
            shares[np.ix_(others, shape.layout.block_of >= given.blocks)] = 0
        elif given.kept is not None:
            if given.kept > shape.tokens:
                raise Fault(f"kept: {given.kept} of {shape.tokens} tokens cannot be")
            branches = given.branches or list(shape.layout.names)
            unknown = [name for name in branches if name not in shape.layout.names]
            if unknown:
                raise Fault(f"branches: no branch {unknown[0]!r}; possible: {', '.join(shape.layout.names)}")
            shares[:, np.isin(shape.layout.name_of, branches)] = given.kept / shape.tokens
        elif given.share is not None:
            shares[:] = given.share
        return Plan(shape.layout, shape.layout.by_branch, shares)

    def fill(self, shape: Shape) -> Fill:
        # A cached output is gated anew, for which some networks compute their modulation; what is taken out is not.
        return Reuse() if self.given.full_steps else Pass()

    def selector(self, shape: Shape, generator: Generator) -> Selector | None:
        return First()

    def adjusted(self, costs: Costs, shape: Shape) -> Costs:
        """A network's costs with LayerNorms over all tokens, and with a router's linear unit in every block."""
        branches = list(costs.branches)
        if self.given.norms == "whole":
            # As soon as a branch runs at all, its LayerNorm sees every token.
            branches = [replace(c, norm=0, norm_once=c.norm_once + shape.tokens * c.norm) for c in branches]
        if self.given.router:
            width = max(cost.width for cost in branches)
            for block in range(shape.layout.blocks):
                first = shape.layout.span(block, block + 1).start
                branches[first] = replace(branches[first], once=branches[first].once + shape.tokens * width)
        return replace(costs, branches=tuple(branches))

    def told(self) -> str:
        """The plan in words."""
        given = self.given
        if given.full_steps is not None:
            others = f"; {_many(given.blocks, 'block')} at the others" if given.blocks else "; nothing at the others"
            if not given.full_steps:
                return f"{_many(given.blocks, 'block')} at every step"
            return f"everything at {_many(len(given.full_steps), 'step')}{others}"
        if given.kept is not None:
            where = f" in {' and '.join(given.branches)}" if given.branches else ""
            extras = [
                "LayerNorms over all tokens" if given.norms == "whole" else "",
                "a router in every block" if given.router else "",
            ]
            return ", ".join(part for part in (f"{given.kept} tokens of every block{where}", *extras) if part)
        if given.share is not None:
            return f"{given.share:.0%} of the tokens at every branch and step"
        return f"the full run less {given.left_out} of its cost; no plan is run"


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def method_told(name: str, knobs: Mapping[str, object]) -> str:
    """A method and its knobs in words."""
    settings = ", ".join(f"{knob} {value}" for knob, value in knobs.items())
    return f"{name} ({settings})" if settings else name
