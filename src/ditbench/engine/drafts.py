"""Drafts that are checked: steps of forecast outputs, and a last block that says how far they are off (SpeCa).

Between full steps every unit is given the forecast of its output. In some of these drafts the last block is computed
as well, from what has come to it, and compared with its own forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from ditbench.engine.changes import Pool, pooled
from ditbench.engine.fills import Key

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.layout import Unit
    from ditbench.engine.rows import Rows

Error = Literal["relative-l1", "relative-l2"]


@dataclass(frozen=True)
class Rules:
    """When a sample is drafted, checked, and computed. Steps count from 0; a draft's number counts from 1.

    `first` steps at the start are computed, unless the one before them was. A draft is checked from number
    `unchecked` + 1 on, and there are at most `longest` in a row. Its error may be `threshold`, times `decay` to the
    power of the share of steps that are done, but at least `floor`. Where it is larger, the step itself is computed
    instead (`rejects`), or the next one.
    """

    steps: int
    threshold: float
    decay: float
    floor: float
    first: int
    unchecked: int
    longest: int
    rejects: bool
    error: Error = "relative-l1"
    pool: Pool = "sample"

    def allowed(self, step: int) -> float:
        """The largest error at a step."""
        return max(self.threshold * self.decay ** ((step + 1) / self.steps), self.floor)


class SampledTaylor:
    """A Taylor series for each sample, through its own last computed steps, as `Taylor` has it for a whole batch."""

    stateless: ClassVar[bool] = False
    wants_all: ClassVar[bool] = True

    def __init__(self, order: int, build_from: int) -> None:
        self.order, self.build_from = order, build_from
        # Of each key: differences of order 0, 1, …, of all samples; 0 where a sample has none yet.
        self._factors: dict[Key, list[Tensor]] = {}
        # Of each key and sample: how many there are, and the step of the newest.
        self._known: dict[Key, Tensor] = {}
        self._at: dict[Key, Tensor] = {}

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        if key not in self._factors:
            self._factors[key] = [output.contiguous()]
            self._known[key] = torch.ones(len(output), dtype=torch.long, device=output.device)
            self._at[key] = torch.full((len(output),), step, device=output.device)
        else:
            self._update(key, step, torch.arange(len(output), device=output.device), output)

    def supply(self, key: Key, step: int) -> Tensor | None:
        return self._forecast(key, step)

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        assert rows.samples is not None, "whole samples are decided, not tokens"
        whole = self._forecast(key, step).index_copy(0, rows.samples, part)
        self._update(key, step, rows.samples, part)
        return whole

    def _update(self, key: Key, step: int, samples: Tensor, output: Tensor) -> None:
        """New differences of the samples that were computed."""
        factors, known = self._factors[key], self._known[key]
        span = (step - self._at[key][samples])[:, None, None].to(output.dtype)
        newest = [output]
        if step >= self.build_from:
            for i, before in enumerate(factors[: self.order]):
                there = (known[samples] > i)[:, None, None]
                newest.append(torch.where(there, (newest[i] - before[samples]) / span, torch.zeros_like(output)))
            self._known[key] = known.index_copy(0, samples, (known[samples] + 1).clamp_max(self.order + 1))
        else:
            self._known[key] = known.index_fill(0, samples, 1)
        while len(factors) < len(newest):
            factors.append(torch.zeros_like(factors[0]))
        for i, factor in enumerate(factors):
            # Written anew: an answer may still hold the old one.
            value = newest[i] if i < len(newest) else torch.zeros_like(output)
            factors[i] = value if len(samples) == len(factor) else factor.index_copy(0, samples, value)
        self._at[key] = self._at[key].index_fill(0, samples, step)

    def _forecast(self, key: Key, step: int) -> Tensor:
        factors, away = self._factors[key], (step - self._at[key]).float()
        whole = factors[0]
        for i, factor in enumerate(factors[1:], start=1):
            whole = whole + (away**i / math.factorial(i)).to(factor.dtype)[:, None, None] * factor
        return whole

    def nbytes(self) -> int:
        return sum(tensor.nbytes for factors in self._factors.values() for tensor in factors)


class Drafts(SampledTaylor):
    """Fill and decider of SpeCa: drafts, checks and computes, every sample for itself unless they are pooled."""

    def __init__(self, rules: Rules, order: int) -> None:
        # The published code builds differences from its last computed step at the start on.
        super().__init__(order, build_from=max(1, rules.first - 1))
        self.rules = rules
        self._drafts: Tensor | None = None  # how many in a row, of each sample; 0 where its last step was computed
        self._wanted: Tensor | None = None  # whose last draft was too far off
        self._compute: Tensor | None = None  # of this step
        self._checked: Tensor | None = None
        self._exact: Tensor | None = None
        self._entered: tuple[Tensor, Tensor | None] | None = None

    def enter(self, step: int, stream: Stream) -> None:
        self._entered = (stream.hidden.clone(), stream.text) if self.rules.rejects else None
        self._checked = self._exact = None
        if self._drafts is None or self._wanted is None:
            self._drafts = torch.zeros(stream.samples, dtype=torch.long, device=stream.device)
            self._wanted = torch.zeros(stream.samples, dtype=torch.bool, device=stream.device)
            self._compute = torch.ones(stream.samples, dtype=torch.bool, device=stream.device)
            return
        rules, drafts = self.rules, self._drafts
        compute = self._wanted | (drafts >= rules.longest) | (step < rules.first)
        # One after a computed step is always a draft, even at the start: so the published code has it.
        self._compute = compute & ((drafts > 0) | (rules.longest == 0))
        self._drafts = torch.where(self._compute, 0, drafts + 1)
        self._wanted = torch.zeros_like(self._wanted)

    def decide(self, unit: Unit, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        assert self._compute is not None
        return self._compute

    def due(self, step: int, stream: Stream) -> Tensor:
        """The samples whose last block is computed for comparison."""
        assert self._compute is not None and self._drafts is not None
        if self.rules.rejects and self._entered is None:  # the step is made once more: what is kept was checked before
            return torch.zeros(0, dtype=torch.long, device=stream.device)
        self._checked = (~self._compute & (self._drafts > self.rules.unchecked)).nonzero().flatten()
        return self._checked

    def saw(self, exact: Tensor) -> None:
        """Takes what the last block makes of what has come to it, of the samples that were due."""
        self._exact = exact

    def finish(self, step: int, stream: Stream) -> None:
        if self._exact is None or self._checked is None:
            return
        assert self._wanted is not None
        errors = torch.zeros(stream.samples, device=stream.device)
        found = error_of(stream.hidden[self._checked], self._exact, self.rules.error)
        errors = errors.index_copy(0, self._checked, found)
        self._wanted = pooled(errors, self.rules.pool, stream.halves) > self.rules.allowed(step)
        self._exact = None

    def passes(self, step: int) -> list[bool]:
        return []

    def again(self, step: int, stream: Stream) -> bool:
        """Whether some drafts are thrown away: the stream is then as it entered, and they are computed."""
        if not self.rules.rejects or self._wanted is None or not bool(self._wanted.any()):
            return False
        assert self._entered is not None and self._drafts is not None
        self._compute, self._wanted = self._wanted, torch.zeros_like(self._wanted)
        self._drafts = torch.where(self._compute, 0, self._drafts)
        stream.hidden, stream.text = self._entered
        self._entered = None
        return True


def error_of(draft: Tensor, exact: Tensor, kind: Error) -> Tensor:
    """How far drafts are off, of each sample: the mean, or the root mean square, of each number's relative error."""
    off = (draft.float() - exact.float()).abs() / (exact.float().abs() + 1e-10)
    if kind == "relative-l1":
        return off.flatten(1).mean(1)
    return off.square().flatten(1).mean(1).sqrt()
