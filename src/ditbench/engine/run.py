"""One sampling run: the loop over the sites of a plan, and how it takes a model's place.

A `Run` is made for one call of a pipeline and holds all its state (step, fills, selectors, trace), so nothing can
leak into the next call, whatever its batch, its steps or the way the last one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ditbench.engine.deciders import checking_of, entered
from ditbench.engine.fills import Blending, Fill, Finishing, Key, Pass, Refilling, Replacing
from ditbench.engine.guidance import EndsGuidance, Half, batch_of, guided_steps
from ditbench.engine.layout import Shape
from ditbench.engine.merging import ASK_MERGING, Apart, Counting, Merging, Site, merging_of
from ditbench.engine.plan import ASK, Plan
from ditbench.engine.rows import Rows
from ditbench.engine.selectors import (
    Gathering,
    choosing_text_of,
    foreseeing_of,
    gathering_of,
    keys_of,
    narrowing_of,
    recalled_of,
    scaling_of,
)
from ditbench.engine.trace import Trace
from ditbench.engine.watch import compute_watched, watcher_of
from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Output, Stream
    from ditbench.engine.costs import Costs, UnitCost
    from ditbench.engine.deciders import Decider
    from ditbench.engine.selectors import Selector


@dataclass
class Parts:
    """What goes with a plan, with fresh state: the fill, the selector and the decider of one run.

    Where a pipeline calls its network once for each branch of guidance (Wan), each branch has parts of its own.
    """

    fill: Fill
    selector: Selector | Merging | None = None
    decider: Decider | None = None


class Run:
    """Executes `plan` on `backbone`.

    A step is one call of the network, or as many as come before `advance` if `by_itself` is off: a pipeline that
    calls its network for one branch of guidance after the other stays in one step so. `halves` is 2 where a batch
    holds both branches of guidance, the first half for the one and the second, in the same order, for the other.
    `seeds` has a number for each image, so that what chance does to it does not hang on the batch it is in.
    `guided` says for every step whether both branches of guidance are computed, or the conditional one alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        plan: Plan,
        tokens: int,
        parts: Callable[[], Parts],
        by_itself: bool = True,
        halves: int = 1,
        seeds: Sequence[int] | None = None,
        guided: Sequence[bool] | None = None,
    ) -> None:
        if plan.layout != backbone.layout:
            raise Fault(
                f"the plan is for {_said(plan)}, the backbone has {backbone.layout.blocks} blocks of "
                f"{'/'.join(backbone.layout.names)}"
            )
        self.backbone, self.plan, self.tokens = backbone, plan, tokens
        self.new_parts, self._by_itself, self.halves = parts, by_itself, halves
        self._seeds = None if seeds is None else torch.tensor([*seeds] * halves, device=backbone.network.device)
        self._guided = guided_steps(guided, plan.steps)
        self._alone: Any = None  # the conditional branch's answer, where the pipeline asks for the other by itself
        self.branches: list[Parts] = [parts()]
        self._check(self.branches[0])
        # Plain lists: the loop reads one number per unit and must not touch a tensor for it.
        self._counts: list[list[int]] = plan.counts(tokens).tolist()
        self._keeps: list[list[bool]] = _keeps(plan, tokens, self.branches[0].fill.wants_all).tolist()
        self._readers = _readers(backbone, plan)
        self.step = 0
        self.trace = Trace.empty(Shape(plan.steps, plan.layout, tokens))
        self._calls = 0  # of the network, in this step
        self._given: int | None = None  # samples, at every call
        self._text_tokens: int | None = None
        self._costs: Costs | None = None

    def _check(self, parts: Parts) -> None:
        counts = self.plan.counts(self.tokens)
        first = counts[0]
        if not parts.fill.stateless and ((first >= 0) & (first < self.tokens)).any():
            raise Fault("the first step of a plan must compute all tokens: there is nothing to fill them with yet")
        if parts.selector is None and ((counts > 0) & (counts < self.tokens)).any():
            raise Fault("a plan that computes some of a unit's tokens needs a selector to choose them")
        merging = merging_of(parts.selector)
        if merging is not None and not all(unit.single for unit in self.plan.units):
            raise Fault("tokens are merged branch by branch: a plan that does so must be one of single branches")
        if parts.decider is None and not isinstance(parts.selector, Apart | Counting | Gathering) and self.plan.online:
            raise Fault("a plan that leaves decisions to sampling needs a decider to make them")
        if not all(self._guided) and not isinstance(parts.fill, EndsGuidance):
            raise Fault(f"a {type(parts.fill).__name__} cannot go on for one branch of guidance alone")

    @property
    def kept_bytes(self) -> int:
        """What fills, selectors and deciders hold now."""
        held: list[Any] = [part for each in self.branches for part in (each.fill, each.selector, each.decider)]
        # One object may be two of them.
        return sum(part.nbytes() for part in {id(part): part for part in held}.values() if hasattr(part, "nbytes"))

    def ready(self) -> None:
        """Makes the parts for the next call of the network, where that is of a branch of guidance with none yet."""
        if self._calls == len(self.branches):
            if self.step > 0:
                raise Fault("the network is called more often in this step than in the first")
            self.branches.append(self.new_parts())

    def settle(self, halves: int) -> None:
        """Corrects how many branches of guidance a batch holds, where that shows after the first step only."""
        self.halves = halves  # seeds stay: images that were taken for branches of one start from the same noise

    def reseed(self, like: Run) -> None:
        """Takes over another run's seeds, in the memory of its own."""
        if self._seeds is not None and like._seeds is not None:
            self._seeds.copy_(like._seeds)

    def advance(self) -> None:
        """The next call of the network belongs to the next step."""
        if self._calls:
            self.step, self._calls = self.step + 1, 0

    @property
    def costs(self) -> Costs:
        """What the ledger bills this run's trace by, for the inputs it was given."""
        if self._text_tokens is None:
            raise Fault("nothing has run yet: what a step costs depends on its inputs")
        if self._costs is None:
            self._costs = self.backbone.costs(self.tokens, self._text_tokens)
        return self._costs

    def kind(self, step: int) -> tuple[Any, ...]:
        """What a step does: steps of one kind compute and keep the same units, for as many tokens."""
        fill, watcher = self.branches[0].fill, watcher_of(self.branches[0].selector)
        watched = [watcher.watches(branch, step) for branch in range(len(self.plan.layout))] if watcher else []
        passed = fill.passes(step) if isinstance(fill, Finishing) else []
        merging = merging_of(self.branches[0].selector)
        looked = [merging.looks(branch, step) for branch in range(len(self.plan.layout))] if merging else []
        looked += [merging.kind(step)] if merging else []
        narrowing = narrowing_of(self.branches[0].selector)
        looked += [narrowing.widths_at(step)] if narrowing else []
        return (self._guided[step], *self._counts[step], *self._keeps[step], *watched, *passed, *looked)

    def repeat(self, like: int) -> None:
        """Counts this step as an earlier one of its kind, without running it: where only the cost is asked for."""
        if self.kind(like) != self.kind(self.step) or self.plan.online:
            raise Fault(f"step {self.step + 1} is not of the kind of step {like + 1}: it has to be run")
        self.trace.repeat(like, self.step)
        self.step += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the network's own forward."""
        if self.step >= self.plan.steps:
            raise Fault(f"the sampler asks for step {self.step + 1}, the plan has {self.plan.steps}")
        if self._guided[self.step]:
            return self._forward(self.halves, self._seeds, args, kwargs)
        return self._forward_alone(args, kwargs)

    def _expect(self, given: int) -> None:
        """A Fault where a batch is not as large as it was: what is kept of it has rows for those it had."""
        if self._given is None:
            self._given = given
        elif given != self._given:
            raise Fault(
                f"the network was given {self._given} samples at first and is given {given} in step {self.step + 1}: a "
                "batch may not change within a sampling run (guidance is ended by cfg-off or t-gate, not by a callback)"
            )

    def _forward_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step without guidance, of which the pipeline does not know."""
        if self.halves == 1:
            return self._forward_one_by_one(args, kwargs)
        self._expect(batch_of(args, kwargs))
        half = Half.of(batch_of(args, kwargs), self.backbone.conditional_second)
        if self._guided[self.step - 1]:
            self._end_guidance(half.rows, None)
        seeds = None if self._seeds is None else half.take(self._seeds)
        return half.for_both(self._forward(1, seeds, *half.take((args, kwargs))))

    def _forward_one_by_one(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call without guidance, where the conditional branch is called first and the other after it."""
        if len(self.branches) < 2:
            # Nothing to end; a plan that goes on to leave something out (T-GATE's) has that left to do.
            if (self.plan.shares[self.step :] == 1).all():
                raise Fault("there is no guidance here to end: the network is called for one branch only")
            return self._forward(1, self._seeds, args, kwargs)
        if self._calls > 0:
            self._calls += 1
            return self._alone
        if self._guided[self.step - 1]:
            self._end_guidance(slice(None), self.branches[1].fill)
        self._alone = self._forward(1, self._seeds, args, kwargs)
        return self._alone

    def _end_guidance(self, conditional: slice, twin: Fill | None) -> None:
        fill = self.branches[0].fill
        assert isinstance(fill, EndsGuidance)  # checked when the run was made
        fill.end_guidance(conditional, twin)
        del self.branches[2 if twin is not None else 1 :]

    def _forward(self, halves: int, seeds: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of the network for one batch."""
        stream = self.backbone.enter(*args, **kwargs)
        if stream.tokens != self.tokens:
            raise Fault(f"the plan is for {self.tokens} tokens, the network was given {stream.tokens}")
        if halves == self.halves:
            self._expect(stream.samples)
        if halves > 1 and stream.samples % halves:
            raise Fault(f"a batch of {stream.samples} cannot hold {halves} branches of guidance of equal size")
        if seeds is not None and len(seeds) != stream.samples:
            raise Fault(f"the network was given {stream.samples} samples, there are seeds for {len(seeds)}")
        stream.halves, stream.seeds = halves, seeds
        self.ready()
        parts = self.branches[self._calls]
        self._calls += 1
        if self._text_tokens is None:
            self._text_tokens = self.backbone.text_tokens(*args, **kwargs)
        if self.step == 0:
            self.trace.samples += stream.samples
        self.trace.entered[self.step] += stream.samples
        _Pass(self, parts, stream).run()
        self.trace.note(self.step, stream.notes)
        self.trace.cache_bytes = max(self.trace.cache_bytes, self.kept_bytes / max(self.trace.samples, 1))
        answer = self.backbone.leave(stream)
        if self._by_itself:
            self.advance()
        return answer


class _Pass:
    """One pass of one stream through all units of a step."""

    def __init__(self, run: Run, parts: Parts, stream: Stream) -> None:
        self.run_, self.parts, self.stream = run, parts, stream
        self.backbone, self.step = run.backbone, run.step
        # The part of the stream that the last unit gathered, for the next one that asks for the same tokens.
        self.rows: Rows | None = None
        self.part: Stream | None = None
        self.watcher = watcher_of(parts.selector)
        # Asked once: such questions take longer than what a unit that is left out costs.
        self.replacing = parts.fill if isinstance(parts.fill, Replacing) else None
        self.checking = checking_of(parts.decider)
        self.merging = merging_of(parts.selector)
        self.blending = parts.fill if isinstance(parts.fill, Blending) else None
        self.refilling = parts.fill if isinstance(parts.fill, Refilling) else None
        self.scaling = scaling_of(parts.selector)
        self.foreseeing = foreseeing_of(parts.selector)
        self.keys = keys_of(parts.selector)
        self.texts, self.recalled = choosing_text_of(parts.selector), recalled_of(parts.selector)
        stream.recalled = self.recalled
        if self.recalled is not None:
            self.recalled.begin(self.step)
        asked = (self.foreseeing, self.keys, self.texts, self.recalled)
        wanted = any(part is not None for part in asked) or (self.merging is not None and self.merging.attends_whole)
        self.costs = run.costs if wanted else None
        self.narrowing, self.gathering = narrowing_of(parts.selector), gathering_of(parts.selector)
        self.passing = type(parts.fill) is Pass
        last = run.plan.layout.blocks - 1
        self.last_block = run.plan.layout.span(last, last + 1).start if self.checking is not None else -1

    def run(self) -> None:
        entered(self.parts.decider, self.step, self.stream)
        if self.foreseeing is not None:
            assert self.costs is not None
            looking = self.foreseeing.foresee(self.step, self.stream, self.backbone, self.costs)
            self.run_.trace.selecting[self.step] += looking
        self._units()
        if self.checking is not None and self.checking.again(self.step, self.stream):
            self.stream.fed.clear()
            self._units()

    def _units(self) -> None:
        counts, keeps = self.run_._counts[self.step], self.run_._keeps[self.step]
        for number, unit in enumerate(self.run_.plan.units):
            if unit.start == self.last_block:
                self._check(unit.start)
            count = counts[number]
            if self.recalled is not None and count != 0 and self.recalled.recalls(unit.start):
                self._together(number, count)
                continue
            if count == self.run_.tokens:
                self._whole(number, keeps[number])
                continue
            reader = self.run_._readers.get(number)
            if reader is not None and counts[reader] != 0:
                self.backbone.keep_input(self.stream, unit.start)
            if self.merging is not None and count != 0:
                self._merged_apart(number) if isinstance(self.parts.selector, Apart) else self._merged(number, count)
            elif count < 0:
                self._gathered(number, keeps[number]) if self.gathering is not None else self._ask(
                    number, keeps[number]
                )
            elif count == 0:
                self._leave_out(number)
            else:
                selector = self.parts.selector
                assert selector is not None and not isinstance(selector, Merging)
                self._some(number, selector.choose(unit, self.step, self.stream, count))
        if isinstance(self.parts.fill, Finishing):
            self.parts.fill.finish(self.step, self.stream)

    def _check(self, first: int) -> None:
        """The last block, for samples that want to see what it would give out."""
        assert self.checking is not None
        samples = self.checking.due(self.step, self.stream)
        if not len(samples):
            return
        part = self.stream.at(Rows.of_samples(samples, self.stream.tokens))
        for branch in range(first, len(self.run_.plan.layout)):
            self.backbone.add(part, branch, self.backbone.compute(part, branch))
            self.run_.trace.record(self.step, branch, part.tokens, part.samples)
        self.checking.saw(part.hidden)

    def _compute(self, stream: Stream, branch: int, rows: Rows | None = None) -> Output:
        """A branch's output; a selector that wants to may look on."""
        with self._narrowed(branch), self._attending(stream, branch, rows):
            output, macs = compute_watched(self.backbone, self.watcher, self.step, stream, branch, rows)
        if self.scaling is not None:
            output, macs = self.scaling.scaled(branch, output, rows), macs + self.scaling.macs()
        self.run_.trace.selecting[self.step] += macs
        return output

    def _narrowed(self, branch: int) -> AbstractContextManager[None]:
        """Within the context a branch is as wide as a selector wants it."""
        if self.narrowing is None:
            return nullcontext()
        return self.narrowing.narrowed(self.backbone, branch, self.step)

    def _attending(self, stream: Stream, branch: int, rows: Rows | None) -> AbstractContextManager[None]:
        """Within the context tokens attend to those that are left out too, where a selector wants that."""
        if self.keys is None or self.costs is None or self.costs.branches[branch].keys != "computed":
            return nullcontext()
        return self.keys.around(branch, self.step, stream, rows, self.backbone.text_leads)

    def _whole(self, number: int, keep: bool) -> None:
        """A unit for all tokens, with the network's own operations."""
        unit, stream = self.run_.plan.units[number], self.stream
        self.rows = self.part = None
        self._record(number, stream.tokens, stream.samples)
        keep = (keep or (self.recalled is not None and self.recalled.needed(unit.start))) and not self.passing
        if self.scaling is not None:
            self.scaling.enter(unit, self.step, stream)
        if unit.single:
            if self.merging is not None and self.merging.looks(unit.start, self.step):
                stream.site = Site(self.merging, unit.start, self.step, stream.tokens)
            output = self._compute(stream, unit.start)
            stream.site = None
            self.backbone.add(stream, unit.start, output)
            given: Output | None = output
            if keep and self.blending is not None:
                gate, _ = self.backbone.gates(stream, unit.start)
                self.blending.keep_gated(number, output.image if gate is None else gate * output.image)
        else:
            before = (stream.hidden, stream.text)
            for branch in range(unit.start, unit.stop):
                self.backbone.add(stream, branch, self._compute(stream, branch))
            given = _difference(stream, *before) if keep else None
        if keep and self.replacing is not None:
            self.replacing.keep_stream(number, self.step, stream)
        if keep and given is not None and self._lies_together(unit.start) and given.text is not None:
            self.parts.fill.keep(Key(number, "both"), self.step, torch.cat([given.text, given.image], dim=1))
        elif keep and given is not None:
            self.parts.fill.keep(Key(number, "image"), self.step, given.image)
            if given.text is not None:
                self.parts.fill.keep(Key(number, "text"), self.step, given.text)

    def _lies_together(self, branch: int) -> bool:
        """Whether tokens of text and image are chosen and kept together."""
        return self.recalled is not None and self.recalled.covers(branch)

    def _leave_out(self, number: int) -> None:
        """A unit of which nothing is computed."""
        self.rows = self.part = None
        if self.replacing is not None:
            self.replacing.replace(number, self.step, self.stream)
            return
        if self._lies_together(self.run_.plan.units[number].start):
            both = self.parts.fill.supply(Key(number, "both"), self.step)
            if both is not None:
                self._add_both(number, both)
            return
        image = self.parts.fill.supply(Key(number, "image"), self.step)
        text = None
        if self._has_text(number):
            text = self.parts.fill.supply(Key(number, "text"), self.step)
        if image is None and text is None:
            return
        gate, text_gate = self._gates(number)
        if image is not None:
            self.stream.defer(gate, image)
        if text is not None:
            self._add_text(text_gate, text)

    def _together(self, number: int, count: int) -> None:
        """A branch for some tokens of text and image, from attention that is kept."""
        unit, stream = self.run_.plan.units[number], self.stream
        assert self.texts is not None and self.recalled is not None and self.costs is not None
        self.rows = self.part = None
        rows = self.texts.choose_both(unit, self.step, stream)
        part = stream.together(rows)
        spared, square = self.recalled.bill(self.costs.branches[unit.start], count, part.tokens)
        trace = self.run_.trace
        trace.record(self.step, unit.start, count, part.samples, square=square, spared=spared, whole=False)
        output = self._compute(part, unit.start, rows)
        both = self.parts.fill.complete(Key(number, "both"), self.step, rows, output.image)
        assert both is not None, "what keeps attention reuses what its branches gave out"
        self._add_both(number, both)

    def _add_both(self, number: int, both: Tensor) -> None:
        """Adds what a branch gives out for text and image, the text's first."""
        assert self.stream.text is not None
        text = self.stream.text.shape[1]
        gate, text_gate = self._gates(number)
        self.stream.defer(gate, both[:, text:])
        self._add_text(text_gate, both[:, :text])

    def _some(self, number: int, rows: Rows) -> None:
        """A unit for some tokens of each sample, or for all tokens of some samples."""
        unit, fill = self.run_.plan.units[number], self.parts.fill
        if rows is not self.rows or self.part is None:
            self.rows, self.part = rows, self.stream.at(rows)
        part, stream = self.part, self.stream
        text_rows = None
        if self.texts is not None and rows.samples is None and self._has_text(number):
            assert stream.text is not None
            text_rows = self.texts.choose_text(unit, self.step, stream)
            part.text, part.text_rows = text_rows.take(stream.text), text_rows
        self._record(number, part.tokens, part.samples, partly=part)
        if unit.single:
            output = self._compute(part, unit.start, rows)
            gate, text_gate = self.backbone.gates(self.stream, unit.start)
            own_gate = gate if rows.samples is None or gate is None else gate[rows.samples]
            part.defer(own_gate, output.image)
        else:
            before = (part.hidden, part.text)
            for branch in range(unit.start, unit.stop):
                self.backbone.add(part, branch, self._compute(part, branch, rows))
            if self.passing and part.text is None:  # tokens that pass by are as they were: nothing to tell apart
                self.stream.hidden = rows.put(self.stream.hidden.contiguous(), part.hidden)
                return
            output, gate, text_gate = _difference(part, *before), None, None
        if self.refilling is not None:
            self.stream.hidden = self.refilling.refill(unit, part.hidden)
            if output.text is not None:
                self._text_of_some(number, rows, text_rows, output.text, text_gate)
            return
        whole = fill.complete(Key(number, "image"), self.step, rows, output.image)
        if whole is not None:
            self.stream.defer(gate, whole)
        else:
            self.stream.hidden = rows.put(self.stream.hidden.contiguous(), part.hidden)
        if output.text is not None:
            self._text_of_some(number, rows, text_rows, output.text, text_gate)

    def _merged(self, number: int, count: int) -> None:
        """A branch for groups of tokens, of which all receive what their group gives out."""
        assert self.merging is not None
        unit, stream = self.run_.plan.units[number], self.stream
        self.rows = self.part = None
        stream.site = site = Site(self.merging, unit.start, self.step, count)
        output = self._compute(stream, unit.start)
        stream.site = None
        self._record(number, site.tokens, stream.samples, site=site)
        self.run_.trace.selecting[self.step] += self.merging.macs()
        if self.blending is None or site.merge is None:
            self.backbone.add(stream, unit.start, output)
            return
        gate, text_gate = self.backbone.gates(stream, unit.start)
        fresh = output.image if gate is None else gate * output.image
        stream.defer(None, self.blending.blend(number, site.merge, fresh))
        if output.text is not None:
            self._add_text(text_gate, output.text)

    def _merged_apart(self, number: int) -> None:
        """A branch for groups of tokens, as many as each image of the batch finds alike."""
        from ditbench.backbones.stream import Output

        unit, stream = self.run_.plan.units[number], self.stream
        selector = cast(Apart, self.parts.selector)  # checked when the run was made
        found: list[tuple[Tensor, Output]] = []
        assert self.merging is not None
        self.rows = self.part = None
        for samples, merging in selector.apart(stream):
            part = stream.at(Rows.of_samples(samples, stream.tokens))
            part.site = site = Site(merging, unit.start, self.step, ASK_MERGING)
            found.append((samples, self._compute(part, unit.start)))
            self._record(number, site.tokens, part.samples, site=site)
        self.run_.trace.selecting[self.step] += self.merging.macs()
        order = torch.cat([samples for samples, _ in found]).argsort()
        image = torch.cat([output.image for _, output in found])[order]
        texts = [output.text for _, output in found if output.text is not None]
        self.backbone.add(stream, unit.start, Output(image, torch.cat(texts)[order] if texts else None))

    def _gathered(self, number: int, keep: bool) -> None:
        """A branch for as many tokens of each sample as a selector finds worth it; the others receive nothing."""
        unit, stream = self.run_.plan.units[number], self.stream
        self.rows = self.part = None
        assert self.gathering is not None
        stream.site = site = self.gathering.gather(unit.start, self.step, stream)
        output = self._compute(stream, unit.start)
        stream.site = None
        for count in site.counts:
            self._record(number, count, 1)
        self.run_.trace.selecting[self.step] += self.gathering.macs()
        self.backbone.add(stream, unit.start, output)
        if keep and not self.passing:
            self.parts.fill.keep(Key(number, "image"), self.step, output.image)
            if output.text is not None:
                self.parts.fill.keep(Key(number, "text"), self.step, output.text)

    def _text_of_some(self, number: int, rows: Rows, text_rows: Rows | None, text: Tensor, gate: Tensor | None) -> None:
        """The text's tokens are computed with any of the image's, but where a selector chooses among them.

        Those that were left out, and those of samples that were, are filled.
        """
        key = Key(number, "text")
        if rows.samples is None and text_rows is None:
            self.parts.fill.keep(key, self.step, text)
            self._add_text(gate, text)
        else:
            assert self.stream.text is not None
            if rows.samples is None:
                assert text_rows is not None
                own = text_rows
            else:
                own = Rows.of_samples(rows.samples, self.stream.text.shape[1])
            whole = self.parts.fill.complete(key, self.step, own, text)
            if whole is None:
                whole = own.put(self.stream.text.new_zeros(self.stream.text.shape), text)
            self._add_text(gate, whole)
        assert self.part is not None
        self.part.text, self.part.text_rows = (self.stream.text if rows.samples is None else None), None
        if rows.samples is not None:
            self.rows = self.part = None

    def _ask(self, number: int, keep: bool) -> None:
        """A unit whose plan is made now: which samples compute it."""
        assert self.parts.decider is not None
        unit, stream = self.run_.plan.units[number], self.stream
        chosen = self.parts.decider.decide(unit, self.step, stream, self.backbone)
        samples = chosen.nonzero().flatten()  # the host has to know how many
        if self.step == 0 or len(samples) == stream.samples:
            self._whole(number, keep)
        elif len(samples) == 0:
            self._leave_out(number)
        else:
            self._some(number, Rows.of_samples(samples, stream.tokens))

    def _gates(self, number: int) -> tuple[Tensor | None, Tensor | None]:
        unit = self.run_.plan.units[number]
        return self.backbone.gates(self.stream, unit.start) if unit.single else (None, None)

    def _has_text(self, number: int) -> bool:
        unit = self.run_.plan.units[number]
        return self.stream.text is not None and any(
            self.backbone.writes_text(branch) for branch in range(unit.start, unit.stop)
        )

    def _add_text(self, gate: Tensor | None, text: Tensor) -> None:
        assert self.stream.text is not None
        self.stream.text = self.stream.text + (text if gate is None else gate * text)

    def _record(
        self, number: int, tokens: int, samples: int, partly: Stream | None = None, site: Site | None = None
    ) -> None:
        """Notes what of a unit is computed; `partly`: the part of the stream, where it is not the whole."""
        unit = self.run_.plan.units[number]
        for branch in range(unit.start, unit.stop):
            width = 1.0 if self.narrowing is None else self.narrowing.width(branch, self.step)
            square = None
            if self.keys is not None and self.costs is not None:
                square = self.keys.squares(self.costs.branches[branch], tokens, self.run_.tokens)
            spared = 0
            if partly is not None and self.costs is not None:
                spared = self._spared(self.costs.branches[branch], partly)
            if site is not None and site.attends_whole and self.costs is not None:
                spared, square = self._attending_besides(self.costs.branches[branch], tokens)
            self.run_.trace.record(self.step, branch, tokens, samples, width=width, square=square, spared=spared)

    def _attending_besides(self, cost: UnitCost, tokens: int) -> tuple[int, int | None]:
        """Of a branch in which all tokens attend and `tokens` go through the MLP: what it costs less (so less than
        none), and what stands for their square.
        """
        if not cost.apart:
            return 0, None
        whole = self.run_.tokens
        return -cost.apart * (whole - tokens), whole * whole + 2 * cost.joined * (whole - tokens)

    @staticmethod
    def _spared(cost: UnitCost, part: Stream) -> int:
        """MACs of linear layers that tokens of the text would cost which are not computed."""
        if part.text is None or part.text_rows is None:
            return 0
        whole = part.text_rows.tokens
        return cost.once * (whole - part.text.shape[1]) // whole


def _difference(stream: Stream, hidden: Tensor, text: Tensor | None) -> Output:
    """What a stretch of the network added to its stream."""
    from ditbench.backbones.stream import Output

    added = None
    if text is not None and stream.text is not None and stream.text is not text:
        added = stream.text - text
    return Output(stream.hidden - hidden, added)


def _keeps(plan: Plan, tokens: int, wants_all: bool) -> np.ndarray:
    """Which outputs are worth keeping: those of units that the next step does not compute whole."""
    if wants_all:
        return np.ones(plan.shares.shape, dtype=bool)
    later = np.zeros(plan.shares.shape, dtype=bool)
    later[:-1] = (plan.counts(tokens)[1:] != tokens) | (plan.shares[1:] == ASK)
    return later


def _readers(backbone: Backbone, plan: Plan) -> dict[int, int]:
    """Units whose input a later unit reads: unit -> the unit that reads it."""
    unit_of = [number for number, unit in enumerate(plan.units) for _ in range(unit.start, unit.stop)]
    found = {}
    for branch, number in enumerate(unit_of):
        source = backbone.reads(branch)
        if unit_of[source] == number:
            continue
        if plan.units[unit_of[source]].start != source:
            # Left out, such a unit would have no tokens to show as they were in its middle.
            label, first = plan.layout.label(plan.units[unit_of[source]]), plan.layout.branches[source]
            raise Fault(
                f"unit {label} may not end within block {first.block}: its {plan.layout.branches[branch].name} reads "
                f"what its {first.name} reads, so let a unit start with {first.name} or hold both"
            )
        found[unit_of[source]] = number
    return found


def _said(plan: Plan) -> str:
    return f"{plan.layout.blocks} blocks of {'/'.join(plan.layout.names)}"


class StandIn(Protocol):
    """What may take the place of a network's forward for a sampling run."""

    backbone: Backbone

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the network's own."""

    def advance(self) -> None:
        """The next call of the network belongs to the next step."""


Standing = TypeVar("Standing", bound=StandIn)


@contextmanager
def attached(run: Standing, scheduler: Any = None) -> Iterator[Standing]:
    """Within the context the network's forward is the run's; afterwards the network is as it was.

    With a `scheduler`, a step of the plan is a step of that: give it with `by_itself=False`.
    """
    give_back = take_place(run.backbone.network, run.forward)
    restore = _advancing(run, scheduler) if scheduler is not None else lambda: None
    try:
        yield run
    finally:
        give_back()
        restore()


def take_place(network: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Lets `forward` stand in for a network's own; answers with what undoes it.

    Where accelerate has put a hook around the forward (to move weights to the device when they are needed), the hook
    stays and what it calls is replaced.
    """
    hooked = "_hf_hook" in vars(network) and "_old_forward" in vars(network)
    name = "_old_forward" if hooked else "forward"
    before = vars(network).get(name)
    owner = type(getattr(before, "__self__", None)).__module__
    if owner.startswith("ditbench."):
        raise Fault("this network is accelerated already; call restore() on what accelerate() gave you first")
    if before is not None and not hooked:
        raise Fault("something else stands in for this network's forward already; take that off first")
    setattr(network, name, forward)

    def give_back() -> None:
        if before is None:
            delattr(network, name)
        else:
            setattr(network, name, before)

    return give_back


def _advancing(run: StandIn, scheduler: Any) -> Callable[[], None]:
    """Makes a scheduler's steps the run's; answers with what undoes it."""
    own = scheduler.step

    @wraps(own)  # pipelines read from its signature what it takes (eta, a generator)
    def step(*args: Any, **kwargs: Any) -> Any:
        run.advance()
        return own(*args, **kwargs)

    scheduler.step = step

    def restore() -> None:
        del scheduler.step

    return restore
