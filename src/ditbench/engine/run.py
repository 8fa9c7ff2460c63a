"""One sampling run: the loop over the sites of a plan, and how it takes a model's place.

A `Run` is made for one call of a pipeline and holds all its state (step, fill, selector, trace), so nothing can
leak into the next call, whatever its batch, its steps or the way the last one ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ditbench.engine.fills import Fill
from ditbench.engine.plan import Plan, Shape
from ditbench.engine.selectors import Selector
from ditbench.engine.trace import Trace
from ditbench.faults import Fault

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.backbones import Backbone, Stream


class Run:
    """Executes `plan` on `backbone`, one step per call of the network."""

    def __init__(
        self, backbone: Backbone, plan: Plan, tokens: int, fill: Fill, selector: Selector | None = None
    ) -> None:
        if (plan.blocks, plan.branches) != (backbone.blocks, backbone.branches):
            raise Fault(
                f"the plan is for {plan.blocks} blocks of {'/'.join(plan.branches)}, "
                f"the backbone has {backbone.blocks} blocks of {'/'.join(backbone.branches)}"
            )
        self.backbone, self.plan, self.fill, self.selector = backbone, plan, fill, selector
        self.tokens = tokens
        # Plain lists: the loop reads one number per site and must not touch a tensor for it.
        counts = plan.counts(tokens)
        self.counts: list[list[list[int]]] = counts.tolist()
        # An output is worth keeping if the same unit is not computed whole at the next step.
        later_whole = [*(counts[1:] == tokens), None]
        self.keeps = [[[False] * len(plan.branches)] * plan.blocks if w is None else (~w).tolist() for w in later_whole]
        self.step = 0
        self.trace = Trace.empty(Shape(plan.steps, plan.blocks, plan.branches, tokens))
        if (counts[0] < tokens).any():
            raise Fault("the first step of a plan must compute all tokens: there is nothing to fill them with yet")
        if selector is None and ((counts > 0) & (counts < tokens)).any():
            raise Fault("a plan that computes some of a unit's tokens needs a selector to choose them")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the network's own forward."""
        if self.step >= self.plan.steps:
            raise Fault(f"the sampler asks for step {self.step + 1}, the plan has {self.plan.steps}")
        stream = self.backbone.enter(*args, **kwargs)
        if stream.hidden.shape[1] != self.tokens:
            raise Fault(f"the plan is for {self.tokens} tokens, the network was given {stream.hidden.shape[1]}")
        if self.step == 0:
            self.trace.samples = stream.hidden.shape[0]
        for block in range(self.backbone.blocks):
            for position, branch in enumerate(self.backbone.branches):
                output = self._site(stream, block, position, branch)
                if output is not None:
                    self.backbone.add(stream, block, branch, output)
        self.step += 1
        return self.backbone.leave(stream)

    def _site(self, stream: Stream, block: int, position: int, branch: str) -> Tensor | None:
        count = self.counts[self.step][block][position]
        unit = (block, branch)
        if count == 0:
            return self.fill.supply(unit, self.step)
        self.trace.record(self.step, block, position, count * stream.hidden.shape[0])
        if count == self.tokens:
            output = self.backbone.compute(stream, block, branch)
            if self.keeps[self.step][block][position]:
                self.fill.keep(unit, self.step, output)
            return output
        assert self.selector is not None
        index = self.selector.choose(unit, self.step, stream.hidden, count)
        part = self.backbone.compute(stream, block, branch, index)
        return self.fill.complete(unit, self.step, index, part)


@contextmanager
def attached(run: Run) -> Iterator[Run]:
    """Within the context the network's forward is the run's; afterwards the network is as it was."""
    network = run.backbone.network
    if "forward" in vars(network):
        raise Fault("this network is accelerated already; restore it first")
    network.forward = run.forward
    try:
        yield run
    finally:
        del network.forward
