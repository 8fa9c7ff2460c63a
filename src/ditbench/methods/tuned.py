"""What methods have in common whose network is fine-tuned before it samples, and those whose tokens are routed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import Method, knob
from ditbench.methods.forms import WEIGHTS, Form

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.engine.fills import Fill
    from ditbench.engine.selectors import Selector


def timesteps(found: Mapping[str, Any], steps: int) -> NDArray[np.float64]:
    """The timesteps of a run, from those of the run that was trained for."""
    times = np.asarray(found["times"], dtype=np.float64)
    if len(times) == steps:
        return times
    # Samplers space their timesteps alike, whatever their number.
    places = np.arange(steps) * len(times) / steps
    return np.interp(places, np.arange(len(times)), times)


@dataclass(frozen=True)
class Tuned(Method):
    """Base of methods that train on pairs of images and captions, with the network's own diffusion loss.

    What was trained lies in a file beside the record of learning: an addition of low rank to every linear layer of the
    blocks (LoRA), or whole weights. It is worn while the method samples; the network that others use stays as it was.
    """

    learner: ClassVar[str | None] = "tuning"
    has_stand_in: ClassVar[bool] = True
    fine_tunes: ClassVar[bool] = True

    tuning: str = knob(
        "lora", "what of the network is trained: additions of low rank to its blocks, or all", choices=("lora", "full")
    )
    rank: int = knob(32, "of the additions", least=1)
    iterations: int = knob(10_000, "steps of the optimiser; the paper trains until losses converge", least=1)
    batch: int = knob(32, "pairs of one step of the optimiser", least=1)
    at_once: int = knob(16, "pairs that go through the network at once: it costs memory, not results", least=1)
    rate: float = knob(1e-4, "of learning the network's weights", least=0)
    decay: float = knob(0.03, "of the network's weights, by AdamW", least=0)
    warmup: int = knob(0, "steps over which the rates of weights and routers rise", least=0)
    average: float = knob(0.999, "decay of the averaged weights that are kept (EMA); 0: the last ones", least=0, most=1)
    precision: str = knob(
        "float32", "what the network computes in while it is trained", choices=("float32", "bfloat16")
    )
    checkpointing: str = knob("off", "blocks are run again for their gradients: less memory", choices=("off", "on"))
    training_seed: int = knob(0, "of pairs, noise and what starts at random", least=0)
    weights_file: str = knob("", "a record of learning whose weights are taken, or shipped:NAME, instead of training")

    def at_times(self, times: Sequence[float]) -> Self:
        """What was learned of timesteps is used at a sampler's own, not at those of the run it was trained for."""
        if self.found is None or "times" not in self.found:
            return self
        return self.knowing({**self.found, "times": list(times)})

    def waits(self) -> bool:
        return self.found is None

    def finds(self) -> Mapping[str, Form]:
        return WEIGHTS


@dataclass(frozen=True)
class Clipped(Tuned):
    """Base of those whose gradients are cut to a norm of all that is trained, as DiffCR's and its control's are."""

    clip: float = knob(
        1.0,
        "the norm that the gradients of all that is trained are cut to, together; ours: the paper names none; 0: none",
        least=0,
        later=True,
    )


@dataclass(frozen=True)
class Routed(Clipped):
    """Base of methods whose routers let some tokens pass by whole blocks."""

    router_rate: float = knob(
        1e-3,
        "of learning the routers; ours: the paper's one rate of 1e-4 is of its inpainting, trained longer, and routers "
        "start anew beside a network that does not",
        least=0,
    )
    score: str = knob(
        "sigmoid",
        "what multiplies the MLP: the router's sigmoid, as published, or twice that, which can leave it as it was",
        choices=("sigmoid", "doubled"),
    )
    start: str = knob(
        "linear",
        "routers at the start: as a linear layer's, as published, or zero; with doubled scores zero leaves the network "
        "as it was, which short trainings need",
        choices=("linear", "zero"),
    )
    guidance: str = knob(
        "separate",
        "tokens of both branches of guidance: each by its own score, or both by the greater or the mean of two",
        choices=("separate", "max", "mean"),
    )
    whole: str = knob(
        "none",
        "steps in which all tokens are computed: the last third, or every third (of a third the supplement's Table 3 "
        "does not say which)",
        choices=("none", "last-third", "every-third"),
    )
    interval: int = knob(
        1, "steps from one that computes blocks to the next, as FORA and TaylorSeer have them; 1: all do", least=1
    )
    order: int = knob(
        0, "between such steps: 0 reuses what blocks gave (FORA), above forecasts it (TaylorSeer)", least=0
    )

    def kept(self, shape: Shape) -> NDArray[np.float64]:
        """The share of tokens that go through every block, [step, block]."""
        raise NotImplementedError

    def scaled_blocks(self, blocks: int) -> list[bool]:
        """Of each block, whether scores scale what its MLP adds, also where all tokens go through it."""
        return [True] * blocks

    def plan(self, shape: Shape) -> Plan:
        shares, step = self.kept(shape).copy(), np.arange(shape.steps)
        if self.whole == "last-third":
            shares[step >= shape.steps - round(shape.steps / 3)] = 1
        elif self.whole == "every-third":
            shares[step % 3 == 0] = 1
        shares[step % self.interval != 0] = 0
        return Plan(shape.layout, shape.layout.by_block, shares)

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.fills import Pass, PassBy, Reuse
        from ditbench.engine.forecasts import Taylor

        if self.interval == 1:
            return Pass()
        return PassBy(Reuse() if self.order == 0 else Taylor(self.order))

    def selector(self, shape: Shape, generator: Generator) -> Selector:
        from ditbench.engine.routing import RoutedTokens

        gated = self.scaled_blocks(shape.layout.blocks)
        return RoutedTokens(self._routers(), shape.layout, self.score, self.guidance, gated)

    def _routers(self) -> Tensor | None:
        if self.found is None or "file" not in self.found:
            return None
        from ditbench.engine.outfit import ROUTERS, tuned_tensors

        return tuned_tensors(self.found["file"], self.found["sha256"])[ROUTERS].float()
