"""A run that a plan can be learned through: it gives what the plan gives, and gradients to what decides the plan.

At every site all tokens are computed, and each is mixed with what was kept of it: gate x fresh + (1 - gate) x kept.
With gates of 0 and 1 that is the plan's own run; their gradients are what computing a token is worth to the loss, at
the end of all steps. Where the plan computes some tokens by themselves, or none, the fresh outputs of all only say what
a gate is worth: they have no gradients of their own. With `checkpointing` only what is kept is held in memory between
steps, and a step is run again for its gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ditbench.backbones.stream import Output
from ditbench.engine.rows import Rows
from ditbench.engine.watch import compute_watched
from ditbench.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.plan import Plan
    from ditbench.engine.scored import ScoredTokens
    from ditbench.learn.gates import Gates


@dataclass
class _Caller:
    """What belongs to one call of the network in every step: one for all, or one for each branch of guidance."""

    selector: ScoredTokens
    kept: tuple[Output, ...] = ()
    # The ranks of a site's tokens, as they were when it was first run.
    ranks: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class RelaxedRun:
    """Stands where a `Run` stands, for plans by branch whose missing tokens are reused.

    `selectors` makes a fresh selector that can tell the order of tokens at any step.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: Plan,
        tokens: int,
        gates: Gates,
        selectors: Callable[[], ScoredTokens],
        halves: int = 1,
        seeds: Sequence[int] | None = None,
        checkpointing: bool = True,
    ) -> None:
        self.backbone, self.tokens, self.gates = backbone, tokens, gates
        self.checkpointing = checkpointing
        self._counts: list[list[int]] = plan.counts(tokens).tolist()
        self._units = plan.units
        self._selectors, self._halves = selectors, halves
        self._seeds = None if seeds is None else torch.tensor([*seeds] * halves, device=backbone.network.device)
        self._callers: list[_Caller] = []
        self._among: list[bool] | None = None  # branches whose tokens attend to those that are computed
        self.step = self._calls = 0

    def advance(self) -> None:
        """The next call of the network belongs to the next step."""
        if self._calls:
            self.step, self._calls = self.step + 1, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the network's own forward."""
        if self.step >= len(self._counts):
            raise Fault(f"the sampler asks for step {self.step + 1}, the plan has {len(self._counts)}")
        if self._calls == len(self._callers):
            self._callers.append(_Caller(self._selectors()))
        caller, step = self._callers[self._calls], self.step
        self._calls += 1
        if self._among is None:
            costs = self.backbone.costs(self.tokens, self.backbone.text_tokens(*args, **kwargs))
            self._among = [cost.keys == "computed" for cost in costs.branches]
        given = (caller, step, caller.kept, args, kwargs)
        if self.checkpointing:
            answer, caller.kept = checkpoint(self._forward, *given, use_reentrant=False)
        else:
            answer, caller.kept = self._forward(*given)
        return answer

    def _forward(
        self, caller: _Caller, step: int, kept: tuple[Output, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Output, ...]]:
        stream = self.backbone.enter(*args, **kwargs)
        stream.halves, stream.seeds = self._halves, self._seeds
        given = []
        for branch in range(len(self.backbone.layout)):
            last = kept[branch] if kept else None
            output = self._branch(caller, step, branch, stream, last)
            self.backbone.add(stream, branch, output)
            given.append(output)
        return self.backbone.leave(stream), tuple(given)

    def _branch(self, caller: _Caller, step: int, branch: int, stream: Stream, last: Output | None) -> Output:
        """What the plan gives a branch's tokens."""
        again = (step, branch) in caller.ranks  # a run for gradients: whatever looks on has looked before
        selector = None if again else caller.selector
        unit, count = self._units[branch], self._counts[step][branch]
        if last is None or not self.gates.learns(step):
            caller.ranks[step, branch] = torch.empty(0)
            return compute_watched(self.backbone, selector, step, stream, branch)[0]
        if selector is not None:
            with torch.no_grad():
                order = selector.order(unit, step, stream)
                if 0 < count < self.tokens:
                    selector.computing(unit, step, order[:, :count].sort(dim=1).values)
                rank = torch.empty_like(order).scatter_(1, order, torch.arange(self.tokens).to(order).expand_as(order))
            if len(rank) < stream.samples:
                rank = torch.cat([rank, rank])
            caller.ranks[step, branch] = rank.short() if self.tokens < 1 << 15 else rank
        rank = caller.ranks[step, branch].long()
        if count == self.tokens:
            fresh = compute_watched(self.backbone, selector, step, stream, branch)[0]
        elif count == 0:
            fresh = self._without_gradients(stream, branch)
        elif self._apart(caller.selector, step, branch):
            fresh = self._without_gradients(stream, branch)
            fresh = self._with_some(selector, step, branch, stream, fresh, rank < count)
        else:
            fresh = self.backbone.compute(stream, branch)
        gate = self.gates.of(step, branch, rank)[..., None].to(fresh.image.dtype)
        image = last.image + gate * (fresh.image - last.image)
        if fresh.text is None or last.text is None:
            return Output(image, fresh.text)
        of_text = self.gates.of_text(step, branch).to(fresh.text.dtype)
        return Output(image, last.text + of_text * (fresh.text - last.text))

    def _apart(self, watching: ScoredTokens, step: int, branch: int) -> bool:
        """Whether tokens that are computed have to be by themselves: it changes what they get, or is watched."""
        assert self._among is not None
        return self._among[branch] or watching.watches(branch, step)

    def _without_gradients(self, stream: Stream, branch: int) -> Output:
        """All tokens' outputs, of which none is the plan's."""
        self.backbone.keep_input(stream, branch)  # what later branches read does have gradients
        _ = stream.hidden  # and so do additions that nobody has looked at yet
        with torch.no_grad():
            return self.backbone.compute(stream, branch)

    def _with_some(
        self,
        selector: ScoredTokens | None,
        step: int,
        branch: int,
        stream: Stream,
        fresh: Output,
        computed: Tensor,
    ) -> Output:
        """The output in which computed tokens have what they get where they are computed by themselves."""
        index = computed.nonzero()[:, 1].view(len(computed), -1)
        rows = Rows(index, self.tokens)
        part = compute_watched(self.backbone, selector, step, stream.at(rows), branch, rows)[0]
        return Output(rows.put(fresh.image.contiguous(), part.image), part.text if fresh.text is not None else None)
