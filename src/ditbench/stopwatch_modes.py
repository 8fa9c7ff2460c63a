"""The ways in which a sampling run is timed: as it is, with compiled parts, and replayed as CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.engine.run import Run
    from ditbench.generate import Sampler

    StandIn = Callable[[Callable[[], Run]], Any]


def mode_of(sampler: Sampler, mode: str) -> AbstractContextManager[None]:
    """The state that the network is in while a mode is timed."""
    if mode != "compiled":
        return nullcontext()
    from ditbench.engine.compiling import compiled

    assert sampler.handle.backbone is not None
    return compiled(sampler.handle.backbone)


@contextmanager
def recording(mode: str) -> Iterator[StandIn | None]:
    """What stands in for an arm's runs in a mode; recordings are given back at the end."""
    if mode != "graphs":
        yield None
        return
    from ditbench.engine.graphs import Recorder

    recorder = Recorder()
    try:
        yield lambda make: _Replayed(make, recorder)
    finally:
        recorder.forget()


class _Replayed:
    """A run that is recorded at its first call of the network, or replays what was recorded before."""

    def __init__(self, make: Callable[[], Run], recorder: Any) -> None:
        self._make, self._recorder = make, recorder
        first = make()
        self.backbone, self.costs_of = first.backbone, first
        self._run: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._run is None:
            self._run = self._recorder.run(self._make, args, kwargs, self.costs_of.plan.steps)
        return self._run.forward(*args, **kwargs)

    def advance(self) -> None:
        if self._run is not None:
            self._run.advance()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


class Forwards:
    """Stands in for a run and keeps the seconds of each of its calls of the network, and how much each computed.

    `all` of the tokens at every site, `some` of them, or `none`.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: list[float] = []
        self.kinds: list[str] = []

    def __call__(self, make: Callable[[], Run]) -> Any:
        return _Clocked(make(), self)

    def wait(self) -> None:
        """Lets the device finish what it was given."""
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize(self._device)


class _Clocked:
    def __init__(self, run: Run, clock: Forwards) -> None:
        self._run, self._clock = run, clock

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before = self._computed()
        self._clock.wait()
        began = time.perf_counter()
        answer = self._run.forward(*args, **kwargs)
        self._clock.wait()
        self._clock.seconds.append(time.perf_counter() - began)
        computed, entered = (after - start for after, start in zip(self._computed(), before, strict=True))
        sites = len(self._run.trace.shape.layout) * self._run.trace.shape.tokens
        self._clock.kinds.append("none" if not computed else "all" if computed >= entered * sites else "some")
        return answer

    def _computed(self) -> tuple[int, int]:
        """Tokens at all sites, and samples, so far."""
        trace = self._run.trace
        return int(trace.computed.sum()), int(trace.entered.sum())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)
