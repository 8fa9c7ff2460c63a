"""DiffCR: routers, with a compression ratio of their own for every block and timestep, which is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.faults import Fault
from ditbench.methods.base import knob
from ditbench.methods.forms import TIMES, WEIGHTS, Each, Form, Numbers
from ditbench.methods.tuned import Routed, timesteps

# Training timesteps: regions are of these, whatever the sampler makes of them.
TIMESTEPS = 1000.0
# The shares of tokens that may be left out. The paper has bins up to 100 %, its code up to 70 %.
BINS = {"paper": tuple(n / 10 for n in range(10)), "code": tuple(n / 10 for n in range(8))}


@dataclass(frozen=True)
class DiffCR(Routed):
    """Ratios are scalars that start at no compression. In training a block is run with the two nearest bins of tokens
    and its output is their mix, so that the network's loss reaches the ratio; their mean is drawn to the target. When
    sampling, each ratio is its nearest bin: shapes are static. `variant` says what has a ratio of its own: every block
    (L), every region of timesteps (T), or both (LT). T is in none of the paper's tables.
    """

    name: ClassVar[str] = "diffcr"
    summary: ClassVar[str] = "learned routers, and a learned share of tokens for every block and region of timesteps"
    paper: ClassVar[str] = "arXiv 2412.16822"

    variant: str = knob("LT", "what has a ratio of its own", choices=("L", "T", "LT"))
    ratio: float = knob(0.2, "the target: share of the tokens that pass by, on average", least=0, most=0.9)
    regions: int = knob(4, "of timesteps, of equal width: 4 for 20 steps, 10 for 100", least=1, most=100)
    edges: str = knob(
        "", "timesteps that divide regions, instead of equal ones; SpeeD's of a linear schedule are 642,700"
    )
    bins: str = knob("paper", "shares that may pass by: 0 to 90 %, or 0 to 70 % as in the code", choices=tuple(BINS))
    ratio_rate: float = knob(1e-4, "of learning the ratios; short trainings need more (1e-3 to 5e-3)", least=0)
    coefficient: float = knob(0.3, "of the loss that draws the mean ratio to the target", least=0)
    adjusting: str = knob(
        "constant",
        "the coefficient: as it is, or changed while training to trade speed against quality, by a rule of ours",
        choices=("constant", "dynamic"),
    )
    mean: str = knob(
        "steps",
        "what mean is drawn to the target, and how much timesteps count in a ratio's loss: as sampling meets them, or "
        "as training does",
        choices=("steps", "batch"),
    )
    until: str = knob(
        "iterations",
        "when training ends: after its iterations, or before, when the mean ratio's squared distance from its target "
        "is below 1e-4 and the loss has stopped falling; the control then needs as many iterations as were taken",
        choices=("iterations", "settled"),
        later=True,
    )
    at: float = knob(
        0.0, "of weights_file: the model on the way whose ratio is nearest; 0: the last one", least=0, most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dividers()
        if self.at and not self.weights_file:
            raise Fault("at: models on the way are taken from a training that was run; name its record in weights_file")
        if self.ratio > self.shares[-1]:
            raise Fault(f"ratio: {self.ratio:g} is more than the last bin, {self.shares[-1]:g}")

    def finds(self) -> Mapping[str, Form]:
        own: dict[str, Form] = {**WEIGHTS, "ratios": Numbers(2, least=0, most=1)}
        on_the_way = Each({**own, "mean": Numbers()}, needed=False)
        return {**own, "times": TIMES, "mean": Numbers(needed=False), "on_the_way": on_the_way}

    @property
    def shares(self) -> tuple[float, ...]:
        """The bins: shares of tokens that may pass by."""
        return BINS[self.bins]

    def dividers(self) -> tuple[float, ...]:
        """The timesteps between one region and the next."""
        if self.variant == "L":
            return ()
        if not self.edges:
            return tuple(TIMESTEPS * n / self.regions for n in range(1, self.regions))
        try:
            found = tuple(float(word) for word in self.edges.split(","))
        except ValueError:
            found = ()
        if not found or list(found) != sorted(set(found)) or found[0] <= 0 or found[-1] >= TIMESTEPS:
            raise Fault(
                f"edges: {self.edges!r} must be timesteps between 0 and {TIMESTEPS:g} that rise, with commas between"
            )
        return found

    def regions_of(self, times: NDArray[np.float64]) -> NDArray[np.int64]:
        """The region of each timestep."""
        return np.searchsorted(np.array(self.dividers()), times, side="right")

    def nearest(self, ratios: NDArray[np.float64]) -> NDArray[np.float64]:
        """The nearest bin of each ratio."""
        shares = np.array(self.shares)
        return shares[np.abs(ratios[..., None] - shares).argmin(-1)]

    def kept(self, shape: Shape) -> NDArray[np.float64]:
        if self.found is None:
            raise self.unlearned()
        bins = self.nearest(np.asarray(self.found["ratios"], dtype=np.float64))  # [regions, blocks]
        if bins.shape != (len(self.dividers()) + 1, shape.layout.blocks):
            raise self.misfit(
                f"the ratios are of {bins.shape[0]} regions and {bins.shape[1]} blocks, "
                f"here are {len(self.dividers()) + 1} and {shape.layout.blocks}"
            )
        return 1 - bins[self.regions_of(timesteps(self.found, shape.steps))]
