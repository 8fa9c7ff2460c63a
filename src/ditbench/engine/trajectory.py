"""A fill that follows the trajectory of what a probe shows: residuals between the last two computed steps (DiCache)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from ditbench.engine.changes import ProbeFeature, relative_change
from ditbench.engine.fills import Key

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.changes import Pool
    from ditbench.engine.rows import Rows


class ProbeTrajectory(ProbeFeature):
    """Decides by the probe and fills by it, for a network of two units: the probe and the rest.

    R is what the whole network adds to the stream, P what the probe adds. With two computed steps before it, a step
    that is left out adds R2 + g (R1 - R2), where R1 and R2 are of the last and the last but one, and g how far P has
    come from P2 towards P1, within 1 and `most`; else the last R. Every sample has its own. With `minus` what decides
    is by how much the change behind the probe differs from that of what entered the network.
    """

    stateless: ClassVar[bool] = False
    wants_all: ClassVar[bool] = True

    def __init__(self, threshold: float, pool: Pool, forced: list[bool], most: float, minus: bool = False) -> None:
        super().__init__(threshold, pool, forced)
        self.most, self.minus = most, minus
        # What entered the network in this step and in the one before, where that change is taken off the probe's.
        self._came: tuple[Tensor | None, Tensor | None] = (None, None)
        self._entered: Tensor | None = None
        self._probe: Tensor | None = None  # P of this step
        # Of the last and the last but one computed step of every sample, and how many there were.
        self._residuals: list[Tensor] = []
        self._probes: list[Tensor] = []
        self._count: Tensor | None = None
        self._text: Tensor | None = None

    def enter(self, step: int, stream: Stream) -> None:
        self._entered = stream.hidden.clone()

    def wants(self, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        assert self._entered is not None
        if self.minus:
            self._came = (self._entered, self._came[0])
        self._probe, self._entered = stream.hidden - self._entered, None
        return super().wants(step, stream, backbone)

    def moved(self, now: Tensor, before: Tensor, stream: Stream) -> Tensor:
        moved, (entered, earlier) = super().moved(now, before, stream), self._came
        if entered is None or earlier is None:
            return moved
        return (moved - self.share(entered, earlier, stream)).abs()

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        if key.unit == 0:
            return  # the probe's own output is at hand when it is asked for
        if key.stream == "text":
            self._text = output
            return
        assert self._probe is not None
        samples = torch.arange(len(output), device=output.device)
        self._remember(samples, self._probe, self._probe + output)

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        assert rows.samples is not None, "whole samples are decided, not tokens"
        if key.stream == "text":
            assert self._text is not None
            self._text = self._text.index_copy(0, rows.samples, part)
            return self._text
        assert self._probe is not None
        whole = self._estimate().index_copy(0, rows.samples, part)
        probe = self._probe[rows.samples]
        self._remember(rows.samples, probe, probe + part)
        return whole

    def supply(self, key: Key, step: int) -> Tensor | None:
        return self._text if key.stream == "text" else self._estimate()

    def _remember(self, samples: Tensor, probe: Tensor, residual: Tensor) -> None:
        if not self._residuals:
            # Room for two steps of every sample; the first call is of all of them.
            self._residuals, self._probes = [residual, residual.clone()], [probe, probe.clone()]
            self._count = torch.ones(len(samples), device=samples.device)
            return
        assert self._count is not None
        for pair, newest in ((self._residuals, residual), (self._probes, probe)):
            last, before = pair
            pair[1] = before.index_copy(0, samples, last[samples])
            pair[0] = last.index_copy(0, samples, newest)
        self._count = self._count.index_add(0, samples, torch.ones(len(samples), device=samples.device))

    def _estimate(self) -> Tensor:
        """What the rest of the network is expected to add behind the probe, of every sample."""
        assert self._probe is not None and self._count is not None
        (last, before), (probe_last, probe_before) = self._residuals, self._probes
        come, _ = relative_change(self._probe, probe_before)
        way, _ = relative_change(probe_last, probe_before)
        share = (come / way.clamp_min(1e-12)).clamp(1, self.most)
        # With one computed step there is no way yet: the last residual as it is.
        share = torch.where(self._count > 1, share, torch.ones_like(share)).to(last.dtype)[:, None, None]
        return before + share * (last - before) - self._probe

    def nbytes(self) -> int:
        optional = (self._text, self._came[0])
        held = [*self._residuals, *self._probes, *(each for each in optional if each is not None)]
        return super().nbytes() + sum(tensor.nbytes for tensor in held)
