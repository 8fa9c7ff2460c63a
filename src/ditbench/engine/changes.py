"""Deciders that look at change: a sample computes again when what they watch has changed enough.

Each sample is decided by itself, unless it is `pooled` with the rest of the batch or with its other branch of guidance.
What is watched is compared as the mean of absolute differences over the mean of absolute values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.layout import Unit

Pool = Literal["sample", "pair", "batch"]


def relative_change(now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the mean absolute difference, and the mean absolute value before: [samples] each, in float32."""
    apart = (now.float() - before.float()).abs().flatten(1).mean(1)
    return apart, before.float().abs().flatten(1).mean(1)


def pooled(values: Tensor, pool: Pool, halves: int) -> Tensor:
    """Means over those who are decided together, [samples]."""
    if pool == "batch":
        return values.mean().expand_as(values)
    if pool == "pair" and halves == 2:
        return values.unflatten(0, (2, -1)).mean(0).repeat(2)
    return values


class Watcher(ABC):
    """What deciders of change have in common. `forced` are steps that are computed whatever has changed."""

    def __init__(self, threshold: float, pool: Pool, forced: list[bool]) -> None:
        self.threshold, self.pool, self.forced = threshold, pool, forced

    def decide(self, unit: Unit, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        compute = self.wants(step, stream, backbone)
        if step == 0 or self.forced[step]:
            compute = torch.ones_like(compute)
        self.decided(step, stream, compute)
        return compute

    @abstractmethod
    def wants(self, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        """Which samples have changed enough, [samples]; called at every step, forced or not."""

    @abstractmethod
    def decided(self, step: int, stream: Stream, compute: Tensor) -> None:
        """Called with what is computed in the end."""

    def share(self, now: Tensor, before: Tensor, stream: Stream) -> Tensor:
        """The relative change of each sample, or of those who are decided together."""
        apart, size = relative_change(now, before)
        return pooled(apart, self.pool, stream.halves) / pooled(size, self.pool, stream.halves).clamp_min(1e-12)


class FirstBlock(Watcher):
    """Watches what the first block adds, against the last step at which the sample computed the rest."""

    def __init__(self, threshold: float, pool: Pool, forced: list[bool]) -> None:
        super().__init__(threshold, pool, forced)
        self._entered: Tensor | None = None
        self._reference: Tensor | None = None
        self._now: Tensor | None = None

    def enter(self, step: int, stream: Stream) -> None:
        self._entered = stream.hidden.clone()

    def wants(self, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        assert self._entered is not None
        self._now, self._entered = stream.hidden - self._entered, None
        if self._reference is None:
            return torch.ones(stream.samples, dtype=torch.bool, device=stream.device)
        return self.share(self._now, self._reference, stream) > self.threshold

    def decided(self, step: int, stream: Stream, compute: Tensor) -> None:
        assert self._now is not None
        if self._reference is None:
            self._reference = self._now
        else:
            self._reference = torch.where(compute[:, None, None], self._now, self._reference)
        self._now = None

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return 0 if self._reference is None else self._reference.nbytes


class Accumulating(Watcher):
    """Adds up a change from each step to the next, and computes when the sum reaches the threshold."""

    def __init__(self, threshold: float, pool: Pool, forced: list[bool]) -> None:
        super().__init__(threshold, pool, forced)
        self._before: Tensor | None = None
        self._sum: Tensor | None = None

    @abstractmethod
    def watched(self, stream: Stream, backbone: Backbone) -> Tensor:
        """What is compared from step to step; nobody writes to it later."""

    def moved(self, now: Tensor, before: Tensor, stream: Stream) -> Tensor:
        """How far what is watched has moved since the last step, of each sample."""
        return self.share(now, before, stream)

    def estimated(self, change: Tensor) -> Tensor:
        """The change of the output that is expected of a change of what is watched."""
        return change

    def wants(self, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        now = self.watched(stream, backbone)
        before, self._before = self._before, now
        if before is None or self._sum is None:
            self._sum = torch.zeros(stream.samples, device=stream.device)
            return torch.ones(stream.samples, dtype=torch.bool, device=stream.device)
        self._sum = self._sum + self.estimated(self.moved(now, before, stream))
        return self._sum >= self.threshold

    def decided(self, step: int, stream: Stream, compute: Tensor) -> None:
        assert self._sum is not None
        self._sum = torch.where(compute, torch.zeros_like(self._sum), self._sum)

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return sum(kept.nbytes for kept in (self._before, self._sum) if kept is not None)


def watched_input(stream: Stream, backbone: Backbone, projected: bool) -> Tensor:
    """The network's first modulated input, or what the time is projected to for all blocks to be modulated by."""
    return backbone.time_projection(stream) if projected else backbone.modulated_input(stream)


class ModulatedInput(Accumulating):
    """Watches the network's first modulated input, or the time's projection (`projected`), through a polynomial.

    `coefficients`, highest power first, were fitted for changes from `least` to `most`: beyond they are taken at these,
    and where they are negative as 0, so that the sum cannot fall.
    """

    def __init__(
        self,
        threshold: float,
        pool: Pool,
        forced: list[bool],
        coefficients: list[float],
        most: float,
        least: float = 0.0,
        projected: bool = False,
    ) -> None:
        super().__init__(threshold, pool, forced)
        self.coefficients, self.most, self.least, self.projected = coefficients, most, least, projected

    def watched(self, stream: Stream, backbone: Backbone) -> Tensor:
        return watched_input(stream, backbone, self.projected)

    def estimated(self, change: Tensor) -> Tensor:
        change = change.clamp(self.least, self.most)
        total = torch.zeros_like(change)
        for coefficient in self.coefficients:
            total = total * change + coefficient
        return total.clamp_min(0)


class ProbeFeature(Accumulating):
    """Watches the stream behind the probe."""

    def watched(self, stream: Stream, backbone: Backbone) -> Tensor:
        return stream.hidden.clone()
