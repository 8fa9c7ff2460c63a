"""Deciders: the part of an online plan that looks at the stream and says which samples compute a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.layout import Unit


class Decider(Protocol):
    """State of one run, asked where the plan says ASK.

    What it keeps of a stream it must copy: the run goes on writing to the stream's tensors.
    """

    def decide(self, unit: Unit, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        """True for each sample [batch] that computes the unit; the others receive the fill.

        Each sample is decided by itself; a decider that pools its batch says so with a knob of its method. At the
        first step, where there is nothing to fill with, all samples compute whatever it answers.
        """


@runtime_checkable
class Entered(Protocol):
    """A decider that looks at the stream before any unit, too."""

    def enter(self, step: int, stream: Stream) -> None:
        """Called at the start of a pass; what it keeps it must copy."""


@runtime_checkable
class Checking(Protocol):
    """A decider that has the last block computed beside what its samples are given, to see how far they are off."""

    def due(self, step: int, stream: Stream) -> Tensor:
        """Which samples, by their numbers; asked before the last block."""

    def saw(self, exact: Tensor) -> None:
        """Called with what the last block makes of the stream of those samples, if there are any."""

    def again(self, step: int, stream: Stream) -> bool:
        """After all units: whether the step is run once more. It has put back the stream as it entered then."""


def checking_of(decider: object) -> Checking | None:
    """The decider, if it checks its drafts."""
    return decider if isinstance(decider, Checking) else None


def entered(decider: object, step: int, stream: Stream) -> None:
    """Shows the stream before any unit to a decider that looks at it."""
    if isinstance(decider, Entered):
        decider.enter(step, stream)


class Random:
    """Each sample computes with one probability: for tests and as a floor that a real decider must beat."""

    def __init__(self, probability: float, seed: int = 0) -> None:
        import torch

        self.probability, self.generator = probability, torch.Generator().manual_seed(seed)

    def decide(self, unit: Unit, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        import torch

        return torch.rand(stream.samples, generator=self.generator).to(stream.device) < self.probability
